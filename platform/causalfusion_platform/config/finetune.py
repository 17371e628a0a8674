"""Section of a fine-tune: the model that it starts from, and how much of it is trained (Tables 6b, 12 and 13)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from .augment import AugmentConfig
from .paths import DiskPath, ShardsFolder
from .section import Section

Layer = Annotated[int, Field(ge=1)]
# An unquoted null is YAML's empty value.
Condition = Annotated[Literal["none", "null"], BeforeValidator(lambda given: "null" if given is None else given)]


class CaptionHeadConfig(Section):
    """Encoder and decoder on a model's features, as in FLIP (Appendix C)."""

    vocabulary: int = Field(512, ge=2, le=10_000_000)
    """Largest number of tokens. data.tokenizer may have fewer."""
    max_tokens: int = Field(35, ge=3, le=65_536)
    """Longest caption in tokens, with its BOS and EOS."""
    width: int = Field(384, ge=1, le=65_536)
    """Width of its transformer (Appendix C: 384)."""
    num_heads: int = Field(6, ge=1, le=4_096)
    """Attention heads (Appendix C: 6)."""
    encoder_depth: int = Field(3, ge=0, le=1_000)
    """Encoder layers (Appendix C: 3)."""
    decoder_depth: int = Field(3, ge=1, le=1_000)
    """Decoder layers (Appendix C: 3)."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Dropout of the head (Table 13: .1)."""

    @model_validator(mode="after")
    def _check_heads(self) -> CaptionHeadConfig:
        if self.width % self.num_heads:
            raise ValueError(f"width {self.width} is not a multiple of num_heads {self.num_heads}")
        return self


class FinetuneConfig(Section):
    """A fine-tune of task=classification or task=captioning."""

    weights: DiskPath | None = None
    """Run, checkpoint or folder of weights that the model starts from. null: its initial weights. Relative paths
    count from CAUSALFUSION_HOME."""
    freeze: bool = False
    """Train the head alone."""
    condition: Condition = "none"
    """Condition of a DiT's blocks. `none`: the zero vector. `null`: time 0 and the null class."""
    drop_path: float = Field(0.1, ge=0, lt=1)
    """Rate of the last block's drop path in a classifier, with linear rates before it (Table 12: .1)."""
    layer_decay: float = Field(0.85, gt=0, le=1)
    """Factor on the learning rate of a classifier from one block to the one before it (Table 12: .85)."""
    layer: Layer | None = None
    """Block whose output is captioned. null: the last one. The paper tries 14, 21 and 24."""
    backbone_lr_scale: float = Field(0.1, ge=0)
    """Learning rate of a captioned model, as a share of its head's (Table 13: 1e-5 and 1e-4)."""
    caption_head: CaptionHeadConfig = CaptionHeadConfig()
    augment: AugmentConfig = AugmentConfig()
    vae: DiskPath | None = None
    """Frozen autoencoder that encodes images at each step, where augment.mode is `pixels`. null: latents are
    pixels."""
    test: ShardsFolder | None = None
    """Second folder of shards to measure at the end, such as Karpathy's test split. Its scores end with `_test`."""
