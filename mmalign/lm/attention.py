"""Attention of packed rows: what all answers share is plain causal attention, only what follows it needs a mask.

A mask over a whole row costs about twice what causal attention does, keeps kernels without masks (flash attention) out,
and grows with the square of the prompt. So a `TailMask` covers only the last queries of each row. It goes through a
model's own forward as `attention_mask` and acts where `scaled_dot_product_attention` is given it: nothing about the
model or its config changes, other parts of it (a vision tower) notice nothing, and what is computed again for
gradients has the same mask at hand.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention


class TailMask(Tensor):
    """Which of L tokens are seen by T tokens in a row of each of B rows, (B, 1, T, L) bool.

    `starts` (B numbers) are the columns of the first of these T; before it every token sees itself and all before it.
    What stands behind the T tokens is padding and gets zeros; where a row ends sooner the last of T are no tokens.
    """

    starts: tuple[int, ...]

    @staticmethod
    def of(seen: Tensor, starts: Sequence[int]) -> TailMask:
        """The mask `seen` (B, 1, T, L) of T tokens from `starts` on, at least one start of 1 or more."""
        mask = seen.as_subclass(TailMask)
        mask.starts = tuple(starts)
        return mask

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Attention in two parts; anything else as for other tensors. A copy of the same shape is such a mask, too."""
        given = dict(kwargs or {})
        if func is scaled_dot_product_attention:
            return _attend(*args, **given)
        found = super().__torch_function__(func, types, args, given)  # type: ignore[no-untyped-call]
        if not isinstance(found, TailMask):
            return found
        starts = next(
            (given.starts for given in (*args, *given.values()) if _has_starts(given) and given.size() == found.size()),
            None,
        )
        return found.as_subclass(Tensor) if starts is None else TailMask.of(found, starts)


def _has_starts(value: Any) -> bool:
    return isinstance(value, TailMask) and "starts" in vars(value)


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: TailMask,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    **more: Any,
) -> Tensor:
    """What attention gives all queries (B, H, L, D)."""
    starts, size, length = attn_mask.starts, attn_mask.shape[2], query.shape[2]
    most = max(starts)
    seen = attn_mask.as_subclass(Tensor)
    head = scaled_dot_product_attention(
        query[:, :, :most], key[:, :, :most], value[:, :, :most], dropout_p=dropout_p, is_causal=True, **more
    )
    if min(starts) == most:
        tail = scaled_dot_product_attention(query[:, :, most:], key, value, seen, dropout_p, **more)
        return torch.cat([head, tail], dim=2)
    # A row whose shared part is long has fewer tokens left than others need; queries of zeros fill up.
    parts = [query[row, :, start : start + size] for row, start in enumerate(starts)]
    own = torch.stack([pad(part, (0, 0, 0, size - part.shape[1])) for part in parts])
    tail = scaled_dot_product_attention(own, key, value, seen, dropout_p, **more)
    rows = [
        torch.cat([head[row, :, :start], tail[row, :, : length - start]], dim=1) for row, start in enumerate(starts)
    ]
    return torch.stack([pad(row, (0, 0, 0, length - row.shape[1])) for row in rows])
