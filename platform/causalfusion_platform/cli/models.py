"""`causalfusion models`: list the model presets."""

from __future__ import annotations


def models() -> None:
    """List the model presets with exact parameters, sizes, and training TFLOP of one image."""
    from causalfusion import PRESETS, ObjectiveConfig, count_parameters
    from causalfusion.flops import training_flops

    print(
        f"{'preset':<14}{'parameters':>14}{'width':>6}{'depth':>6}{'heads':>6}{'latent/patch':>13}{'class':>6}"
        f"{'S=1':>8}{'γ=.9':>7}"
    )
    for name, config in PRESETS.items():
        costs = [_tera(training_flops(config, ObjectiveConfig(num_ar_steps=1)))]
        costs += [_tera(training_flops(config, ObjectiveConfig()))] if config.architecture != "dit" else ["–"]
        latent = f"{config.in_channels}×{config.input_size}×{config.input_size}/{config.patch_size}"
        print(
            f"{name:<14}{count_parameters(config):>14,}{config.hidden_size:>6}{config.depth:>6}"
            f"{config.num_heads:>6}{latent:>13}{config.num_class_tokens or '–':>6}{costs[0]:>8}{costs[1]:>7}"
        )
    print(
        "\nclass: class tokens in the sequence (DiT has none: AdaLN-zero). S=1 and γ=.9:\n"
        "TFLOP to train on one image, forward and backward, with one AR step and with\n"
        "random ones; every token in every block, attention over the whole sequence.\n"
        "Use a model as model.preset=NAME."
    )


def _tera(flops: float) -> str:
    return f"{flops / 1e12:.2f}" if flops >= 1e10 else f"{flops / 1e12:.0e}"
