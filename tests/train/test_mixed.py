"""Pairs about pictures, clips and nothing in one run: one kind per forward, and the same numbers however it is cut."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mmalign.corrupt import apply
from mmalign.lm.render import Renderer
from mmalign.media.frames import FrameChoice
from mmalign.media.read import MediaLimits, open_ref
from mmalign.objectives import DPO, RRPO, Objective
from mmalign.pairs import PairRow
from mmalign.train.config import LoraConfig
from mmalign.train.data.collate import Collator
from mmalign.train.data.modality import modality
from mmalign.types import Chat, Corruption, Media, MediaRef, Message
from tests.models import WATCHING, clip, picture, tiny
from tests.train.rows import CHOSEN, REJECTED, make_rows, quick
from tests.train.runs import assert_same_curve, curve, numbers, trainer


def pairs_about(media: Sequence[Media | None], monkeypatch: pytest.MonkeyPatch) -> list[PairRow]:
    """Pairs about media that are in memory, one each, and a collator that takes them from there."""
    chats = {
        f"p{index}": Chat((Message("user", (*([] if shown is None else [shown]), f"Describe it. {index}")),))
        for index, shown in enumerate(media)
    }
    monkeypatch.setattr("mmalign.train.data.collate.open_context", lambda turns, root, limits, pair: chats[pair])
    return [
        PairRow(
            id=name,
            sample_id=name,
            method="test",
            context=chat.to_rows(),
            chosen=CHOSEN[index % 4],
            rejected=REJECTED[index % 4],
        )
        for index, (name, chat) in enumerate(chats.items())
    ]


MIXED: tuple[Media | None, ...] = (clip(0), picture(1), None, clip(2, size=(48, 32)), picture(3), None, clip(4))


@pytest.mark.parametrize("name", WATCHING)
@pytest.mark.parametrize("lora", [LoraConfig(), None], ids=["lora", "full"])
def test_pairs_about_clips_are_learned(
    name: str, lora: LoraConfig | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = pairs_about([clip(0), clip(1)], monkeypatch)
    trainer(tmp_path, rows, quick(epochs=6, batch_size=2, lora=lora), loaded=tiny(name)).train()
    lines = curve(tmp_path)
    assert lines[0]["loss"] == pytest.approx(0.693147, abs=1e-4)
    assert lines[-1]["loss"] < 0.6
    assert lines[-1]["accuracy"] == 1.0


@pytest.mark.parametrize(
    "objective", [DPO(sft_weight=0.1, nll_reduction="pooled"), RRPO()], ids=lambda objective: objective.name
)
@pytest.mark.parametrize("name", ["qwen3-vl", "llava-onevision"])
def test_cutting_a_mixed_step_changes_nothing(
    name: str, objective: Objective, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [replace(row, weight=0.5 + i) for i, row in enumerate(pairs_about(MIXED, monkeypatch))]
    for micro in (1, 2, 5):
        # A small rate: of a gradient that is nothing but rounding AdamW's first steps make whole updates.
        config = quick(micro_batch_size=micro, batch_size=5, epochs=2, lora=None, learning_rate=2e-5)
        trainer(tmp_path, rows, config, objective, loaded=tiny(name), run=f"{micro}").train()
    assert len(curve(tmp_path, "5")) == 4
    for micro in (1, 2):
        assert_same_curve(numbers(tmp_path, f"{micro}"), numbers(tmp_path, "5"), 1e-4)


def test_every_forward_holds_one_kind_of_media(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = pairs_about(MIXED, monkeypatch)
    seen: list[tuple[str, ...]] = []
    original = Collator.__call__

    def watched(self: Collator, given: Sequence[PairRow]) -> Any:
        seen.append(tuple(sorted({modality(row, self.renderer) for row in given})))
        return original(self, given)

    monkeypatch.setattr(Collator, "__call__", watched)
    trainer(tmp_path, rows, quick(batch_size=7, micro_batch_size=4)).train()
    assert all(len(kinds) == 1 for kinds in seen)
    seen.clear()
    config = quick(batch_size=7, micro_batch_size=4, shared_prefix="off", vision_once="off")
    trainer(tmp_path, rows, config, run="off").train()
    assert seen == [("clips",), ("pictures",), ("text",)] * 2, "the first pass, then the one step"


def test_names_of_kinds(tmp_path: Path) -> None:
    def kind(*media: Media, other: Sequence[Media] | None = None, name: str = "qwen3-vl") -> str:
        first, second = (Chat((Message("user", (*shown, "What?")),)).to_rows() for shown in (media, other or ()))
        row = replace(make_rows(tmp_path, 1, pictures=0)[0], context=first)
        row = row if other is None else replace(row, rejected_context=second)
        return modality(row, Renderer(tiny(name).processor))

    assert kind() == "text"
    assert kind(picture()) == kind(picture(), picture()) == "pictures"
    assert kind(clip()) == kind(clip(frames=8)) == "clips"
    assert kind(clip(), picture()) == "pictures and clips"
    assert kind(picture(), other=[]) == "pictures + text"
    assert kind(picture(), other=[picture()]) == "pictures"
    assert kind(clip(), name="llava") == "pictures", "frames are pictures to a model without video"
    assert kind(clip(frames=4), name="llava-onevision") != kind(clip(frames=8), name="llava-onevision")
    assert kind(name="llama") == "text"


@pytest.mark.parametrize("name", ["drop_frames", "block_drop"])
def test_frames_that_a_corruption_took_away_do_not_count(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that takes clips of one length at a time gets a damaged clip beside clips as long as what is left."""
    whole, short = clip(0, frames=8), clip(1, frames=2)
    left = apply(whole, Corruption(name, {"frames": [1, 6]}))
    twice = apply(apply(whole, Corruption("reverse", {"frames": [7, 6, 5, 4, 3, 2, 1, 0]})), left.ref.corruptions[0])
    assert len(twice.images) == len(left.images) == 2
    renderer = Renderer(tiny("llava-onevision").processor)
    rows = pairs_about([left, twice, short, whole], monkeypatch)
    kinds = [modality(row, renderer) for row in rows]
    assert kinds[0] == kinds[1] == kinds[2] != kinds[3]
    apart = replace(rows[3], rejected_context=rows[0].context)
    assert modality(apart, renderer) == f"{kinds[2]} + {kinds[3]}"
    Collator(renderer, tmp_path, MediaLimits())(rows[:3])


def test_clips_come_from_files(tmp_path: Path) -> None:
    """A drawn clip on disk, opened again with the frames that the pair was made from."""
    shown = clip(7, frames=6, size=(48, 32))
    path = tmp_path / "drawn.gif"
    shown.images[0].save(path, save_all=True, append_images=shown.images[1:], duration=500, loop=0)
    limits = MediaLimits(frames=FrameChoice(num_frames=3))
    opened = open_ref(MediaRef(path.name, "video"), tmp_path, limits)
    assert opened.ref.frames is not None
    assert len(opened.ref.frames.numbers) == 3
    chat = Chat((Message("user", (opened, "What happens?")),))
    rows = [replace(row, context=chat.to_rows()) for row in make_rows(tmp_path, 2, pictures=0)]
    trainer(tmp_path, rows, quick(epochs=4, batch_size=2)).train()
    assert curve(tmp_path)[0]["loss"] == pytest.approx(0.693147, abs=1e-4)
    assert curve(tmp_path)[-1]["loss"] < 0.65
