"""Identity of scores: those of a data set's classifier compare only with scores under the same one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .extractors.classifier_extractor import DATA_SPACE, DIGITS_SPACE

CLASSIFIER_KEY = "classifier_sha256"
"""Key of summary.json: SHA-256 of the weights of the classifier behind its scores."""

_BEGIN = (
    "class_accuracy",
    "judge_accuracy",
    f"fd_{DIGITS_SPACE}",
    f"fd_{DATA_SPACE}",
    "t2i_class",
    "t2i_unseen_class",
    "t2i_fd_",
)


def depends_on_classifier(name: str) -> bool:
    """Return whether a key of summary.json is a score by the classifier of the data set."""
    return name.startswith(_BEGIN)


def classifiers_of(summaries: Mapping[str, Mapping[str, Any]]) -> dict[str | None, list[str]]:
    """Return the classifiers behind the scores of runs: hash → names of runs.

    A run without scores is left out. None stands for runs of earlier versions, which recorded no classifier.
    """
    found: dict[str | None, list[str]] = {}
    for name, summary in summaries.items():
        if any(depends_on_classifier(key) and value is not None for key, value in summary.items()):
            found.setdefault(summary.get(CLASSIFIER_KEY), []).append(name)
    return found


def describe_classifiers(found: Mapping[str | None, list[str]]) -> str:
    """Return a line for each classifier, with a few of the runs that it scored."""
    lines = []
    for digest, names in found.items():
        shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        classifier = "an unknown one (an earlier version recorded none)" if digest is None else f"{digest[:12]}…"
        lines.append(f"  {classifier}: {shown}")
    return "\n".join(lines)
