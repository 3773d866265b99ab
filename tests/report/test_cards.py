"""Cutting texts into marked pieces, and reading corruptions out of provenance."""

from __future__ import annotations

import json
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from mmalign.media.read import MediaLimits
from mmalign.report.cards import MOST_TEXT, Piece, card, examples, numbers, pieces, shortened
from mmalign.report.damage import damages, in_words
from mmalign.report.pictures import Gallery
from mmalign.types import Corruption, MediaRef
from tests.report.synthetic_clips import damaged, opened, pair
from tests.report.synthetic_run import make_pairs, photograph


def test_pieces_by_hand() -> None:
    assert pieces("a red boat", [(2, 5)], [(2, 10)]) == [
        Piece("a ", False),
        Piece("red", True, True),
        Piece(" boat", False, True),
    ]
    assert pieces("", [(0, 4)]) == []


SPANS = st.lists(st.tuples(st.integers(-3, 40), st.integers(-3, 40)), max_size=5)


@given(st.text(max_size=30), SPANS, SPANS)
def test_pieces_keep_the_text_and_mark_exactly_the_spans(
    text: str, spans: list[tuple[int, int]], pointed: list[tuple[int, int]]
) -> None:
    cut = pieces(text, spans, pointed)
    assert "".join(piece.text for piece in cut) == text
    marks = [(piece.marked, piece.pointed) for piece in cut for _ in piece.text]
    for place, found in enumerate(marks):
        wanted = tuple(any(start <= place < end for start, end in layer) for layer in (spans, pointed))
        assert found == wanted


def test_long_texts_are_cut_with_a_note() -> None:
    assert shortened("x" * MOST_TEXT) == "x" * MOST_TEXT
    assert shortened("x" * (MOST_TEXT + 1234)).endswith("x … (1,234 more characters)")


def test_corruptions_are_found_anywhere_in_provenance() -> None:
    blur, mask = Corruption("blur", {"radius": 2.0}), Corruption("mask", {})
    row = {"corruptions": [blur.to_row(), mask.to_row()]}
    assert damages({"deep": [{"media": row}], "alone": blur.to_row(), "name": "x", "params": 3}) == [
        (blur, mask),
        (blur,),
    ]
    noise = Corruption("gaussian_noise", {"sigma": 0.30000001, "seed": 5})
    assert in_words(noise) == "gaussian noise (sigma 0.3, seed 5)"


def test_card_of_a_damaged_pair_shows_the_damaged_picture(tmp_path: Path) -> None:
    row = list(make_pairs(tmp_path, 3))[2]
    gallery = Gallery(tmp_path, MediaLimits())
    shown = card(row, gallery)
    thumbnails = gallery.thumbnails()
    plain, damaged = thumbnails[shown.pictures[0]], thumbnails[shown.damages[0].picture]
    assert plain.url.startswith("data:image/png;base64,")
    assert damaged.url.startswith("data:image/png;base64,")
    assert plain.url != damaged.url
    assert plain.is_tiny
    assert (plain.width, plain.height) == (256, 256)
    assert "gaussian noise" in shown.damages[0].words


def test_card_of_a_clip_shows_each_damage_once(tmp_path: Path) -> None:
    clean, other = opened(tmp_path, 0), opened(tmp_path, 1)
    bad = damaged(clean, "reverse", other)
    record = {"corruptions": [corruption.to_row() for corruption in bad.ref.corruptions]}
    shown = card(pair(clean.ref, "", bad.ref, 0, provenance=record), Gallery(tmp_path, MediaLimits()))
    assert (shown.medium, shown.pictures, shown.damages) == ("video", (), ())
    assert [found.damage for found in shown.strips] == [""]
    assert [found.damage for found in shown.damaged_strips] == ["the clip runs backwards"]


def test_card_shows_another_clip_of_the_rejected_side(tmp_path: Path) -> None:
    clean, other = opened(tmp_path, 0), opened(tmp_path, 1)
    shown = card(pair(clean.ref, "", other.ref, 0), Gallery(tmp_path, MediaLimits()))
    assert [(found.label, found.damage) for found in shown.damaged_strips] == [("clip-1-8.mkv", "")]
    assert card(pair(clean.ref, "", clean.ref, 0), Gallery(tmp_path, MediaLimits())).damaged_strips == ()


def test_numbers_are_finite_json_and_name_the_judged_side(tmp_path: Path) -> None:
    row = next(make_pairs(tmp_path, 1))
    row.judgements.append({"judge": "other", "value": float("nan"), "reason": "", "raw": {}})
    found = numbers(row)
    json.dumps(found, allow_nan=False)
    assert found["consistency, chosen (score)"] == 0.0
    assert found["gap"] == row.gap
    assert "other (score)" not in found


def test_examples_mark_given_ranges_else_known_names_that_are_not_there(tmp_path: Path) -> None:
    gallery = Gallery(tmp_path, MediaLimits())
    entries = [
        {"image": "a.png", "before": "Two boats and a Fish.", "after": "a boat", "truth": ["boat"]},
        {"image": "b.png", "before": "a zebra here", "wrong_before": [[2, 7]], "after": "", "truth": []},
    ]
    one, two = examples(entries, gallery)
    assert [piece.text for piece in one.before if piece.marked] == ["Fish"]
    assert not any(piece.marked for piece in one.after)
    assert [piece.text for piece in two.before if piece.marked] == ["zebra"]
    assert gallery.thumbnails()[one.picture].label == "Picture not found: a.png"


def test_thumbnails_shrink_until_they_fit_the_budget(tmp_path: Path) -> None:
    gallery = Gallery(tmp_path, MediaLimits())
    for seed in range(6):
        photograph(seed).save(tmp_path / f"{seed}.png")
        gallery.add(MediaRef(f"{seed}.png"))
    large = gallery.thumbnails()
    assert {max(found.width, found.height) for found in large.values()} == {320}
    size = sum(len(found.url) for found in large.values())
    small = gallery.thumbnails(budget=size // 2)
    assert sum(len(found.url) for found in small.values()) <= size // 2
    assert {max(found.width, found.height) for found in small.values()} < {224, 160, 96}


def test_no_path_leaves_the_data_folder(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    photograph(1).save(tmp_path / "secret.png")
    gallery = Gallery(tmp_path / "data", MediaLimits())
    for path in ("../secret.png", str(tmp_path / "secret.png"), "file:///etc/passwd"):
        key = gallery.add(MediaRef(path))
        assert gallery.thumbnails()[key].url == ""
