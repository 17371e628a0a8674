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
        {"file": "middle", "label": "M", "digits_label": "m", "printed": [2.5, None], "scales": ["paper"]},
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
        ({"rows": []}, "rows"),
        ({"rows": [TREE["rows"][0] | {"file": "../up"}]}, "file"),
        ({"rows": [TREE["rows"][0] | {"scales": []}]}, "scales"),
        ({"rows": [TREE["rows"][0] | {"scales": ["laptop"]}]}, "'digits' or 'paper'"),
        ({"claims": [TREE["claims"][0] | {"column": "S = 2"}]}, "column 'S = 2'; columns: S = 1, recall"),
        ({"claims": [TREE["claims"][0] | {"worse": ["tiny"]}]}, "rows tiny; rows: small, middle, large"),
        ({"claims": [TREE["claims"][0] | {"worse": []}]}, "worse"),
        (
            {"scales": {"paper": {"metrics": {"fid": "fid"}, "samples": 10, "seeds": [0]}}},
            "scale paper names no number for recall",
        ),
        ({"scales": {"laptop": TREE["scales"]["paper"]}}, "'digits' or 'paper'"),
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
