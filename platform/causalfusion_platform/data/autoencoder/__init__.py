"""Between images and latents: a diffusers autoencoder, or nothing where latents are pixels."""

from .encoder import Autoencoder, Encoder, Identity, encode_both
from .open import open_autoencoder, open_encoder

__all__ = ["Autoencoder", "Encoder", "Identity", "encode_both", "open_autoencoder", "open_encoder"]
