"""Pairs that carry further answers and numbers, and what an objective sees of them when every answer stands alone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmalign.lm.load import Loaded
from mmalign.media.read import MediaLimits
from mmalign.objectives import Completions, LossInputs, Objective
from mmalign.pairs import PairRow
from mmalign.sides import AnswerRow, SideRow, read_sides, read_values
from mmalign.train.data.context import open_context
from mmalign.train.step import reference_sides_of, sides_of, values_of
from mmalign.types import Row
from tests.train.rows import make_rows


def asked(row: PairRow, text: str, *, with_media: bool = True) -> list[Row]:
    """The context of a pair with other words."""
    media = [part for part in row.context[0]["content"] if part["type"] != "text"] if with_media else []
    return [{"role": "user", "content": [*media, {"type": "text", "text": text}]}]


def carrying(row: PairRow, sides: Row, values: Row | None = None) -> PairRow:
    """The row with sides and values as JSON would give them."""
    return replace(row, sides=read_sides(sides), values=read_values(values or {}))


def listed(root: Path, *, pictures: int, count: int = 3) -> list[PairRow]:
    """Pairs with lists of 3, 2, 1 answers, one in a context of its own, and a single side that the second lacks."""
    rows = []
    for index, row in enumerate(make_rows(root, count, pictures=pictures)):
        other = asked(row, "What colour is the crab?")
        texts = ["There is a crab.", "Yes.", "There is a red boat on the left."]
        answers = [{"text": text, "context": other if place == 1 else None} for place, text in enumerate(texts)]
        judged = None if index == 1 else {"text": row.chosen, "context": asked(row, "It is wrong.", with_media=False)}
        sides = {"answers": answers[: 3 - index % 3], "judged": judged}
        rows.append(carrying(row, sides, {"scores": [0.2, 0.9, 0.5][: 3 - index % 3]}))
    return rows


def alone(model: nn.Module, loaded: Loaded, root: Path, row: PairRow, answer: AnswerRow) -> Tensor:
    """Log-probs of the tokens of one answer, by a plain forward of it alone."""
    renderer = loaded.renderer
    chat = open_context(row.context if answer.context is None else answer.context, root, MediaLimits(), row.id)
    prompt, text = renderer.prompt(chat), renderer.answer(chat, answer.text)
    inputs = dict(renderer.encode([prompt + text], [chat.media]))
    count = renderer.answer_length(prompt, text)
    logits = model(**inputs, use_cache=False).logits[0].float().log_softmax(-1)
    labels = inputs["input_ids"][0, -count:]
    found: Tensor = logits[-count - 1 : -1].gather(-1, labels[:, None]).squeeze(-1)
    return found


def by_hand(
    loaded: Loaded, reference: nn.Module, root: Path, rows: Sequence[PairRow], objective: Objective
) -> LossInputs:
    """What the objective should see: every answer in a forward of its own, laid out with plain loops."""
    sides = {}
    for side in sides_of(objective, rows):
        scored = side in reference_sides_of(objective)
        parts = [row.side(side) for row in rows]
        found = [_nested(part, loaded.model, loaded, root, row) for row, part in zip(rows, parts, strict=True)]
        values, mask = _padded(found)
        frozen = None
        if scored:
            with torch.no_grad():
                told = [_nested(part, reference, loaded, root, row) for row, part in zip(rows, parts, strict=True)]
            frozen, _ = _padded(told)
        sides[side] = Completions(token_logps=values, mask=mask, reference_token_logps=frozen)
    numbers = {name: torch.tensor(_filled([_plain(row.value(name)) for row in rows])) for name in values_of(objective)}
    return LossInputs(sides=sides, p=torch.tensor([row.p for row in rows]), values=numbers)


def _nested(part: SideRow, model: nn.Module, loaded: Loaded, root: Path, row: PairRow) -> Any:
    if isinstance(part, tuple):
        return [_nested(inner, model, loaded, root, row) for inner in part]
    return torch.zeros(0) if part is None else alone(model, loaded, root, row, part)


def _padded(parts: Any) -> tuple[Tensor, Tensor]:
    """Nested lists of log-probs as one tensor with zeros behind, and where there are tokens."""
    width = max(len(leaf) for leaf in _leaves(parts))

    def laid(part: Any, depth: int) -> Tensor:
        if isinstance(part, Tensor):
            return torch.nn.functional.pad(torch.stack([part, torch.ones_like(part)]), (0, width - len(part)))
        inner = [laid(each, depth + 1) for each in part]
        while len(inner) < longest[depth]:
            inner.append(torch.zeros_like(inner[0]))
        return torch.stack(inner)

    longest = _longest(parts)
    both = laid(parts, 0)
    return both.select(-2, 0), both.select(-2, 1) > 0


def _leaves(part: Any) -> list[Tensor]:
    return [part] if isinstance(part, Tensor) else [leaf for inner in part for leaf in _leaves(inner)]


def _longest(part: Any) -> list[int]:
    if isinstance(part, Tensor):
        return []
    inner = [_longest(each) for each in part]
    return [len(part), *(max(sizes) for sizes in zip(*inner, strict=True))]


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value), parse_constant=None)


def _filled(values: list[Any]) -> list[Any]:
    """Lists filled with zeros to the longest, and NaN for null."""
    if not isinstance(values[0], list):
        return [float("nan") if value is None else float(value) for value in values]
    width = max(map(len, values))
    flat = [[float("nan") if one is None else one for one in value] for value in values]
    return [value + [0.0] * (width - len(value)) for value in flat]
