"""Settings of sampling as text."""

from __future__ import annotations

from causalfusion import ModelConfig, SamplingConfig

WITHOUT_AR_STEPS = {"dit": "DiT", "transfusion": "Transfusion"}
"""Names of the baselines by their architectures, which generate all tokens in one AR step."""


def num_ar_steps(sampling: SamplingConfig) -> int:
    """Return S, which a list of step sizes sets too."""
    return sampling.num_ar_steps if isinstance(sampling.step_sizes, str) else len(sampling.step_sizes)


def inference_steps(sampling: SamplingConfig) -> str:
    """Return T: one number for all AR steps, 4+8 for two, or 50-5-linear for a schedule from 50 to 5."""
    steps = "+".join(map(str, sampling.inference_steps))
    if sampling.step_schedule == "constant":
        return steps
    return f"{steps}-{sampling.last_inference_steps}-{sampling.step_schedule}"


def describe_sampling(model: ModelConfig, sampling: SamplingConfig) -> str:
    """Return a model's place on the factorization plane in sampling."""
    return (
        f"S = {num_ar_steps(sampling)} AR step(s) of {model.num_tokens} tokens, "
        f"{inference_steps(sampling)} {sampling.sampler} steps each, guidance {sampling.guidance_scale:g}"
    )
