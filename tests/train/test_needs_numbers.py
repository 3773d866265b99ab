"""Numbers and texts of pairs that an objective would read wrongly are named before training; lists that are not known
have the length of those that are.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mmalign.errors import TrainError
from mmalign.lm.render import Renderer
from mmalign.media.read import MediaLimits
from mmalign.objectives import OBJECTIVES, Sum
from mmalign.pairs import PairRow
from mmalign.train.config import TrainConfig
from mmalign.train.data.collate import Collator
from mmalign.train.data.needs import prepared
from tests.models import tiny
from tests.train.rows import make_rows
from tests.train.sides import carrying


def with_values(**columns: list[Any]) -> list[PairRow]:
    count = len(next(iter(columns.values())))
    rows = make_rows(Path(), count, pictures=0)
    return [
        carrying(row, {}, {name: column[place] for name, column in columns.items()}) for place, row in enumerate(rows)
    ]


@pytest.mark.parametrize("number", [2, -1, 0.5])
@pytest.mark.parametrize(
    ("name", "settings", "value"), [("lcpo", {"annotators": 2}, "annotator"), ("more", {}, "source")]
)
def test_an_index_that_is_none_is_named(name: str, settings: dict[str, Any], value: str, number: float) -> None:
    """It would be an error of the device, or another annotator's reliability."""
    told = (
        rf"^pair s1#0\.0 \(row 1\): values\.{value} is {number}; it must be a whole number from 0 to 1, for objective"
    )
    objective = OBJECTIVES[name](**settings)
    rows = with_values(**{value: [0, number, 1]})
    for wanted in (objective, Sum.of((1.0, OBJECTIVES["dpo"]()), (0.5, objective))):
        with pytest.raises(TrainError, match=told):
            prepared(rows, wanted, TrainConfig())
    assert len(prepared(with_values(**{value: [0, 1]}), objective, TrainConfig())) == 2


def test_an_index_that_the_pairs_count_is_not_negative() -> None:
    with pytest.raises(TrainError, match=r"values\.user is -1; it must be a whole number from 0, for objective pal"):
        prepared(with_values(user=[0, -1]), OBJECTIVES["pal"](), TrainConfig())
    assert len(prepared(with_values(user=[0, 7]), OBJECTIVES["pal"](), TrainConfig())) == 2


def test_a_list_that_is_not_known_is_as_long_as_those_of_others(tmp_path: Path) -> None:
    """A batch of such pairs alone has the shape of any other."""
    rows = with_values(attributes=[[1, 2, 3], None, None, [4, None, 2]])
    found = prepared(rows, OBJECTIVES["helpsteer"](), TrainConfig())
    assert [row.value("attributes") for row in found] == [(1, 2, 3), (None,) * 3, (None,) * 3, (4, None, 2)]
    collate = Collator(Renderer(tiny("llama").processor), tmp_path, MediaLimits(), ("chosen",), values=("attributes",))
    unknown = collate(found[1:3]).values["attributes"]
    assert unknown.shape == (2, 3)
    assert bool(unknown.isnan().all())
    none = with_values(teacher_means=[None, None])
    assert prepared(none, OBJECTIVES["poft"](), TrainConfig()) == none


@pytest.mark.parametrize(("name", "side"), [("cut", "judged"), ("next_quill", "no_history")])
def test_a_text_that_is_read_beside_the_chosen_one_is_the_same(name: str, side: str) -> None:
    first, second = make_rows(Path(), 2, pictures=0)
    known = [carrying(first, {side: {"text": first.chosen}}), carrying(second, {side: {"text": second.chosen + "!"}})]
    told = rf"^pair s1#0\.0 \(row 1\): sides\.{side} is another text than chosen; it must be the same"
    with pytest.raises(TrainError, match=told):
        prepared(known, OBJECTIVES[name](), TrainConfig())
    assert len(prepared(known[:1], OBJECTIVES[name](), TrainConfig())) == 1
