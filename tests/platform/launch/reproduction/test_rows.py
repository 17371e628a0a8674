"""A table as runs: which of them another run stands for, what is given for a row, what is checked beforehand."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from tests.platform.data.tiny_vaes import new_kl
from tests.platform.evaluation.tiny_extractor import TinyExtractor, random_images

from causalfusion_platform.config.errors import UserError
from causalfusion_platform.config.paper_table import Scale
from causalfusion_platform.config.schema import Experiment
from causalfusion_platform.data.split_digits import validation_folder, write_split_digits
from causalfusion_platform.evaluation.reference import reference_from_images, write_reference
from causalfusion_platform.launch.reproduction.measurable import check_measurable
from causalfusion_platform.launch.reproduction.rows import (
    Reproduction,
    more_seeds,
    reproduction_of,
    trial_name,
)
from causalfusion_platform.launch.runs.folder import RunFolder
from causalfusion_platform.launch.runs.state import RunState
from causalfusion_platform.launch.sweeping.job import finished_trials


def finish(run_dir: Path, experiment: Experiment, *, finished: bool = True) -> None:
    """Leave a run as one that was trained so."""
    run_dir.mkdir(parents=True)
    RunState(tracking_uri="", config=experiment.model_dump(mode="json"), finished=finished).write(run_dir)
    if finished:
        RunFolder(run_dir).write_summary({"run_dir": str(run_dir)})


def trained(found: Reproduction) -> list[str]:
    """Return the trials that would be trained now."""
    done = {trial.name for trial, _ in finished_trials(found.job)}
    return [trial.name for trial in found.job.trials if trial.name not in done]


# Rows that are one run


def test_two_rows_of_one_training(own_folder: Path) -> None:
    """Table 5's rows differ in how they are sampled."""
    found = reproduction_of("table5", "mnist", seeds=[0, 1])
    assert trained(found) == ["h.seed-0", "h.seed-1"]
    assert found.run_dir(found.rows[1], 1) == found.folder / "h.seed-1"


@pytest.mark.parametrize(("there", "asked"), [("h", ["h-interval"]), ("h-interval", ["h"]), ("h-interval", [])])
def test_a_finished_row_stands_for_another_whichever_is_asked_for(
    own_folder: Path, there: str, asked: list[str]
) -> None:
    before = reproduction_of("table5", "mnist", rows=[there], seeds=[0])
    assert trained(before) == [f"{there}.seed-0"]
    folder = before.folder / f"{there}.seed-0"
    finish(folder, before.experiments[folder.name])
    found = reproduction_of("table5", "mnist", rows=asked, seeds=[0])
    assert trained(found) == []
    assert {found.run_dir(row, 0) for row in found.rows} == {folder}


def test_a_question_about_sampling_trains_nothing_after_its_table(own_folder: Path) -> None:
    """Its rows are one training, which Table 3c's λ = 2 stands for."""
    assert trained(reproduction_of("question1", "mnist", seeds=[0, 1])) == ["s1-t32.seed-0", "s1-t32.seed-1"]
    before = reproduction_of("table3c", "mnist", rows=["lambda-2"], seeds=[0])
    folder = before.folder / "lambda-2.seed-0"
    finish(folder, before.experiments[folder.name])
    for question in ("question1", "question2"):
        found = reproduction_of(question, "mnist", seeds=[0])
        assert trained(found) == []
        assert {found.run_dir(row, 0) for row in found.rows} == {folder}


def test_a_finished_run_is_taken_before_one_that_was_begun(own_folder: Path) -> None:
    first = reproduction_of("table3a", "mnist", rows=["gamma-0.9"], seeds=[0])
    other = reproduction_of("table3b", "mnist", rows=["random"], seeds=[0])
    begun, whole = other.folder / "random.seed-0", first.folder / "gamma-0.9.seed-0"
    finish(begun, other.experiments[begun.name], finished=False)
    assert trained(reproduction_of("table3b", "mnist", rows=["random"], seeds=[0])) == ["random.seed-0"]
    finish(whole, first.experiments[whole.name])
    found = reproduction_of("table3b", "mnist", rows=["random"], seeds=[0])
    assert (trained(found), found.run_dir(found.rows[0], 0)) == ([], whole)


def test_rows_and_seeds_that_are_named_twice(own_folder: Path) -> None:
    found = reproduction_of("table3a", "mnist", rows=["gamma-0.9", "gamma-0.9"], seeds=[0, 0])
    assert trained(found) == ["gamma-0.9.seed-0"]


def test_a_run_with_other_settings_is_not_taken_for_its_row(own_folder: Path) -> None:
    """Somebody edited the row, or a release did: its finished run is of the settings before."""
    found = reproduction_of("table3a", "mnist", rows=["gamma-0.9"], seeds=[0])
    [(name, experiment)] = found.experiments.items()
    old = experiment.model_copy(update={"objective": dataclasses.replace(experiment.objective, ar_decay=0.8)})
    finish(found.folder / name, old)
    with pytest.raises(UserError) as caught:
        trained(reproduction_of("table3a", "mnist", rows=["gamma-0.9"], seeds=[0]))
    message = str(caught.value)
    assert "objective.ar_decay: was 0.8, now 0.9" in message
    assert "or runs=FOLDER to start another run" in message
    assert "--allow-config-change" not in message


def test_samples_may_be_made_in_another_way(own_folder: Path) -> None:
    found = reproduction_of("table3a", "mnist", rows=["gamma-0.9"], seeds=[0])
    [(name, experiment)] = found.experiments.items()
    sampling = dataclasses.replace(experiment.sampling, guidance_scale=2.0)
    finish(found.folder / name, experiment.model_copy(update={"sampling": sampling}))
    assert trained(reproduction_of("table3a", "mnist", rows=["gamma-0.9"], seeds=[0])) == []


def test_a_table_keeps_its_name(own_folder: Path) -> None:
    with pytest.raises(UserError, match=r"name=mine: the runs of a table have its name\n  .*runs=FOLDER"):
        reproduction_of("table3a", "mnist", overrides=["name=mine"])


# What rows are measured with


@pytest.fixture
def vaes(own_folder: Path) -> dict[int, Path]:
    """Autoencoders like SD's and MAR's but for their width: channels → folder."""
    found = {}
    for channels, levels in ((4, 4), (16, 5)):
        found[channels] = own_folder / f"vae-{channels}"
        new_kl(
            latent_channels=channels,
            block_out_channels=(4,) * levels,
            down_block_types=("DownEncoderBlock2D",) * levels,
            up_block_types=("UpDecoderBlock2D",) * levels,
        ).save_pretrained(found[channels])
    return found


def tiny(*_: object) -> TinyExtractor:
    return TinyExtractor()


EXTRACTOR = f"{__name__}:tiny"


@pytest.fixture
def reference(own_folder: Path) -> str:
    save_reference(own_folder / "256.npz", 256)
    return "256.npz"


def save_reference(path: Path, size: int | None) -> None:
    """Write a reference that says it is of images of a size."""
    found = reference_from_images([random_images(9)], TinyExtractor(), source="nine images")
    write_reference(path, dataclasses.replace(found, image_size=size))


def test_rows_of_two_autoencoders(vaes: dict[int, Path], reference: str) -> None:
    def asked(*given: str) -> Reproduction:
        return reproduction_of("table6b", "paper", extractor=EXTRACTOR, references=[reference], vaes=given)

    check_measurable(asked(str(vaes[4]), f"causalfusion-x0={vaes[16]}"))
    with pytest.raises(UserError) as caught:
        check_measurable(asked(str(vaes[4])))
    assert "row causalfusion-x0: the autoencoder in " in str(caught.value)
    assert "for this row alone: --vae causalfusion-x0=PATH" in str(caught.value)
    with pytest.raises(UserError, match="row dit: latents of 4 channels need an autoencoder"):
        check_measurable(asked())
    with pytest.raises(UserError, match="--vae is given twice for all rows: a and b"):
        asked("a", "b")


def test_rows_of_two_sizes(vaes: dict[int, Path], reference: str, own_folder: Path) -> None:
    given = [str(vaes[16])]

    def table4(*references: str) -> Reproduction:
        return reproduction_of("table4", "paper", extractor=EXTRACTOR, references=references, vaes=given)

    with pytest.raises(UserError, match="l has images of 256×256, xl-512 of 512×512"):
        check_measurable(table4(reference))
    with pytest.raises(UserError, match=r"512\.npz"):
        check_measurable(table4(reference, "xl-512=512.npz"))
    save_reference(own_folder / "512.npz", 256)
    with pytest.raises(UserError, match=r"\(512\.npz\) is of images of 256×256 pixels, the samples have 512×512"):
        check_measurable(table4(reference, "xl-512=512.npz"))
    save_reference(own_folder / "512.npz", 512)
    found = table4(reference, "xl-512=512.npz")
    check_measurable(found)
    assert [found.references.of(row) for row in found.rows] == [reference, reference, "512.npz"]
    with pytest.raises(UserError, match="row l trains on latents of AutoencoderKL"):
        check_measurable(table4())


def test_a_drawn_model_of_text_needs_its_autoencoder(vaes: dict[int, Path]) -> None:
    """Table 6a takes its numbers from the runs alone."""
    check_measurable(reproduction_of("figure5", "paper", vaes=[str(vaes[4])]))
    with pytest.raises(UserError, match="row causalfusion: latents of 4 channels need an autoencoder"):
        check_measurable(reproduction_of("figure5", "paper"))
    check_measurable(reproduction_of("table6a", "paper"))
    check_measurable(reproduction_of("figure5", "digits"))


def test_figure_5_is_drawn_of_a_run_of_table_6a(own_folder: Path) -> None:
    table, figure = (reproduction_of(name, "digits") for name in ("table6a", "figure5"))
    assert not figure.elsewhere
    [(row, seed, _)] = figure.runs()
    [run] = [run for other, its, run in table.runs() if (other.file, its) == (row.file, seed)]
    experiment = table.experiments[trial_name(row, seed)]
    finish(run.root, experiment)
    assert reproduction_of("figure5", "digits").elsewhere == {trial_name(row, seed): run.root}


def test_pixels_need_nothing(own_folder: Path) -> None:
    check_measurable(reproduction_of("table3a", "mnist"))


@pytest.fixture
def parts(own_folder: Path) -> dict[str, list[str]]:
    """Digits in two parts, as bundled and as data of one's own: overrides of a table."""
    found = {}
    for name in ("bundled", "own"):
        folder = own_folder / name
        written = write_split_digits(folder)
        found[name] = [f"data.path={folder}", f"data.validation={validation_folder(folder)}"]
        for part, manifest in ((folder, written.train), (validation_folder(folder), written.validation)):
            kind = "bundled" if name == "bundled" else "folders"
            source = manifest.source.model_copy(update={"kind": kind})
            manifest.model_copy(update={"source": source}).write(part)
    return found


def test_one_classifier_measures_all_rows(parts: dict[str, list[str]]) -> None:
    """A table's numbers are named by the space of the digits, or by that of other data."""
    table = reproduction_of("table3a", "mnist", overrides=parts["own"])
    check_measurable(table)
    bundled = reproduction_of("table3a", "mnist", overrides=parts["bundled"])
    with pytest.raises(
        UserError, match=r"fd_data_cnn, denoising_loss, but the data in .*bundled are the bundled dig"
    ):
        check_measurable(bundled)
    check_measurable(reproduction_of("table6b", "digits", overrides=parts["bundled"]))
    with pytest.raises(
        UserError, match=r"fd_digits_cnn, .*, but the data in .*own are not the bundled digits\n  add"
    ):
        check_measurable(reproduction_of("table6b", "digits", overrides=parts["own"]))
    mixed = {
        name: bundled.experiments[name] if name.startswith("gamma-0.8.") else one
        for name, one in table.experiments.items()
    }
    with pytest.raises(
        UserError, match=r"gamma-0\.8 on .*bundled: each has a classifier of its own.*\n  add --ext"
    ):
        check_measurable(dataclasses.replace(table, experiments=mixed))


@pytest.mark.parametrize(
    ("table", "scale", "part", "folder"),
    [("table3a", "mnist", "bundled", "shards/mnist"), ("table6b", "digits", "own", "shards/digits")],
)
def test_the_way_out_names_the_data_of_the_table(
    parts: dict[str, list[str]], table: str, scale: Scale, part: str, folder: str
) -> None:
    with pytest.raises(UserError) as caught:
        check_measurable(reproduction_of(table, scale, overrides=parts[part]))
    assert str(caught.value).endswith(f"or train all on one data set: data.path={folder}")


def test_a_loss_needs_images_that_no_training_sees(parts: dict[str, list[str]]) -> None:
    """Also before the digits are written. Table 4 measures samples alone."""
    without = [parts["own"][0], "data.validation=null"]
    for overrides in (without, without[1:]):
        with pytest.raises(UserError, match=r"measures the denoising loss on images .*data\.validation is null"):
            check_measurable(reproduction_of("table3a", "mnist", overrides=overrides))
    check_measurable(reproduction_of("table4", "mnist", overrides=without))
    train = parts["own"][0].removeprefix("data.path=")
    with pytest.raises(UserError, match=r"data\.validation: the shards in .*own are marked train"):
        check_measurable(reproduction_of("table3a", "mnist", overrides=[*parts["own"], f"data.validation={train}"]))


# More seeds


def test_seeds_that_are_added_while_a_claim_is_undecided(own_folder: Path) -> None:
    assert more_seeds(reproduction_of("table3a", "mnist")) == (3, 4, 5)
    assert more_seeds(reproduction_of("table3a", "mnist", seeds=[0, 4])) == (3, 5)
    assert more_seeds(reproduction_of("table3a", "mnist", seeds=[3, 4, 5])) == ()


@pytest.mark.parametrize(
    ("table", "scale", "source", "given"),
    [
        ("table4", "mnist", "Table 4", "0,1,2,3"),
        ("table6b", "digits", "Table 6b", "0,1,2,3"),
        ("figure5", "digits", "Figure 5", "0,1"),
    ],
)
def test_a_table_that_plans_no_further_seeds(
    own_folder: Path, table: str, scale: Scale, source: str, given: str
) -> None:
    with pytest.raises(UserError) as caught:
        more_seeds(reproduction_of(table, scale))
    assert str(caught.value) == (
        f"--until-decided: {source} plans no further seeds at scale {scale}\n  name seeds: --seeds {given}"
    )


@pytest.mark.parametrize(
    ("table", "scale", "known"), [("table3a", "digits", "paper, mnist"), ("question1", "paper", "mnist")]
)
def test_a_scale_that_a_table_lacks(own_folder: Path, table: str, scale: Scale, known: str) -> None:
    with pytest.raises(UserError, match=f"has no rows at scale {scale}; scales: {known}"):
        reproduction_of(table, scale)


@pytest.mark.parametrize(("scale", "label"), [("mnist", "64"), ("paper", "256")])
def test_labels_at_a_smaller_scale(own_folder: Path, scale: Scale, label: str) -> None:
    found = reproduction_of("table2", scale, rows=["s-256", "random"], extractor="inception:x")
    assert [found.label(row) for row in found.rows] == [label, "random"]


def test_a_table_goes_on_with_other_sampling(own_folder: Path) -> None:
    """Its samples are drawn anew. Other settings than those of sampling begin another table."""
    first = reproduction_of("table3a", "mnist", rows=["gamma-0.9"], seeds=[0])
    finish(first.folder, first.job.experiment)
    folder = RunFolder(first.folder)
    guided = reproduction_of(
        "table3a", "mnist", rows=["gamma-0.9"], seeds=[0], overrides=["sampling.guidance_scale=4.0"]
    )
    guided.job.check_folder(folder)
    longer = reproduction_of("table3a", "mnist", rows=["gamma-0.9"], seeds=[0], overrides=["train.images=160000"])
    with pytest.raises(UserError, match=r"train\.images: was 80000, now 160000") as caught:
        longer.job.check_folder(folder)
    assert "runs=FOLDER" in str(caught.value)
    with pytest.raises(
        UserError, match=r"sampling\.guidance_scale: was 2\.5, now 4\.0"
    ):  # a plain sweep keeps its scores
        dataclasses.replace(guided.job, measured_anew=False).check_folder(folder)
