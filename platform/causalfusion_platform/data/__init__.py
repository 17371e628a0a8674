"""Data: from images to latent shards, and from shards to the batches of training.

`sources/`, `images` and `autoencoder/` read, crop and encode images. `encode/` runs them as a Ray Data pipeline.
`manifest` and `shards` define the format, and `validate`, `scan` and `quarantine` check it. `order`, `read` and
`stream` feed training. `coco_captions` reads the JSON files of COCO's captions. Open `manifest`
first, then `stream` or `encode/pipeline`.
"""
