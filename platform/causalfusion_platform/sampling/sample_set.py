"""A set of samples to generate: the plan that decides every byte of it, and the folder that holds it.

The plan, `samples.json`, is written first. Samples are generated in parts (`parts`). All parts together give
`samples.npz` in ADM's layout and `png/` (`outputs`). Then the parts are removed.
"""

from __future__ import annotations

import hashlib
import socket
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from causalfusion import DiffusionConfig, ModelConfig, SamplingConfig

from ..config.compose import flatten
from ..config.errors import UserError
from ..data.manifest import AutoencoderId
from ..storage.atomic import write_atomically
from ..storage.json_file import Damaged, read_model
from .labels import LabelsRule, asked_labels
from .pixels import Uint8Rule
from .prompts_file import PromptsId
from .settings import inference_steps, num_ar_steps

PLAN_FILE = "samples.json"

# A part is whole batches. Small sets have many parts too, so that all workers have some.
_PART_SAMPLES = 256
_PARTS = 64


class _PlanPart(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class SamplePlan(_PlanPart):
    """Everything that determines the samples, and the places of weights and autoencoder."""

    version: Literal[1] = 1
    num: int = Field(ge=1)
    """Number of samples."""
    seed: int = Field(ge=0)
    """Seed that, with a sample's number, determines its order and noise."""
    labels: LabelsRule
    """`balanced`: the classes in turn. `random`: drawn by the seed."""
    classes: tuple[int, ...] | None
    """Classes of the labels. Null: all of the model's, or prompts in place of classes."""
    prompts: PromptsId | None = None
    """Prompts of a model of text, one for each sample. Null: the model draws classes."""
    uint8: Uint8Rule
    """Conversion to bytes: `round` as MAR, `truncate` as DiT and the paper's release, `adm` as ADM."""
    precision: Literal["fp32", "bf16"]
    """Arithmetic and weights of the model. Latents, and the autoencoder, are in fp32."""
    batch_size: int = Field(ge=1)
    """Samples that go through the model together. Sums round differently in another batch."""
    sampling: SamplingConfig
    diffusion: DiffusionConfig
    model: Annotated[ModelConfig, Field(discriminator="architecture")]
    weights_sha256: str
    """SHA-256 of the safetensors file."""
    weights: Path
    """Folder of the weights when the set was begun. They may lie elsewhere by now."""
    autoencoder: AutoencoderId
    vae: str | None
    """The autoencoder as it was named. Null: latents are pixels."""
    image_size: int = Field(ge=1)
    """Side of the images, in pixels."""
    versions: dict[str, str]
    """Versions of packages when the set was begun."""

    @property
    def class_list(self) -> tuple[int, ...]:
        """Classes of the labels."""
        return tuple(range(self.model.num_classes)) if self.classes is None else self.classes

    @property
    def part_size(self) -> int:
        """Samples of each part but the last: whole batches, so that parts do not change the results."""
        batches = min(_PART_SAMPLES // self.batch_size, self.num // (_PARTS * self.batch_size))
        return max(batches, 1) * self.batch_size

    @property
    def num_parts(self) -> int:
        """Number of parts."""
        return -(-self.num // self.part_size)

    @property
    def bytes(self) -> int:
        """Size of all images."""
        return self.num * self.image_size**2 * 3

    @property
    def identity(self) -> dict[str, Any]:
        """Fields that determine the samples, by dotted key: all but places and versions."""
        places: dict[str, Any] = {"weights": True, "vae": True, "versions": True}
        places["prompts"] = {"file"} if self.prompts else True  # sets of classes keep the names they had
        tree = self.model_dump(mode="json", exclude=places)
        if self.sampling.step_schedule == "constant":  # sets without a schedule keep their names too
            del tree["sampling"]["step_schedule"], tree["sampling"]["last_inference_steps"]
        return dict(flatten(tree))

    @property
    def name(self) -> str:
        """Name for the set's folder: the settings that matter most, and a digest of all."""
        sampling = self.sampling
        ar_steps, steps = num_ar_steps(sampling), inference_steps(sampling)
        digest = hashlib.sha256(repr(sorted(self.identity.items())).encode()).hexdigest()
        return (
            f"{self.num}-S{ar_steps}-T{steps}-{sampling.sampler}-cfg{sampling.guidance_scale:g}-seed{self.seed}-"
            f"{digest[:8]}"
        )

    def part(self, index: int) -> range:
        """Return the numbers of a part's samples."""
        return range(index * self.part_size, min((index + 1) * self.part_size, self.num))

    def label_tensor(self) -> Tensor:
        """Return the class of each sample of a model of classes: (num,) int64."""
        assert self.prompts is None, "samples of prompts have no classes"
        return asked_labels(self.labels, self.num, self.class_list, self.seed)


class Finished(_PlanPart):
    """Outputs of a finished set."""

    digest: str
    """SHA-256 over the bytes of all images (N, H, W, 3) in order, the same for all kinds of files."""
    npz_bytes: int | None = None
    """Size of `samples.npz`. Null: it was not requested."""
    png: bool = False
    """True if `png/` exists."""


class SetRecord(_PlanPart):
    """Content of `samples.json`."""

    plan: SamplePlan
    finished: Finished | None = None

    def write(self, folder: Path) -> None:
        """Write it, atomically."""
        write_atomically(folder / PLAN_FILE, (self.model_dump_json(indent=2) + "\n").encode())


def read_record(folder: Path) -> SetRecord | None:
    """Return the content of `samples.json` in a folder of samples. None: the file is missing.

    Raises:
        UserError: it is damaged, or of another version.
    """
    path = folder / PLAN_FILE
    try:
        return read_model(path, SetRecord)
    except FileNotFoundError:
        return None
    except Damaged as error:
        raise UserError(
            f"{path} is damaged, or of another version: {error.reason}\n"
            f"  generate into another folder, or remove {folder}"
        ) from error


def begin(folder: Path, plan: SamplePlan) -> SetRecord:
    """Write the plan into `folder`, or check that it is the plan there. Return the record in `folder`.

    Raises:
        UserError: another set was begun there. The differences are listed.
    """
    record = read_record(folder)
    if record is None:
        record = SetRecord(plan=plan)
        record.write(folder)
        return record
    theirs, mine = record.plan.identity, plan.identity
    changed = [
        f"  {key}: was {theirs.get(key)!r}, now {mine.get(key)!r}"
        for key in sorted({*theirs, *mine})
        if theirs.get(key) != mine.get(key)
    ]
    if changed:
        lines = "\n".join(changed)
        raise UserError(
            f"{folder} was begun with other settings:\n{lines}\n"
            f"  use the old ones to continue it, or generate into another folder: --out FOLDER"
        )
    return record


def check_begun(folder: Path, plan: SamplePlan) -> None:
    """Raise `UserError`, in a process that writes parts, unless the set was begun in the folder."""
    record = read_record(folder)
    if record is None or record.plan.identity != plan.identity:
        raise UserError(
            f"{folder} on {socket.gethostname()}, the machine of a worker, is not the folder of these samples\n"
            f"  name a folder on storage that all nodes share: --out FOLDER"
        )
