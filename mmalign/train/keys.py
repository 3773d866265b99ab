"""Short names for what a run depends on, by which files are found again or refused."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from mmalign.lm.load import Loaded
from mmalign.pairs import PairRow


def weights_key(model: Any) -> str:
    """A short name for a model's weights: shapes, types and up to 1,024 evenly spaced values of every parameter."""
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        flat = parameter.detach().flatten()
        values = flat[:: max(1, flat.numel() // 1024)].double().cpu().numpy()
        digest.update(f"{name}{tuple(parameter.shape)}{parameter.dtype}".encode())
        digest.update(values.tobytes())
    return digest.hexdigest()[:16]


def rows_key(rows: Sequence[PairRow], *, labels: bool) -> str:
    """A short name for pairs: contexts and texts in order, with `labels` also what weighs and marks them."""
    digest = hashlib.sha256()
    for row in rows:
        values: list[Any] = [row.context, row.rejected_context, row.chosen, row.rejected]
        if labels:
            values += [row.id, row.p, row.weight, row.chosen_spans, row.rejected_spans]
        digest.update(json.dumps(values, sort_keys=True, ensure_ascii=False).encode())
    return digest.hexdigest()[:16]


def template_key(loaded: Loaded) -> str:
    """What decides how a chat becomes tokens, beside the tokenizer's vocabulary."""
    processor = loaded.processor
    template = getattr(processor, "chat_template", None) or loaded.renderer.tokenizer.chat_template
    return f"{template}{len(loaded.renderer.tokenizer)}"


def short_key(values: Sequence[Any]) -> str:
    """A short name for values that JSON can write."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]
