"""Encoding of images into latent shards with Ray Data.

`plan` assigns images to shards and batches, and `pipeline` runs the `stages` decode, encode and write. `records`
describe finished shards, and `progress` counts for the display. Open `plan` first, then `pipeline`.
"""
