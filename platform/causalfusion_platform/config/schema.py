"""The one configuration tree: frozen, typed, with ranges, units and paper references in each field's docstring."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from causalfusion import PRESETS, DiffusionConfig, ModelConfig, ObjectiveConfig, SamplingConfig
from causalfusion.objective import check_objective
from causalfusion.samplers import check_diffusion_steps


class Section(BaseModel):
    """A part of the tree: immutable, and refusing keys it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


def _expand_preset(value: object) -> object:
    """Let `model: {preset: L/2, class_tokens: 16}` mean the preset with fields changed."""
    if not isinstance(value, dict):
        return value
    if "preset" not in value:
        return {"architecture": "causalfusion", **value}
    name = value["preset"]
    if not isinstance(name, str) or name not in PRESETS:
        raise ValueError(f"no model preset {name!r}; presets: {', '.join(PRESETS)}")
    return {**vars(PRESETS[name]), **{key: field for key, field in value.items() if key != "preset"}}


class DataConfig(Section):
    """Where latent shards are and how they are streamed."""

    path: Path = Path("shards/digits")
    """Folder of latent shards with a manifest.json; relative paths count from CAUSALFUSION_HOME."""
    prepare: bool = False
    """Write the bundled handwritten digits to `path` first, if there is no manifest yet."""
    flip: bool | None = None
    """Take the latent of the mirrored image half of the time; null: wherever the shards hold it."""
    posterior: Literal["sample", "mean"] = "sample"
    """Draw latents anew from the autoencoder's posterior whenever they are read, or take its mean."""
    verify: Literal["hash", "quick"] = "hash"
    """Checks before a run starts: every byte against its SHA-256, or all but that. Page checksums are always
    compared while reading."""
    max_bad_rows: float = Field(0.0, ge=0, lt=1)
    """Largest share of the rows that a run may go without because their shards fail the checks at its start."""
    window_rows: int = Field(8192, ge=1)
    """Rows that one reading task shuffles together; row groups are shuffled over the whole data set before."""
    cpus_per_task: float = Field(0.25, gt=0)
    """CPUs reserved for each Ray Data reading task."""
    concurrency: int = Field(3, ge=1)
    """Reading tasks that may run at once."""
    prefetch_batches: int = Field(4, ge=1)
    """Global batches held ready before the training loop asks for them."""


Momentum = Annotated[float, Field(ge=0, lt=1)]


class OptimConfig(Section):
    """AdamW, its learning-rate rule, and the EMA (Tables 9 and 10)."""

    base_lr: float = Field(1e-4, gt=0)
    """Learning rate per 256 images: the rate is base_lr × global_batch_size / 256 (Table 9: 1e-4)."""
    betas: tuple[Momentum, Momentum] = (0.9, 0.95)
    """AdamW momentum (Table 9)."""
    eps: float = Field(1e-8, gt=0)
    """AdamW ε; the paper's release uses 1e-15."""
    weight_decay: float = Field(0.0, ge=0)
    """AdamW weight decay (Table 9: 0)."""
    clip_grad_norm: float = Field(1.0, ge=0)
    """Largest gradient norm; 0 switches clipping off (release: 1.0)."""
    warmup_images: int = Field(0, ge=0)
    """Images over which the learning rate rises linearly from 0 to its constant value."""
    ema_decay: float = Field(0.9999, ge=0, lt=1)
    """Decay of the weights' moving average, per step (release: 0.9999). Kept in fp32."""
    ema_warmup: bool = True
    """Start with the smaller decay (1 + n) / (10 + n) at step n, so that short runs forget their start."""


class TrainConfig(Section):
    """The training job: its length, its batch and its workers."""

    images: int = Field(102_400, ge=1)
    """Length of training, in images seen."""
    global_batch_size: int = Field(128, ge=1)
    """Images per optimizer step over all workers (Table 9: 2048)."""
    num_workers: int = Field(1, ge=1)
    """Ray Train workers, each one process; must divide the global batch size."""
    cpus_per_worker: float = Field(1.0, gt=0)
    """CPUs reserved per worker, which also has that many threads (at least one).

    Reading data needs some too: 2 workers × 0.5 on 2 cores."""
    gpus_per_worker: float = Field(0.0, ge=0)
    """GPUs reserved per worker."""
    zero_stage: Literal[0, 1, 2, 3] = 1
    """DeepSpeed ZeRO stage: shards optimizer state (1), gradients (2), parameters (3)."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic of matrix products; parameters stay fp32. auto: bf16 where the hardware multiplies in it."""
    log_every_images: int = Field(1_280, ge=1)
    """Cadence of metrics."""
    sample_every_images: int = Field(51_200, ge=1)
    """Cadence of sample grids from the EMA weights."""
    checkpoint_every_images: int = Field(51_200, ge=1)
    """Cadence of checkpoints; there is always one at the end."""
    keep_checkpoints: int = Field(2, ge=1)
    """Newest checkpoints that are kept."""
    max_failures: int = Field(1, ge=0)
    """Times that lost workers are replaced, from the last checkpoint, before the run gives up."""

    @model_validator(mode="after")
    def _check(self) -> TrainConfig:
        if self.global_batch_size % self.num_workers:
            raise ValueError(
                f"global_batch_size {self.global_batch_size} is not a multiple of num_workers {self.num_workers}"
            )
        return self

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole run: images / global batch size, rounded up."""
        return -(-self.images // self.global_batch_size)

    @property
    def total_images(self) -> int:
        """Images that the whole run sees: whole batches."""
        return self.steps * self.global_batch_size


class EvaluationConfig(Section):
    """What is measured on generated samples when training has ended."""

    num_samples: int = Field(200, ge=2)
    """Samples to generate; classes in turn."""
    batch_size: int = Field(64, ge=1)
    """Samples that one worker generates at once (guidance doubles the rows); less takes less memory."""
    classifier_epochs: int = Field(30, ge=1)
    """Epochs of the classifier that judges samples; it learns from the real images of the data set."""


class TrackingConfig(Section):
    """Where metrics, grids and lineage go."""

    uri: str | None = None
    """MLflow tracking URI; null: the SQLite file mlflow.db in the folder of runs."""
    experiment: str = "causalfusion"
    """MLflow experiment."""


class SweepConfig(Section):
    """A Ray Tune search over keys of this tree."""

    grid: dict[str, list[Any]] = Field(min_length=1)
    """Dotted key → values; every combination is one trial."""
    metric: str = "class_accuracy"
    """A number of each trial's summary.json, by which trials are ranked."""
    mode: Literal["max", "min"] = "max"
    """Whether more or less of the metric is better."""


class Experiment(Section):
    """A whole experiment: what `causalfusion config show` prints."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=120)
    """Name of the run and of its folder; the same name continues the same run."""
    description: str = ""
    """What the experiment shows, for people."""
    seed: int = Field(0, ge=0)
    """Seed of every random draw."""
    runs: Path = Path("runs")
    """Folder that holds the folders of runs; relative paths count from CAUSALFUSION_HOME."""
    model: Annotated[ModelConfig, Field(discriminator="architecture"), BeforeValidator(_expand_preset)]
    """The model; `preset: NAME` starts from a named one."""
    data: DataConfig = DataConfig()
    diffusion: DiffusionConfig = DiffusionConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    optim: OptimConfig = OptimConfig()
    train: TrainConfig = TrainConfig()
    sampling: SamplingConfig = SamplingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    tracking: TrackingConfig = TrackingConfig()
    sweep: SweepConfig | None = None

    @model_validator(mode="after")
    def _check(self) -> Experiment:
        tokens, grid = self.model.num_tokens, self.model.grid_size
        check_objective(self.model, self.objective)
        for section, part in (("objective", self.objective), ("sampling", self.sampling)):
            if part.num_ar_steps is not None and part.num_ar_steps > tokens:
                raise ValueError(
                    f"{section}.num_ar_steps {part.num_ar_steps} exceeds the model's {tokens} image tokens"
                )
            if part.patch_order in ("blockwise", "dilated") and (part.order_block < 1 or grid % part.order_block):
                raise ValueError(
                    f"{section}.order_block {part.order_block} does not divide the {grid}×{grid} patch grid"
                )
        try:
            sizes = self.sampling.sizes(tokens, self.seed)
        except ValueError as error:
            raise ValueError(f"sampling: {error}") from error
        if self.model.architecture == "dit" and len(sizes) > 1:
            raise ValueError(f"DiT has no AR steps: sampling.num_ar_steps must be 1, got {len(sizes)}")
        for steps in self.sampling.inference_steps:
            try:
                check_diffusion_steps(self.sampling.sampler, self.diffusion, steps)
            except ValueError as error:
                raise ValueError(f"sampling.num_inference_steps: {error}") from error
        return self

    @property
    def learning_rate(self) -> float:
        """Peak learning rate: base_lr × global_batch_size / 256."""
        return self.optim.base_lr * self.train.global_batch_size / 256

    @property
    def run_dir(self) -> Path:
        """Folder of this run."""
        return self.runs / self.name

    @property
    def tracking_uri(self) -> str:
        """MLflow tracking URI, the default filled in."""
        return self.tracking.uri or f"sqlite:///{self.runs.absolute() / 'mlflow.db'}"
