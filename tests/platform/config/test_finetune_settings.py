"""Fine-tunes of Table 6b: the settings of Tables 12 and 13 and of Appendix C's text, and those on digits."""

from __future__ import annotations

from typing import Any

import pytest
from tests.platform.config.paper_settings import IMAGENET
from tests.platform.config.test_table_experiments import RECIPES
from tests.platform.config.trees import SHIPPED, shipped

from causalfusion_platform.config.augment import parse_rand_augment
from causalfusion_platform.config.compose import flatten
from causalfusion_platform.tasks import open_task

KARPATHY_TRAIN = 113_287
"""Images of Karpathy's train and restval."""

TABLE_12: dict[str, Any] = {
    "task": "classification",
    "optim.base_lr": 1e-3,
    "optim.weight_decay": 0.05,
    "optim.betas": [0.9, 0.999],
    "finetune.layer_decay": 0.85,
    "train.global_batch_size": 1024,
    "optim.schedule": "cosine",
    "optim.warmup_epochs": 5,
    "train.images": 50 * IMAGENET,
    "finetune.augment.rand_augment": "rand-m9-mstd0.5-inc1",
    "finetune.augment.label_smoothing": 0.1,
    "finetune.augment.erasing": 0.25,
    "finetune.augment.mixup": 0.8,
    "finetune.augment.cutmix": 1.0,
    "finetune.drop_path": 0.1,
    "train.precision": "bf16",  # the text above the table
    # MAE's program
    "finetune.augment.mode": "pixels",
    "optim.min_lr": 1e-6,
    "optim.clip_grad_norm": 0,
    "optim.ema_decay": 0,
    "finetune.freeze": False,
}
TABLE_13: dict[str, Any] = {
    "task": "captioning",
    "optim.base_lr": 1e-4,  # of the caption head, at the batch of 256 that base rates are of
    "finetune.backbone_lr_scale": 0.1,  # 1e-5 of the other parameters
    "optim.weight_decay": 0.01,
    "finetune.caption_head.dropout": 0.1,
    "optim.betas": [0.9, 0.999],
    "train.global_batch_size": 256,
    "optim.schedule": "cosine",
    "optim.warmup_epochs": 2,
    "train.images": 20 * KARPATHY_TRAIN,
    # the text of Appendix C
    "finetune.caption_head.encoder_depth": 3,
    "finetune.caption_head.decoder_depth": 3,
    "finetune.caption_head.width": 384,
    "finetune.caption_head.num_heads": 6,
    # decided where the paper does not say
    "evaluation.beam": 3,
    "optim.clip_grad_norm": 0,
    "optim.ema_decay": 0,
    "finetune.freeze": False,
}
CAPTION_STEPS = 140
"""Six epochs of 1,497."""


@pytest.mark.parametrize(
    ("name", "printed"),
    [(f"{place}{kind}", table) for place in ("finetune/", "table6b/paper/finetune-")
     for kind, table in (("classify", TABLE_12), ("caption", TABLE_13))]
    + [("table6b/paper/finetune-caption-mar", TABLE_13)],
)  # fmt: skip
def test_recipes_are_those_of_tables_12_and_13(name: str, printed: dict[str, Any]) -> None:
    found = dict(flatten(shipped(name).model_dump(mode="json")))
    assert {key: found[key] for key in printed} == printed
    assert shipped(name).learning_rate == pytest.approx(4e-3 if printed is TABLE_12 else 1e-4)


def test_rand_augment_is_of_magnitude_9_and_spread_a_half() -> None:
    finetune = shipped("finetune/classify").finetune
    assert finetune is not None and finetune.augment.rand_augment is not None
    policy = parse_rand_augment(finetune.augment.rand_augment)
    assert (policy.magnitude, policy.magnitude_std, policy.layers) == (9, 0.5, 2)


def test_splits_of_the_papers_recipes() -> None:
    """Karpathy's val chooses the block and test is reported. The last row has latents of its own autoencoder."""
    classify, caption, mar = (shipped(f"table6b/paper/{name}") for name in RECIPES["paper"])
    assert classify.data.validation is not None and classify.data.validation.name == "imagenet-pixels-val"
    for of, stem in ((caption, "coco-karpathy"), (mar, "coco-karpathy-mar")):
        assert of.data.validation is not None and of.finetune is not None and of.finetune.test is not None
        names = [of.data.path.name, of.data.validation.name, of.finetune.test.name]
        assert names == [stem, f"{stem}-val", f"{stem}-test"]
        assert {"cider_d_words_beam3", "cider_d_words_beam3_test"} <= set(open_task(of).scores())


def test_recipes_on_digits(subtests: pytest.Subtests) -> None:
    """One length for all labels, for ten of each class and for a frozen model, and one subset for all."""
    for name in RECIPES["digits"]:
        with subtests.test(recipe=name):
            of = shipped(f"table6b/digits/{name}")
            caption, ten = "caption" in name, "-10" in name
            assert of.finetune is not None and of.finetune.freeze == name.endswith("-frozen")
            assert of.finetune.weights is None
            assert of.task == ("captioning" if caption else "classification")
            assert of.train.steps == (CAPTION_STEPS if caption else 234)
            assert (of.optim.warmup_epochs, of.optim.warmup_images) == ((None, 1497) if ten else (1, 0))
            assert of.train.checkpoint_every_images >= of.train.images
            kind = "digits-captions" if caption else "digits-split"
            assert of.data.path.name == (f"{kind}-10" if ten else kind)
            assert of.data.validation is not None and of.data.validation.name == f"{kind}-validation"
            subset = of.data.subset
            assert ten == (subset is not None)
            if subset is not None:
                assert (subset.of.name, subset.per_class, subset.seed) == (kind, 10, 0)
            assert ("cider_d_words_beam3" if caption else "top1") in open_task(of).scores()


@pytest.mark.parametrize("scale", RECIPES)
def test_a_recipe_says_its_purpose(scale: str) -> None:
    for name in RECIPES[scale]:
        lines = (SHIPPED / "table6b" / scale / f"{name}.yaml").read_text().splitlines()
        keys = [line.split()[1] for line in lines if line.startswith("# ") and not line.startswith("#  ")]
        assert {"command", "shows", "expected"} <= set(keys), name
        assert any(f"--recipe table6b/{scale}/{name}" in line for line in lines), name
        assert shipped(f"table6b/{scale}/{name}").name == f"table6b-{scale}-{name.removeprefix('finetune-')}"
