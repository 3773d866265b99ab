"""Short names for what a run depends on, by which files are found again or refused."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmalign.errors import MediaError
from mmalign.lm.load import Loaded
from mmalign.media.files import file_sha256, safe_path
from mmalign.pairs import PairRow
from mmalign.sides import AnswerRow, to_json
from mmalign.types import Row

#: Of a model's config: what nothing is computed from, or what the weights themselves tell.
_NO_MATTER = {"transformers_version", "_name_or_path", "architectures", "dtype", "torch_dtype", "use_cache"}
#: Values that are summed at a time.
_PIECE = 1 << 24


def weights_key(model: Any) -> str:
    """A short name for a model, adapters included: its weights, its config, and the scales of its adapters.

    The same weights compute something else under another base of their rotary positions, or another `lora_alpha`.
    """
    config = getattr(model, "config", None)
    settings = None if config is None else config_settings(config.to_dict())
    modules = ((name, getattr(module, "scaling", None)) for name, module in model.named_modules())
    scales = {name: scale for name, scale in modules if isinstance(scale, dict)}
    return short_key([parameters_key(model.named_parameters()), json.loads(json.dumps(settings, default=str)), scales])


def config_settings(config: Any, *without: str) -> Any:
    """A model's config, at any depth, less what nothing is computed from and the keys `without`."""
    if isinstance(config, dict):
        kept = {key: value for key, value in config.items() if key not in _NO_MATTER and key not in without}
        return {str(key): config_settings(value, *without) for key, value in kept.items()}
    return config


def parameters_key(named: Iterable[tuple[str, Tensor]]) -> str:
    """A short name for weights: names, shapes, types and values.

    Of values up to 1,024 evenly spaced ones and the exact sum of all bit patterns, which costs one reading of the
    weights and is the same on every device.
    """
    digest = hashlib.sha256()
    for name, parameter in named:
        flat = parameter.detach().flatten()
        values = flat[:: max(1, flat.numel() // 1024)].double().cpu().numpy()
        digest.update(f"{name}{tuple(parameter.shape)}{parameter.dtype}{_bit_sum(flat)}".encode())
        digest.update(values.tobytes())
    return digest.hexdigest()[:16]


def _bit_sum(flat: Tensor) -> int:
    kinds = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    bits = flat.view(kinds[flat.element_size()])
    # A slice at a time: sums are made in 64 bits, and a whole embedding in 64 bits is gigabytes.
    return sum(int(bits[start : start + _PIECE].sum(dtype=torch.int64)) for start in range(0, len(bits), _PIECE))


def row_key(row: PairRow, data_root: Path) -> str:
    """A short name for what log-probs of a pair depend on: its contexts, the files in them, and its texts.

    Files have their SHA-256 in the row, or else are read for it. Labels, weights and spans are no part of it.
    """
    asked = [_sides(row, spans=False), sorted(set(unrecorded(row.contexts)))]
    return _digest([*asked, [_sha256(data_root, path) for path in asked[1]]])[:32]


def rows_key(rows: Sequence[PairRow]) -> str:
    """A short name for pairs in their order: contexts, texts, and all that weighs and marks them."""
    return _digest(
        [_digest([row.id, _sides(row, spans=True), row.p, row.weight, row.gap, dict(row.values)]) for row in rows]
    )[:16]


def _sides(row: PairRow, *, spans: bool) -> list[Any]:
    """All texts of a pair with their contexts, as JSON values."""
    names = ("chosen", "rejected", *sorted(row.sides))
    sides = [to_json(row.side(name), AnswerRow.to_row if spans else _without_spans) for name in names]
    return [row.context, names, sides]


def _without_spans(answer: AnswerRow) -> Row:
    return {"text": answer.text, "context": answer.context}


def unrecorded(value: Any) -> Iterator[str]:
    """Paths of media in rows of contexts, at any depth, whose SHA-256 is not recorded."""
    if isinstance(value, dict):
        if "path" in value and not value.get("sha256"):
            yield value["path"]
        value = list(value.values())
    if isinstance(value, list):
        for entry in value:
            yield from unrecorded(entry)


def _sha256(data_root: Path, path: str) -> str | None:
    try:
        return file_sha256(safe_path(data_root, path))
    except (MediaError, OSError):
        return None  # opening it says what is wrong


def template_key(loaded: Loaded) -> str:
    """A short name for what decides how a chat becomes tokens and pixels: template, tokenizer, and all settings of the
    processor.
    """
    processor, tokenizer = loaded.processor, loaded.renderer.tokenizer
    template = getattr(processor, "chat_template", None) or tokenizer.chat_template
    settings = {} if processor is tokenizer else {**processor.to_dict(), "_commit_hash": None}
    return _digest([template, json.loads(json.dumps(settings, default=str)), _vocabulary(tokenizer)])[:16]


def _vocabulary(tokenizer: Any) -> Any:
    """How text becomes tokens, as JSON."""
    if not tokenizer.is_fast:
        return tokenizer.get_vocab()
    # Padding and truncation are those of the last call.
    return {**json.loads(tokenizer.backend_tokenizer.to_str()), "padding": None, "truncation": None}


def short_key(values: Sequence[Any]) -> str:
    """A short name for values that JSON can write."""
    return _digest(values)[:16]


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def versions() -> list[str]:
    """Those of all that turns media and texts into a model's numbers, which may do it otherwise in another one."""
    return [_version(name) for name in ("mmalign", "torch", "transformers", "pillow", "av")]


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""
