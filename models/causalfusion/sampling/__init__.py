"""Images from a trained model.

`sample` generates over AR steps and diffusion steps. `guidance` schedules classifier-free guidance,
`step_schedule` the diffusion steps over AR steps. `predictor` calls the model. `recorded` repeats its forward
passes as CUDA graphs, over the `fixed` memory of a batch. `edit` and `outpaint` keep a part of an image. `pipeline`
is the diffusers pipeline. Open `sample` first.
"""
