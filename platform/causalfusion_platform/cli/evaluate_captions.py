"""`causalfusion evaluate --captions`: score the captions of any model."""

from __future__ import annotations

import json
from pathlib import Path

import typer

_OPTIONS = ("references", "split", "ptb_jar", "allow_empty")
"""Options that need --captions."""
_EXAMPLE = ("evaluate", "--captions", "results.json", "--references", "dataset_coco.json")


def check_options(context: typer.Context) -> None:
    """Check that `evaluate` was given a run or captions, and only the options that go with it.

    Raises:
        UserError: neither or both are given, an option does not apply, or the references are missing.
    """
    from ..config.commands import command
    from ..config.errors import UserError

    sources = {name: context.get_parameter_source(name) for name in context.params}
    given = [name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"]
    if "captions" not in given:
        if wrong := [_as_typed(name) for name in given if name in _OPTIONS]:
            raise UserError(f"{', '.join(wrong)}: only with --captions\n  {command(*_EXAMPLE)}")
        if "checkpoint" not in given:
            raise UserError(
                f"neither a run nor captions are given\n  {command('evaluate', 'RUN')}, or {command(*_EXAMPLE)}"
            )
        return
    wrong = [_as_typed(name) for name in given if name not in ("captions", "as_json", *_OPTIONS)]
    if wrong:
        raise UserError(f"{', '.join(wrong)}: not with --captions, which are scored as they are\n  leave it out")
    if "references" not in given:
        raise UserError(f"--captions needs the references of its images\n  {command(*_EXAMPLE)}")


def print_scores(
    captions: Path, references: Path, split: str | None, ptb_jar: Path | None, *, allow_empty: bool, as_json: bool
) -> None:
    """Score a results file and print the record."""
    from rich.console import Console

    from ..evaluation.caption_scores import score_results_file
    from ..evaluation.metrics.caption_tokenizers import JAR, CaptionTokenizer, PTBTokenizer, WordTokenizer
    from ..report.bar import CountDisplay

    ptb = PTBTokenizer.find(ptb_jar)
    tokenizers: list[CaptionTokenizer] = [WordTokenizer(), *([ptb] if ptb is not None else [])]
    with CountDisplay(Console(stderr=True), "evaluate", starting="captions"):
        record = score_results_file(captions, references, split, tokenizers, allow_empty=allow_empty)
    for name, score in record.scores.items():
        print(f"{name} {score:.4f}")
    of_split = f", split {record.split}" if record.split else ""
    print(f"{record.images:,} images{of_split}, mean length {record.mean_length:.2f} words")
    if ptb is None:
        print(f"{PTBTokenizer.metric} is not measured: it needs Java and {JAR}, see --ptb-jar")
    if as_json:
        print(json.dumps(record.as_dict()))


def _as_typed(name: str) -> str:
    names = {"checkpoint": "RUN", "settings": "KEY=VALUE"}
    return names.get(name) or f"--{name.replace('_', '-')}"
