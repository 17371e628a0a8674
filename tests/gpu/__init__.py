"""`make test-gpu`: training, resuming and sampling on one GPU, end to end, in about two minutes.

`model` needs torch, einops, safetensors and the numpy that safetensors writes with. `program` runs the commands
where the platform's libraries are installed, and under Ray where Ray is. Open `__main__` first.
"""
