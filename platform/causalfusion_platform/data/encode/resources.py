"""Resources of a cluster that the pipeline reserves for its stages."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class PipelineResources:
    """Actors and tasks of the pipeline, and the CPUs and GPUs of each."""

    encoders: int
    """Actors, each with an autoencoder."""
    gpus_per_encoder: float
    cpus_per_encoder: float
    threads: int
    """Threads per encoder."""
    decoders: int
    """Concurrent tasks that read and decode."""
    cpus_per_decoder: float
