"""CausalFusion: diffusion and autoregression in one decoder-only transformer (arXiv 2412.12095).

`transformer` is the network, `objective` its training loss, `sampling/` generates, `weights/` loads and saves.
`factorization/` holds the AR axis, `noise/` the diffusion axis, and `text/` the tokenizer. The package needs no
Ray, DeepSpeed or MLflow. Open `objective` first, then `transformer`.
"""

from typing import TYPE_CHECKING, Any

from .baselines.dit import DiT, DiTConfig
from .config import CausalFusionConfig, TextConfig
from .model import Model, ModelConfig, build_model, count_parameters
from .noise.diffusion import DiffusionConfig
from .objective import Draws, Loss, Objective, ObjectiveConfig, TextObjectiveConfig, draw
from .presets import PRESETS, preset
from .sampling.caption import CaptionConfig, Captions, caption
from .sampling.edit import edit, keep_region
from .sampling.outpaint import outpaint
from .sampling.sample import SamplingConfig, sample
from .text.prompts import Prompts
from .text_objective import TextImageObjective, Texts, text_last
from .transformer import CausalFusion
from .weights import load_diffusion, load_weights, save_weights

if TYPE_CHECKING:
    from .sampling.pipeline import CausalFusionPipeline, CausalFusionTransformer2DModel

__all__ = [
    "PRESETS",
    "CaptionConfig",
    "Captions",
    "CausalFusion",
    "CausalFusionConfig",
    "CausalFusionPipeline",
    "CausalFusionTransformer2DModel",
    "DiT",
    "DiTConfig",
    "DiffusionConfig",
    "Draws",
    "Loss",
    "Model",
    "ModelConfig",
    "Objective",
    "ObjectiveConfig",
    "Prompts",
    "SamplingConfig",
    "TextConfig",
    "TextImageObjective",
    "TextObjectiveConfig",
    "Texts",
    "build_model",
    "caption",
    "count_parameters",
    "draw",
    "edit",
    "keep_region",
    "load_diffusion",
    "load_weights",
    "outpaint",
    "preset",
    "sample",
    "save_weights",
    "text_last",
]


def __getattr__(name: str) -> Any:
    """Import the pipeline on first access, because diffusers takes seconds to import."""
    if name in ("CausalFusionPipeline", "CausalFusionTransformer2DModel"):
        from .sampling import pipeline

        return getattr(pipeline, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
