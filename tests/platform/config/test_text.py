"""Values that are text arrive as they were given, whatever characters they have."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from tests.platform.config.trees import load_experiment, message_of, write_yaml

from causalfusion_platform.config.commands import command
from causalfusion_platform.config.compose import compose_experiment, with_overrides
from causalfusion_platform.config.schema import Experiment
from causalfusion_platform.config.text import is_interpolated, value_of
from causalfusion_platform.launch.cluster.submit import entrypoint
from causalfusion_platform.launch.runs.public_config import config_text

STRANGE = (
    "/home/müller/a b, [c]={d} 'e' \"f\" ~g",
    "γ sweep",
    "1e3",
    "a=b=c",
    "'quoted'",
    "null and void",
    "true",
    "100%",
    "$HOME ${ } $",
    "back\\slash\\",
    "\\'",
    "a: b # c",
    " leading and trailing ",
    "two\nlines\ttab",
    "???",
    "",
)


def text_keys(schema: dict[str, Any] | None = None) -> Iterator[tuple[str, bool]]:
    """Yield each key whose value is free text by the JSON schema, and whether it may be null."""
    root = Experiment.model_json_schema()

    def walk(node: dict[str, Any], key: str) -> Iterator[tuple[str, bool]]:
        if "$ref" in node:
            node = root["$defs"][node["$ref"].rpartition("/")[2]]
        choices = node.get("anyOf", [])
        if {"type": "null"} in choices and len(choices) == 2:
            for found, _ in walk(next(choice for choice in choices if choice != {"type": "null"}), key):
                yield found, found == key
        if node.get("type") == "string" and "enum" not in node and "const" not in node:
            yield key, False
        for name, inner in node.get("properties", {}).items():
            yield from walk(inner, f"{key}.{name}".lstrip("."))
        if isinstance(inner := node.get("additionalProperties"), dict):
            yield from walk(inner, f"{key}.mine")

    yield from walk(root, "")


KEYS = dict(text_keys())


def test_the_keys_of_text() -> None:
    assert {"name", "description", "runs", "task", "data.path", "train.staging", "tracking.uri"} <= set(KEYS)
    assert {"tracking.experiment", "tracking.tags.mine", "sweep.metric"} <= set(KEYS)
    assert [key for key, optional in KEYS.items() if optional] == [
        "data.tokenizer",
        "data.validation",
        "train.staging",
        "tracking.uri",
    ]


def as_hydra_reads(key: str, text: str) -> Any:
    """Return the value that Hydra and OmegaConf make of an override."""
    value = OverridesParser.create().parse_override(f"++{key}={value_of(key, text)}").value()
    return OmegaConf.to_container(OmegaConf.create({"value": value}), resolve=True)["value"]  # type: ignore[index, call-overload]


@settings(max_examples=400)
@given(st.sampled_from([*KEYS, "model.preset", "+description"]), st.text() | st.text("\\'\"${}=,[]() a"))
@example("description", "\\${a")
@example("data.path", "${")
@example("runs", "a\\\\${ '")
def test_any_text_is_taken_as_given(key: str, text: str) -> None:
    """But interpolations, and a lone null where the key allows one."""
    assume(not ("${" in text and is_interpolated(text)))
    assume(not (text == "null" and KEYS.get(key)))
    assert as_hydra_reads(key.lstrip("+"), text) == text


@pytest.mark.parametrize("key", [key for key, optional in KEYS.items() if optional])
def test_null_is_null_where_the_key_allows_it(key: str) -> None:
    assert as_hydra_reads(key, "null") is None
    assert as_hydra_reads("description", "null") == "null"


def test_other_keys_keep_the_grammar() -> None:
    for key, text in (
        ("optim.betas", "[0.9,0.95]"),
        ("train.images", "1e5"),
        ("sweep.grid", "{seed: [1, 2]}"),
        ("train.deepspeed.zero_optimization.reduce_bucket_size", "1e8"),
        ("tracking.tags", "{row: a}"),
        ("sampling.step_sizes", "[1,2]"),
        ("objective.patch_order", "raster"),
        ("trian.images", "3"),
    ):
        assert value_of(key, text) == text


@pytest.mark.parametrize("text", STRANGE)
def test_strange_texts_compose(own_folder: Path, text: str) -> None:
    keys = ("description", "data.path", "runs", "train.staging", "tracking.tags.a")
    overrides = [f"{key}={text}" for key in keys]
    composed = compose_experiment("quickstart", [*overrides, "tracking.uri=http://h:5000"])
    found = composed.experiment
    assert (found.description, found.tracking.tags, found.train.staging) == (text, {"a": text}, Path(text))
    assert (found.data.path, found.runs) == (own_folder / text, own_folder / text)
    # What is shown is an experiment again, and changes in code keep the rest.
    write_yaml(own_folder / "experiments/again.yaml", config_text(composed))
    assert load_experiment("again") == found
    changed = with_overrides(found, {"seed": 3, "name": "other", "tracking.uri": text}, "other")
    assert changed.tracking.uri == text
    assert changed.model_copy(update={"seed": 0, "name": "quickstart", "tracking": found.tracking}) == found


def test_a_question_mark_in_the_folder_of_runs() -> None:
    """SQLAlchemy would make the database of a?/b at a."""
    message = message_of("quickstart", "runs=/a?/b")
    assert message.startswith("runs=/a?/b has a question mark")
    assert load_experiment("quickstart", ["runs=/a?/b", "tracking.uri=http://h:5000"]).runs == Path("/a?/b")


def test_a_name_that_looks_like_a_number() -> None:
    assert load_experiment("quickstart", ["name=1e3"]).name == "1e3"
    assert load_experiment("quickstart", ["name=007"]).name == "007"


def test_a_file_needs_quotes_around_a_name_that_is_a_number(own_folder: Path) -> None:
    write_yaml(own_folder / "experiments/mine.yaml", "name: 2024\nmodel: {preset: tiny}\n")
    assert "name: Input should be a valid string (got 2024; a file needs quotes around such text)" in message_of(
        "mine"
    )


def test_interpolations_stay_interpolations(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCRATCH", "/scratch/a=b, c")
    monkeypatch.delenv("NOT_SET_HERE", raising=False)
    description = "description=of ${name} (${oc.env:NOT_SET_HERE,none})"
    found = load_experiment("quickstart", ["data.path=${oc.env:SCRATCH}/x y", description, "runs=\\${a}"])
    assert (found.data.path, found.description) == (Path("/scratch/a=b, c/x y"), "of quickstart (none)")
    assert found.runs.name == "${a}"


def test_text_that_is_not_utf_8() -> None:
    """A file name of another encoding arrives like this."""
    assert "is not UTF-8 text" in message_of("quickstart", "data.path=/home/m\udcfcller")


@given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0")), min_size=1))
def test_commands_in_messages_can_be_typed(words: list[str]) -> None:
    assert shlex.split(command(*words)) == ["causalfusion", *words]


@pytest.mark.parametrize("text", STRANGE)
def test_a_job_gets_the_text(text: str) -> None:
    arguments = ["train", "quickstart", f"description={text}"]
    assert shlex.split(entrypoint(arguments))[3:] == arguments


def test_no_message_pastes_a_value_into_a_command(repository: Path) -> None:
    """Except words that need no quotes, such as ports."""
    begun = re.compile(r"causalfusion [a-z]+ [^;,\n]*$")
    pasted = []
    for file in (repository / "platform").rglob("*.py"):
        for text in (node for node in ast.walk(ast.parse(file.read_bytes())) if isinstance(node, ast.JoinedStr)):
            for before, value in zip(text.values, text.values[1:], strict=False):
                if isinstance(before, ast.Constant) and isinstance(value, ast.FormattedValue):
                    words = begun.search(str(before.value))
                    if words and not words[0].rstrip().endswith(("--port", "name=")):
                        pasted.append(f"{file.name}:{value.lineno} {words[0]}{{{ast.unparse(value.value)}}}")
    assert pasted == []
