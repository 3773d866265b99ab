"""The stock model's computation for packed training batches: same weights, same numbers, far fewer operations.

The stock classes loop over pictures and compute logits everywhere. Here pictures are one batch and logits are taken at
answer tokens only; attention is always in fp32 (its bf16 backward is slow on CPUs).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from mmalign.tiny.packing import IGNORE


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
    """Scaled dot-product attention in fp32; (B, heads, L, dim) in and out."""
    with torch.autocast("cpu", enabled=False):
        grouped = query.shape[1] != key.shape[1]
        query, key, value = query.float(), key.float(), value.float()
        return functional.scaled_dot_product_attention(query, key, value, mask, enable_gqa=grouped)


def _rotate(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    left, right = states.chunk(2, -1)
    return states * cos + torch.cat((-right, left), -1) * sin


def see(visual: Any, patches: Tensor) -> Tensor:
    """Image tokens (N, 16, hidden) of N pictures or frame pairs, from patches (N, 64, 384) in -1 to 1."""
    count, length, _ = patches.shape
    grid = torch.tensor([[1, 8, 8]])
    indices, weights, places = _vision_places(visual, grid)
    kernel = visual.patch_embed.proj
    hidden = functional.linear(patches, kernel.weight.reshape(kernel.weight.shape[0], -1), kernel.bias)
    hidden = hidden + (visual.pos_embed(indices) * weights[:, :, None]).sum(1)
    cos, sin = visual.rotary_pos_emb(hidden, places)
    for block in visual.blocks:
        normed = block.norm1(hidden)
        states = block.attn.qkv(normed).reshape(count, length, 3, block.attn.num_heads, -1).permute(2, 0, 3, 1, 4)
        query, key, value = states.float().unbind(0)
        mixed = attend(_rotate(query, cos, sin), _rotate(key, cos, sin), value)
        hidden = hidden + block.attn.proj(mixed.transpose(1, 2).reshape(count, length, -1))
        hidden = hidden + block.mlp(block.norm2(hidden))
    merged: Tensor = visual.merger(hidden.reshape(count * length, -1))
    return merged.reshape(count, length // 4, -1)


def _vision_places(visual: Any, grid: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    from transformers.vision_utils import get_vision_interpolation_indices_and_weights, get_vision_position_ids

    indices, weights = get_vision_interpolation_indices_and_weights(
        grid,
        num_grid_per_side=visual.num_grid_per_side,
        mode=visual.interpolation_mode,
        align_corners=visual.interpolation_align_corners,
        spatial_merge_size=visual.spatial_merge_size,
        kwargs={},
    )
    return indices, weights, get_vision_position_ids(grid, visual.spatial_merge_size, kwargs={})


def visible(segment: Tensor) -> Tensor:
    """Who may attend to whom, (B, 1, L, L): earlier tokens of the prefix and of the own branch, and oneself."""
    length = segment.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    own = (segment[:, None, :] == segment[:, :, None]) | (segment[:, None, :] == 0)
    return (own & causal)[:, None]


def read(model: Any, ids: Tensor, places: Tensor, segment: Tensor, patches: Tensor) -> Tensor:
    """Hidden states (B, L, hidden) of packed rows; patches (N, 64, 384) in -1 to 1 fill the visual tokens in order."""
    inner = model.model
    text = inner.language_model
    hidden = text.embed_tokens(ids)
    if len(patches):
        visual = (ids == model.config.image_token_id) | (ids == model.config.video_token_id)
        seen = see(inner.visual, patches)
        hidden = hidden.masked_scatter(visual[..., None], seen.reshape(-1, seen.shape[-1]).to(hidden.dtype))
    cos, sin = text.rotary_emb(hidden, places)
    cos, sin = cos[:, None], sin[:, None]
    mask = visible(segment)
    batch, length = ids.shape
    for layer in text.layers:
        attention = layer.self_attn
        normed = layer.input_layernorm(hidden)
        shape = (batch, length, -1, attention.head_dim)
        query = attention.q_norm(attention.q_proj(normed).view(shape).float()).transpose(1, 2)
        key = attention.k_norm(attention.k_proj(normed).view(shape).float()).transpose(1, 2)
        value = attention.v_proj(normed).view(shape).transpose(1, 2)
        mixed = attend(_rotate(query, cos, sin), _rotate(key, cos, sin), value, mask)
        hidden = hidden + attention.o_proj(mixed.transpose(1, 2).reshape(batch, length, -1))
        hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
    out: Tensor = text.norm(hidden)
    return out


def answers(model: Any, hidden: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Logits (answer tokens, vocabulary) in fp32 and the labels they are for, in row order."""
    chosen = labels != IGNORE
    logits: Tensor = model.lm_head(hidden[chosen])
    return logits.float(), labels[chosen]


def normalise(patches: Tensor) -> Tensor:
    """Bytes to the processor's floats in -1 to 1."""
    return (patches.float() / 255 - 0.5) / 0.5
