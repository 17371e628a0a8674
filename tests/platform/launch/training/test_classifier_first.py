"""Runs that are scored on the way have the classifier before their workers start."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from causalfusion_platform.config.compose import Composed
from causalfusion_platform.config.schema import Experiment
from causalfusion_platform.data.digits import write_digits
from causalfusion_platform.launch.training import train
from causalfusion_platform.launch.training.launch import Launch
from causalfusion_platform.tasks.class_to_image import ClassToImage


@pytest.mark.parametrize("on_the_way", [True, False])
def test_ranks_do_not_wait_for_the_first_one_to_train_it(
    make_experiment: Callable[..., Experiment],
    own_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    on_the_way: bool,
) -> None:
    write_digits(own_folder / "shards")
    done: list[str] = []

    def workers(*_: Any) -> contextlib.AbstractContextManager[None]:
        done.append("workers")
        return contextlib.nullcontext()

    monkeypatch.setattr(ClassToImage, "classifier_of", lambda *_: done.append("classifier"))
    monkeypatch.setattr(train, "_workers_session", workers)
    monkeypatch.setattr(Launch, "run", lambda *_: {})
    experiment = make_experiment(data={"path": own_folder / "shards"}, evaluation={"while_training": on_the_way})
    train.run_training(Composed(experiment, {}))
    assert done == (["classifier", "workers"] if on_the_way else ["workers"])
