"""Generate parts of a sample set in one process, by a model and its autoencoder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from causalfusion import Prompts, load_weights
from causalfusion.weights.folder import WEIGHTS_FILE

from ..config.errors import UserError
from ..data.autoencoder import open_autoencoder
from ..data.autoencoder.encoder import exact_convolutions
from ..data.manifest import AutoencoderId, sha256_of
from .generate import Request, SamplingModel
from .pixels import Pixels, to_uint8
from .prompts import text_of, tokenizer_of
from .prompts_file import PromptsId, encode_captions, read_captions
from .sample_set import SamplePlan


class PartMaker:
    """A model and its autoencoder on one device."""

    def __init__(self, plan: SamplePlan, device: str) -> None:
        """Load the model and the autoencoder of a plan.

        Raises:
            UserError: weights or autoencoder are missing, or differ from those of the plan.
        """
        file = Path(plan.weights) / WEIGHTS_FILE
        if not file.is_file() or sha256_of(file) != plan.weights_sha256:
            raise UserError(
                f"{file} is not there, or another file, on the machine of a worker\n"
                f"  weights must lie on storage that all nodes share"
            )
        coder = open_autoencoder(plan.vae, plan.model.in_channels, device)
        found = AutoencoderId(name=coder.name, scale=coder.scale, weights_sha256=coder.weights_sha256)
        if found != plan.autoencoder:
            raise UserError(
                f"the autoencoder {plan.vae} on the machine of a worker is another one\n"
                f"  it must lie on storage that all nodes share"
            )
        self.device = torch.device(device)
        self.model = load_weights(plan.weights, device=device)
        self.autoencoder = coder
        self.plan = plan
        self._sampling: dict[bool, SamplingModel] = {}
        self._prompts: tuple[PromptsId, int, Prompts] | None = None

    def serves(self, plan: SamplePlan) -> bool:
        """Return whether the model and the autoencoder are those of a plan."""
        mine = self.plan
        return (mine.weights_sha256, mine.model, mine.autoencoder) == (
            plan.weights_sha256,
            plan.model,
            plan.autoencoder,
        )

    def make(self, plan: SamplePlan, part: int) -> Pixels:
        """Generate the images of a part: (n, H, W, 3).

        Raises:
            UserError: an image has numbers that are not finite, or the file of prompts has changed.
        """
        request = Request(
            labels=self._condition(plan),
            sampling=plan.sampling,
            diffusion=plan.diffusion,
            seed=plan.seed,
            bf16=plan.precision == "bf16",
            batch_size=plan.batch_size,
        )
        numbers = plan.part(part)
        with _one_thread(self.device):
            latents = self._sampling_model(request.bf16).generate(request, list(numbers))
            with exact_convolutions(self.device):
                images = self.autoencoder.decode(latents)
        finite = images.isfinite().flatten(1).all(dim=1)
        if not finite.all():
            bad = numbers[int(finite.int().argmin())]
            raise UserError(
                f"sample {bad} of the weights in {plan.weights} has NaN or infinite numbers\n"
                f"  see that their training did not diverge; bf16 may be too rough: --precision fp32"
            )
        return to_uint8(images, plan.uint8)

    def _sampling_model(self, bf16: bool) -> SamplingModel:
        """Return the model in the precision of a plan, which is kept for its other parts."""
        if bf16 not in self._sampling:
            self._sampling = {bf16: SamplingModel(self.model, bf16=bf16)}
        return self._sampling[bf16]

    def _condition(self, plan: SamplePlan) -> Tensor | Prompts:
        """Return the class or the prompt of each sample of a plan. Prompts are kept for its other parts."""
        if plan.prompts is None:
            return plan.label_tensor()
        known, text = self._prompts, text_of(plan.model)
        assert text is not None
        if known is not None and known[:2] == (plan.prompts, plan.num):
            return known[2]
        tokenizer = tokenizer_of(plan.weights, plan.model)
        assert tokenizer is not None
        file, cut = plan.prompts.file, plan.prompts.cut is not None
        captions = read_captions(file, plan.prompts.sha256)[0][: plan.num]
        prompts, _ = encode_captions(captions, tokenizer, text.max_tokens, cut=cut, place=str(file))
        self._prompts = plan.prompts, plan.num, prompts
        return prompts


@contextmanager
def _one_thread(device: torch.device) -> Iterator[None]:
    """Let a CPU compute on one thread, since sums on another number of threads round differently.

    Otherwise the samples would depend on the number of workers on a machine.
    """
    threads = torch.get_num_threads()
    if device.type == "cpu":
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
