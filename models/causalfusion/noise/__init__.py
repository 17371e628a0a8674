"""Diffusion axis of the factorization: noise levels.

`diffusion` adds noise and converts predictions. `samplers` holds the solvers that remove it. `scheduler` reads the
settings of diffusers schedulers. Open `diffusion` first.
"""
