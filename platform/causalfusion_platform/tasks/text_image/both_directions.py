"""Samples and captions of one model, during training and at its end, as tensors that a file can hold."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from causalfusion import CaptionConfig, CausalFusion
from causalfusion.text.prompts import cut_prompts
from causalfusion.text.tokenizer import Tokenizer

from ...config.schema import Experiment
from ...data.captioned_rows import CaptionedRows
from ...sampling.describe import describe, describe_together
from ...sampling.generate import Request, generate_together
from ..final import packed


@dataclass(frozen=True)
class BothDirections:
    """A model that draws prompts and describes images, with the settings of its experiment."""

    experiment: Experiment
    model: CausalFusion
    tokenizer: Tokenizer
    bf16: bool
    """True if matrix products are in bf16."""

    def request(self, prompts: Sequence[str]) -> Request:
        """Return a request for one sample of each prompt. A prompt that is too long is cut."""
        experiment, text = self.experiment, self.model.config.text
        assert text is not None
        encoded, _ = cut_prompts(prompts, self.tokenizer, text.max_tokens)
        return Request(
            labels=encoded,
            sampling=experiment.sampling,
            diffusion=experiment.diffusion,
            seed=experiment.seed,
            bf16=self.bf16,
            batch_size=experiment.evaluation.batch_size,
        )

    def captions(self, latents: Tensor, config: CaptionConfig) -> list[str]:
        """Describe images (B, channels, height, width) on this rank."""
        return describe(self.model, latents, self.tokenizer, config, **self._options()).texts

    def final(
        self, validation: CaptionedRows, unseen: Sequence[str], alive: Callable[[], None]
    ) -> dict[str, Tensor]:
        """Draw the first validation captions and describe the first validation images. Ranks call it together.

        Args:
            validation: captions and images.
            unseen: more prompts, of property cells that are in no training row.
            alive: called again and again.

        Returns:
            `latents` (B, channels, height, width), `latents_w<scale>` for each of `evaluation.guidance_scales`,
            and `captions` as bytes, also `captions_beam<n>` with a beam search. With `unseen`, `unseen` and
            `unseen_w<scale>` are their drawings.
        """
        evaluation, sampling = self.experiment.evaluation, self.experiment.sampling
        alive()
        final: dict[str, Tensor] = {}
        for key, prompts in (("latents", validation.prompts(evaluation.num_samples)), ("unseen", unseen)):
            if not prompts:
                continue
            request = self.request(prompts)
            final[key] = generate_together(self.model, request, alive)
            for scale in evaluation.guidance_scales:
                other = dataclasses.replace(request, sampling=dataclasses.replace(sampling, guidance_scale=scale))
                final[f"{key}_w{scale:g}"] = generate_together(self.model, other, alive)
        configs = {"captions": CaptionConfig()}
        if evaluation.beam > 1:
            configs[f"captions_beam{evaluation.beam}"] = CaptionConfig(beam=evaluation.beam)
        shown, options = validation.latents[: evaluation.num_captions], self._options() | {"alive": alive}
        for name, config in configs.items():
            final[name] = packed(describe_together(self.model, shown, self.tokenizer, config, **options))
        return final

    def _options(self) -> dict[str, Any]:
        experiment = self.experiment
        return {"seed": experiment.seed, "batch_size": experiment.evaluation.batch_size, "bf16": self.bf16}
