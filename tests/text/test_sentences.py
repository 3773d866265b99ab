from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmalign.text.sentences import sentences


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("A dog. A cat! Is it? Yes", ["A dog.", " A cat!", " Is it?", " Yes"]),
        ("It is 3.5 m. Next.", ["It is 3.5 m.", " Next."]),
        ("The U.S. flag hangs. It waves.", ["The U.S. flag hangs.", " It waves."]),
        ("It is in the U.S. The flag waves.", ["It is in the U.S.", " The flag waves."]),
        ("Fruit, e.g. Apples and such. Mr. Fox sits.", ["Fruit, e.g. Apples and such.", " Mr. Fox sits."]),
        ("A dog.The cat. See site.org now.", ["A dog.", "The cat.", " See site.org now."]),
        ('He said "go." Then left.', ['He said "go."', " Then left."]),
        ("Wait... what?! No.", ["Wait...", " what?!", " No."]),
        ("- A dog\n- A cat\n", ["- A dog\n", "- A cat\n"]),
        ("1. A dog\n2. A cat", ["1. A dog\n", "2. A cat"]),
        ("一只狗。两只猫！", ["一只狗。", "两只猫！"]),
        ("A dog.  \n", ["A dog.  \n"]),
        ("...", ["..."]),
        ("", []),
    ],
)
def test_where_a_text_is_cut(text: str, pieces: list[str]) -> None:
    assert [piece.text for piece in sentences(text)] == pieces


@given(st.text(alphabet=st.sampled_from("aB3 .!?\n\"'e.g.U.S.–。é"), max_size=60) | st.text())
def test_pieces_put_together_are_the_text(text: str) -> None:
    pieces = sentences(text)
    assert "".join(piece.text for piece in pieces) == text
    end = 0
    for piece in pieces:
        assert piece.start == end
        assert text[piece.start : piece.end] == piece.text
        assert piece.text
        end = piece.end
        start, stop = piece.core
        assert piece.start <= start <= stop <= piece.end


@given(st.lists(st.sampled_from(["There is a dog.", "It is red!", "Is it 3.5 m?"]), min_size=1, max_size=7))
def test_plain_sentences_are_counted(parts: list[str]) -> None:
    assert len(sentences(" ".join(parts))) == len(parts)


def test_lead_core_and_tail() -> None:
    text = "A dog.\n - A red cat. \n"
    piece = sentences(text)[1]
    assert (piece.lead, piece.tail) == ("\n - ", " \n")
    assert text[slice(*piece.core)] == "A red cat."
