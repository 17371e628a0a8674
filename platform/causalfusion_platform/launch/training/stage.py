"""ZeRO stage of an attempt."""

from __future__ import annotations

from ...assemble import Job
from ...config.schema import Experiment


def with_stage(job: Job, wanted: Experiment) -> Job:
    """Return the job with the ZeRO stage that its workers are to use.

    `train.zero_stage` decides. Where it is null, a run keeps the stage of its checkpoints: DeepSpeed converts no
    state of ZeRO 0 or 3. A run without checkpoints starts with the stage that suits all of its workers.

    Args:
        job: the attempt's. Its workers may be fewer than are wanted.
        wanted: the experiment with all of its workers.
    """
    train = wanted.train
    written = job.storage.written_stage() if train.zero_stage is None else None
    stage = train.stage if written is None else max(written, train.lowest_stage)
    ours = job.experiment.train.model_copy(update={"zero_stage": stage})
    return job.model_copy(update={"experiment": job.experiment.model_copy(update={"train": ours})})
