"""The second axis of the factorization: diffusion noise levels.

`diffusion` adds noise and converts predictions, `samplers` are the solvers that remove it, `scheduler` reads
settings of diffusers schedulers. Open `diffusion` first.
"""
