"""Tables as data: what is read, what is refused, and which rows and claims there are at a scale."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.platform.config.trees import write_yaml

from causalfusion_platform.config.errors import UserError
from causalfusion_platform.config.paper_figure import ArStepFigure, TextImageFigure
from causalfusion_platform.config.paper_table import load_table, table_names

TREE: dict[str, Any] = {
    "title": "What it asks",
    "source": "Table 9z",
    "varied": "size",
    "measured": "FID-10k",
    "columns": [{"name": "S = 1", "ar_steps": 1}, {"name": "recall", "metric": "recall", "guidance_scale": 2}],
    "rows": [
        {"file": "small", "label": "S", "printed": [3.5, 0.1]},
        {"file": "middle", "label": "M", "small_label": "m", "printed": [2.5, None], "scales": ["paper"]},
        {"file": "large", "label": "L", "printed": [1.5, 0.3]},
    ],
    "claims": [
        {"says": "more is better", "column": "S = 1", "better": ["middle", "large"], "worse": ["small"]},
        {"says": "up to a point", "column": "recall", "better": ["large"], "worse": ["middle"]},
    ],
    "scales": {
        "paper": {"metrics": {"fid": "fid", "recall": "recall"}, "samples": 10, "seeds": [0]},
        "digits": {
            "metrics": {"fid": "fd_digits_cnn", "recall": "recall_digits_cnn"},
            "samples": 5,
            "seeds": [0, 1],
        },
    },
}


FINETUNES: dict[str, Any] = {
    "columns": [
        TREE["columns"][0],
        {"name": "top-1", "metric": "top1", "finetune": "classify"},
        {
            "name": "scratch",
            "metric": "top1",
            "finetune": "classify",
            "pretrained": False,
            "rows": ["small", "large"],
        },
    ],
    "rows": [row | {"printed": [3.5, 0.1, None]} for row in TREE["rows"]],
    "claims": [{"says": "it helps", "column": "top-1", "better": ["small"], "over": "scratch", "ours": True}],
    "scales": {scale: plan | {"metrics": {"fid": "fid", "top1": "top1"}} for scale, plan in TREE["scales"].items()},
}
"""The same with columns that are measured by fine-tunes."""
TEXT_IMAGE: dict[str, Any] = {"kind": "text_image", "prompts": ["a one", "a two"], "samples": 3, "images": 4}


def write(folder: Path, **changes: Any) -> None:
    write_yaml(folder / "experiments/table9z/table.yaml", yaml.safe_dump(TREE | changes))


def fault(folder: Path, **changes: Any) -> str:
    """Return what is said of a changed table."""
    write(folder, **changes)
    with pytest.raises(UserError) as caught:
        load_table("table9z")
    assert "table9z/table.yaml is wrong" in str(caught.value)
    return str(caught.value)


def test_a_table_is_read(own_folder: Path) -> None:
    write(own_folder)
    table = load_table("table9z")
    assert (table.name, table.source, table.note) == ("table9z", "Table 9z", "")
    first, second = table.columns
    assert (first.name, first.metric, first.ar_steps, first.guidance_scale) == ("S = 1", "fid", 1, None)
    assert (second.metric, second.ar_steps, second.guidance_scale) == ("recall", None, 2.0)
    assert table.rows[1].printed == (2.5, None)
    assert table.experiment(table.rows[0], "digits") == "table9z/digits/small"
    assert (table.plan("digits").seeds, table.plan("digits").figure) == ((0, 1), None)


def test_a_scale_has_its_figure(own_folder: Path) -> None:
    scales = TREE["scales"]
    figures = {"paper": {"kind": "ar_steps"}, "digits": TEXT_IMAGE}
    write(own_folder, scales={scale: scales[scale] | {"figure": figure} for scale, figure in figures.items()})
    table = load_table("table9z")
    assert isinstance(table.plan("paper").figure, ArStepFigure)
    figure = table.plan("digits").figure
    assert isinstance(figure, TextImageFigure)
    assert (figure.prompts, figure.samples, figure.images, figure.beam) == (("a one", "a two"), 3, 4, 1)


def test_own_tables_stand_beside_the_shipped_ones(own_folder: Path) -> None:
    shipped = table_names()
    write(own_folder)
    assert table_names() == sorted([*shipped, "table9z"])
    assert "table9z" not in shipped
    (own_folder / "experiments/table3a").mkdir()
    (own_folder / "experiments/table9z/table.yaml").rename(own_folder / "experiments/table3a/table.yaml")
    assert table_names() == shipped
    assert load_table("table3a").source == "Table 9z"  # the working directory's goes first


def test_rows_and_claims_of_a_scale(own_folder: Path) -> None:
    """A claim keeps the rows that are there, and goes when none is left on a side."""
    write(own_folder)
    table = load_table("table9z")
    assert [row.file for row in table.rows_at("paper")] == ["small", "middle", "large"]
    assert [row.file for row in table.rows_at("digits")] == ["small", "large"]
    assert table.claims_at("paper") == table.claims
    [left] = table.claims_at("digits")
    assert (left.says, left.better, left.worse) == ("more is better", ("large",), ("small",))
    write(own_folder, columns=[TREE["columns"][0] | {"scales": ["paper"]}, TREE["columns"][1]])
    assert load_table("table9z").claims_at("digits") == ()


def test_columns_of_fine_tunes(own_folder: Path) -> None:
    plan = {"layers": [2, 4], "recipes": {"large": "finetune-large"}}
    scales = FINETUNES["scales"] | {"paper": FINETUNES["scales"]["paper"] | {"finetunes": {"classify": plan}}}
    write(own_folder, **FINETUNES | {"scales": scales})
    table = load_table("table9z")
    _, middle, large = table.rows
    assert [column.trained_as for column in table.columns] == [None, "classify", "classify-scratch"]
    assert [[column.has(row) for row in table.rows] for column in table.columns] == [[True] * 3] * 2 + [
        [True, False, True]
    ]
    assert table.finetunes == ("classify",)
    assert table.recipe("classify", large, "paper") == "table9z/paper/finetune-large"
    assert table.recipe("classify", middle, "paper") == "table9z/paper/finetune-classify"
    assert table.recipe("classify", large, "digits") == "table9z/digits/finetune-classify"
    assert table.finetune_plan("classify", "paper").layers == (2, 4)
    assert table.finetune_plan("classify", "digits").layers == ()
    assert [claim.over for claim in table.claims_at("digits")] == ["scratch"]
    scratch = FINETUNES["columns"][2] | {"scales": ["paper"]}
    write(own_folder, **FINETUNES | {"columns": [*FINETUNES["columns"][:2], scratch]})
    assert load_table("table9z").claims_at("digits") == ()


def changed(column: int, **changes: Any) -> dict[str, Any]:
    columns = list(FINETUNES["columns"])
    columns[column] = columns[column] | changes
    return FINETUNES | {"columns": columns}


def claimed(**changes: Any) -> dict[str, Any]:
    return FINETUNES | {"claims": [FINETUNES["claims"][0] | changes]}


def planned(**finetunes: Any) -> dict[str, Any]:
    return FINETUNES | {"scales": {"paper": FINETUNES["scales"]["paper"] | {"finetunes": finetunes}}}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (changed(0, pretrained=False), "column S = 1 has pretrained: false, but no fine-tune"),
        (changed(1, ar_steps=1), "column top-1 is measured by fine-tune classify, which draws no samples"),
        (changed(1, finetune="../up"), "finetune"),
        (changed(2, rows=["tiny"]), "column scratch has rows tiny; rows: small, middle, large"),
        (claimed(better=["middle"]), "a claim is about rows middle of column scratch; rows: small, large"),
        (claimed(over="S = 2"), "column 'S = 2'; columns: S = 1, top-1, scratch"),
        (claimed(over="S = 1"), "a claim compares columns of different metrics: top-1, S = 1"),
        (claimed(worse=["large"]), "needs rows that are worse, or a column `over`: one of them"),
        (claimed(over=None), "needs rows that are worse, or a column `over`: one of them"),
        (planned(caption={"layers": [1]}), "scale paper plans fine-tune caption, which no column names"),
        (planned(classify={"recipes": {"x": "y"}}), "fine-tune classify has recipes of rows x"),
        (planned(classify={"layers": [0]}), "layers"),
    ],
)
def test_a_wrong_fine_tune(own_folder: Path, changes: dict[str, Any], said: str) -> None:
    assert said in fault(own_folder, **changes)


# Denoising losses


LOSS: dict[str, Any] = {"metric": "denoising_loss", "scales": ["mnist"]}
LOSSES: dict[str, Any] = {
    "columns": [
        {"name": "S = 1", "ar_steps": 1},
        {"name": "S = 8", "ar_steps": 8},
        {"name": "own S"},
        {"name": "loss 1", "ar_steps": 1, **LOSS},
        {"name": "loss 8", "ar_steps": 8, **LOSS},
        {"name": "first of 8", "ar_steps": 8, "ar_step": 1, **LOSS},
        {"name": "own loss", **LOSS},
    ],
    "rows": [row | {"printed": [3.5, 2.5, None], "scales": ["mnist", "paper"]} for row in TREE["rows"]],
    "claims": [
        {"says": "more is better", "column": "S = 8", "better": ["middle", "large"], "worse": ["small"]},
        {"says": "one step is best", "column": "S = 1", "over": "S = 8", "better": ["small"]},
        {"says": "of its own", "column": "own S", "better": ["large"], "worse": ["small"]},
        {"says": "of the loss", "column": "loss 8", "better": ["large"], "worse": ["small"]},
        {"says": "partly", "column": "S = 1", "over": "own S", "better": ["small"]},
    ],
    "scales": {
        "paper": {"metrics": {"fid": "fid"}, "samples": 10, "seeds": [0]},
        "mnist": {
            "metrics": {"fid": "fd_data_cnn", "denoising_loss": "denoising_loss"},
            "samples": 5,
            "seeds": [0, 1],
            "more_seeds": [2],
            "validation_draws": 3,
        },
    },
}
"""A table whose samples and losses are both measured on MNIST."""


def test_a_claim_about_samples_has_a_twin_about_the_loss(own_folder: Path) -> None:
    """At the same S, for both columns of a claim. A row's own S is another task for each row."""
    write(own_folder, **LOSSES)
    table = load_table("table9z").at("mnist")
    more, one, *others = table.claims
    assert table.by_loss(more) == more.model_copy(update={"column": "loss 8"})
    assert table.by_loss(one) == one.model_copy(update={"column": "loss 1", "over": "loss 8"})
    assert [claim.says for claim in others] == ["of its own", "of the loss", "partly"]
    assert [table.by_loss(claim) for claim in others] == [None] * 3
    paper = load_table("table9z").at("paper")
    assert [paper.by_loss(claim) for claim in paper.claims_at("paper")] == [None] * 4


@pytest.mark.parametrize(
    ("column", "change", "twin"),
    [
        (3, {}, "loss 1"),
        (3, {"ar_steps": 2}, None),
        (3, {"ar_step": 1}, None),  # the loss of one step is not that of the whole image
        (3, {"rows": ["small"]}, None),  # of other rows
        (0, {"metric": "recall"}, None),
    ],
)
def test_what_makes_a_twin(own_folder: Path, column: int, change: dict[str, Any], twin: str | None) -> None:
    columns = [one | change if place == column else one for place, one in enumerate(LOSSES["columns"])]
    metrics = {"fid": "x", "denoising_loss": "x", "recall": "x"}
    plans = {scale: plan | {"metrics": metrics} for scale, plan in LOSSES["scales"].items()}
    claim = {"says": "it is better", "column": "S = 1", "better": ["large"], "worse": ["small"]}
    write(own_folder, **LOSSES | {"columns": columns, "scales": plans, "claims": [claim]})
    table = load_table("table9z").at("mnist")
    found = table.by_loss(table.claims[0])
    assert (None if found is None else found.column) == twin


def test_values_that_the_paper_does_not_print_are_left_out_at_the_end(own_folder: Path) -> None:
    write(own_folder, **LOSSES)
    table = load_table("table9z")
    assert [row.printed for row in table.rows] == [(3.5, 2.5, None, None, None, None, None)] * 3
    assert [row.printed for row in table.at("paper").rows] == [(3.5, 2.5, None)] * 3
    whole = [row | {"printed": [3.5, 2.5, None, 1.0, 2.0, 3.0, 4.0]} for row in LOSSES["rows"]]
    write(own_folder, **LOSSES | {"rows": whole})
    assert [row.printed for row in load_table("table9z").rows] == [(3.5, 2.5, None, 1.0, 2.0, 3.0, 4.0)] * 3
    for printed in ([3.5], [3.5, 2.5], [1.0] * 8):
        rows = [row | {"printed": printed} for row in LOSSES["rows"]]
        said = f"row small prints {len(printed)} values for 7 columns"
        assert said in fault(own_folder, **LOSSES | {"rows": rows, "claims": []})
    # A column of the paper behind one of ours: nothing before it may be left out.
    columns = [*LOSSES["columns"][3:], *LOSSES["columns"][:3]]
    write(own_folder, **LOSSES | {"columns": columns, "rows": whole})
    assert load_table("table9z").at("paper").rows[0].printed == (2.0, 3.0, 4.0)
    assert "prints 3 values for 7 columns" in fault(own_folder, **LOSSES | {"columns": columns})


def test_a_scale_has_its_looks_and_draws(own_folder: Path) -> None:
    write(own_folder, **LOSSES)
    paper, mnist = (load_table("table9z").plan(scale) for scale in ("paper", "mnist"))
    assert (paper.more_seeds, paper.looks, paper.validation_draws) == ((), 1, 8)
    assert (mnist.more_seeds, mnist.looks, mnist.validation_draws) == ((2,), 2, 3)


@pytest.mark.parametrize(
    ("scales", "smallest"),
    [(["paper"], "paper"), (["paper", "mnist"], "mnist"), (["paper", "mnist", "digits"], "digits"),
     (["paper", "digits"], "digits")],
)  # fmt: skip
def test_the_smallest_scale(own_folder: Path, scales: list[str], smallest: str) -> None:
    write(own_folder, scales=dict.fromkeys(scales, TREE["scales"]["paper"]))
    assert load_table("table9z").smallest == smallest


def test_columns_that_are_drawn(own_folder: Path) -> None:
    """Losses and fine-tunes need no samples."""
    write(own_folder, **LOSSES)
    assert [column.is_sampled for column in load_table("table9z").columns] == [True] * 3 + [False] * 4
    write(own_folder, **FINETUNES)
    assert [column.is_sampled for column in load_table("table9z").columns] == [True, False, False]


def lossy(column: int, **changes: Any) -> dict[str, Any]:
    columns = [one | changes if place == column else one for place, one in enumerate(LOSSES["columns"])]
    return LOSSES | {"columns": columns, "claims": []}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (lossy(4, guidance_scale=1.0), "column loss 8 is a denoising loss, which has neither a fine-tune nor guid"),
        (lossy(6, finetune="classify"), "column own loss is a denoising loss, which has neither a fine-tune nor"),
        (lossy(4, ar_step=9), "column loss 8 has ar_step 9: that is a denoising loss's, from 1 to its ar_steps"),
        (lossy(6, ar_step=1), "column own loss has ar_step 1: that is a denoising loss's, from 1 to its ar_steps"),
        (lossy(1, ar_step=1), "column S = 8 has ar_step 1: that is a denoising loss's, from 1 to its ar_steps"),
        (lossy(4, ar_step=0), "ar_step"),
        (lossy(4, patch_order="raster"), "column loss 8 has a patch order, but no samples"),
        (lossy(4, order_block=2), "column loss 8 has a patch order, but no samples"),
        (
            LOSSES | {"claims": [LOSSES["claims"][1] | {"over": "loss 8"}]},
            "a claim compares columns of different metrics: S = 1, loss 8",
        ),
        (
            LOSSES | {"scales": {"mnist": LOSSES["scales"]["paper"]}},
            "scale mnist names no number for denoising_loss",
        ),
        (
            LOSSES | {"scales": {"mnist": LOSSES["scales"]["mnist"] | {"validation_draws": 0}}},
            "validation_draws",
        ),
    ],
)
def test_a_wrong_loss(own_folder: Path, changes: dict[str, Any], said: str) -> None:
    assert said in fault(own_folder, **changes)


def test_the_last_ar_step_is_one_of_them(own_folder: Path) -> None:
    write(own_folder, **lossy(5, ar_step=8))
    assert load_table("table9z").columns[5].ar_step == 8


def test_an_unknown_table() -> None:
    with pytest.raises(UserError) as caught:
        load_table("table3d")
    message = str(caught.value)
    assert "no table 'table3d'; did you mean 'table3" in message
    assert f"tables: {', '.join(table_names())}" in message
    with pytest.raises(UserError) as caught:
        load_table("zzz")
    assert "did you mean" not in str(caught.value)


def test_a_scale_that_a_table_lacks(own_folder: Path) -> None:
    write(own_folder, scales={"digits": TREE["scales"]["digits"]})
    with pytest.raises(UserError, match="Table 9z has no rows at scale paper; scales: digits"):
        load_table("table9z").plan("paper")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"rows": TREE["rows"] + TREE["rows"][:1]}, "rows have a name twice: small, middle, large, small"),
        ({"columns": TREE["columns"][:1] * 2}, "columns have a name twice: S = 1, S = 1"),
        ({"columns": TREE["columns"][:1]}, "row small prints 2 values for 1 columns"),
        ({"rows": [TREE["rows"][0] | {"printed": [1.5, 0.3, 2.0]}]}, "row small prints 3 values for 2 columns"),
        ({"rows": [TREE["rows"][0] | {"printed": [1.5]}]}, "row small prints 1 values for 2 columns"),
        ({"rows": []}, "rows"),
        ({"rows": [TREE["rows"][0] | {"file": "../up"}]}, "file"),
        ({"rows": [TREE["rows"][0] | {"scales": []}]}, "scales"),
        ({"rows": [TREE["rows"][0] | {"scales": ["laptop"]}]}, "'digits', 'mnist' or 'paper'"),
        ({"claims": [TREE["claims"][0] | {"column": "S = 2"}]}, "column 'S = 2'; columns: S = 1, recall"),
        ({"claims": [TREE["claims"][0] | {"worse": ["tiny"]}]}, "rows tiny; rows: small, middle, large"),
        ({"claims": [TREE["claims"][0] | {"worse": []}]}, "worse"),
        (
            {"scales": {"paper": {"metrics": {"fid": "fid"}, "samples": 10, "seeds": [0]}}},
            "scale paper names no number for recall",
        ),
        ({"scales": {"laptop": TREE["scales"]["paper"]}}, "'digits', 'mnist' or 'paper'"),
        (
            {"scales": {"digits": TREE["scales"]["digits"] | {"figure": {"kind": "bars"}}}},
            "'ar_steps', 'text_image'",
        ),
        ({"scales": {"digits": TREE["scales"]["digits"] | {"figure": TEXT_IMAGE | {"prompts": []}}}}, "prompts"),
        ({"titel": "x"}, "titel"),
    ],
)
def test_a_wrong_table(own_folder: Path, changes: dict[str, Any], said: str) -> None:
    assert said in fault(own_folder, **changes)


def test_a_file_that_is_no_table(own_folder: Path) -> None:
    path = own_folder / "experiments/table9z/table.yaml"
    for text in ("title: [a\n", "- a\n- b\n", "", "3\n"):
        write_yaml(path, text)
        with pytest.raises(UserError, match=r"table9z/table.yaml is wrong"):
            load_table("table9z")
