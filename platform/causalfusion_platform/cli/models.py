"""`causalfusion models`: the named models."""

from __future__ import annotations


def models() -> None:
    """List the model presets with their exact numbers of parameters."""
    import torch

    from causalfusion import PRESETS, CausalFusion

    print(
        f"{'preset':<16}{'parameters':>15}{'width':>7}{'depth':>7}{'heads':>7}{'latent':>11}{'patch':>7}{'tokens':>8}"
    )
    for name, config in PRESETS.items():
        with torch.device("meta"):
            count = sum(parameter.numel() for parameter in CausalFusion(config).parameters())
        latent = f"{config.in_channels}×{config.input_size}×{config.input_size}"
        print(
            f"{name:<16}{count:>15,}{config.hidden_size:>7}{config.depth:>7}{config.num_heads:>7}"
            f"{latent:>11}{config.patch_size:>7}{config.num_tokens:>8}"
        )
