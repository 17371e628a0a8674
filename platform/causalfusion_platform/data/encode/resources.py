"""Shares of a cluster that the pipeline reserves for its stages."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class PipelineResources:
    """Actors and tasks of the pipeline, and the CPUs and GPUs of each."""

    encoders: int
    """Actors with an autoencoder each."""
    gpus_per_encoder: float
    cpus_per_encoder: float
    threads: int
    """Threads of an encoder."""
    decoders: int
    """Tasks that read and decode at once."""
    cpus_per_decoder: float
