"""The AdaLN-zero DiT of Table 1 ("Scalable Diffusion Models with Transformers", arXiv 2212.09748, Section 3.2).

Its calls are those of a CausalFusion with one AR step. One objective and one sampler serve both.

Shapes: B samples, L image tokens, K clean tokens, N tokens of a sequence, P numbers in a patch.
D width, H heads, E = D / H head width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

from ..attention.dense import attend
from ..attention.plan import AttentionPlan
from ..config import TransformerSizes
from ..embed import TimeEmbedding, sinusoids_2d
from ..linear import Linear, mlp
from ..patches import PatchModel
from ..text.prompts import Prompts


@dataclass(frozen=True, kw_only=True)
class DiTConfig(TransformerSizes):
    """Sizes of one AdaLN-zero DiT. The defaults are DiT-L/2, the baseline of Table 1.

    Raises:
        ValueError: a size is out of range, or two sizes do not divide as they must.
    """

    # Read by pydantic when a platform config embeds this class. Plain data: pydantic is not a dependency.
    __pydantic_config__: ClassVar[dict[str, object]] = {
        "extra": "forbid",
        "use_attribute_docstrings": True,
        "allow_inf_nan": False,
    }

    architecture: Literal["dit"] = "dit"
    """Kind of model."""
    input_size: int = 32
    """Height and width of the latent, in latent pixels (32 for 256×256 images with an f8 VAE)."""
    in_channels: int = 4
    """Channels of the latent: 4 for the SD VAE, 16 for the MAR VAE, 1 for gray pixels."""
    patch_size: int = 2
    """Side of one square patch, in latent pixels. One patch is one token."""
    hidden_size: int = 1024
    """Width D of the transformer."""
    depth: int = 24
    """Number of transformer blocks."""
    num_heads: int = 16
    """Attention heads. Must divide `hidden_size`."""
    mlp_ratio: float = 4.0
    """Hidden width of a block's MLP over D."""
    num_classes: int = 1000
    """Number of classes. The class table has one more row, the null class of classifier-free guidance."""
    learn_sigma: bool = True
    """Add output channels for the variance, as DiT's releases do. They are neither trained nor read."""

    @property
    def num_class_tokens(self) -> int:
        """Class tokens in the sequence: 0, because the class modulates the layer norms."""
        return 0

    @property
    def out_channels(self) -> int:
        """Channels of the output layer: those of ε, then as many for the variance with `learn_sigma`."""
        return self.in_channels * (2 if self.learn_sigma else 1)


def adaptive_norm(x_BND: Tensor, shift_BD: Tensor, scale_BD: Tensor) -> Tensor:
    """Layer normalisation without parameters of its own, then x · (1 + scale) + shift."""
    normed = functional.layer_norm(x_BND, x_BND.shape[-1:], eps=1e-6)
    return normed * (1 + scale_BD[:, None]) + shift_BD[:, None]


class DiTAttention(nn.Module):
    """Multi-head attention of all tokens to all tokens: qkv with bias, no QK norm."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.qkv = Linear(config.hidden_size, 3 * config.hidden_size)
        self.proj = Linear(config.hidden_size, config.hidden_size)

    def forward(self, x_BND: Tensor) -> Tensor:
        q, k, v = rearrange(self.qkv(x_BND), "b n (three h e) -> three b h n e", three=3, h=self.num_heads)
        out: Tensor = self.proj(rearrange(attend(q, k, v, None), "b h n e -> b n (h e)"))
        return out


class DiTBlock(nn.Module):
    """AdaLN-zero block: the condition shifts and scales each layer norm and gates each residual branch."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        width, hidden = config.hidden_size, config.mlp_size
        self.modulation = Linear(width, 6 * width)
        self.attn = DiTAttention(config)
        self.mlp = mlp(width, hidden)

    def forward(self, x_BND: Tensor, condition_BD: Tensor) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(condition_BD).chunk(6, dim=-1)
        x_BND = x_BND + gate1[:, None] * self.attn(adaptive_norm(x_BND, shift1, scale1))
        out: Tensor = x_BND + gate2[:, None] * self.mlp(adaptive_norm(x_BND, shift2, scale2))
        return out


class DiT(PatchModel):
    """Diffusion transformer conditioned on time and class by adaptive layer norms.

    Image tokens come in any order, with their raster positions. Attention has no mask.
    """

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.config: DiTConfig = config
        width = config.hidden_size
        self.patch_embed = Linear(config.token_dim, width)
        self.time_embed = TimeEmbedding(width)
        self.class_embed = nn.Embedding(config.num_classes + 1, width)  # the last row: the null class
        self.grid = (config.grid_size, config.grid_size)
        self.register_buffer("positions", sinusoids_2d(width, *self.grid), persistent=False)
        self.blocks = nn.ModuleList(DiTBlock(config) for _ in range(config.depth))
        self.modulation = Linear(width, 2 * width)
        self.head = Linear(width, config.patch_size**2 * config.out_channels)
        self._initialise()

    def _initialise(self) -> None:
        zeroed = {self.modulation, self.head, *(block.modulation for block in self.blocks)}
        for module in self.modules():
            if isinstance(module, nn.Linear):
                if module in zeroed:  # a new block is the identity and a new model predicts zero
                    nn.init.zeros_(module.weight)
                else:
                    nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        for module in self.time_embed.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)
        nn.init.normal_(self.class_embed.weight, std=0.02)

    def predict(self, noised_BLP: Tensor, positions_BL: Tensor, t: Tensor, classes_BD: Tensor) -> Tensor:
        """Predict ε, x_0 or v (`DiffusionConfig.prediction`) for whole samples: (B, L, P).

        Args:
            noised_BLP: noised patches, in any order.
            positions_BL: raster position of each patch.
            t: diffusion times, (B,) or (1,).
            classes_BD: rows of the class table.

        Raises:
            ValueError: the patches are not all patches of a sample, or t has more than one axis.
        """
        size = self.config
        if noised_BLP.shape[1] != len(self.positions):
            raise ValueError(
                f"DiT takes the {len(self.positions)} tokens of a sample at once, got {noised_BLP.shape[1]}: "
                "use num_ar_steps 1 and one noised copy"
            )
        if t.ndim != 1:
            raise ValueError(f"DiT takes one diffusion time per sample, (B,) or (1,), got shape {tuple(t.shape)}")
        x = self.patch_embed(noised_BLP) + functional.embedding(positions_BL, self.positions)
        condition = functional.silu(self.time_embed(t) + classes_BD)
        for block in self.blocks:
            x = block(x, condition)
        out = self.head(adaptive_norm(x, *self.modulation(condition).chunk(2, dim=-1)))
        # Each pixel has the channels of the prediction, then those of the variance.
        prediction: Tensor = out.unflatten(-1, (-1, size.out_channels))[..., : size.in_channels].flatten(-2)
        return prediction

    def forward(
        self,
        noised_BLP: Tensor,
        clean_BKP: Tensor,
        positions_BL: Tensor,
        t: Tensor,
        labels: Tensor,
        plan: AttentionPlan | None = None,
    ) -> Tensor:
        """Training pass, with the arguments of `CausalFusion.forward`.

        Args:
            noised_BLP: noised patches, in any order.
            clean_BKP: no patches (K = 0).
            positions_BL: raster position of each patch.
            t: diffusion times, (B,) or (1,).
            labels: (B,) classes. `config.null_class` is the unconditional branch.
            plan: not read. With S = 1 and without class tokens every token sees every token.

        Returns:
            The prediction for the noised patches, (B, L, P).

        Raises:
            ValueError: there are clean patches, noised patches are missing, or t has more than one axis.
        """
        del plan
        if clean_BKP.shape[1]:
            raise ValueError(
                f"DiT has no AR steps and takes no clean tokens, got {clean_BKP.shape[1]}: "
                "train it with num_ar_steps 1 (or ar_decay 0)"
            )
        return self.predict(noised_BLP, positions_BL, t, self.class_embed(labels))

    def context(self, condition: Tensor | Prompts, num_tokens: int | None = None) -> DiTContext:
        """Start sampling for labels (B,): see `DiTContext`.

        Args:
            condition: (B,) classes. `config.null_class` is the unconditional branch.
            num_tokens: not read, because a DiT caches no tokens. `CausalFusion.context` has the same argument.

        Raises:
            ValueError: the condition is text.
        """
        del num_tokens
        if isinstance(condition, Prompts):
            raise ValueError("a DiT has no text: give labels in place of prompts")
        return DiTContext(self, condition)


class DiTContext:
    """Class embeddings of a batch during sampling."""

    def __init__(self, model: DiT, labels: Tensor) -> None:
        self.model = model
        self.classes_BD: Tensor = model.class_embed(labels)

    def predict(self, noised_BLP: Tensor, positions_BL: Tensor, t: Tensor) -> Tensor:
        """Predict ε (x_0 or v) for all tokens of a sample at once: (B, L, P).

        Args:
            noised_BLP: noised patches, in any order, of the first B samples of the context.
            positions_BL: their raster positions.
            t: diffusion times, (B,) or (1,).

        Raises:
            ValueError: the patches are not all patches of a sample, or t has more than one axis.
        """
        return self.model.predict(noised_BLP, positions_BL, t, self.classes_BD[: len(noised_BLP)])

    def append(self, clean_BNP: Tensor, positions_BN: Tensor) -> None:
        """Refuse clean tokens: a DiT generates all tokens in one AR step.

        Raises:
            ValueError: always.
        """
        del positions_BN
        raise ValueError(
            f"DiT has no AR steps and takes no clean tokens, got {clean_BNP.shape[1]}: "
            "sample it with num_ar_steps 1"
        )
