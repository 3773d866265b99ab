"""Whether pairs and trainer give what an objective needs, found before training, in one line that names the row.

"value:x" is looked up in a pair's `values` ("value:gap" is its column `gap`), "side:x" and "reference:x" in its
`sides`; what sides follow from pairs that lack them is in `mmalign.train.data.derived`. Shapes are those of
`mmalign.objectives.needs.AXES`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from mmalign.errors import TrainError
from mmalign.objectives import Need, Objective, refuse_unmet
from mmalign.objectives.needs import INDICES, RAGGED, axes, has_even_lists, index_limit, meaning
from mmalign.pairs import PairRow
from mmalign.sides import AnswerRow, SideRow, ValueRow, laid_out, shape_of
from mmalign.train.config import TrainConfig
from mmalign.train.data.arrange import READS
from mmalign.train.data.derived import DERIVED, with_derived
from mmalign.train.data.given import given
from mmalign.train.step import SIDES, sides_of, values_of

#: Sides that are the chosen text in another context: what they say is read token for token beside it.
_CHOSEN_TEXT = ("judged", "no_history")


def provided(rows: Sequence[PairRow], config: TrainConfig) -> frozenset[Need]:
    """What trainer, `config` and all `rows` give to an objective."""
    if not rows:
        return _provided(frozenset(), config)
    sides = set(rows[0].sides).intersection(*(row.sides for row in rows))
    values = set(rows[0].values).intersection(*(row.values for row in rows))
    if all(row.gap is not None for row in rows):
        values.add("gap")
    return _provided(_named("side", sides) | _named("value", values), config)


def promised(method: Any, config: TrainConfig) -> frozenset[Need]:
    """What the pairs that a method will make can give to an objective, as far as can be said before they are made."""
    gives = frozenset[Need](getattr(type(method), "method_gives", ()))
    if config.arrange in ("curry", "temporal", "reward_augmented"):
        gives |= {"value:gap"}
    derived = set(DERIVED) - (set() if "side:answers" in gives else {"answers_alone"})
    return _provided(gives | _named("side", derived), config)


def refuse_arrangement(method: Any, config: TrainConfig) -> None:
    """Raise ValueError, one line, for a `config.arrange` that reads what the pairs of a method never have."""
    gives = getattr(type(method), "method_gives", ())
    if lacking := [need for need in READS.get(config.arrange, ()) if need not in gives]:
        told = ", ".join(f"{need} ({meaning(need)})" for need in lacking)
        raise ValueError(f"{config.arrange} needs {told}, which pairs of method {type(method).method_name} do not have")


def prepared(rows: Sequence[PairRow], objective: Objective, config: TrainConfig) -> list[PairRow]:
    """The rows with all that `objective` reads of them, derived sides among it.

    A list of numbers that a pair does not know is as long as those of the others, so that all batches have one shape.
    Raises TrainError, one line, for what neither trainer nor pairs give, and naming the first pair that lacks what
    others have, or has it in another shape than the objective can read.
    """
    rows = with_derived(rows, objective)
    sides = _named("side", set(sides_of(objective, rows)) - set(SIDES))
    columns = sorted(sides | _named("value", values_of(objective)))
    for need in columns:
        lacking = [not _has(row, need) for row in rows]
        if any(lacking) and not all(lacking):
            place = lacking.index(True)
            raise TrainError(
                f"pair {rows[place].id} (row {place}) has no {_spelled(need)}, which objective {objective.name} needs "
                f"({meaning(need)}); {lacking.count(False)} of the {len(rows)} pairs have it"
            )
    try:
        refuse_unmet(objective, provided(rows, config))
    except ValueError as error:
        raise TrainError(str(error)) from None
    shapes = _Shapes(objective)
    for place, row in enumerate(rows):
        for need in columns:
            if told := shapes.wrong(row, need):
                raise TrainError(f"pair {row.id} (row {place}): {told}, for objective {objective.name}")
        shapes.own.clear()
    return [shapes.filled(row, columns) for row in rows]


def _provided(columns: frozenset[Need], config: TrainConfig) -> frozenset[Need]:
    sides = sorted(need.partition(":")[2] for need in columns if need.startswith("side:"))
    return columns | _named("reference", sides) | given(config, sides)


def _named(kind: str, names: Any) -> frozenset[Need]:
    return frozenset(f"{kind}:{name}" for name in names)


def _has(row: PairRow, need: Need) -> bool:
    kind, _, name = need.partition(":")
    return name in row.sides if kind == "side" else row.gap is not None if name == "gap" else name in row.values


def _spelled(need: Need) -> str:
    kind, _, name = need.partition(":")
    return "gap" if need == "value:gap" else f"{kind}s.{name}"


@dataclass(slots=True)
class _Shapes:
    """The length of each axis where it was first seen, and where: `own` in the pair, `common` in all of them.

    `forms` are the levels of lists of what has a name of the user's own.
    """

    objective: Objective
    own: dict[str, tuple[int, str]] = field(default_factory=dict)
    common: dict[str, tuple[int, str]] = field(default_factory=dict)
    forms: dict[Need, int] = field(default_factory=dict)

    def wrong(self, row: PairRow, need: Need) -> str:
        """What is wrong with what a pair carries for a need, and what would be right; an empty text if nothing is."""
        kind, _, name = need.partition(":")
        part: SideRow | ValueRow = row.side(name) if kind == "side" else row.value(name)
        shape, where, wanted = shape_of([part]), _spelled(need), axes(need, self.objective)
        if wanted is None:
            # A name of the user's own: all pairs must have it in one form.
            first = self.forms.setdefault(need, len(shape)) if part is not None else len(shape)
            return (
                ""
                if first == len(shape)
                else f"{where} is {_form(kind, len(shape))}, before it was {_form(kind, first)}"
            )
        if kind == "side" and name in _CHOSEN_TEXT and isinstance(part, AnswerRow) and part.text != row.chosen:
            return f"{where} is another text than chosen; it must be the same, in a context of its own"
        letters, may_lack = wanted.rstrip("?"), wanted.endswith("?")
        if part is None and may_lack:
            return ""
        if len(shape) != len(letters):
            return f"{where} is {_form(kind, len(shape))}; it must be {_form(kind, len(letters))}"
        if None in laid_out(part, shape) and not (may_lack and kind == "value"):
            return f"{where} has a null, or lists of different lengths; every place must be filled"
        for letter, size in zip(letters, shape, strict=True):
            if letter.isdigit() and size != int(letter):
                return f"{where} has {size} entries; it must have {letter}"
            is_common = letter not in RAGGED or has_even_lists(self.objective)
            known = [(self.own, where)] * (letter in RAGGED) + [(self.common, f"that of pair {row.id}")] * is_common
            for sizes, source in known:
                first, of = sizes.setdefault(letter, (size, source))
                if first != size:
                    return f"{where} has {size} entries, {of} has {first}; they must have as many"
        if need in INDICES:
            limit = index_limit(need, self.objective)
            for number in laid_out(part, shape):
                assert isinstance(number, int | float)
                if number != int(number) or number < 0 or (limit is not None and number >= limit):
                    upto = "" if limit is None else f" to {limit - 1}"
                    return f"{where} is {number:g}; it must be a whole number from 0{upto}"
        return ""

    def filled(self, row: PairRow, needs: Sequence[Need]) -> PairRow:
        """The row with lists of nulls for its values that are null, where the lists of others have a length."""
        values = dict(row.values)
        for need in needs:
            kind, _, name = need.partition(":")
            letters = (axes(need, self.objective) or "").rstrip("?")
            if kind == "value" and letters in self.common and values.get(name, 0) is None:
                values[name] = (None,) * self.common[letters][0]
        return replace(row, values=values) if values != row.values else row


def _form(kind: str, depth: int) -> str:
    one, many = ("one answer", "answers") if kind == "side" else ("a number", "numbers")
    return (one, f"a list of {many}", f"a list of lists of {many}")[depth]
