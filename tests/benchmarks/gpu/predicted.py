"""Predictions of the roofline for two cards, as the table of models/README.md."""

from __future__ import annotations

from collections.abc import Iterator

from causalfusion import CausalFusionConfig, ObjectiveConfig, preset

from . import roofline
from .ceilings import Ceilings
from .roofline import Form

CARDS = {"H200": Ceilings(products=790e12, copies=4.3e12), "H100": Ceilings(products=790e12, copies=3.0e12)}
"""An H200's are those of a product of 8192³ and of a copy on such a card. An H100's are assumed."""
MODELS = ("L", "XL", "H")
KINDS: tuple[tuple[str, Form, bool, int], ...] = (
    ("eager, `split`", "split", False, 1),
    ("compiled, `split`", "split", True, 64),
    ("compiled, `flex`", "flex", True, 64),
)
"""Name, form of attention, torch.compile, multiple of the sequence length."""
BATCH = 64


def main() -> None:
    """Print the tables."""
    print("\n".join([*training(), "", *parts("H200", "L"), "", *sampling()]))


def training() -> Iterator[str]:
    """Yield the table of images/s in training."""
    yield "| training, images/s | limit | " + " | ".join(name for name, *_ in KINDS) + " |"
    yield "|---|---|" + "---|" * len(KINDS)
    for card, ceilings in CARDS.items():
        for model in MODELS:
            config = config_of(model)
            rates = [
                BATCH
                / roofline.training_step(
                    config,
                    ObjectiveConfig(),
                    ceilings,
                    batch=BATCH,
                    form=form,
                    compiled=compiled,
                    multiple=multiple,
                ).total
                for _, form, compiled, multiple in KINDS
            ]
            limit = roofline.limit(config, ObjectiveConfig(), ceilings)
            yield f"| {model}, {card} | {limit:.0f} | " + " | ".join(f"{rate:.0f}" for rate in rates) + " |"


def parts(card: str, model: str) -> Iterator[str]:
    """Yield the table of the parts of a training step."""
    yield f"| {model} on {card}, ms a step | products | attention | elementwise | update | all |"
    yield "|---|---|---|---|---|---|"
    for name, form, compiled, multiple in KINDS:
        step = roofline.training_step(
            config_of(model),
            ObjectiveConfig(),
            CARDS[card],
            batch=BATCH,
            form=form,
            compiled=compiled,
            multiple=multiple,
        )
        times = (step.products, step.attention, step.elementwise, step.update, step.total)
        yield f"| {name} | " + " | ".join(f"{1e3 * seconds:.0f}" for seconds in times) + " |"


def sampling() -> Iterator[str]:
    """Yield the table of images/s in sampling."""
    cases = [(images, ar_steps, steps) for ar_steps in (1, 16) for steps in (250, 20) for images in (64, 8)]
    yield "| L, guided, images/s | " + " | ".join(f"S = {s}, {t} steps, {b}" for b, s, t in cases) + " |"
    yield "|---|" + "---|" * len(cases)
    for card, ceilings in CARDS.items():
        for graphed in (False, True):
            rates = [
                images
                / roofline.sampling_seconds(
                    config_of("L"),
                    ceilings,
                    images=images,
                    ar_steps=ar_steps,
                    diffusion_steps=steps,
                    graphed=graphed,
                )
                for images, ar_steps, steps in cases
            ]
            kind = "CUDA graph" if graphed else "eager"
            yield f"| {card}, {kind} | " + " | ".join(f"{rate:.3g}" for rate in rates) + " |"


def config_of(model: str) -> CausalFusionConfig:
    """Return the system of Table 10 at 256² pixels."""
    config = preset(f"{model}-system-256")
    assert isinstance(config, CausalFusionConfig)
    return config


if __name__ == "__main__":
    main()
