"""Augmentation of images and latents for fine-tunes, after MAE's recipe.

`transforms` puts the parts together for a reading task. Its parts are `crop_flip`, `rand_augment` with `operations`
and `erasing`. `mixing` is mixup, CutMix and soft targets on the device. Open `transforms` first, then `mixing`.
"""
