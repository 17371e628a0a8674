"""Configuration tree: frozen and typed, with units and paper references in each field's docstring."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Field,
    InstanceOf,
    PlainSerializer,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from causalfusion import PRESETS, DiffusionConfig, ModelConfig, ObjectiveConfig, SamplingConfig
from causalfusion.noise.samplers import check_diffusion_steps
from causalfusion.objective import check_objective

from ..storage.object_path import ObjectPath
from ..storage.objects import ObjectUrl, is_object_url
from ..storage.sqlite import sqlite_address
from .errors import UserError
from .files import home
from .finetune import FinetuneConfig
from .paths import DiskPath, ShardsFolder
from .section import Section
from .sweep import SweepConfig


def _expand_preset(value: object) -> object:
    """Expand `model: {preset: L/2, class_tokens: 16}` into the preset with changed fields."""
    if not isinstance(value, dict):
        return value
    if "preset" not in value:
        return {"architecture": "causalfusion", **value}
    name = value["preset"]
    if not isinstance(name, str) or name not in PRESETS:
        raise ValueError(f"no model preset {name!r}; presets: {', '.join(PRESETS)}")
    return {**vars(PRESETS[name]), **{key: field for key, field in value.items() if key != "preset"}}


class SubsetConfig(Section):
    """A few rows of each class of other shards."""

    of: ShardsFolder
    """Folder of the shards that they are taken from, on disk or on object storage as `path`."""
    per_class: int = Field(ge=1)
    """Rows of each class."""
    seed: int = Field(0, ge=0, lt=2**32)
    """Seed that decides which rows. Fewer rows of a class are a part of more."""


Prepare = bool | Literal["split", "captions", "mnist", "mnist-captions"]
"""Kind of data that is written before a run."""


class DataConfig(Section):
    """Place of latent shards and settings of their streaming."""

    path: ShardsFolder = Path("shards/digits")
    """Folder of latent shards with a _manifest.json, on disk, or s3://BUCKET/PREFIX on object storage. Relative
    paths count from CAUSALFUSION_HOME. AWS's own variables name the store, such as AWS_ENDPOINT_URL."""
    prepare: Prepare = False
    """Write the bundled handwritten digits to `path` first if it does not have a manifest yet. `split`: write 1,497
    of them to `path`, and the other 300 to the folder `path`-validation. `captions`: the same with captions.
    `mnist`: 4,500 digits of MNIST to `path`, and 500 to the folder `path`-validation. `mnist-captions`: the same
    with captions."""
    subset: SubsetConfig | None = None
    """Write some rows of other shards to `path` first if it does not have a manifest yet. `prepare` then writes the
    digits to `subset.of`."""
    tokenizer: DiskPath | None = None
    """A tokenizer.json of Hugging Face, or the folder that holds one, for task=text_image. null: a byte-level BPE,
    trained on the captions of `path`. It is kept beside the shards."""
    validation: ShardsFolder | None = None
    """Folder of shards that no training sees, on disk or on object storage as `path`. Fine-tunes and probes measure
    on it. The end of task=text_image describes and draws its rows. null: those of training."""
    max_overlap: float = Field(0.0, ge=0, lt=1)
    """Largest share of the rows of `validation` whose latents may also be in `path`. Real data sets hold some
    images twice. Rows of one source in both are always refused."""
    flip: bool | None = None
    """Take the latent of the mirrored image half of the time. null: if the shards hold it."""
    posterior: Literal["sample", "mean"] = "sample"
    """Draw latents anew from the autoencoder's posterior whenever they are read, or take its mean."""
    verify: Literal["hash", "quick"] = "hash"
    """Checks before a run starts. `hash`: every byte against its SHA-256. `quick`: all but that. Page checksums are
    always compared while reading."""
    max_bad_rows: float = Field(0.0, ge=0, lt=1)
    """Largest share of rows that may be left out because their shards fail the checks at the start of a run."""
    in_memory: bool = False
    """Keep all rows in the memory of each worker, and start no Ray Data. The batches are the same. Short runs on
    small data start sooner."""
    window_rows: int = Field(8192, ge=1)
    """Rows that one reading task shuffles together. Row groups are shuffled over the whole data set before."""
    cpus_per_task: float = Field(0.25, gt=0)
    """CPUs reserved for each Ray Data reading task."""
    concurrency: int = Field(3, ge=1)
    """Reading tasks that may run at once."""
    prefetch_batches: int = Field(4, ge=1)
    """Global batches held ready before the training loop asks for them."""

    @model_validator(mode="after")
    def _writes_to_disk(self) -> DataConfig:
        written = [self.subset.of if self.subset else self.path] if self.prepare else []
        written += [self.path] if self.subset else []
        for folder in written:
            if isinstance(folder, ObjectPath):
                raise ValueError(
                    f"prepare and subset write shards to disk, and {folder} is on object storage: leave them out"
                )
        return self

    @field_validator("prepare", mode="wrap")
    @classmethod
    def _one_message(cls, value: Any, check: ValidatorFunctionWrapHandler) -> Prepare:
        try:
            checked: Prepare = check(value)
        except ValidationError as error:
            raise ValueError("must be true, false, split, captions, mnist or mnist-captions") from error
        return checked


Momentum = Annotated[float, Field(ge=0, lt=1)]
RelativeWidth = Annotated[float, Field(gt=0, lt=0.28)]


class OptimConfig(Section):
    """AdamW, its learning-rate rule, and the EMA (Tables 9 and 10)."""

    base_lr: float = Field(1e-4, gt=0)
    """Learning rate per 256 images: the rate is base_lr × global_batch_size / 256 (Table 9: 1e-4)."""
    betas: tuple[Momentum, Momentum] = (0.9, 0.95)
    """AdamW momentum (Table 9)."""
    eps: float = Field(1e-8, gt=0)
    """AdamW ε. The paper's release uses 1e-15."""
    weight_decay: float = Field(0.0, ge=0)
    """AdamW weight decay (Table 9: 0)."""
    clip_grad_norm: float = Field(1.0, ge=0)
    """Largest gradient norm. 0 switches clipping off (release: 1.0)."""
    warmup_images: int = Field(0, ge=0)
    """Images over which the learning rate rises linearly from 0 to its constant value."""
    warmup_epochs: float | None = Field(None, ge=0)
    """The same in epochs of the data set, in place of warmup_images."""
    schedule: Literal["constant", "cosine"] = "constant"
    """Learning rate after the warmup. `cosine`: half a cosine down to min_lr at the end of training (Tables 12
    and 13)."""
    min_lr: float = Field(0.0, ge=0)
    """Learning rate at the end of a cosine. It is not scaled by the batch."""
    ema_decay: float = Field(0.9999, ge=0, lt=1)
    """Decay per step of the weights' moving average in fp32 (release: 0.9999). Samples are drawn from it."""
    ema_warmup: bool = True
    """Start with the smaller decay (1 + n) / (10 + n) at step n, so that short runs forget their start."""
    ema_more_decays: tuple[Momentum, ...] = ()
    """Decays of further averages, kept beside that of ema_decay and stored in each checkpoint."""
    ema_power: tuple[RelativeWidth, ...] = ()
    """Relative widths σ_rel of power-function averages, below 0.28 (Karras et al. 2024, Section 3, with 0.05
    and 0.10). `causalfusion weights posthoc` makes an average of any other width from them."""

    @model_validator(mode="after")
    def _check_warmup(self) -> OptimConfig:
        if self.warmup_epochs is not None and self.warmup_images:
            raise ValueError(
                f"warmup_images {self.warmup_images} and warmup_epochs {self.warmup_epochs} both give the warmup: "
                f"leave one out"
            )
        if self.min_lr and self.schedule == "constant":
            raise ValueError(f"min_lr {self.min_lr:g} is the end of a cosine: set schedule=cosine, or leave it out")
        return self

    @model_validator(mode="after")
    def _check_averages(self) -> OptimConfig:
        for keys, values in (
            ("ema_decay and ema_more_decays", (self.ema_decay, *self.ema_more_decays)),
            ("ema_power", self.ema_power),
        ):
            twice = sorted({value for value in values if values.count(value) > 1})
            if twice:
                raise ValueError(f"{keys} name an average twice: {', '.join(map(str, twice))}")
        return self


Precision = Literal["auto", "fp32", "tf32", "bf16", "bf16_weights", "fp16"]


class TrainConfig(Section):
    """Training job: length, batch, workers, arithmetic, memory and cadences."""

    images: int = Field(102_400, ge=1)
    """Length of training, in images seen."""
    global_batch_size: int = Field(128, ge=1)
    """Images per optimizer step over all workers (Table 9: 2048)."""
    num_workers: int = Field(1, ge=1)
    """Ray Train workers, one process each. Must divide the global batch size."""
    cpus_per_worker: float = Field(1.0, gt=0)
    """CPUs reserved per worker, which also has that many threads (at least one).

    Reading data needs CPUs too: use 2 workers × 0.5 on 2 cores."""
    gpus_per_worker: float = Field(0.0, ge=0)
    """GPUs reserved per worker: 0 trains on CPUs, 1 on one GPU a worker. More GPUs take more workers."""
    zero_stage: Literal[0, 1, 2, 3] | None = None
    """DeepSpeed ZeRO stage: shards optimizer state (1), gradients (2), parameters (3). null: the stage of the
    checkpoint that the run continues. A new run has the lowest stage that its precision and offload allow: from 0
    with one worker, from 1 with several. Stage 3 is slower, and pays from a few billion parameters on."""
    micro_batch_size: int | None = Field(None, ge=1)
    """Images in one forward and backward pass of a worker. Gradients of several passes are added up before the
    optimizer step. null: all of a worker's images of the step. Fewer images take less memory. The result is the
    same."""
    precision: Precision = "auto"
    """Arithmetic. `bf16`: matrix products in bf16, parameters and gradients in fp32. `auto`: bf16 where the
    hardware supports its products, else fp32. `tf32`: fp32 with matrix products in TF32 on GPUs from A100 on. Other
    devices compute it in fp32. `bf16_weights`: parameters and gradients in bf16 too, with fp32 copies in the
    optimizer. `fp16`: the same in fp16, with dynamic loss scaling. The last two need ZeRO 1, 2 or 3."""
    activation_checkpointing: bool = False
    """Recompute each transformer block in the backward pass, which takes less memory and a third more time."""
    offload: Literal["none", "optimizer", "parameters"] = "none"
    """Offload from GPU to CPU memory. `optimizer`: the optimizer's state (ZeRO 1, 2 or 3). `parameters`: the state
    and the parameters (ZeRO 3)."""
    compile: bool = False
    """Compile each transformer block with torch.compile, as one graph, for all lengths of sequences before the
    first step. `train/recompilations` counts later compilations."""
    deepspeed: dict[str, Any] = Field(default_factory=dict)
    """More keys of DeepSpeed's configuration, such as `zero_optimization: {reduce_bucket_size: 1.0e+8}`. Unknown
    keys and keys that follow from other settings are refused."""
    log_every_images: int = Field(1_280, ge=1)
    """Interval of metrics, in images."""
    sample_every_images: int = Field(51_200, ge=1)
    """Interval of sample grids from the EMA weights, in images."""
    checkpoint_every_images: int = Field(51_200, ge=1)
    """Interval of checkpoints, in images. The end of training always has one."""
    keep_checkpoints: int = Field(2, ge=1)
    """Number of newest checkpoints to keep."""
    keep_best: int = Field(0, ge=0)
    """Number of further checkpoints to keep: those with the lowest training loss since the one before."""
    keep_every_images: int | None = Field(None, ge=1)
    """Interval of checkpoints that are kept permanently, in images. null: none."""
    staging: DiskPath | None = None
    """Fast local folder for checkpoints, from which they are copied to the run's folder in the background.
    null: the system's folder of temporary files."""

    @model_validator(mode="after")
    def _check(self) -> TrainConfig:
        if self.global_batch_size % self.num_workers:
            raise ValueError(
                f"global_batch_size {self.global_batch_size} is not a multiple of num_workers {self.num_workers}"
            )
        if self.worker_batch_size % self.rows_at_once:
            raise ValueError(
                f"micro_batch_size {self.micro_batch_size} does not divide the {self.worker_batch_size} images of "
                f"a worker: global_batch_size {self.global_batch_size} / num_workers {self.num_workers}"
            )
        return self

    @field_validator("gpus_per_worker")
    @classmethod
    def _one_gpu_at_most(cls, value: float) -> float:
        if value not in (0, 1):
            raise ValueError(
                f"must be 0 or 1, got {value:g}: DeepSpeed puts a worker on the GPU that has its rank's number on "
                "the host, which Ray gives to workers of one GPU alone. For more GPUs raise train.num_workers"
            )
        return value

    @model_validator(mode="after")
    def _check_stage(self) -> TrainConfig:
        if self.zero_stage is not None and self.zero_stage < self.lowest_stage:
            of_offload = self.offload == "parameters" or not self._has_masters
            what = f"offload {self.offload}" if of_offload else f"precision {self.precision}"
            allowed = " or ".join(map(str, range(self.lowest_stage, 4)))
            raise ValueError(f"{what} needs zero_stage {allowed}, got {self.zero_stage}")
        return self

    @property
    def lowest_stage(self) -> int:
        """Lowest ZeRO stage that the precision and the offload work with."""
        return 3 if self.offload == "parameters" else int(self._has_masters or self.offload == "optimizer")

    @property
    def stage(self) -> int:
        """ZeRO stage of a new run."""
        automatic = max(self.lowest_stage, int(self.num_workers > 1))
        return automatic if self.zero_stage is None else self.zero_stage

    @property
    def _has_masters(self) -> bool:
        return self.precision in ("bf16_weights", "fp16")

    @property
    def worker_batch_size(self) -> int:
        """Images per worker and optimizer step."""
        return self.global_batch_size // self.num_workers

    @property
    def rows_at_once(self) -> int:
        """Images per worker and backward pass."""
        return self.micro_batch_size or self.worker_batch_size

    @property
    def accumulation_steps(self) -> int:
        """Backward passes per worker and optimizer step."""
        return self.worker_batch_size // self.rows_at_once

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole run: images / global batch size, rounded up."""
        return -(-self.images // self.global_batch_size)

    @property
    def total_images(self) -> int:
        """Images that the whole run sees, in whole batches."""
        return self.steps * self.global_batch_size


class SupervisionConfig(Section):
    """Limits of recovery from failures."""

    max_failures: int = Field(100, ge=0)
    """Restarts of the workers by one launch, each from the last good checkpoint, before the run stops.
    Preemptions do not count, because no step is lost."""
    max_failures_without_progress: int = Field(3, ge=1)
    """Consecutive failures without a new checkpoint after which a launch stops with a diagnosis."""
    hang_seconds: float = Field(600, gt=0)
    """Longest time without a heartbeat of the training loop. Then stacks are dumped and workers replaced."""
    start_seconds: float = Field(1800, gt=0)
    """The same limit before the first step, while checkpoints are verified or converted and the engine is built.

    It also bounds the wait for room on the cluster, and for a process group of all workers. A start that takes
    longer is tried again, up to max_failures times."""
    resource_seconds: float = Field(300, gt=0)
    """Longest wait until all workers fit on the cluster again."""
    lock_seconds: float | None = Field(None, ge=0)
    """Longest wait for another launch of the run that is under way. With 0 the launch is refused at once.
    null: 600 in a job of a cluster (Ray, Slurm, Kubernetes), else 0."""
    min_workers: int | None = Field(None, ge=1)
    """Smallest number of workers when not all fit on the cluster. null: train.num_workers.

    The number must divide the global batch. The checkpoint is converted, and the loss curve stays the same."""
    spike_factor: float = Field(20.0, ge=0)
    """Gradient norm of a spike, as a multiple of the median of the last 100. Its update is skipped. 0: never."""
    max_skipped_steps: int = Field(3, ge=0)
    """Updates among the last 100 that may be skipped (NaN, Inf or spikes). With one more the run rolls back."""
    max_rollbacks: int = Field(2, ge=0)
    """Roll-backs to the last good checkpoint, each with another order of the data, before the run stops."""


class EvaluationConfig(Section):
    """Evaluation of generated samples at the end of training."""

    num_samples: int = Field(200, ge=2)
    """Samples to generate, with classes in turn."""
    batch_size: int = Field(64, ge=1)
    """Samples per worker and forward pass (guidance doubles the rows). Fewer samples take less memory."""
    score: bool = True
    """Score the samples by the data set's classifier, which is trained once and kept beside the shards.
    `false`: the run ends without scores."""
    ar_steps: tuple[Annotated[int, Field(ge=1)], ...] = ()
    """More numbers of AR steps S_eval beside sampling.num_ar_steps, each with num_samples samples. Their scores end
    with the number, such as `fd_digits_cnn_s4`."""
    num_captions: int = Field(300, ge=2)
    """Images that task=text_image describes at the end of training: the first of data.validation."""
    beam: int = Field(1, ge=1)
    """Beams of a second search for these captions, beside the greedy one. 1: none. Scores end with the number, such
    as `caption_class_beam3`."""
    guidance_scales: tuple[Annotated[float, Field(ge=0)], ...] = ()
    """More guidance scales of task=text_image beside sampling.guidance_scale. Scores end with the number, such as
    `t2i_class_w2.5`."""
    while_training: bool = False
    """Also score the samples of each grid. A sweep can end or replace trials by these scores."""
    probe_every_images: int | None = Field(None, ge=1)
    """Interval of probes of the EMA weights, in images, and at the end: the accuracy of a linear classifier on each
    layer's clean features. At most 2,048 rows of data.path and of data.validation are taken. null: none."""

    @model_validator(mode="after")
    def _check(self) -> EvaluationConfig:
        if self.while_training and not self.score:
            raise ValueError("while_training scores samples, but score is false: leave one of them out")
        return self


class TrackingConfig(Section):
    """Destination of metrics, grids and lineage."""

    uri: str | None = None
    """MLflow tracking URI. null: the SQLite file mlflow.db in the folder of runs."""
    experiment: str = Field("causalfusion", min_length=1, max_length=256)
    """MLflow experiment."""
    tags: dict[str, str] = Field(default_factory=dict)
    """Tags of the MLflow run, to filter by."""


def _read_address(value: object) -> object:
    """Read an address of object storage. A path stays as it is."""
    if not isinstance(value, str | Path):
        return value
    try:
        return ObjectUrl.parse(value) if is_object_url(value) else value
    except UserError as error:
        raise ValueError(str(error)) from error


PathOrUrl = Annotated[
    Path | InstanceOf[ObjectUrl],
    BeforeValidator(_read_address),
    PlainSerializer(str, when_used="json"),
    WithJsonSchema({"type": "string", "format": "path"}),
]
"""A path on disk, or `s3://BUCKET/KEY`."""


class Experiment(Section):
    """Whole experiment, as `causalfusion config show` prints it."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=120)
    """Name of the run and of its folder. The same name continues the same run."""
    description: str = ""
    """Purpose of the experiment, for readers."""
    seed: int = Field(0, ge=0)
    """Seed of every random draw."""
    runs: PathOrUrl = Path("runs")
    """Folder of the runs' folders. Relative paths count from CAUSALFUSION_HOME. `s3://BUCKET/PREFIX`: runs lie on
    object storage, and no disk has to be shared."""
    task: str = Field("class_to_image", pattern=r"^[A-Za-z0-9_.]+(:[A-Za-z_]\w*)?$")
    """Task that the run learns: `class_to_image`, `text_image`, `classification`, `captioning`, or
    `package.module:Class` of your own."""
    model: Annotated[ModelConfig, Field(discriminator="architecture"), BeforeValidator(_expand_preset)]
    """Model. `preset: NAME` starts from a named one."""
    data: DataConfig = DataConfig()
    diffusion: DiffusionConfig = DiffusionConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    optim: OptimConfig = OptimConfig()
    train: TrainConfig = TrainConfig()
    supervision: SupervisionConfig = SupervisionConfig()
    sampling: SamplingConfig = SamplingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    tracking: TrackingConfig = TrackingConfig()
    finetune: FinetuneConfig | None = None
    """Fine-tune of a trained model, for the tasks `classification` and `captioning`."""
    sweep: SweepConfig | None = None

    @model_validator(mode="after")
    def _check(self) -> Experiment:
        tokens, grid = self.model.num_tokens, self.model.grid_size
        if self.optim.min_lr > self.learning_rate:
            raise ValueError(
                f"optim.min_lr {self.optim.min_lr:g} exceeds the peak of the learning rate, {self.learning_rate:g}"
            )
        if self.finetune is None:  # which replaces the objective
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
        if self.model.architecture != "causalfusion" and (len(sizes) > 1 or self.evaluation.ar_steps):
            name = "DiT" if self.model.architecture == "dit" else "Transfusion"
            raise ValueError(
                f"{name} has no AR steps: sampling.num_ar_steps must be 1, got {len(sizes)}, and "
                f"evaluation.ar_steps empty, got {list(self.evaluation.ar_steps)}"
            )
        self._check_evaluation(tokens)
        for steps in self.sampling.inference_steps:
            try:
                check_diffusion_steps(self.sampling.sampler, self.diffusion, steps)
            except ValueError as error:
                raise ValueError(f"sampling.num_inference_steps: {error}") from error
        return self

    def _check_evaluation(self, tokens: int) -> None:
        more = self.evaluation.ar_steps
        if more and not isinstance(self.sampling.step_sizes, str):
            raise ValueError(
                "evaluation.ar_steps and a list of sampling.step_sizes both say how many AR steps there are: leave "
                "one out"
            )
        if max(more, default=1) > tokens:
            raise ValueError(f"evaluation.ar_steps {list(more)} exceed the model's {tokens} image tokens")
        if len({*more, self.sampling.num_ar_steps}) <= len(more):
            raise ValueError(
                f"evaluation.ar_steps {list(more)} names a number twice, or that of sampling.num_ar_steps, "
                f"{self.sampling.num_ar_steps}"
            )

    @property
    def learning_rate(self) -> float:
        """Peak learning rate: base_lr × global_batch_size / 256."""
        return self.optim.base_lr * self.train.global_batch_size / 256

    @property
    def runs_folder(self) -> Path:
        """Folder of the runs' folders on this machine: `runs`, or a copy of what object storage holds."""
        return self.runs if isinstance(self.runs, Path) else local_copy(self.runs)

    @property
    def run_dir(self) -> Path:
        """Folder of this run on this machine."""
        return self.runs_folder / self.name

    @property
    def run_url(self) -> ObjectUrl | None:
        """Address of this run on object storage. None: it lies in its folder alone."""
        return None if isinstance(self.runs, Path) else self.runs / self.name

    @property
    def tracking_uri(self) -> str:
        """MLflow tracking URI, or its default."""
        return self.tracking.uri or sqlite_address(local_database(self.runs_folder))


def local_copy(url: ObjectUrl) -> Path:
    """Return the folder below CAUSALFUSION_HOME that a launch works in, for a folder of runs on object storage."""
    return home() / "s3" / url.bucket / url.key


def local_database(runs: Path) -> Path:
    """Return MLflow's SQLite file of a folder of runs, the default without a server."""
    return runs.absolute() / "mlflow.db"
