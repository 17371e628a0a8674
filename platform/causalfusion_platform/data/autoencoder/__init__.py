"""Autoencoders between images and latents: those of diffusers, or the identity where latents are pixels.

`encoder` defines encoding and decoding, and `open` finds an autoencoder on this machine. Open `encoder` first.
"""

from .encoder import Autoencoder, Encoder, Identity, encode_both
from .open import check_autoencoder, open_autoencoder, open_encoder

__all__ = [
    "Autoencoder",
    "Encoder",
    "Identity",
    "check_autoencoder",
    "encode_both",
    "open_autoencoder",
    "open_encoder",
]
