"""Data: from images to latent shards, and from shards to the batches of training.

`sources/`, `images` and `autoencoder/` read, crop and encode images. `encode/` runs them as a Ray Data pipeline.
`manifest` and `shards` define the format, and `validate`, `scan` and `quarantine` check it. `order`, `read` and
`stream` feed training. Open `manifest` first, then `stream` or `encode/pipeline`.
"""
