"""The files of `experiments/<table>/`: which there are, what their headers say, and claims against the numbers."""

from __future__ import annotations

import re
from itertools import product
from pathlib import Path

import pytest
from tests.platform.config.paper_numbers import ON_DIGITS, PRINTED, SMALL_ONLY, scales_of, small_scales
from tests.platform.config.paper_settings import MNIST_SAMPLES, experiment
from tests.platform.config.trees import SHIPPED

from causalfusion.flops import training_flops
from causalfusion_platform.config.files import experiment_names
from causalfusion_platform.config.paper_figure import ArStepFigure, TextImageFigure
from causalfusion_platform.config.paper_table import (
    HIGHER_IS_BETTER,
    SCALES,
    TABLE_FILE,
    Claim,
    PaperTable,
    Scale,
    load_table,
    table_names,
)
from causalfusion_platform.data.caption_language import CELLS, captions_of, parse
from causalfusion_platform.tasks import open_task

TABLES = list(PRINTED)
SYSTEMS = ("table4", "table5")
"""Tables of the paper's large models. They measure samples alone, and have one set of seeds."""
_SMALL = [
    f"finetune-{name}{ending}" for name in ("classify", "classify-10", "caption") for ending in ("", "-frozen")
]
RECIPES = {
    "digits": _SMALL,
    "mnist": _SMALL,
    "paper": ["finetune-classify", "finetune-caption", "finetune-caption-mar"],
}
"""Fine-tunes of Table 6b."""
ROWS = [
    (table, scale, row)
    for table, rows in PRINTED.items()
    for scale in SCALES
    for row in rows
    if scale in scales_of(table, row)
]
KEYS = ("command", "shows", "expected", "cost")
FLOPS = {"H100": 989.5e12, "A100": 312e12}
"""Peaks of the data sheets, dense bf16."""


def header(path: Path) -> dict[str, str]:
    """Read the comment that a file begins with: its keys, each with its lines joined."""
    found: dict[str, str] = {}
    key = ""
    for line in path.read_text().splitlines():
        if not line.startswith("#"):
            break
        text = line.removeprefix("# ")
        if match := re.match(r"(\w+) {2,}(\S.*)", text):
            key, start = match[1], match[2]
            found[key] = start
        elif key and text.startswith(" " * 10):
            found[key] += "\n" + text.strip()
    return found


def cost_of(flops: float) -> tuple[str, str]:
    """Write FLOPs as headers do: three digits, and hours on two GPUs at 40% MFU."""
    hours = {gpu: f"{flops / (0.4 * peak) / 3600:,.0f}" for gpu, peak in FLOPS.items()}
    return f"{flops:.2e} FLOPs", f"{hours['H100']} H100-hours or {hours['A100']} A100-hours at 40% MFU"


def row_flops(row: str) -> float:
    """Return the FLOPs of training a row at paper scale, counted as `train --dry-run` does."""
    of = experiment("paper", row)
    an_image = training_flops(of.model, of.objective, attention="visible", skip_unread=True)
    return an_image * of.train.total_images


# Which files there are


def test_the_tables_are_the_papers() -> None:
    """Beside them are those of our own questions."""
    assert table_names() == sorted([*PRINTED, "question1", "question2", "question3"])


def test_there_are_no_stray_files() -> None:
    """Every file below a table's folder is its table.yaml or one of its rows, and every row has its files."""
    expected = {f"{table}/{TABLE_FILE}" for table in TABLES}
    for table in TABLES:
        for row in PRINTED[table]:
            expected |= {f"{table}/{scale}/{row}.yaml" for scale in scales_of(table, row)}
    expected |= {f"table6b/{scale}/{recipe}.yaml" for scale, recipes in RECIPES.items() for recipe in recipes}
    found = {path.relative_to(SHIPPED).as_posix() for table in TABLES for path in (SHIPPED / table).rglob("*.*")}
    assert found == expected
    named = {name for name in experiment_names() if name.startswith(("table", "figure"))}
    assert {f"{name}.yaml" for name in named} == {path for path in expected if not path.endswith(TABLE_FILE)}
    bases = {"ablation", "system", "mnist", "digits", "text", "digits_text", "mnist_text"}
    assert {path.name for path in (SHIPPED / "base").iterdir()} == {f"{base}.yaml" for base in bases}


@pytest.mark.parametrize("name", TABLES)
def test_a_table_has_the_papers_numbers(name: str) -> None:
    table = load_table(name)
    assert {row.file: row.printed for row in table.at("paper").rows} == PRINTED[name]
    assert [row.file for row in table.rows] == list(PRINTED[name])  # in the paper's order
    ours = [place for place, column in enumerate(table.columns) if "paper" not in column.scales]
    assert {row.printed[place] for row in table.rows for place in ours} <= {None}
    assert table.source.replace(" ", "").lower() == name
    assert table.title and table.varied and table.measured
    assert (set(table.scales), table.smallest) == ({"paper", *small_scales(name)}, small_scales(name)[0])
    for scale in table.scales:
        there = [row for row in PRINTED[name] if scale in scales_of(name, row)]
        assert [row.file for row in table.rows_at(scale)] == there


@pytest.mark.parametrize(
    ("names", "ar_steps"),
    [
        (("table2", "table3a"), [1, 2, 4, 8]),
        (("table3c",), [1, 2, 4]),
        (("table1", "table3b", "table7", "table8"), [1]),
    ],
)
def test_columns_are_the_papers(names: tuple[str, ...], ar_steps: list[int]) -> None:
    """On MNIST each column has a twin of the denoising loss, which is of the same S and of all tokens."""
    for name in names:
        columns = load_table(name).at("paper").columns
        assert [column.ar_steps for column in columns] == ar_steps
        assert {(column.metric, column.guidance_scale) for column in columns} == {("fid", None)}
        small = load_table(name).at("mnist").columns
        assert small[: len(columns)] == columns
        assert [(column.name, column.metric) for column in small[len(columns) :]] == [
            (f"loss, {column.name}", "denoising_loss") for column in columns
        ]
        assert [(column.ar_steps, column.ar_step) for column in small] == [(steps, None) for steps in ar_steps] * 2
        assert not any(column.rows for column in small)


def test_columns_of_table_5_and_figure_4() -> None:
    """One column is the paper's. On MNIST Figure 4 has losses: of the row's own S, and of two of 8 AR steps."""
    for name, ar_steps in (("table5", 1), ("figure4", None)):
        columns = load_table(name).at("paper").columns
        assert [(one.metric, one.ar_steps, one.guidance_scale) for one in columns] == [("fid", ar_steps, None)]
    assert load_table("table5").at("mnist").columns == load_table("table5").columns
    [_, *losses] = load_table("figure4").at("mnist").columns
    assert {one.metric for one in losses} == {"denoising_loss"}
    assert [(one.ar_steps, one.ar_step) for one in losses] == [(None, None), (8, 1), (8, 8)]


def test_columns_of_table_4() -> None:
    """Four metrics without guidance, the same four with it; all with one AR step, the rows' own."""
    columns = load_table("table4").columns
    metrics = ["fid", "inception_score", "precision", "recall"]
    assert [column.metric for column in columns] == metrics * 2
    assert [column.guidance_scale for column in columns] == [1.0] * 4 + [None] * 4
    scales: tuple[Scale, Scale] = ("paper", "mnist")
    own = {(scale, experiment(scale, f"table4/{row}").sampling) for scale in scales for row in ("l", "xl")}
    assert {(scale, of.num_ar_steps, of.guidance_scale) for scale, of in own} == {
        ("paper", 1, 1.5),
        ("mnist", 1, 2.5),
    }
    assert {column.scales for column in columns} == {SCALES}


def test_columns_of_table_6b() -> None:
    """Three columns are the paper's. At paper scale CIDEr is of the best of three blocks."""
    table = load_table("table6b")
    columns = table.at("paper").columns
    assert [(one.metric, one.ar_steps, one.finetune) for one in columns] == [
        ("fid", 1, None),
        ("top1", None, "classify"),
        ("cider", None, "caption"),
    ]
    assert table.plan("paper").metrics == {"fid": "fid", "top1": "top1", "cider": "cider_d_words_beam3_test"}
    assert table.finetune_plan("caption", "paper").layers == (14, 21, 24)
    assert table.recipe("caption", table.rows[1], "paper") == "table6b/paper/finetune-caption"
    assert table.recipe("caption", table.rows[2], "paper") == "table6b/paper/finetune-caption-mar"
    both = ("dit", "causalfusion")
    kinds = ("classify", "classify-10", "caption")
    for scale in small_scales("table6b"):
        assert table.plan(scale).seeds == (0, 1, 2) and not table.plan(scale).finetunes
        trained = {one.trained_as: one.rows for one in table.at(scale).columns if one.finetune}
        assert trained == {
            **dict.fromkeys(kinds, ()),
            **{f"{kind}-{ending}": both for kind in kinds for ending in ("frozen", "scratch")},
        }


def test_columns_of_table_6a() -> None:
    """Two columns are the paper's. Words of captions and drawings are exact on handwritten digits alone."""
    table = load_table("table6a")
    assert [column.metric for column in table.at("paper").columns] == ["fid", "cider"]
    assert [row.printed for row in table.at("paper").rows_at("paper")] == [(8.1, 34.5), (7.1, 47.9)]
    assert table.plan("paper").metrics == {"fid": "fid", "cider": "cider_d_words"}
    assert (table.plan("paper").samples, table.plan("paper").seeds) == (30_000, (0,))
    for scale in small_scales("table6a"):
        assert len(table.at(scale).columns) == 12
        assert table.plan(scale).seeds == (0, 1, 2)
        task = open_task(experiment(scale, "table6a/causalfusion"))
        assert {*table.plan(scale).metrics.values()} <= set(task.scores())


@pytest.mark.parametrize("name", [name for name in TABLES if name not in ON_DIGITS])
def test_what_a_table_is_measured_by(name: str) -> None:
    table = load_table(name)
    paper, mnist = table.plan("paper"), table.plan("mnist")
    assert paper.samples == (50_000 if name in SYSTEMS else 10_000)
    assert mnist.samples == (500 if name in SYSTEMS else MNIST_SAMPLES)
    assert (paper.seeds, mnist.seeds) == ((0,), (0, 1, 2))
    assert (paper.more_seeds, mnist.more_seeds) == ((), () if name in SYSTEMS else (3, 4, 5))
    assert (paper.looks, mnist.looks) == (1, 1 if name in SYSTEMS else 2)
    assert mnist.validation_draws == 8
    assert paper.metrics == {metric: metric for metric in paper.metrics}
    names = {
        "fid": "fd_data_cnn",
        "inception_score": "classifier_score_data_cnn",
        "precision": "precision_data_cnn",
        "recall": "recall_data_cnn",
    }
    loss = {} if name in SYSTEMS else {"denoising_loss": "denoising_loss"}
    assert mnist.metrics == {metric: names[metric] for metric in paper.metrics} | loss
    for scale in table.scales:
        assert set(table.plan(scale).metrics) == {column.metric for column in table.at(scale).columns}
    for plan in (paper, mnist):
        assert plan.figure == (ArStepFigure(kind="ar_steps") if name == "figure4" else None)


def test_figure_5_fits_its_models() -> None:
    """Prompts have the words of the captions of digits, and are short enough for 35 tokens at paper scale."""
    table = load_table("figure5")
    for scale in table.scales:
        figure, of = table.plan(scale).figure, experiment(scale, "figure5/causalfusion")
        assert isinstance(figure, TextImageFigure) and figure.beam == 1
        assert of.model.text is not None and of.data.validation is not None  # type: ignore[union-attr]
        assert {*table.plan(scale).metrics.values()} <= set(open_task(of).scores())
        assert len(set(figure.prompts)) == len(figure.prompts)
        if scale in small_scales("figure5"):
            assert all(parse(prompt) in CELLS and prompt in captions_of(parse(prompt)) for prompt in figure.prompts)
        else:
            assert all(len(prompt.split()) < 20 for prompt in figure.prompts)


# Claims


UNPRINTED = {("figure4", f"loss, S_eval = S_train: s-{steps}") for steps in (2, 4, 8, 256)} | {
    ("figure4", "loss of the last of 8 AR steps: random")
}
"""Claims of the text about Figure 4's curves, which have no numbers: table, column and rows that are better."""


def test_a_claim_holds_of_the_printed_numbers(subtests: pytest.Subtests) -> None:
    """What the text says of the paper's own table is so. Our own claims are about our own rows."""
    tried, unprinted = 0, set()
    for name in TABLES:
        table = load_table(name)
        assert len({claim.says for claim in table.claims}) == len(table.claims)
        for claim in table.claims:
            if claim.ours:
                assert is_ours(table, claim), claim.says
                continue
            if claim.column not in {column.name for column in table.at("paper").columns}:
                unprinted.add((name, f"{claim.column}: {', '.join(claim.better)}"))
                continue
            with subtests.test(table=name, claim=claim.says):
                check_claim(table, claim)
            tried += 1
    assert tried == 37
    assert unprinted == UNPRINTED


def is_ours(table: PaperTable, claim: Claim) -> bool:
    """Return whether a claim is about rows or columns that the paper does not have."""
    rows = any((table.name, row) in SMALL_ONLY for row in (*claim.better, *claim.worse))
    printed = {column.name for column in table.at("paper").columns}
    return rows or not {claim.column, claim.over or claim.column} <= printed


def check_claim(table: PaperTable, claim: Claim) -> None:
    columns, printed = table.at("paper").columns, PRINTED[table.name]
    names = [column.name for column in columns]
    place, other = names.index(claim.column), names.index(claim.over or claim.column)
    sign = -1 if columns[place].metric in HIGHER_IS_BETTER else 1
    sides = [(row, row) for row in claim.better] if claim.over else product(claim.better, claim.worse)
    pairs = [(printed[better][place], printed[worse][other]) for better, worse in sides]
    assert pairs
    assert all(a is not None and b is not None and sign * a < sign * b for a, b in pairs), claim.says


def test_claims_about_curves_name_all_that_have_fewer_ar_steps() -> None:
    """Training with more AR steps has a lower loss than with any fewer, and the last AR step than the first."""
    table = load_table("figure4")
    fixed = ["s-1", "s-2", "s-4", "s-8", "s-256"]
    claims = [claim for claim in table.claims if claim.column == "loss, S_eval = S_train"]
    assert [(claim.better, claim.worse) for claim in claims] == [
        ((row,), tuple(fixed[:place])) for place, row in enumerate(fixed) if place
    ]
    [last] = [claim for claim in table.claims if claim.over]
    assert (last.column, last.over, last.better) == (
        "loss of the last of 8 AR steps",
        "loss of the first of 8 AR steps",
        ("random",),
    )


def test_claims_about_samples_have_twins_about_the_loss(subtests: pytest.Subtests) -> None:
    """On MNIST, at the same S and about the same rows. Tables 4 and 5 and Figure 4 have samples alone."""
    count = 0
    for name in (name for name in TABLES if name not in ON_DIGITS):
        table = load_table(name).at("mnist")
        for claim in table.claims_at("mnist"):
            twin = table.by_loss(claim)
            with subtests.test(table=name, claim=claim.says):
                if name in (*SYSTEMS, "figure4"):
                    assert twin is None
                    continue
                assert twin is not None
                over = claim.over and f"loss, {claim.over}"
                changes = {"column": f"loss, {claim.column}", "over": over}
                assert twin == claim.model_copy(update=changes)
                count += 1
    assert count == 26
    for name in TABLES:
        for scale in {*load_table(name).scales} - {"mnist"}:
            table = load_table(name).at(scale)
            assert {table.by_loss(claim) for claim in table.claims_at(scale)} <= {None}


def test_table_7_claims_no_order() -> None:
    table: PaperTable = load_table("table7")
    assert table.claims == ()
    assert "claims no order" in table.note
    assert all(load_table(name).claims for name in TABLES if name not in ("table7", "figure5"))


@pytest.mark.parametrize("name", TABLES)
def test_claims_can_be_tried_small(name: str) -> None:
    table = load_table(name)
    assert all(table.claims_at(scale) == table.claims for scale in small_scales(name))


# Headers


def test_bases_say_the_four_things() -> None:
    for path in (SHIPPED / "base").iterdir():
        assert set(KEYS) < set(header(path)), path


@pytest.mark.parametrize("name", TABLES)
def test_a_table_says_the_four_things(name: str) -> None:
    """Its cost at paper scale is the sum over its trainings."""
    said = header(SHIPPED / name / TABLE_FILE)
    assert set(said) == set(KEYS)
    smallest, *_ = scales = small_scales(name)
    assert said["command"] == f"causalfusion reproduce {name} --scale {smallest}"
    trainings = {}
    for row in (row for row in PRINTED[name] if "paper" in scales_of(name, row)):
        of = experiment("paper", f"{name}/{row}")
        trainings[repr((of.model, of.objective, of.diffusion, of.optim, of.train))] = row_flops(f"{name}/{row}")
    flops, hours = cost_of(sum(trainings.values()))
    assert f"paper: {flops}, {hours}" in said["cost"]
    for scale in scales:
        assert re.search(rf"{scale}: \d+ trainings?\b.*\d minutes\b.* on two cores", said["cost"])


def test_a_row_says_the_four_things(subtests: pytest.Subtests) -> None:
    for table, scale, row in ROWS:
        with subtests.test(table=table, scale=scale, row=row):
            check_header(table, scale, row)


def check_header(table: str, scale: Scale, row: str) -> None:
    path = SHIPPED / table / scale / f"{row}.yaml"
    assert path.read_text().startswith(
        f"# @package _global_\n# {experiment(scale, f'{table}/{row}').description}.\n"
    )
    said = header(path)
    assert list(said)[:4] == list(KEYS)
    assert set(said) - set(KEYS) <= {"reading", "release", "data"}
    measured_by = ""
    if (scale, table) == ("paper", "figure5"):
        measured_by = " --vae weights/sd-vae"
    elif scale == "paper" and table != "table6a":  # ADM's Inception features and reference batches
        batch = "VIRTUAL_imagenet512.npz" if row == "xl-512" else "VIRTUAL_imagenet256_labeled.npz"
        vae = {4: "weights/sd-vae", 16: "weights/kl16"}[experiment(scale, f"{table}/{row}").model.in_channels]
        measured_by = f" --vae {vae} \\\n--extractor inception:weights/inception.pth --reference {batch}"
    reproduce = f"causalfusion reproduce {table} --scale {scale} --rows {row}{measured_by}"
    assert said["command"] == f"{reproduce}\ncausalfusion train {table}/{scale}/{row}"
    assert said["shows"]
    if scale != "paper":
        assert re.fullmatch(r"about [\d.]+ minutes a seed on one core \(two seeds at a time on two\)", said["cost"])
        return
    flops, hours = cost_of(row_flops(f"{table}/{row}"))
    assert said["cost"] == f"{flops}: {hours} in bf16"
    promised = {float(number) for number in re.findall(r"\d+\.\d+", said["expected"])}
    assert {number for number in PRINTED[table][row] if number is not None} <= promised


def test_lines_fit() -> None:
    folders = ["base", *TABLES]
    for path in (path for folder in folders for path in (SHIPPED / folder).rglob("*.yaml")):
        assert all(len(line) <= 116 for line in path.read_text().splitlines()), path
