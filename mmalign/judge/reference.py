"""Whether an answer says what a reference answer says: by rules where its form allows it, else by the model itself.

The RRPO paper (arXiv 2504.12083) has an outside model judge; here multiple choice, yes/no and short answers are read
by rules, and of an open answer the same model is asked whether both say the same, with no media in sight.
"""

from __future__ import annotations

import re
from typing import Final, Literal

from mmalign.errors import SampleError
from mmalign.lm.bound import SampleLM
from mmalign.lm.protocol import YES_NO
from mmalign.text.prompts import SAME_MEANING, YES_OR_NO
from mmalign.types import Chat, Judgement, Message

Form = Literal["choice", "yes/no", "short", "open"]

#: A reference of at most so many words, articles aside, is a short answer.
SHORT_WORDS: Final = 3
_NUMBERS: Final = {
    word: str(number)
    for number, word in enumerate("zero one two three four five six seven eight nine ten eleven twelve".split())
}
_DENIALS: Final = frozenset("no not never without neither nor t".split())  # "isn't" is split at its apostrophe
_YES_NO: Final = re.compile(r"\W*(?:yes|no)(?:\W*$|\s*[.,;:!?)\"”*–—]|\s+-\s)", re.IGNORECASE)
_YES_NO_QUESTION: Final = re.compile(
    r"(?:^|[.!?:\n])\W*(?!(?:can|could|will|would) you\b)"
    r"(?:is|are|was|were|am|do|does|did|has|have|had|can|could|will|would|shall|should|may|might|must)(?:n't)?\b"
    r"[^.!?\n]*\?|\byes or no\b",
    re.IGNORECASE,
)
_OPTION: Final = re.compile(r"^\s*\(?([A-Z])[).:]\s*(\S.*?)\s*$", re.MULTILINE)
_INLINE_OPTION: Final = re.compile(r"\(([A-Z])\)\s*([^()\n]*[^()\s])")
_LETTERS: Final = (
    re.compile(r"^\W*([A-Z])(?:\W*$|\s*[).:,])"),
    re.compile(r"\(([A-Z])\)"),
    re.compile(r"\b(?:[Aa]nswer|[Oo]ption|[Cc]hoice)(?: is)?:? \(?([B-HJ-Z]\b|[AI](?=[).:,]|\W*$| because| since))"),
)


def words(text: str) -> list[str]:
    """Words in lower case without articles and punctuation, small numbers as digits."""
    return [_NUMBERS.get(word, word) for word in re.findall(r"\w+", text.casefold()) if word not in ("a", "an", "the")]


def options(question: str) -> dict[str, str]:
    """The options of a multiple-choice question by letter: 'A. red' on lines, or '(A) red (B) blue'; else none."""
    for pattern in (_OPTION, _INLINE_OPTION):
        found = dict(pattern.findall(question))
        if len(found) > 1 and list(found) == [chr(ord("A") + number) for number in range(len(found))]:
            return found
    return {}


def option_of(answer: str, given: dict[str, str]) -> str | None:
    """The letter of the option that an answer names, by its letter or else by its text; None where that is unclear."""
    for pattern in _LETTERS:
        letter = pattern.search(answer.strip())
        if letter and letter[1] in given:
            return letter[1]
    named = [letter for letter, text in given.items() if _holds(words(answer), words(text))]
    return named[0] if len(named) == 1 else None


def form_of(question: str, reference: str) -> Form:
    """How a reference answer can be compared with another one."""
    if option_of(reference, options(question)) is not None:
        return "choice"
    said = words(reference)
    # "No one opens the door." is no such answer, unless the question can be answered by yes or no.
    if said[:1] in (["yes"], ["no"]) and (_YES_NO.match(reference) or _YES_NO_QUESTION.search(question)):
        return "yes/no"
    return "short" if 0 < len(said) <= SHORT_WORDS else "open"


def agrees(question: str, reference: str, answer: str) -> bool | None:
    """Whether an answer is right by a reference of a closed form; None where the answer cannot be read.

    Multiple choice goes by the option, yes/no by the first word. A short reference is found in the answer word by word,
    and the answer denies nothing. Raises ValueError for an open reference.
    """
    form = form_of(question, reference)
    said, wanted = words(answer), words(reference)
    if form == "choice":
        named = option_of(answer, options(question))
        return None if named is None else named == option_of(reference, options(question))
    if form == "yes/no":
        return said[0] == wanted[0] if said[:1] in (["yes"], ["no"]) else None
    if form == "short":
        return said == wanted or (_holds(said, wanted) and not _DENIALS & (set(said) - set(wanted)))
    raise ValueError("an open answer cannot be compared by rules")


async def same_meaning(question: str, reference: str, answer: str, lm: SampleLM, *, min_mass: float = 0.1) -> Judgement:
    """The model's own P(yes) that an open answer says the same as the reference; asked without media.

    Raises SampleError where yes and no together have less than `min_mass`: then the question was not answered.
    """
    asked = f"{SAME_MEANING.format(question=question, reference=reference, answer=answer)} {YES_OR_NO}"
    choice = await lm.choose(Chat((Message("user", (asked,)),)), YES_NO)
    if not choice.mass >= min_mass:
        raise SampleError(f"the judge answered neither yes nor no (their probability is {choice.mass:.3f})")
    p_same = choice.probabilities[0]
    reason = f"P(says the same as the reference)={p_same:.2f}"
    return Judgement("reference", p_same, reason, {"form": "open", "mass": choice.mass})


async def compare(question: str, reference: str, answer: str, lm: SampleLM) -> Judgement:
    """Compare an answer with the reference: value 1 (right), 0 (wrong), P(same) of an open one, None if unreadable."""
    form = form_of(question, reference)
    if form == "open":
        return await same_meaning(question, reference, answer, lm)
    right = agrees(question, reference, answer)
    said = {True: "right", False: "wrong", None: "cannot be read"}[right]
    value = None if right is None else float(right)
    return Judgement("reference", value, f"{said} by the reference ({form} answer)", {"form": form})


def _holds(said: list[str], wanted: list[str]) -> bool:
    """Whether the wanted words, at least one, stand side by side in what was said."""
    size = len(wanted)
    return size > 0 and any(said[at : at + size] == wanted for at in range(len(said) - size + 1))
