"""Request for a sample set, its checks, and its plan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from causalfusion import DiffusionConfig, ModelConfig, SamplingConfig, draws, load_diffusion
from causalfusion.factorization.ordering import patch_orders
from causalfusion.noise.samplers import check_diffusion_steps
from causalfusion.weights.folder import WEIGHTS_FILE, load_config

from ...checkpoint.class_names import class_names
from ...checkpoint.find import find_weights
from ...config.commands import command
from ...config.errors import UserError
from ...data.autoencoder import open_autoencoder
from ...data.manifest import AutoencoderId, sha256_of
from ...sampling.interactive import parse_settings
from ...sampling.labels import LabelsRule, parse_classes
from ...sampling.outputs import Output
from ...sampling.pixels import Uint8Rule
from ...sampling.prompts import text_of, tokenizer_of
from ...sampling.prompts_file import PromptsId, encode_captions, read_captions
from ...sampling.sample_set import SamplePlan
from ...sampling.settings import WITHOUT_AR_STEPS
from ...storage.run_layout import RunPaths
from ...tracking.lineage import package_versions
from ..runs.folder import RunFolder

Precision = Literal["fp32", "bf16"]

_BATCH = 64
_PACKAGES = ("torch", "diffusers", "causalfusion-platform")


@dataclass(frozen=True, kw_only=True)
class GenerateRequest:
    """Request for a sample set. A field that is None is as the checkpoint's run does it."""

    checkpoint: Path
    """Folder of weights, of a checkpoint, or of a run (its newest checkpoint)."""
    num: int | None = None
    """Number of samples. Default: one of each prompt."""
    sampling: SamplingConfig | None = None
    """Place on the plane. Default: the run's, or the paper's for weights without a run."""
    settings: Sequence[str] = ()
    """`key=value` changes of it."""
    seed: int | None = None
    """Default: the run's, or 0."""
    labels: LabelsRule = "balanced"
    classes: str | None = None
    """Such as 0,2,7, 0-9 or cat,dog. Default: all."""
    prompts: Path | None = None
    """File of prompts for a model of text, one sample of each of the first `num`."""
    cut_prompts: bool = False
    """Cut prompts that are longer than the model takes. Otherwise they are refused."""
    uint8: Uint8Rule = "round"
    precision: Precision = "fp32"
    batch_size: int | None = None
    """Samples that go through the model together. Default: the run's `evaluation.batch_size`, or 64."""
    vae: str | None = None
    """As `open_autoencoder` takes it."""
    out: Path | None = None
    """Default: a folder in the run's `samples/`, named by the settings."""
    npz: bool = True
    """Write `samples.npz`."""
    png: bool = False
    """Write `png/`."""

    def __post_init__(self) -> None:
        for name, allowed in (("labels", LabelsRule), ("uint8", Uint8Rule), ("precision", Precision)):
            if getattr(self, name) not in get_args(allowed):
                raise UserError(f"{name} must be {' or '.join(get_args(allowed))}, got {getattr(self, name)!r}")
        for name, least in (("num", 1), ("seed", 0), ("batch_size", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise UserError(f"{name} must be at least {least}, got {value}")
        if self.prompts is None and (self.num is None or self.cut_prompts):
            name = "--cut-prompts" if self.cut_prompts else "a set without a number of samples"
            raise UserError(f"{name} needs prompts\n  name their file: --prompts FILE.jsonl")
        if self.prompts is not None and (self.classes is not None or self.labels != "balanced"):
            raise UserError(
                "--prompts are drawn in turn, in place of classes\n  leave out --prompts, or --classes and --labels"
            )
        if not self.outputs:
            raise UserError("neither samples.npz nor PNGs are asked for\n  leave out --no-npz, or add --png")

    @property
    def outputs(self) -> list[Output]:
        """The files asked for."""
        return [name for name, wanted in zip(get_args(Output), (self.npz, self.png), strict=True) if wanted]


def plan_set(request: GenerateRequest) -> tuple[SamplePlan, Path]:
    """Return the plan of the set and its folder, without writing anything.

    Raises:
        UserError: the request is wrong, or does not fit the model.
    """
    found = find_weights(request.checkpoint)
    if request.out is None and found.run is None:
        raise UserError(
            f"the weights in {found.folder} are of no run that samples could lie in\n  add --out FOLDER"
        )
    run = RunFolder(found.run) if found.run else None
    experiment = run.experiment if run else None
    model = _read_model(found.folder)
    base = request.sampling or (experiment.sampling if experiment else SamplingConfig())
    sampling = parse_settings(request.settings, base)
    diffusion = experiment.diffusion if experiment else _read_diffusion(found.folder)
    seed = request.seed if request.seed is not None else experiment.seed if experiment else 0
    _check_fits(model, sampling, diffusion, seed)
    _check_condition(request, model)
    prompts, num = _read_prompts(request, model, found.folder)
    vae = request.vae
    if vae is not None and vae != "identity":
        vae = str(Path(vae).absolute())
    coder = open_autoencoder(vae, model.in_channels, made=run.autoencoder if run else None)
    versions = package_versions()
    plan = SamplePlan(
        num=num,
        seed=seed,
        labels=request.labels,
        classes=_read_classes(request.classes, model, found.folder, experiment.data.path if experiment else None),
        prompts=prompts,
        uint8=request.uint8,
        precision=request.precision,
        batch_size=request.batch_size or (experiment.evaluation.batch_size if experiment else _BATCH),
        sampling=sampling,
        diffusion=diffusion,
        model=model,
        weights_sha256=sha256_of(found.folder / WEIGHTS_FILE),
        weights=found.folder.absolute(),
        autoencoder=AutoencoderId(name=coder.name, scale=coder.scale, weights_sha256=coder.weights_sha256),
        vae=vae,
        image_size=model.input_size * coder.downsampling,
        versions={name: versions[name] for name in _PACKAGES},
    )
    if request.out is not None:
        return plan, request.out
    assert found.run is not None
    return plan, RunPaths(found.run).samples / plan.name


def check_condition(request: GenerateRequest) -> None:
    """Check that prompts are asked of a model of text, and of no other.

    Raises:
        UserError: they are not, or weights are missing.
    """
    _check_condition(request, _read_model(find_weights(request.checkpoint).folder))


def _check_condition(request: GenerateRequest, model: ModelConfig) -> None:
    if text_of(model) is None and request.prompts is not None:
        raise UserError(f"the model in {request.checkpoint} draws classes, not text\n  leave out --prompts")
    if text_of(model) is not None and request.prompts is None:
        raise UserError(
            f"the model in {request.checkpoint} draws from text, so that its samples need prompts\n"
            f'  name a file with one JSON object such as {{"caption": "a dog"}} a line: --prompts FILE.jsonl\n'
            f"  those of COCO: {command('data', 'prompts', 'captions_val2014.json', 'fid30k.jsonl')}"
        )


def _read_prompts(request: GenerateRequest, model: ModelConfig, weights: Path) -> tuple[PromptsId | None, int]:
    """Return the prompts of the samples, checked against the model, and the number of samples."""
    if request.prompts is None:
        assert request.num is not None
        return None, request.num
    text, tokenizer, file = text_of(model), tokenizer_of(weights, model), request.prompts.absolute()
    assert text is not None and tokenizer is not None
    captions, sha256 = read_captions(file)
    num = len(captions) if request.num is None else request.num
    if num > len(captions):
        raise UserError(f"{num:,} samples of {len(captions):,} prompts in {file}\n  ask for fewer: --num N")
    _, cut = encode_captions(
        captions[:num], tokenizer, text.max_tokens, cut=request.cut_prompts, place=str(request.prompts)
    )
    return PromptsId(file=file, sha256=sha256, cut=cut if request.cut_prompts else None), num


def _read_classes(text: str | None, model: ModelConfig, weights: Path, data: Path | None) -> tuple[int, ...] | None:
    """Return the classes named, or None for all in turn, which is also the plan without names."""
    if text is None:
        return None
    classes = tuple(parse_classes(text, model.num_classes, class_names(weights, model.num_classes, data)))
    return None if classes == tuple(range(model.num_classes)) else classes


def _read_model(folder: Path) -> ModelConfig:
    """Read the sizes of the model without building it."""
    try:
        return load_config(folder)
    except ValueError as error:
        raise UserError(f"this is not the configuration of a model: {error}") from error


def _read_diffusion(folder: Path) -> DiffusionConfig:
    try:
        return load_diffusion(folder)
    except ValueError as error:
        raise UserError(str(error)) from error


def _check_fits(model: ModelConfig, sampling: SamplingConfig, diffusion: DiffusionConfig, seed: int) -> None:
    """Raise `UserError` if a model cannot be sampled in this way."""
    try:
        sizes = sampling.sizes(model.num_tokens, seed)
        baseline = WITHOUT_AR_STEPS.get(model.architecture)
        if baseline is not None and len(sizes) > 1:
            raise ValueError(f"a {baseline} has no AR steps: num_ar_steps must be 1, got {len(sizes)}")
        for steps in sampling.inference_steps:
            check_diffusion_steps(sampling.sampler, diffusion, steps)
        one = [draws.stream(seed, "generated sample", 0)]
        patch_orders(sampling.patch_order, model.grid_size, one, block=sampling.order_block)
    except ValueError as error:
        raise UserError(f"{error} (the model has {model.num_tokens} image tokens)") from error
