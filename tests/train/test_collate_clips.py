"""Batches of pairs about clips: what is trained on is what is scored."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mmalign.errors import MediaError, TrainError
from mmalign.lm.load import Loaded
from mmalign.lm.local import LocalLM
from mmalign.lm.render import Renderer
from mmalign.media.read import MediaLimits
from mmalign.pairs import PairRow
from mmalign.train.data.collate import Collator
from mmalign.train.logprobs.logps import completion_logps
from mmalign.types import Chat, Media, Message
from tests.models import WATCHING, clip, picture, tiny
from tests.train.rows import CHOSEN, REJECTED, make_rows, quick
from tests.train.runs import trainer

#: Every family, the embedded model, and one that sees clips frame by frame.
ALL = [*WATCHING, "tiny", "llava"]
ALIKE = [clip(0), clip(1, size=(48, 32)), clip(2, size=(32, 56))]
UNLIKE = [clip(3), clip(4, frames=6), clip(5, frames=3), picture(6), None]


class Pairs:
    """Pairs about media that are in memory, and what opens them."""

    def __init__(self, media: Sequence[Media | None], monkeypatch: pytest.MonkeyPatch) -> None:
        self.chats = [
            Chat((Message("user", (*([] if shown is None else [shown]), "Describe it.")),)) for shown in media
        ]
        self.rows = [
            PairRow(
                id=f"p{index}",
                sample_id=f"s{index}",
                method="test",
                context=chat.to_rows(),
                chosen=CHOSEN[index % 4],
                rejected=REJECTED[index % 4],
            )
            for index, chat in enumerate(self.chats)
        ]
        opened = {row.id: chat for row, chat in zip(self.rows, self.chats, strict=True)}
        monkeypatch.setattr("mmalign.train.data.collate.open_context", lambda turns, root, limits, pair: opened[pair])


def collator(loaded: Loaded) -> Collator:
    return Collator(loaded.renderer, Path(), MediaLimits())


def logps(loaded: Loaded, rows: Sequence[PairRow]) -> list[list[float]]:
    """Token log-probabilities of every chosen text, then of every rejected one."""
    batch = collator(loaded)(rows)
    inputs = {
        key: value.to(loaded.model.dtype) if key.startswith("pixel_values") else value
        for key, value in batch.inputs.items()
    }
    batch = type(batch)(**{name: getattr(batch, name) for name in batch.__slots__} | {"inputs": inputs})
    with torch.inference_mode():
        values = completion_logps(loaded.model, batch)
    return [row[mask].tolist() for row, mask in zip(values, batch.mask, strict=True)]


@pytest.mark.parametrize("name", ALL)
async def test_what_is_trained_on_is_what_is_scored(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded, pairs = tiny(name), Pairs(ALIKE, monkeypatch)
    loaded.model.double()
    found = logps(loaded, pairs.rows)
    async with LocalLM(loaded) as lm:
        texts = [(row.chosen, row.rejected) for row in pairs.rows]
        scores = await asyncio.gather(*(lm.score(chat, both) for chat, both in zip(pairs.chats, texts, strict=True)))
    for side in range(2):
        for index, score in enumerate(scores):
            assert found[3 * side + index] == pytest.approx(list(score[side].logps), abs=1e-5)


@pytest.mark.parametrize("name", ALL)
def test_pairs_that_fit_together_are_the_same_alone(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded, pairs = tiny(name), Pairs([*ALIKE, *UNLIKE], monkeypatch)
    loaded.model.double()
    kinds = [loaded.renderer.group(chat.media) for chat in pairs.chats]
    for kind in sorted(set(kinds)):
        alike = [row for row, own in zip(pairs.rows, kinds, strict=True) if own == kind]
        together = logps(loaded, alike)
        for index, row in enumerate(alike):
            for side, alone in enumerate(logps(loaded, [row])):
                assert together[side * len(alike) + index] == pytest.approx(alone, abs=1e-5)


@pytest.mark.parametrize("name", ALL)
def test_what_does_not_fit_together_is_refused_and_never_mixed_up(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded, pairs = tiny(name), Pairs(UNLIKE, monkeypatch)
    loaded.model.double()
    if name in ("qwen2.5-vl", "qwen3-vl", "tiny", "llava"):
        together = logps(loaded, pairs.rows)
        for index, row in enumerate(pairs.rows):
            assert together[index] == pytest.approx(logps(loaded, [row])[0], abs=1e-5)
    else:
        with pytest.raises(TrainError, match=r"^pair p0, p1, p2, p3, p4: .* in one batch, not"):
            logps(loaded, pairs.rows)


def test_only_the_pair_at_fault_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = Pairs([clip(0), clip(1, size=(900, 2)), clip(2)], monkeypatch)
    with pytest.raises(TrainError, match=r"^pair p1: the processor refuses media and text: .*aspect ratio"):
        collator(tiny("qwen3-vl"))(pairs.rows)


@pytest.mark.parametrize(
    ("name", "attribute", "value"),
    [("internvl", "image_seq_length", 9), ("llava-next-video", "patch_size", 16), ("smolvlm", "image_seq_len", 5)],
)
def test_too_few_or_too_many_placeholders_are_found_before_training(
    name: str, attribute: str, value: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded, pairs = tiny(name), Pairs([clip(0)], monkeypatch)
    monkeypatch.setattr(loaded.processor, attribute, value)
    with pytest.raises(TrainError, match=r"^pair p0: .*\d+ placeholder tokens for media.*compute \d+ features"):
        collator(loaded)(pairs.rows)


def test_a_clip_that_the_template_forgets_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded, pairs = tiny("internvl"), Pairs([clip(0)], monkeypatch)
    loaded.processor.chat_template = (
        "{% for m in messages %}{% for p in m.content if p.type == 'text' %}{{ p.text }}{% endfor %}<|end|>{% endfor %}"
    )
    with pytest.raises(TrainError, match=r"^pair p0: the processor refuses media and text"):
        Collator(Renderer(loaded.processor), Path(), MediaLimits())(pairs.rows)


@pytest.mark.parametrize(
    ("record", "told"),
    [
        ({"corruptions": [{"name": "shufle", "params": {}}]}, "unknown corruption 'shufle'"),
        ({"corruptions": [{"name": "global_shuffle", "params": {}}]}, r"a\.mkv: .* cannot be done again \(KeyError"),
        ({"corruptions": [{"name": "global_shuffle", "params": {"frames": 5}}]}, r"done again \(TypeError"),
        ({"frames": {"numbers": [0, 1]}}, r"a\.mkv: what is on record of it cannot be done again \(KeyError: 'times'"),
    ],
)
def test_a_record_that_cannot_be_read_names_the_pair(record: dict[str, Any], told: str, tmp_path: Path) -> None:
    [row] = make_rows(tmp_path, 1, pictures=0)
    part = {"type": "video", "path": "a.mkv", **record}
    row = replace(row, context=[{"role": "user", "content": [part, {"type": "text", "text": "What happens?"}]}])
    with pytest.raises(MediaError, match=rf"^pair s0#0\.0: .*{told}"):
        trainer(tmp_path, [row], quick())
