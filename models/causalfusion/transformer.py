"""CausalFusion transformer (Section 4, Figure 3b).

Shapes: B samples, L image tokens, K clean tokens, M noised tokens, C class tokens, N sequence length.
T text tokens, V vocabulary, D width, H heads, E = D / H head width, P numbers in a patch.
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

from .attention.blocks import BlockedMask
from .attention.cache import FixedKVCache, FixedLayerCache, KVCache, LayerCache
from .attention.dense import attend
from .attention.flex import FlexMask
from .attention.plan import AttentionPlan
from .attention.split import SplitMask
from .config import CausalFusionConfig
from .embed import ClassTokens, TimeEmbedding, sinusoids_2d
from .linear import Linear, mlp
from .patches import PatchModel
from .text.embedding import TextTokens
from .text.prompts import Prompts

Layer = LayerCache | FixedLayerCache | None
Mask = Tensor | SplitMask | BlockedMask | FlexMask | None
"""Bool (queries, keys) or (B, 1, queries, keys) with True = visible, or the mask of a training sequence. None:
all is visible."""


class Attention(nn.Module):
    """Multi-head attention with head-wise QK layer normalisation and a qkv projection without bias."""

    def __init__(self, config: CausalFusionConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.qkv = Linear(config.hidden_size, 3 * config.hidden_size, bias=False)
        self.q_norm = nn.LayerNorm(config.head_dim) if config.qk_norm else nn.Identity()
        self.k_norm = nn.LayerNorm(config.head_dim) if config.qk_norm else nn.Identity()
        self.proj = Linear(config.hidden_size, config.hidden_size)

    def forward(self, x_BND: Tensor, mask: Mask, cache: Layer = None, read: int | None = None) -> Tensor:
        q, k, v = self.qkv(x_BND).unflatten(2, (3, self.num_heads, -1)).unbind(2)
        if read is not None:
            q = q[:, q.shape[1] - read :]
        q, k, v = (y.transpose(1, 2) for y in (self.q_norm(q), self.k_norm(k), v))
        if cache is not None:
            k, v = cache.extend(k, v)
        attended = attend(q, k, v, mask) if mask is None or isinstance(mask, Tensor) else mask.attend(q, k, v)
        out: Tensor = self.proj(rearrange(attended, "b h n e -> b n (h e)"))
        return out


class Block(nn.Module):
    """Pre-norm transformer block: attention, then a tanh-GELU MLP."""

    def __init__(self, config: CausalFusionConfig) -> None:
        super().__init__()
        width, hidden = config.hidden_size, config.mlp_size
        self.norm1 = nn.LayerNorm(width)
        self.attn = Attention(config)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = mlp(width, hidden)

    def forward(self, x_BND: Tensor, mask: Mask, cache: Layer = None, read: int | None = None) -> Tensor:
        """Return the outputs of the last `read` tokens (default: all)."""
        attended = self.attn(self.norm1(x_BND), mask, cache, read)
        x_BND = (x_BND if read is None else x_BND[:, x_BND.shape[1] - read :]) + attended
        out: Tensor = x_BND + self.mlp(self.norm2(x_BND))
        return out


class CausalFusion(PatchModel):
    """Decoder-only transformer over [class tokens | text | clean tokens | text | noised tokens].

    Image tokens are patches in visiting order, given with their raster positions. One model therefore serves every
    patch order and every AR split.
    """

    class_tokens: ClassTokens
    """Absent in a model without classes."""

    def __init__(self, config: CausalFusionConfig) -> None:
        super().__init__()
        self.config: CausalFusionConfig = config
        width = config.hidden_size
        self.patch_embed = Linear(config.token_dim, width)
        self.time_embed = TimeEmbedding(width)
        if config.class_tokens:
            self.class_tokens = ClassTokens(
                config.num_classes, width, config.class_tokens, config.class_token_repeat
            )
        self.text = TextTokens(config.text, width) if config.text is not None else None
        self.grid = (config.grid_size, config.grid_size)
        positions = sinusoids_2d(width, *self.grid)
        if config.position_embedding == "learnable":
            self.positions = nn.Parameter(positions)
        else:
            self.register_buffer("positions", positions, persistent=False)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(width)
        self.head = Linear(width, config.token_dim)
        self._initialise()

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        if self.config.class_tokens:
            nn.init.normal_(self.class_tokens.table.weight, std=0.02)
            nn.init.normal_(self.class_tokens.positions, std=0.02)
        if self.text is not None:
            self.text.initialise()
        nn.init.zeros_(self.head.weight)  # the model starts by predicting zero

    def embed_image(self, patches_BNP: Tensor, positions_BN: Tensor) -> Tensor:
        """Embed patches and their raster positions: (B, N, D)."""
        tokens: Tensor = self.patch_embed(patches_BNP) + functional.embedding(positions_BN, self.positions)
        return tokens

    def embed_noised(self, patches_BNP: Tensor, positions_BN: Tensor, t: Tensor) -> Tensor:
        """Embed noised patches and their diffusion times.

        Args:
            patches_BNP: patch values.
            positions_BN: raster position of each patch.
            t: diffusion times (1,), (B,), or (B, k): one for each of k equal parts of the patches.

        Returns:
            (B, N, D), or (B, 1 + N, D) with the time token in front.

        Raises:
            ValueError: a model with a time token got more than one time per sample.
        """
        tokens = self.embed_image(patches_BNP, positions_BN)
        time: Tensor = self.time_embed(t)
        if self.config.time_conditioning == "embedding":
            parts = 1 if t.ndim == 1 else t.shape[1]
            return tokens + time.view(-1, parts, time.shape[-1]).repeat_interleave(tokens.shape[1] // parts, dim=1)
        if t.ndim != 1:
            raise ValueError("a time token carries one diffusion time per sample; share t and use one noised copy")
        return torch.cat([time[:, None].expand(len(tokens), -1, -1), tokens], dim=1)

    def run_blocks(
        self,
        x_BND: Tensor,
        mask: Mask,
        cache: KVCache | FixedKVCache | None = None,
        *,
        read: int | None = None,
    ) -> Tensor:
        """Run the blocks, over a KV cache if one is given.

        Args:
            x_BND: embedded tokens.
            mask: which tokens see which.
            cache: keys and values of earlier tokens. Those of the given tokens are written behind them.
            read: number of last tokens whose outputs are needed. For the others the last block stops after its qkv
                projection. None: all.
        """
        last = len(self.blocks) - 1
        for layer, block in enumerate(self.blocks):
            own = None if cache is None else cache.layer(layer, rows=len(x_BND))
            if layer < last or read is None:
                x_BND = block(x_BND, mask, own)
            else:
                seen = mask[..., mask.shape[-2] - read :, :] if isinstance(mask, Tensor) else mask
                x_BND = block(x_BND, seen, own, read)
        return x_BND

    def predict(self, x_BND: Tensor) -> Tensor:
        """Map the last block's noised tokens to the prediction (ε, x_0 or v): (B, N, P)."""
        out: Tensor = self.head(self.norm(x_BND))
        return out

    def forward(
        self,
        noised_BMP: Tensor,
        clean_BKP: Tensor,
        positions_BL: Tensor,
        t: Tensor,
        labels: Tensor | None,
        plan: AttentionPlan,
        text_before_BT: Tensor | None = None,
        text_after_BT: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Training pass over all AR steps at once (Eq. 5), and over all noised copies.

        Args:
            noised_BMP: noised patches in visiting order, one copy of the image after another: M is a multiple
                of L.
            clean_BKP: clean patches of AR steps 1…S−1, in visiting order (K = 0 for S = 1). Those of step S too if
                text follows the image.
            positions_BL: raster position of each patch in visiting order.
            t: diffusion times, (B,) shared by all noised tokens of a sample, one per copy, or (B, M).
            labels: (B,) classes. `config.null_class` is the unconditional branch. None in a model without classes.
            plan: the attention over the sequence (`causalfusion.factorization.sequence`). Padding before the noised
                tokens fills up to its length.
            text_before_BT: text that the images are drawn from. The plan hides the ends of shorter texts.
            text_after_BT: text that describes the images.

        Returns:
            The prediction for the noised patches, (B, M, P). With text after the image also the logits of the
            token behind each of its tokens, (B, T, V).

        Raises:
            ValueError: the plan has fewer tokens than the sequence, a time token has more than one time, or the
                model lacks a condition that is given or needs one that is not.
        """
        num_noised, num_tokens = noised_BMP.shape[1], positions_BL.shape[1]
        copies, length = num_noised // num_tokens, len(plan)
        before = [*self._embed_classes(labels), *self._embed_text(text_before_BT)]
        clean = self.embed_image(clean_BKP, positions_BL[:, : clean_BKP.shape[1]])
        after = self._embed_text(text_after_BT)
        noised = self.embed_noised(noised_BMP, positions_BL.repeat(1, copies), t)
        time, noised = noised[:, :-num_noised], noised[:, -num_noised:]
        context = torch.cat([*before, clean, *after, time], dim=1)
        padding = length - context.shape[1] - num_noised
        if padding < 0:
            raise ValueError(f"a sequence of {length - padding} tokens cannot have a plan of {length}")
        x = torch.cat([functional.pad(context, (0, 0, 0, padding)), noised], dim=1)
        read = length - sum(tokens.shape[1] for tokens in (*before, clean)) if after else num_noised
        out = self.run_blocks(x, plan.mask(x.device, products_type(x), read), read=read)
        prediction = self.predict(out[:, -num_noised:])
        if not after:
            return prediction
        return prediction, self.logits(out[:, : after[0].shape[1]])

    def logits(self, x_BTD: Tensor) -> Tensor:
        """Map the last block's text tokens to logits of the token behind each: (B, T, V).

        Raises:
            ValueError: the model has no text.
        """
        if self.text is None:
            raise ValueError("this model has no text")
        logits: Tensor = self.text(self.norm(x_BTD))
        return logits

    def _embed_classes(self, labels: Tensor | None) -> list[Tensor]:
        if not self.config.class_tokens:
            if labels is not None:
                raise ValueError("this model has no classes: give text in place of labels")
            return []
        if labels is None:
            raise ValueError("this model needs labels")
        return [self.class_tokens(labels)]

    def _embed_text(self, tokens_BT: Tensor | None, start: int = 0) -> list[Tensor]:
        if tokens_BT is None:
            return []
        if self.text is None:
            raise ValueError("this model has no text: give labels in place of text")
        return [self.text(tokens_BT, start)]

    def context(self, condition: Tensor | Prompts, num_tokens: int | None = None) -> CausalFusionContext:
        """Start sampling for labels (B,) or prompts: see `CausalFusionContext`.

        Args:
            condition: (B,) classes, or text prompts.
            num_tokens: image tokens that the context can hold (default: L).

        Raises:
            ValueError: the model lacks this kind of condition.
        """
        return CausalFusionContext(self, condition, self.config.num_tokens if num_tokens is None else num_tokens)

    def describing(self, patches_BLP: Tensor, positions_BL: Tensor, sizes: list[int]) -> TextContext:
        """Start describing images: see `TextContext`.

        Args:
            patches_BLP: clean patches in visiting order.
            positions_BL: raster position of each.
            sizes: |κ_1| … |κ_S| of the AR steps in which the clean tokens are read.

        Raises:
            ValueError: the model has no text.
        """
        return TextContext(self, patches_BLP, positions_BL, sizes)

    def embed_described(self, patches_BLP: Tensor, positions_BL: Tensor) -> Tensor:
        """Embed the images that text describes: (B, L, D). A baseline may embed them as noised ones."""
        return self.embed_image(patches_BLP, positions_BL)


def products_type(x: Tensor) -> torch.dtype:
    """Return the type of matrix products of `x`, under autocast or without it."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


class CausalFusionContext:
    """Condition of the AR steps during sampling: class tokens and text, then the clean tokens of finished steps.

    Keys and values of each token are computed once and cached. Prompts may have mixed lengths: the padding behind
    a shorter one is hidden from every other token.
    """

    def __init__(self, model: CausalFusion, condition: Tensor | Prompts, num_tokens: int) -> None:
        config = model.config
        self.model = model
        self.time_tokens = int(config.time_conditioning == "token")
        text = condition if isinstance(condition, Prompts) else None
        if text is None and model.text is not None:
            raise ValueError("this model draws images from text: give prompts in place of labels")
        self.num_condition = config.num_class_tokens + (0 if text is None else text.tokens.shape[1])
        self.cache = KVCache(config.depth, self.num_condition + num_tokens + self.time_tokens)
        self.present: Tensor | None = None
        """(B, condition) bool: the token is not padding. None: no token is."""
        self.begin(condition)

    def begin(self, condition: Tensor | Prompts) -> None:
        """Start again with another condition of the same sizes, in the same memory."""
        self.cache.clear()
        self.present = None
        labels = condition.labels if isinstance(condition, Prompts) else condition
        for classes in self.model._embed_classes(labels):
            self._keep(classes)
        if isinstance(condition, Prompts):
            self._keep_text(condition)

    def predict(self, noised_BNP: Tensor, positions_BN: Tensor, t: Tensor) -> Tensor:
        """Predict ε, x_0 or v for the noised tokens of one AR step: (B, N, P).

        Args:
            noised_BNP: noised patches of the first B samples of the context.
            positions_BN: their raster positions.
            t: diffusion time, (1,) or (B,).
        """
        x = self.model.embed_noised(noised_BNP, positions_BN, t)
        read = noised_BNP.shape[1] if self.time_tokens else None
        x = self.model.run_blocks(x, self._mask(x), self.cache, read=read)
        return self.model.predict(x)

    def append(self, clean_BNP: Tensor, positions_BN: Tensor) -> None:
        """Add the finished tokens of an AR step, as clean tokens."""
        clean = self.model.embed_image(clean_BNP, positions_BN)
        self._keep(clean, self._keys(clean))

    def _keep_text(self, text: Prompts) -> None:
        """Add the prompts. Each of their tokens sees those before it, and itself."""
        count = text.tokens.shape[1]
        if not count:
            return
        [x] = self.model._embed_text(text.tokens)
        present = torch.arange(count, device=x.device) < text.lengths[:, None]
        if not bool(present.all()):
            self.present = functional.pad(present, (self.cache.length, 0), value=True)
        causal = torch.ones(count, count, dtype=torch.bool, device=x.device).tril()
        # Padding sees itself too: no row of a mask may be empty.
        own = causal if self.present is None else (causal & present[:, None, :]) | causal.new_ones(count).diag()
        mask = functional.pad(own, (self.cache.length, 0), value=True)
        self._keep(x, mask if mask.ndim == 2 else mask[:, None])

    def _keep(self, x_BND: Tensor, mask: Tensor | None = None) -> None:
        self.model.run_blocks(x_BND, mask, self.cache, read=0)
        self.cache.length += x_BND.shape[1]

    def _keys(self, x_BND: Tensor) -> Tensor | None:
        """Return the keys that new tokens see, (B, 1, 1, keys): all but padding. None: all."""
        if self.present is None:
            return None
        later = self.cache.length - self.num_condition + x_BND.shape[1]
        return functional.pad(self.present[: len(x_BND)], (0, later), value=True)[:, None, None, :]

    def _mask(self, x_BND: Tensor) -> Tensor | None:
        """Return the mask: noised tokens see all tokens, a time token sees the condition and itself."""
        keys = self._keys(x_BND)
        if not self.time_tokens:
            return keys
        before, length = self.cache.length, x_BND.shape[1]
        mask = torch.ones(length, before + length, dtype=torch.bool, device=self.model.device)
        mask[0, self.num_condition :] = False
        mask[0, before] = True
        return mask if keys is None else mask & keys


class TextContext:
    """Images during the decoding of their text: their clean tokens, then the text so far, as a KV cache."""

    def __init__(self, model: CausalFusion, patches_BLP: Tensor, positions_BL: Tensor, sizes: list[int]) -> None:
        if model.config.text is None:
            raise ValueError("this model has no text")
        self.model, self.text = model, model.config.text
        self.num_text = 0
        self.vocabulary = self.text.vocabulary
        self.cache = KVCache(model.config.depth, patches_BLP.shape[1] + self.text.max_tokens)
        x = model.embed_described(patches_BLP, positions_BL)
        for step in torch.split(x, sizes, dim=1):
            model.run_blocks(step, None, self.cache, read=0)
            self.cache.length += step.shape[1]

    def next(self, tokens_B: Tensor) -> Tensor:
        """Add one token to each text, and return the logits of the token behind it: (B, `vocabulary`)."""
        [x] = self.model._embed_text(tokens_B[:, None], self.num_text)
        x = self.model.run_blocks(x, None, self.cache)
        self.num_text += 1
        self.cache.length += 1
        return self.model.logits(x)[:, 0, : self.vocabulary]

    def select(self, rows: Tensor) -> None:
        """Replace the samples by samples `rows`, with their texts so far. A sample may occur several times."""
        self.cache.select(rows)
