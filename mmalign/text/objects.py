"""Which things a text names, and where. Rules over a word list; no tagger, no model, no download.

Names are matched longest first ("hot dog" is no dog), in singular and plural, on word boundaries. Of nouns that stand
side by side only the last is named ("kitchen table lamp": a lamp). Words that are also verbs or colours count only
where they stand like nouns. The word list is ours (`objects.txt`, its first lines explain the format); a user can bring
another.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import zip_longest
from pathlib import Path
from typing import Final, Literal

from mmalign.errors import RecipeError
from mmalign.text.articles import plural, with_article
from mmalign.text.attributes import COLOURS, VISIBLE

#: The lists that come with the package: common things, and those of the embedded model's drawn world.
LISTS: Final = {name: Path(__file__).with_name(f"{name}.txt") for name in ("objects", "drawn")}

_WORD: Final = re.compile(r"[^\W_]+")
#: What may stand between the words of one name, and between a noun and the noun it qualifies.
_GAP: Final = re.compile(r"[^\S\n]+|[-‐‑'’]")
_DETERMINERS: Final = frozenset(
    "a an the this that these those each every another some many several few both no any other his her its their one "
    "two three four five six seven eight nine ten".split()
)
_PREPOSITIONS: Final = frozenset(
    "of with in on by near at under behind beside between among from into are were".split()
)
#: Words after which a colour or material is no longer an adjective.
_AFTER_NOUN: Final = frozenset(
    "of with in on by near at under behind beside between from is are was were and or to next that which while sits "
    "lies rests stands sitting lying standing hanging placed".split()
)

Use = Literal["noun", "verb too", "adjective too"]


@dataclass(frozen=True, slots=True)
class Mention:
    """One thing named in a text: the name of the object and the half-open character range of the words."""

    name: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Form:
    """One way to write an object. `name` is None for a phrase that names nothing."""

    name: str | None
    use: Use = "noun"
    is_plural: bool = False


@dataclass(frozen=True, slots=True)
class _Word:
    """One word of the list: how it is written, its plural, and what stands before it in a question."""

    text: str
    plural: str
    thing: str
    use: Use


@dataclass(frozen=True, slots=True, eq=False)
class Vocabulary:
    """Objects by name, in the order of the list, and all ways to write them."""

    words: Mapping[str, tuple[_Word, ...]]
    forms: Mapping[tuple[str, ...], Form]
    longest: int

    @classmethod
    def load(cls, path: Path | str | None = None) -> Vocabulary:
        """A list by the name of `LISTS` ("objects" where none is given), or a user's own file.

        Raises RecipeError with file and line for a list that cannot be used.
        """
        name = "objects" if path is None else str(path)
        return _load(LISTS.get(name, Path(name)))

    @classmethod
    def parse(cls, lines: Iterable[str], source: str = "list") -> Vocabulary:
        """A vocabulary from lines in the format of `objects.txt`; `source` names them in errors."""
        words: dict[str, tuple[_Word, ...]] = {}
        forms: dict[tuple[str, ...], Form] = {}
        for number, line in enumerate(lines, 1):
            entry = line.partition("#")[0].strip()
            if not entry:
                continue
            where = f"vocabulary: {source}:{number}: "
            if entry.startswith("!"):
                _add(forms, entry[1:], Form(None), where)
                continue
            written = tuple(_word(part, where) for part in entry.split(","))
            name = written[0].text
            for word in written:
                _add(forms, word.text, Form(name, word.use, word.thing.startswith("a pair of ")), where)
                if word.plural != word.text:
                    _add(forms, word.plural, Form(name, word.use, True), where)
            words[name] = written
        if not words:
            raise RecipeError(f"vocabulary: {source}: names no object; write one object per line")
        return cls(words, forms, max(map(len, forms)))

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.words)

    def synonyms(self, name: str) -> tuple[str, ...]:
        """All words for an object, its name first. Raises KeyError for an unknown name."""
        return tuple(word.text for word in self.words[name])

    def thing(self, name: str, synonym: str | None = None) -> str:
        """The object, or one of its synonyms, as a question asks for it: 'an apple', 'snow', 'a pair of scissors'."""
        return next(word.thing for word in self.words[name] if synonym in (None, word.text))

    def plural(self, name: str, synonym: str | None = None) -> str:
        """More than one of the object, or of one of its synonyms: 'apples', 'snow', 'scissors'."""
        return next(word.plural for word in self.words[name] if synonym in (None, word.text))

    def mentions(self, text: str) -> list[Mention]:
        """Every object that the text names, in reading order."""
        found = list(self._found(text))
        return [
            mention
            for (mention, is_plural), after in zip_longest(found, found[1:])
            if is_plural or after is None or not _GAP.fullmatch(text, mention.end, after[0].start)
        ]

    def _found(self, text: str) -> Iterator[tuple[Mention, bool]]:
        tokens = list(_WORD.finditer(text))
        keys = [token[0].casefold() for token in tokens]
        at = 0
        while at < len(tokens):
            size, form = self._longest(text, tokens, keys, at)
            if form and form.name is not None and _stands_as_noun(form, text, tokens, keys, at, at + size):
                yield Mention(form.name, tokens[at].start(), tokens[at + size - 1].end()), form.is_plural
            at += size

    def _longest(self, text: str, tokens: list[re.Match[str]], keys: list[str], at: int) -> tuple[int, Form | None]:
        """The longest form that begins at a token, and the number of its tokens; (1, None) where none does."""
        for size in range(min(self.longest, len(tokens) - at), 0, -1):
            form = self.forms.get(tuple(keys[at : at + size]))
            if form and all(_joined(text, tokens, index) for index in range(at + 1, at + size)):
                return size, form
        return 1, None


@lru_cache(maxsize=8)
def _load(path: Path) -> Vocabulary:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"vocabulary: {path}: cannot be read ({error})") from None
    return Vocabulary.parse(lines, str(path))


def _word(part: str, where: str) -> _Word:
    written = " ".join(part.split())
    marker = written[-1:] if written[-1:] in ("*", "~", "?", "%") else ""
    text, slash, irregular = written.removesuffix(marker).partition("/")
    if not _WORD.search(text) or (slash and not _WORD.search(irregular)):
        raise RecipeError(f"{where}{part.strip()!r} is no word; write 'name, synonym, singular/plural'")
    use: Use = "verb too" if marker == "?" else "adjective too" if marker == "%" else "noun"
    if marker == "*":
        head, of, rest = text.partition(" of ")
        return _Word(
            text, text, with_article(text) if of and rest and not head.endswith("s") else f"a pair of {text}", use
        )
    if marker == "~":
        return _Word(text, text, text, use)
    return _Word(text, irregular or plural(text), with_article(text), use)


def _add(forms: dict[tuple[str, ...], Form], text: str, form: Form, where: str) -> None:
    key = tuple(word.casefold() for word in _WORD.findall(text))
    known = forms.get(key)
    if not key or (known and known.name != form.name):
        other = f"stands for {known.name!r} already" if known else "is no word"
        raise RecipeError(f"{where}{text.strip()!r} {other}; every word may stand for one object only")
    forms.setdefault(key, form)


def _joined(text: str, tokens: list[re.Match[str]], index: int) -> bool:
    """Whether a token follows the one before it with nothing but a space, hyphen or apostrophe between them."""
    return 0 < index < len(tokens) and bool(_GAP.fullmatch(text, tokens[index - 1].end(), tokens[index].start()))


def _stands_as_noun(form: Form, text: str, tokens: list[re.Match[str]], keys: list[str], start: int, end: int) -> bool:
    """Whether tokens `start` to `end` are used as a noun; only words that can be something else are looked at."""
    if form.use == "noun":
        return True
    near = start if not _joined(text, tokens, start) else start - 1
    before = keys[near - _joined(text, tokens, near) : start] if near < start else []
    after = keys[end] if _joined(text, tokens, end) else ""
    if form.use == "verb too":
        if not before and not after:
            return True
        allowed = _DETERMINERS | VISIBLE | (_PREPOSITIONS if form.is_plural else frozenset())
        return before[-1:] != [] and before[-1] in allowed and (before[-1] not in VISIBLE or len(before) == 2)
    if form.is_plural:
        return True
    around = {*keys[max(start - 2, 0) : start], *keys[end : end + 2]} - {keys[start]}
    if not before and not after:
        return not around & COLOURS
    introduced = before[-1:] != [] and (
        before[-1] in _DETERMINERS or before[-1] in ("and", "or", "ripe", "fresh", "whole")
    )
    return introduced and (not after or after in _AFTER_NOUN) and not around & COLOURS
