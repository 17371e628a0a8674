"""`make bench-gpu`: what one GPU reaches, beside its own ceilings and the predictions of a roofline.

It needs torch, einops and safetensors beside this repository. `__main__` runs the sections `ceilings`,
`attention`, `training` and `sampling`, each under a deadline. `report` judges them, and `roofline` predicts. Open
`__main__` first.
"""
