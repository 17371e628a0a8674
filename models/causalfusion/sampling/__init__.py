"""Images from a trained model.

`sample` generates over AR steps and diffusion steps, `guidance` combines conditional and unconditional predictions,
`edit` and `outpaint` keep a part of an image, `pipeline` is the diffusers pipeline. Open `sample` first.
"""
