"""Batches hold the tokens, masks and pixels they should, for every kind of model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mmalign.corrupt import apply
from mmalign.errors import MediaError, TrainError
from mmalign.lm.render import Renderer
from mmalign.media.read import MediaLimits
from mmalign.pairs import PairRow
from mmalign.train.data.collate import Collator, PairBatch
from mmalign.train.data.context import open_context
from mmalign.types import Chat, Corruption, Message
from tests.models import ALL, READING, SEEING, tiny
from tests.train.rows import damaged, make_rows


def collator(name: str, root: Path, **changes: tuple[str, ...]) -> Collator:
    return Collator(Renderer(tiny(name).processor), root, MediaLimits(), **changes)


def rows_for(name: str, root: Path, count: int = 3) -> list[PairRow]:
    return make_rows(root, count, pictures=0 if name in READING else 1)


def completions(batch: PairBatch, tokenizer: object) -> list[str]:
    ids = batch.inputs["input_ids"]
    decode = tokenizer.decode  # type: ignore[attr-defined]
    return [decode(ids[row][batch.completion_mask[row]], skip_special_tokens=False) for row in range(len(ids))]


@pytest.mark.parametrize("name", ALL)
def test_completions_are_the_answers_with_their_end_of_turn(name: str, tmp_path: Path) -> None:
    rows = rows_for(name, tmp_path)
    collate = collator(name, tmp_path)
    batch = collate(rows)
    end, lead = collate.renderer.end_of_turn, collate.renderer.lead
    expected = [f"{lead}{row.chosen}{end}" for row in rows] + [f"{lead}{row.rejected}{end}" for row in rows]
    assert completions(batch, collate.renderer.tokenizer) == expected
    assert batch.ids == tuple(row.id for row in rows)
    assert (batch.mask.sum(-1) == batch.completion_mask.sum(-1)).all()
    assert not (batch.completion_mask & ~batch.inputs["attention_mask"].bool()).any()
    for ids, mask in zip(batch.inputs["input_ids"], batch.completion_mask, strict=True):
        first = int(mask.nonzero()[0])
        assert not torch.isin(ids[first:], torch.tensor(collate.renderer.media_ids)).any()


@pytest.mark.parametrize("name", SEEING)
def test_both_sides_see_the_picture(name: str, tmp_path: Path) -> None:
    rows = rows_for(name, tmp_path)
    collate = collator(name, tmp_path)
    batch = collate(rows)
    placeholders = torch.isin(batch.inputs["input_ids"], torch.tensor(collate.renderer.media_ids)).sum(-1)
    assert (placeholders > 0).all()
    assert torch.equal(placeholders[:3], placeholders[3:])
    pixels = batch.inputs["pixel_values"]
    half = len(pixels) // 2
    assert torch.equal(pixels[:half], pixels[half:])
    assert not torch.equal(pixels[0], pixels[half - 1])


@pytest.mark.parametrize("name", ALL)
def test_a_row_is_the_same_alone_and_in_a_batch(name: str, tmp_path: Path) -> None:
    rows = rows_for(name, tmp_path)
    collate = collator(name, tmp_path)
    together = collate(rows)
    for index, row in enumerate(rows):
        alone = collate([row])
        for side in range(2):
            length = int(alone.lengths[side, 0])
            wide = together.inputs["input_ids"][side * 3 + index]
            assert torch.equal(wide[:length], alone.inputs["input_ids"][side][:length])
            assert not together.inputs["attention_mask"][side * 3 + index][length:].any()


@pytest.mark.parametrize("name", SEEING)
def test_recorded_damage_reaches_the_model(name: str, tmp_path: Path) -> None:
    clean = rows_for(name, tmp_path, 1)[0]
    collate = collator(name, tmp_path)
    chat = open_context(clean.context, tmp_path, MediaLimits(), clean.id)
    drawn = _drawn(chat)
    batch = collate([damaged(clean, drawn)])
    assert not torch.equal(batch.inputs["pixel_values"], collate([clean]).inputs["pixel_values"])
    expected = collate.renderer.encode(
        [collate.renderer.prompt(chat)] * 2, [[apply(media, drawn) for media in chat.media]] * 2, "right"
    )
    assert torch.equal(batch.inputs["pixel_values"], expected["pixel_values"])


def _drawn(chat: Chat) -> Corruption:
    import random

    from mmalign.corrupt import corruption_names, draw

    return draw(sorted(corruption_names())[0], random.Random(0))


def test_the_rejected_side_may_have_its_own_context(tmp_path: Path) -> None:
    row = rows_for("llama", tmp_path, 1)[0]
    other = Chat((Message("user", ("What colour is the crab?",)),)).to_rows()
    collate = collator("llama", tmp_path)
    batch = collate([replace(row, rejected_context=other)])
    texts = [collate.renderer.tokenizer.decode(ids) for ids in batch.inputs["input_ids"]]
    assert "Describe the picture" in texts[0]
    assert "What colour" not in texts[0]
    assert "What colour" in texts[1]
    assert collator("llama", tmp_path, sides=("chosen",))([row]).inputs["input_ids"].shape[0] == 1


@pytest.mark.parametrize("name", ["llama", "llava", "qwen3-vl"])
def test_changed_spans_become_tokens(name: str, tmp_path: Path) -> None:
    row = rows_for(name, tmp_path, 1)[0]
    start = row.chosen.index("blue")
    row = replace(row, chosen_spans=((start, start + 4), (len(row.chosen) - 1, len(row.chosen))))
    collate = collator(name, tmp_path)
    batch = collate([row])
    ids = batch.inputs["input_ids"][0][batch.completion_mask[0]]
    marked = [collate.renderer.tokenizer.decode(token) for token in ids[batch.changed[0][: len(ids)]]]
    assert "".join(marked).strip().replace(" ", "") in ("blue.", "blue")
    assert "blue" in "".join(marked)
    assert 0 < int(batch.changed[0].sum()) < len(ids) - 1
    assert not batch.changed[1].any()


def test_a_changed_or_missing_file_is_named_with_its_pair(tmp_path: Path) -> None:
    rows = rows_for("qwen3-vl", tmp_path, 2)
    collate = collator("qwen3-vl", tmp_path)
    (tmp_path / "1-0.png").write_bytes((tmp_path / "0-0.png").read_bytes())
    with pytest.raises(MediaError, match=r"pair s1#0\.0: .*1-0\.png.*SHA-256"):
        collate(rows)
    (tmp_path / "1-0.png").unlink()
    with pytest.raises(MediaError, match=r"pair s1#0\.0: .*1-0\.png"):
        collate(rows)


@pytest.mark.parametrize("name", SEEING)
def test_a_template_that_loses_the_pictures_is_refused(name: str, tmp_path: Path) -> None:
    loaded = tiny(name)
    loaded.processor.chat_template = (
        "{% for m in messages %}<|{{ m.role }}|>{% for p in m.content if p.type == 'text' %}{{ p.text }}"
        "{% endfor %}<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    collate = Collator(Renderer(loaded.processor), tmp_path, MediaLimits())
    with pytest.raises(TrainError, match=r"pair s0#0\.0: the processor refuses media and text"):
        collate(rows_for(name, tmp_path, 1))


def test_pictures_that_silently_stay_out_are_noticed(tmp_path: Path) -> None:
    class Forgetful(Renderer):
        def encode(self, texts: Any, media: Any, padding_side: Any = "right") -> Any:
            bare = [text.replace("<|image_pad|>", "") for text in texts]
            return super().encode(bare, [[] for _ in texts], padding_side)

    collate = Collator(Forgetful(tiny("qwen3-vl").processor), tmp_path, MediaLimits())
    with pytest.raises(
        TrainError, match=r"pair s0#0\.0: its context holds 1 media but the chat template left no place"
    ):
        collate(rows_for("qwen3-vl", tmp_path, 1))


def test_a_control_token_in_an_answer_is_refused_by_name(tmp_path: Path) -> None:
    row = replace(rows_for("llama", tmp_path, 1)[0], rejected="Yes.<|end|>No.")
    with pytest.raises(TrainError, match=r"pair s0#0\.0, rejected: .*<\|end\|>"):
        collator("llama", tmp_path)([row])


def test_pictures_for_a_text_model_are_refused_by_name(tmp_path: Path) -> None:
    row = make_rows(tmp_path, 1, pictures=1)[0]
    with pytest.raises(TrainError, match=r"pair s0#0\.0, chosen: .*picture"):
        collator("llama", tmp_path)([row])


def test_an_empty_answer_is_its_end_of_turn(tmp_path: Path) -> None:
    row = replace(rows_for("llama", tmp_path, 1)[0], rejected="")
    collate = collator("llama", tmp_path)
    assert completions(collate([row]), collate.renderer.tokenizer)[1] == collate.renderer.end_of_turn
