"""The CausalFusion transformer (Section 4; Figure 3b).

Shapes: B samples, L image tokens, K clean tokens, C class tokens, N sequence length, D width, H heads,
E = D / H head width, P numbers in a patch.
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

from .attention import attend
from .config import CausalFusionConfig
from .embed import ClassTokens, TimeEmbedding, sinusoids_2d


class KVCache:
    """Preallocated keys and values of the tokens that later AR steps attend to: class and clean tokens."""

    def __init__(self, config: CausalFusionConfig, batch: int, like: Tensor) -> None:
        length = config.num_class_tokens + config.num_tokens
        shape = (config.depth, 2, batch, config.num_heads, length, config.head_dim)
        self.store = torch.empty(shape, dtype=like.dtype, device=like.device)
        self.length = 0

    def extend(self, layer: int, k_BHNE: Tensor, v_BHNE: Tensor, *, keep: bool) -> tuple[Tensor, Tensor]:
        """Return the cached keys and values followed by the new ones; `keep` writes the new ones too."""
        end = self.length + k_BHNE.shape[2]
        keys, values = self.store[layer]
        if not keep:
            cached = slice(None, self.length)
            return torch.cat([keys[:, :, cached], k_BHNE], 2), torch.cat([values[:, :, cached], v_BHNE], 2)
        keys[:, :, self.length : end] = k_BHNE
        values[:, :, self.length : end] = v_BHNE
        return keys[:, :, :end], values[:, :, :end]


class Attention(nn.Module):
    """Multi-head attention with head-wise QK layer normalisation; no bias on the qkv projection."""

    def __init__(self, config: CausalFusionConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size, bias=False)
        self.q_norm = nn.LayerNorm(config.head_dim) if config.qk_norm else nn.Identity()
        self.k_norm = nn.LayerNorm(config.head_dim) if config.qk_norm else nn.Identity()
        self.proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, x_BND: Tensor, mask: Tensor | None, cache: tuple[KVCache, int, bool] | None = None) -> Tensor:
        q, k, v = rearrange(self.qkv(x_BND), "b n (three h e) -> three b h n e", three=3, h=self.num_heads)
        q, k = self.q_norm(q), self.k_norm(k)
        if cache is not None:
            store, layer, keep = cache
            k, v = store.extend(layer, k.to(v.dtype), v, keep=keep)
        out: Tensor = self.proj(rearrange(attend(q, k, v, mask), "b h n e -> b n (h e)"))
        return out


class Block(nn.Module):
    """A pre-norm transformer block: attention, then a tanh-GELU MLP."""

    def __init__(self, config: CausalFusionConfig) -> None:
        super().__init__()
        width, hidden = config.hidden_size, int(config.hidden_size * config.mlp_ratio)
        self.norm1 = nn.LayerNorm(width)
        self.attn = Attention(config)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU("tanh"), nn.Linear(hidden, width))

    def forward(self, x_BND: Tensor, mask: Tensor | None, cache: tuple[KVCache, int, bool] | None = None) -> Tensor:
        x_BND = x_BND + self.attn(self.norm1(x_BND), mask, cache)
        out: Tensor = x_BND + self.mlp(self.norm2(x_BND))
        return out


class CausalFusion(nn.Module):
    """Decoder-only transformer over [class tokens | clean tokens | noised tokens].

    Image tokens are patches in *visiting order* and come with their raster positions, so that one model serves
    every patch order and every split into AR steps.
    """

    def __init__(self, config: CausalFusionConfig) -> None:
        super().__init__()
        self.config = config
        width = config.hidden_size
        self.patch_embed = nn.Linear(config.token_dim, width)
        self.time_embed = TimeEmbedding(width)
        self.class_tokens = ClassTokens(config.num_classes, width, config.class_tokens, config.class_token_repeat)
        positions = sinusoids_2d(width, config.grid_size)
        self.positions: Tensor
        if config.position_embedding == "learnable":
            self.positions = nn.Parameter(positions)
        else:
            self.register_buffer("positions", positions, persistent=False)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, config.token_dim)
        self._initialise()

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.normal_(self.class_tokens.table.weight, std=0.02)
        nn.init.normal_(self.class_tokens.positions, std=0.02)
        nn.init.zeros_(self.head.weight)  # the model starts by predicting zero

    @property
    def dtype(self) -> torch.dtype:
        """Type of the parameters."""
        return self.patch_embed.weight.dtype

    @property
    def device(self) -> torch.device:
        """Device of the parameters."""
        return self.patch_embed.weight.device

    def patchify(self, latents: Tensor) -> Tensor:
        """Cut latents (B, channels, height, width) into patches in raster order: (B, L, P)."""
        p = self.config.patch_size
        return rearrange(latents, "b c (y p) (x q) -> b (y x) (p q c)", p=p, q=p)

    def unpatchify(self, patches_BLP: Tensor) -> Tensor:
        """Undo `patchify`: (B, L, P) → (B, channels, height, width)."""
        p, grid = self.config.patch_size, self.config.grid_size
        return rearrange(patches_BLP, "b (y x) (p q c) -> b c (y p) (x q)", p=p, q=p, y=grid, x=grid)

    def embed_image(self, patches_BNP: Tensor, positions_BN: Tensor, t: Tensor | None = None) -> Tensor:
        """Embed image tokens; noised tokens get their diffusion time, clean tokens none.

        Args:
            patches_BNP: patch values.
            positions_BN: raster position of each patch.
            t: None for clean tokens; else (B,) or (B, N) diffusion times.
        """
        tokens: Tensor = self.patch_embed(patches_BNP) + functional.embedding(positions_BN, self.positions)
        if t is None:
            return tokens
        time: Tensor = self.time_embed(t)
        return tokens + (time[:, None] if t.ndim == 1 else time)

    def run_blocks(
        self, x_BND: Tensor, mask: Tensor | None, cache: KVCache | None = None, *, keep: bool = False
    ) -> Tensor:
        """Run the blocks, over a KV cache if one is given; `keep` appends these tokens to the cache."""
        for layer, block in enumerate(self.blocks):
            x_BND = block(x_BND, mask, None if cache is None else (cache, layer, keep))
        if cache is not None and keep:
            cache.length += x_BND.shape[1]
        return x_BND

    def predict(self, x_BND: Tensor) -> Tensor:
        """Map the last block's noised tokens to the prediction (ε): (B, N, P)."""
        out: Tensor = self.head(self.norm(x_BND))
        return out

    def forward(
        self,
        noised_BLP: Tensor,
        clean_BKP: Tensor,
        positions_BL: Tensor,
        t: Tensor,
        labels: Tensor,
        mask: Tensor,
    ) -> Tensor:
        """Training pass over all AR steps at once (Eq. 5).

        Args:
            noised_BLP: noised patches in visiting order.
            clean_BKP: clean patches of AR steps 1…S−1, in visiting order (K = 0 for S = 1).
            positions_BL: raster position of each patch in visiting order.
            t: diffusion times, (B,) shared over AR steps or (B, L).
            labels: (B,) classes; `config.null_class` for the unconditional branch.
            mask: `generalized_causal_mask` of the split, (C+K+L, C+K+L).

        Returns:
            The prediction (ε) for the noised patches, (B, L, P).
        """
        classes = self.class_tokens(labels)
        clean = self.embed_image(clean_BKP, positions_BL[:, : clean_BKP.shape[1]])
        noised = self.embed_image(noised_BLP, positions_BL, t)
        x = self.run_blocks(torch.cat([classes, clean, noised], dim=1), mask)
        return self.predict(x[:, -noised_BLP.shape[1] :])
