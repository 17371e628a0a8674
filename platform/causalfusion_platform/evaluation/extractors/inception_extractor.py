"""Features of FID, sFID and the Inception Score from a local file of weights."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from causalfusion.weights.checkpoint_file import read_state, report_mismatch

from ...config.errors import UserError
from ...data.autoencoder.encoder import exact_convolutions
from ...data.manifest import sha256_of
from .extractor import Extractor, Features, check_images
from .inception import INPUT_SIZE, InceptionV3
from .resize import resize_as_tf1

FID_SPACE = "inception_2015_12_05"
FID_DIGEST = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
"""SHA-256 of the released file, which torch-fidelity and pytorch-fid ship under two names."""


class InceptionExtractor(Extractor):
    """The network of FID with the weights of a file.

    The space is `inception_2015_12_05`, and its distance "FID", only if the file has the released SHA-256. Other
    weights are used too, and so is a copy in another format. Their space is named by the first 8 digits of their
    own SHA-256, as in `fd_inception_0123abcd`.
    """

    judges_classes = False

    def __init__(self, network: InceptionV3, digest: str, device: torch.device | str = "cpu") -> None:
        """Use a network, and the SHA-256 of the file of its weights."""
        self.network = network.to(device).eval().requires_grad_(False)
        self.digest = digest
        self.space = FID_SPACE if digest == FID_DIGEST else f"inception_{digest[:8]}"
        self.device = torch.device(device)

    @torch.no_grad()
    def features(self, images: Tensor) -> Features:
        """Map images (B, 3, H, W) uint8 to pool (B, 2048), spatial (B, 2023) and probabilities (B, 1008).

        Grey images (B, 1, H, W) are taken as RGB. The probabilities are those of the Inception Score:
        the softmax over all 1008 outputs, without the bias of the last layer. 8 of the outputs are not classes.

        Raises:
            ValueError: images are of another type or shape.
        """
        check_images(images, (1, 3))
        pixels = images.to(self.device).expand(-1, 3, -1, -1).float()
        pixels = (resize_as_tf1(pixels, INPUT_SIZE) - 128) / 128
        with exact_convolutions(self.device):
            pool, spatial = self.network(pixels)
        # In float64, which a process that rounds float32 products to TF32 for its training does not round.
        logits = pool.double() @ self.network.fc.weight.double().T
        return Features(pool, spatial, logits.softmax(dim=1).float())


def open_inception(path: Path, device: torch.device | str = "cpu") -> InceptionExtractor:
    """Return the extractor with the weights in `path`, a file of `torch.save` or safetensors.

    Code in the file is not run. Counters of batches, which training leaves beside the weights, are passed over.

    Raises:
        UserError: the file is missing or damaged, needs pickled code, or holds another network.
    """
    if not path.is_file():
        raise UserError(f"no Inception weights in {path}: there is no such file\n  {_wanted(path)}")
    try:
        digest = sha256_of(path)
        found = {
            name: value for name, value in read_state(path).items() if not name.endswith("num_batches_tracked")
        }
        with torch.device("meta"):
            network = InceptionV3()
        wanted = {name: tuple(value.shape) for name, value in network.state_dict().items()}
        report_mismatch(wanted, {name: tuple(value.shape) for name, value in found.items()}, path)
    except (OSError, ValueError) as error:
        raise UserError(f"no Inception weights: {error}\n  {_wanted(path)}") from error
    network.load_state_dict({name: value.float().clone() for name, value in found.items()}, assign=True)
    return InceptionExtractor(network, digest, device)


def _wanted(path: Path) -> str:
    return (
        f"nothing is downloaded: fetch weights-inception-2015-12-05-6726825d.pth (torch-fidelity's release v0.2.0 "
        f"on GitHub) where there is a network, and put it at {path}; its SHA-256 is {FID_DIGEST}"
    )
