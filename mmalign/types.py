"""The words of the house as frozen values: media, chats, samples, completions, judgements and pairs.

Nothing here loads torch, opens a file or knows a model. Every value that ends in a run directory has `to_row` and
`from_row`, which round-trip through JSON.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

if TYPE_CHECKING:
    from PIL.Image import Image

MediaKind = Literal["image", "video", "text"]
Role = Literal["system", "user", "assistant"]
Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Corruption:
    """One damage done to media: its registered name and the exact parameters that were drawn for it."""

    name: str
    params: Mapping[str, Any]

    def to_row(self) -> Row:
        return {"name": self.name, "params": dict(self.params)}

    @classmethod
    def from_row(cls, row: Row) -> Corruption:
        return cls(row["name"], row["params"])


@dataclass(frozen=True, slots=True)
class Frames:
    """Which frames of a video a model is shown.

    `numbers` count the file's frames in the order they are shown, from 0; `times` are their seconds from the start of
    the video; `fps` is the file's mean rate in frames per second, `total` its number of frames, `backend` the decoder.
    """

    numbers: tuple[int, ...]
    times: tuple[float, ...]
    fps: float
    total: int
    backend: str = ""

    def to_row(self) -> Row:
        return {
            "numbers": list(self.numbers),
            "times": list(self.times),
            "fps": self.fps,
            "total": self.total,
            "backend": self.backend,
        }

    @classmethod
    def from_row(cls, row: Row) -> Frames:
        return cls(tuple(row["numbers"]), tuple(row["times"]), row["fps"], row["total"], row.get("backend", ""))


@dataclass(frozen=True, slots=True)
class MediaRef:
    """Where media comes from: path as written in the data (relative to the data folder), kind, SHA-256 of the file.

    A video that was opened says which of its frames were taken; opened again it gives the same ones.
    """

    path: str
    kind: Literal["image", "video"] = "image"
    sha256: str = ""
    corruptions: tuple[Corruption, ...] = ()
    frames: Frames | None = None

    def to_row(self) -> Row:
        row: Row = {"type": self.kind, "path": self.path, "sha256": self.sha256}
        if self.frames is not None:
            row["frames"] = self.frames.to_row()
        if self.corruptions:
            row["corruptions"] = [corruption.to_row() for corruption in self.corruptions]
        return row

    @classmethod
    def from_row(cls, row: Row) -> MediaRef:
        corruptions = tuple(Corruption.from_row(entry) for entry in row.get("corruptions", ()))
        frames = Frames.from_row(row["frames"]) if "frames" in row else None
        return cls(row["path"], row["type"], row.get("sha256", ""), corruptions, frames)


@dataclass(frozen=True, slots=True, eq=False)
class Picture:
    """An opened picture: upright 8-bit RGB, within the pixel limit, and where it comes from."""

    image: Image
    ref: MediaRef

    def damaged(self, image: Image, corruption: Corruption) -> Picture:
        """The same picture with other pixels, remembering what was done to it."""
        return Picture(image, replace(self.ref, corruptions=(*self.ref.corruptions, corruption)))


@dataclass(frozen=True, slots=True, eq=False)
class Clip:
    """Frames of a video, opened: upright 8-bit RGB pictures of one size in the order they are shown.

    `times` are the seconds at which each is shown, ascending; `ref` says where the frames come from and what was done
    to them. Raises ValueError for a clip without frames, with sizes that differ, or with another number of times.
    """

    images: tuple[Image, ...]
    times: tuple[float, ...]
    ref: MediaRef

    def __post_init__(self) -> None:
        if not self.images or len(self.images) != len(self.times):
            raise ValueError(f"a clip needs one time per frame, got {len(self.images)} frames, {len(self.times)} times")
        if len({image.size for image in self.images}) > 1:
            raise ValueError("the frames of a clip must have one size")

    def damaged(self, images: Sequence[Image], times: Sequence[float], corruption: Corruption) -> Clip:
        """The same clip with other frames, remembering what was done to it."""
        ref = replace(self.ref, corruptions=(*self.ref.corruptions, corruption))
        return Clip(tuple(images), tuple(times), ref)


#: What can stand in a chat beside text.
Media = Picture | Clip
Part = str | Media


@dataclass(frozen=True, slots=True)
class Message:
    """One turn: text and opened media, in order."""

    role: Role
    content: tuple[Part, ...]

    @property
    def text(self) -> str:
        return "".join(part for part in self.content if isinstance(part, str))


@dataclass(frozen=True, slots=True)
class Chat:
    """A conversation, as it goes to a model. A last turn by the assistant is a beginning that the model continues."""

    messages: tuple[Message, ...]

    @property
    def media(self) -> tuple[Media, ...]:
        return tuple(part for turn in self.messages for part in turn.content if not isinstance(part, str))

    @property
    def prompt(self) -> str:
        """The text of the last user turn."""
        return next((turn.text for turn in reversed(self.messages) if turn.role == "user"), "")

    def with_media(self, media: Sequence[Media]) -> Chat:
        """The same words about other media, one for one. Raises ValueError when their number differs."""
        if len(media) != len(self.media):
            raise ValueError(f"the chat holds {len(self.media)} media, {len(media)} were given")
        fresh = iter(media)
        return Chat(
            tuple(
                Message(turn.role, tuple(part if isinstance(part, str) else next(fresh) for part in turn.content))
                for turn in self.messages
            )
        )

    def without_media(self) -> Chat:
        """The same words with every picture and clip taken out."""
        return Chat(
            tuple(Message(turn.role, tuple(p for p in turn.content if isinstance(p, str))) for turn in self.messages)
        )

    def answering(self, beginning: str) -> Chat:
        """The chat with the assistant's answer begun; the model goes on from there."""
        return Chat((*self.messages, Message("assistant", (beginning,))))

    def to_rows(self) -> list[Row]:
        """Turns as JSON values; media become references (path, SHA-256, corruptions), never pixels."""
        return [
            {
                "role": turn.role,
                "content": [
                    {"type": "text", "text": part} if isinstance(part, str) else part.ref.to_row()
                    for part in turn.content
                ],
            }
            for turn in self.messages
        ]


@dataclass(frozen=True, slots=True)
class Sample:
    """One thing to make pairs about: opened media and, if the data has one, a prompt.

    `id` is stable across runs and orders. `meta` is carried along untouched and not shown to a model, but for
    `answer`: a reference answer to the prompt, which rrpo reads.
    """

    id: str
    media: tuple[Media, ...] = ()
    prompt: str = ""
    system: str = ""
    meta: Mapping[str, Any] = field(default_factory=dict)

    def ask(self, prompt: str) -> Chat:
        """A fresh conversation: the sample's media, then `prompt`."""
        turns = [Message("system", (self.system,))] if self.system else []
        return Chat((*turns, Message("user", (*self.media, prompt))))


@dataclass(frozen=True, slots=True)
class SampleRow:
    """A sample on disk: references instead of pixels."""

    id: str
    media: tuple[MediaRef, ...] = ()
    prompt: str = ""
    system: str = ""
    meta: Mapping[str, Any] = field(default_factory=dict)

    def opened(self, media: Sequence[Media]) -> Sample:
        return Sample(self.id, tuple(media), self.prompt, self.system, self.meta)


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to decode. `temperature` 0 is greedy. `stop` strings end an answer and stay in its text.

    Raises ValueError for settings that mean nothing.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    max_new_tokens: int = 512
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, is_good, allowed in (
            ("temperature", 0 <= self.temperature < math.inf, "0 (greedy) or more"),
            ("top_p", 0 < self.top_p <= 1, "more than 0, at most 1"),
            ("top_k", self.top_k >= 0, "0 (off) or more"),
            ("repetition_penalty", 0 < self.repetition_penalty < math.inf, "more than 0; 1 is off"),
            ("max_new_tokens", self.max_new_tokens > 0, "1 or more"),
            ("stop", all(self.stop), "strings that are not empty"),
        ):
            if not is_good:
                raise ValueError(f"{name}: {getattr(self, name)!r} must be {allowed}")


@dataclass(frozen=True, slots=True)
class Completion:
    """One answer. `finish` is "length" when the token limit cut it off, "stop" otherwise."""

    text: str
    num_tokens: int = 0
    finish: Literal["stop", "length"] = "stop"
    seed: int | None = None


@dataclass(frozen=True, slots=True)
class TokenLogps:
    """Log-probabilities of one text under a chat: one number per token, in nats, the end-of-turn token included."""

    logps: tuple[float, ...]
    tokens: tuple[int, ...]

    @property
    def total(self) -> float:
        return sum(self.logps)


@dataclass(frozen=True, slots=True)
class Choice:
    """Next-token probabilities of options: `probabilities` sum to 1 over the options, `mass` is what they had of 1."""

    probabilities: tuple[float, ...]
    mass: float


@dataclass(frozen=True, slots=True)
class Judgement:
    """A score with its reason. `value` is None when the judge could not be read; it then never counts as a number."""

    judge: str
    value: float | None
    reason: str
    raw: Mapping[str, Any] = field(default_factory=dict)

    def to_row(self) -> Row:
        return {"judge": self.judge, "value": self.value, "reason": self.reason, "raw": dict(self.raw)}


@dataclass(frozen=True, slots=True)
class Answer:
    """A further completion of a pair. `context` is its own; None means the pair's. Spans are as those of a pair."""

    completion: Completion
    context: Chat | None = None
    spans: tuple[tuple[int, int], ...] = ()


#: What a pair gives under one name: an answer, None for no such answer, or a list of either, or lists of such lists.
Answers: TypeAlias = "Answer | Sequence[Answers] | None"
#: A number, None where it is not known, or a list of either, or lists of such lists.
Numbers: TypeAlias = "float | Sequence[Numbers] | None"


@dataclass(frozen=True, slots=True)
class Pair:
    """A preference: under `context`, `chosen` is better than `rejected`.

    `rejected_context` is the other side's own context where a method conditions the sides differently (mDPO);
    None means the same context. `source` says which branch of the method made the rejected side. `p` is the
    probability that the label is right, `weight` scales the pair's loss, `gap` is the judge's score difference,
    `stage` orders curricula. Spans are half-open character ranges of each text that differ in content.

    What else an objective reads is in `sides`, further answers by name (such as the K answers of a list), and `values`,
    numbers by name; an objective's needs "side:name" and "value:name" are looked up there.
    """

    context: Chat
    chosen: Completion
    rejected: Completion
    source: str = ""
    rejected_context: Chat | None = None
    p: float = 1.0
    weight: float = 1.0
    gap: float | None = None
    stage: int = 0
    chosen_spans: tuple[tuple[int, int], ...] = ()
    rejected_spans: tuple[tuple[int, int], ...] = ()
    judgements: tuple[Judgement, ...] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict)
    values: Mapping[str, Numbers] = field(default_factory=dict)
    sides: Mapping[str, Answers] = field(default_factory=dict)
