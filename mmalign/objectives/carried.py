"""What the pairs carry for an objective beyond two texts: what each side and each value is, with an example of it.

The examples are all about one pair: to "How many boats?" the chosen answer is "Two boats." and the rejected one "Three
boats.". An answer is a mapping with its `text` and, where it has another context than the pair's, its `context`.
"""

from __future__ import annotations

from typing import Any, Final

from mmalign.objectives.needs import axes
from mmalign.objectives.types import Objective

Example = dict[str, Any]

CHOSEN, REJECTED = "Two boats.", "Three boats."


def _asked(*parts: Any) -> list[dict[str, Any]]:
    """A context: one turn of the user; what is no text already is its part."""
    content = [{"type": "text", "text": part} if isinstance(part, str) else part for part in parts]
    return [{"role": "user", "content": content}]


_PICTURE = {"type": "image", "path": "boats.png"}
_DAMAGED = {**_PICTURE, "corruptions": [{"name": "crop", "params": {"area": 0.1, "x": 0.5, "y": 0.5}}]}
_ONE, _OTHER = {"text": CHOSEN}, {"text": REJECTED}


def _after(text: str) -> list[dict[str, Any]]:
    return _asked(_PICTURE, f"How many boats? A first answer was: {text} Give a better one.")


_JUDGING = [
    _asked(_PICTURE, f"How many boats? A: {first} B: {second} Which is better?")
    for first, second in ((CHOSEN, REJECTED), (REJECTED, CHOSEN))
]

#: Sides beyond "chosen" and "rejected": what they are, and an example; a list is a side with K answers per pair.
SIDES: Final[dict[str, tuple[str, Any]]] = {
    "answers": ("K answers to the prompt", [_ONE, _OTHER]),
    "answers_alone": (
        "the same K answers without the question",
        [{**answer, "context": _asked(_PICTURE)} for answer in (_ONE, _OTHER)],
    ),
    "samples": ("K answers that the model gave itself", [_ONE, {"text": "A pair of boats."}]),
    "sample": ("an answer that the model gave itself", {"text": "A pair of boats."}),
    "greedy": ("the reference's own greedy answer", {"text": "Two ships."}),
    "gold": ("a third answer, the best", {"text": "Two red boats."}),
    "mismatched": ("an answer to another prompt", {"text": "A dog."}),
    "rationale": ("why the chosen text is better", {"text": "There are two boats; a third is not to be seen."}),
    "judged": (
        "the chosen text, with what is wrong with it told before",
        {**_ONE, "context": _asked(_PICTURE, "How many boats? (The answer is to be wrong.)")},
    ),
    "no_history": (
        "the chosen text without the user's history in its context",
        {**_ONE, "context": _asked("How many boats?")},
    ),
    "chosen_damaged": (
        "the chosen text about damaged media",
        {**_ONE, "context": _asked(_DAMAGED, "How many boats?")},
    ),
    "chosen_after_rejected": ("the chosen text after the rejected one", {**_ONE, "context": _after(REJECTED)}),
    "rejected_after_chosen": ("the rejected text after the chosen one", {**_OTHER, "context": _after(CHOSEN)}),
    "chosen_after_chosen": ("the chosen text after itself", {**_ONE, "context": _after(CHOSEN)}),
    "rejected_after_rejected": ("the rejected text after itself", {**_OTHER, "context": _after(REJECTED)}),
    "fulfilled": (
        "an answer under a prompt all of whose instructions it meets",
        {**_ONE, "context": _asked(_PICTURE, "How many boats? Use two words.")},
    ),
    "missed": (
        "the same answer under a prompt that it does not meet",
        {**_ONE, "context": _asked(_PICTURE, "How many boats? Use five words.")},
    ),
    "chosen_favoured": (
        "the chosen text under a prompt that only it meets",
        {**_ONE, "context": _asked(_PICTURE, "How many boats? There are less than three.")},
    ),
    "rejected_favoured": (
        "the rejected text under the same prompt",
        {**_OTHER, "context": _asked(_PICTURE, "How many boats? There are less than three.")},
    ),
    "first_turn": ("K first answers", [_OTHER, _ONE]),
    "second_turn": (
        "the K answers that correct them",
        [{**_ONE, "context": _after(REJECTED)}, {**_ONE, "context": _after(CHOSEN)}],
    ),
    "degraded": ("K versions of the answers, key phrases taken out", [_ONE, {"text": "Boats."}]),
    "verdict_chosen": (
        "a judge's answer for the chosen text, in both orders of the two",
        [{"text": name, "context": asked} for name, asked in zip("AB", _JUDGING, strict=True)],
    ),
    "verdict_rejected": (
        "its answer for the rejected text, in both orders",
        [{"text": name, "context": asked} for name, asked in zip("BA", _JUDGING, strict=True)],
    ),
    "chosen_view": ("the chosen text again, under another dropout", _ONE),
    "rejected_view": ("the rejected text again, under another dropout", _OTHER),
}

#: Sides that are made from the pairs where these lack them.
MADE: Final = frozenset(
    {
        *("mismatched", "answers_alone", "chosen_view", "rejected_view"),
        *(f"{one}_after_{other}" for one in ("chosen", "rejected") for other in ("chosen", "rejected")),
    }
)

#: Numbers that the pairs carry: what they are, and an example.
VALUES: Final[dict[str, tuple[str, Any]]] = {
    "gap": ("by how much the chosen text is better", 2.0),
    "scores": ("how good each of the K answers is", [2.0, 0.5]),
    "levels": ("the level of each of the K answers, the best lowest", [1, 3]),
    "rewards": ("the reward of each of the K answers", [1.0, 0.0]),
    "first_rewards": ("the reward of each first answer", [0.0, 1.0]),
    "second_rewards": ("the reward of each second answer", [1.0, 1.0]),
    "preferences": ("K x K, how likely answer i beats answer j", [[0.5, 0.9], [0.1, 0.5]]),
    "similarity": ("of each of the K answers to the demonstration", [0.9, 0.4]),
    "gaps": ("in reward, of each of the K answers to the demonstration", [0.1, 0.8]),
    "log_attributes": ("log P(attributes | answer) of each of the K answers", [-0.3, -1.9]),
    "log_prior": ("log P(answer) of each under the start, without attributes", [-7.1, -6.2]),
    "log_proposal": ("log Q(answer) of each under the model that drew it", [-6.8, -6.5]),
    "degrees": ("how much was taken out of each of the K versions, 0 = nothing", [0, 1]),
    "chosen_win_rate": ("share of comparisons that the chosen text wins", 0.8),
    "rejected_win_rate": ("share of comparisons that the rejected text wins", 0.3),
    "chosen_reward": ("the chosen text's reward", 1.2),
    "rejected_reward": ("the rejected text's reward", -0.4),
    "chosen_sources": ("the chosen text's mean log-prob per token under each source model", [-1.1, -0.9]),
    "rejected_sources": ("the same of the rejected text", [-1.4, -1.6]),
    "teacher_means": ("the chosen text's mean log-prob per token under each teacher", [-1.1, -0.9]),
    "annotator": ("index of who labelled the pair", 0),
    "absolute": ("1 where the texts are right and wrong, 0 where one is merely preferred", 1.0),
    "strength": ("mean margin under several reward models", 0.7),
    "peer_margin": ("margin under the peer, another reward model", 0.4),
    "source": ("index of the data set that the pair is from", 0),
    "user": ("index of who preferred", 0),
    "attributes": ("the label of each attribute", [3.0, 4.0, 2.0]),
}


def told(objective: Objective) -> list[str]:
    """What the pairs carry for `objective` beyond two texts, a line for each need that is a column."""
    found = []
    if "changed" in objective.needs:
        found.append("`chosen_spans`, `rejected_spans`: where the texts differ, as characters from and to")
    named = (_sides(objective), SIDES, "sides"), (_named(objective, "value"), VALUES, "values")
    for names, known, column in named:
        for name in names:
            place = name if name == "gap" else f"{column}.{name}"
            made = " (made from the pairs where they lack it)" if column == "sides" and name in MADE else ""
            found.append(f"`{place}`: {known[name][0]}{made}" if name in known else f"`{place}`")
    return found


def example(objective: Objective) -> Example:
    """A pair that `objective` can be trained on, in the columns of a pair file; ids and provenance are left out."""
    row: Example = {"context": _asked(_PICTURE, "How many boats?"), "chosen": CHOSEN, "rejected": REJECTED}
    if "changed" in objective.needs:
        row |= {"chosen_spans": [[0, 3]], "rejected_spans": [[0, 5]]}
    values = {name: VALUES[name][1] for name in _named(objective, "value")}
    if "gap" in values:
        row["gap"] = values.pop("gap")
    if values:
        row["values"] = values
    if sides := {name: _side(objective, name) for name in _sides(objective)}:
        row["sides"] = sides
    return row


def _sides(objective: Objective) -> list[str]:
    """Sides that an objective reads, those among them whose whole distributions are a source."""
    return [*_named(objective, "side"), *(name for name in _named(objective, "logits") if name in SIDES)]


def _side(objective: Objective, name: str) -> Any:
    """The example of a side; a list of lists is each answer under each of as many constitutions."""
    shown = SIDES[name][1]
    if axes(f"side:{name}", objective) != "NN":
        return shown
    told = [_asked(_PICTURE, f"{rule} How many boats?") for rule in ("Be right.", "Be wrong.")]
    return [[{**answer, "context": context} for answer in shown] for context in told]


def _named(objective: Objective, kind: str) -> list[str]:
    """The names of the needs "kind:name", in order."""
    return sorted(need.partition(":")[2] for need in objective.needs if need.startswith(f"{kind}:"))
