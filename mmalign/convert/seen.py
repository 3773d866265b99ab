"""What other tools see of a pair: turns of text and media, two answers, and the rejected side's own turns.

Between formats every pair passes through `Seen`. Text parts that stand side by side are one, empty ones are left out,
so pairs that look alike to other tools are equal here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from mmalign.pairs import PairRow
from mmalign.types import Row

MediaKind = Literal["image", "video"]
ROLES = ("system", "user", "assistant")


class Unfit(ValueError):
    """One pair cannot be converted; the message is a line without file and row, which the caller knows."""


@dataclass(frozen=True, slots=True)
class Medium:
    """A picture or clip by the name that stands in the foreign row.

    `content` are its bytes where the row holds them itself. `part` is what the pair's row says of it, and `frame` the
    number of the frame that is shown where a clip becomes pictures; both are known of pairs of our own only.
    """

    kind: MediaKind
    name: str
    content: bytes | None = field(default=None, compare=False)
    part: Row | None = field(default=None, compare=False)
    frame: int | None = field(default=None, compare=False)


Part = str | Medium


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn: who speaks, and text and media in order."""

    role: str
    parts: tuple[Part, ...]

    @property
    def media(self) -> list[Medium]:
        return [part for part in self.parts if isinstance(part, Medium)]

    @property
    def text(self) -> str:
        return "".join(part for part in self.parts if isinstance(part, str))


@dataclass(frozen=True, slots=True)
class Seen:
    """A pair as other tools see it. `rejected_turns` is None where both answers have the same context."""

    turns: tuple[Turn, ...]
    chosen: str
    rejected: str
    rejected_turns: tuple[Turn, ...] | None = None

    @property
    def contexts(self) -> tuple[tuple[Turn, ...], ...]:
        return (self.turns,) if self.rejected_turns is None else (self.turns, self.rejected_turns)

    @property
    def media(self) -> Iterator[Medium]:
        """The media of both contexts, in order."""
        return (medium for turns in self.contexts for turn in turns for medium in turn.media)

    def with_media(self, change: Callable[[Medium], Medium]) -> Seen:
        """The same words about what `change` makes of each medium, in the order of `media`."""

        def changed(turns: tuple[Turn, ...]) -> tuple[Turn, ...]:
            return tuple(
                replace(turn, parts=tuple(part if isinstance(part, str) else change(part) for part in turn.parts))
                for turn in turns
            )

        turns = changed(self.turns)
        other = None if self.rejected_turns is None else changed(self.rejected_turns)
        return replace(self, turns=turns, rejected_turns=other)


def joined(parts: Iterable[Part]) -> tuple[Part, ...]:
    """Neighbouring texts made one, empty ones left out."""
    found: list[Part] = []
    for part in parts:
        if isinstance(part, str) and found and isinstance(found[-1], str):
            found[-1] += part
        elif part != "":
            found.append(part)
    return tuple(found)


def seen_of(row: PairRow, media_of: Callable[[Row], Sequence[Medium]]) -> Seen:
    """A pair as other tools see it; `media_of` names the media of a part. Raises Unfit."""

    def turns_of(context: Sequence[Row]) -> tuple[Turn, ...]:
        return tuple(Turn(turn["role"], joined(parts_of(turn))) for turn in context)

    def parts_of(turn: Row) -> Iterator[Part]:
        for part in turn["content"]:
            if part["type"] == "text":
                yield part["text"]
            else:
                yield from media_of(part)

    turns = turns_of(row.context)
    other = None if row.rejected_context is None else turns_of(row.rejected_context)
    if other != turns:
        return Seen(turns, row.chosen, row.rejected, other)
    if other is not None and _frames(turns) != _frames(other):
        raise Unfit("its rejected answer is about other frames of the same clip, which only mmalign can express")
    return Seen(turns, row.chosen, row.rejected)


def _frames(turns: Sequence[Turn]) -> list[object]:
    return [medium.part and medium.part.get("frames") for turn in turns for medium in turn.media]


def refuse_odd_turns(turns: Sequence[Turn], tool: str, *, alternate: bool) -> None:
    """Raises Unfit unless the turns are such as `tool` takes: the last one the user's, a system prompt only first.

    `alternate`: user and assistant must also take turns.
    """
    roles = [turn.role for turn in turns]
    if "system" in roles[1:]:
        raise Unfit("has a system prompt that is not its first turn")
    spoken = roles[roles[:1] == ["system"] :]
    if not spoken:
        raise Unfit("has no user turn")
    if spoken[-1] != "user":
        raise Unfit(f"its answers go on from a turn of the assistant that is begun, which {tool} cannot express")
    if alternate and any(role != ("user", "assistant")[place % 2] for place, role in enumerate(spoken)):
        raise Unfit(f"user and assistant do not take turns ({', '.join(spoken)}), as {tool} needs")


def refuse_contexts(seen: Seen, tool: str) -> None:
    """Raises Unfit where the rejected side has a context of its own, for tools that know none."""
    if seen.rejected_turns is not None:
        raise Unfit(f"its rejected answer has a context of its own, which {tool} cannot express; ms-swift's format can")


def text_of(value: object, where: str) -> str:
    """A foreign text that any file can hold. Raises Unfit."""
    if not isinstance(value, str):
        raise Unfit(f"{where} is {value!r:.60}; it must be text")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise Unfit(f"{where} holds half of a surrogate pair, which no file can hold") from None
    return value


def role_of(value: object, where: str) -> str:
    """A foreign role. Raises Unfit."""
    if value not in ROLES:
        raise Unfit(f"{where}: the role is {value!r:.40}; it must be {', '.join(ROLES)}")
    return str(value)
