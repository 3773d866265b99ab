"""What the page shows of single pairs and of before/after examples: texts cut into marked and unmarked pieces."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Final

from mmalign.errors import MMAlignError
from mmalign.pairs import PairRow
from mmalign.report.damage import all_in_words, damages
from mmalign.report.pictures import Gallery, said_missing
from mmalign.report.strips import Strip, strip, strip_of
from mmalign.sides import to_json
from mmalign.text.diff import changed_spans
from mmalign.tiny.world import KINDS
from mmalign.types import Clip, MediaRef, Picture, Row

Span = tuple[int, int]

#: Longer texts and raw values are cut on the page; the pair file has them whole.
MOST_TEXT: Final = 8_000
MOST_RAW: Final = 3_000


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of text: marked (changed, or wrong), and whether the method itself pointed at it."""

    text: str
    marked: bool
    pointed: bool = False


def pieces(text: str, spans: Iterable[Sequence[int]], pointed: Iterable[Sequence[int]] = ()) -> list[Piece]:
    """The text cut at half-open character ranges; ranges may overlap, touch or reach outside of the text."""
    layers = [[(max(int(a), 0), min(int(b), len(text))) for a, b in layer] for layer in (spans, pointed)]
    cuts = sorted(
        {0, len(text), *(cut for layer in layers for start, end in layer if start < end for cut in (start, end))}
    )
    return [
        Piece(text[start:end], *(any(low <= start and end <= high for low, high in layer) for layer in layers))
        for start, end in pairwise(cuts)
    ]


def shortened(text: str, most: int = MOST_TEXT) -> str:
    """The text, or its beginning with a note of how much was cut off."""
    return text if len(text) <= most else f"{text[:most]} … ({len(text) - most:,} more characters)"


@dataclass(frozen=True, slots=True)
class Damage:
    """The picture as the rejected side (or a judge) saw it: the key of its thumbnail and what was done to it."""

    picture: str
    words: str


#: What a pair may be about, and what that is called on the page.
MEDIA: Final = {"image": "pictures", "video": "clips", "text": "text only"}


@dataclass(frozen=True, slots=True)
class Reason:
    """A judgement as shown: score and raw values are text."""

    judge: str
    score: str
    reason: str
    raw: str


@dataclass(frozen=True, slots=True)
class Card:
    """One pair on the page; it can be filtered and sorted by source, `medium` (a key of `MEDIA`) and `numbers`."""

    id: str
    source: str
    medium: str
    pictures: tuple[str, ...]
    damages: tuple[Damage, ...]
    strips: tuple[Strip, ...]
    damaged_strips: tuple[Strip, ...]
    prompt: str
    rejected_prompt: str
    turns: tuple[tuple[str, str], ...]
    chosen: list[Piece]
    rejected: list[Piece]
    reasons: tuple[Reason, ...]
    facts: tuple[tuple[str, str], ...]
    numbers: Mapping[str, float]


def card(row: PairRow, gallery: Gallery) -> Card:
    """The card of a pair; its pictures and clips are asked of the gallery."""
    chosen, rejected = shortened(row.chosen), shortened(row.rejected)
    in_chosen, in_rejected = changed_spans(chosen, rejected)
    rejected_prompt = "" if row.rejected_context is None else _prompt(row.rejected_context)
    return Card(
        id=row.id,
        source=row.source,
        medium=_medium(row),
        pictures=tuple(gallery.add(ref) for ref in row.media if ref.kind == "image"),
        damages=tuple(Damage(gallery.add(ref), all_in_words(ref)) for ref in _damaged(row) if ref.kind == "image"),
        strips=tuple(strip(ref, gallery) for ref in row.media if ref.kind == "video"),
        damaged_strips=tuple(strip(ref, gallery) for ref in _once(_damaged(row)) if ref.kind == "video"),
        prompt=shortened(row.prompt),
        rejected_prompt="" if rejected_prompt == row.prompt else shortened(rejected_prompt),
        turns=tuple(_turns(row.context)) if len(row.context) > 1 else (),
        chosen=pieces(chosen, in_chosen, row.chosen_spans),
        rejected=pieces(rejected, in_rejected, row.rejected_spans),
        reasons=tuple(_reason(judgement) for judgement in row.judgements),
        facts=tuple(_facts(row)),
        numbers=numbers(row),
    )


def numbers(row: PairRow) -> dict[str, float]:
    """What a pair can be sorted and filtered by; of several judgements by one judge of one side, the highest counts."""
    found: dict[str, float] = {} if row.gap is None else {"gap": row.gap}
    for judgement in row.judgements:
        if isinstance(value := judgement.get("value"), int | float):
            name = f"{_judge(judgement)} (score)"
            found[name] = max(value, found.get(name, value))
    found["label probability p"] = row.p
    found["weight"] = row.weight
    found["words more in chosen"] = len(row.chosen.split()) - len(row.rejected.split())
    if row.round:
        found["round"] = row.round
    found |= {name: value for name, value in row.values.items() if isinstance(value, int | float)}
    return {name: value + 0.0 for name, value in found.items() if math.isfinite(value)}  # + 0.0 turns -0.0 into 0.0


def _judge(judgement: Row) -> str:
    """The judge's name, with the side it judged where its raw values name one."""
    raw, name = judgement.get("raw"), str(judgement.get("judge") or "judge")
    return f"{name}, {raw['side']}" if isinstance(raw, Mapping) and "side" in raw else name


def _medium(row: PairRow) -> str:
    kinds = {ref.kind for ref in row.media}
    return "video" if "video" in kinds else "image" if kinds else "text"


def _damaged(row: PairRow) -> Iterable[MediaRef]:
    """The media that only the rejected side (or a judge) saw."""
    whole = [ref.to_row() for ref in row.media]
    for turn in row.rejected_context or ():
        for part in turn["content"]:
            if part["type"] != "text" and (part.get("corruptions") or (part["type"] == "video" and part not in whole)):
                yield MediaRef.from_row(part)
    if row.media:
        plain = replace(row.media[0], corruptions=())
        for chain in damages(row.provenance):
            yield replace(plain, corruptions=chain)


def _once(refs: Iterable[MediaRef]) -> list[MediaRef]:
    """Each reference once: a context and the provenance may record the same damage."""
    return list({repr(ref.to_row()): ref for ref in refs}.values())


def _prompt(context: list[Row]) -> str:
    return "".join(
        part["text"] for turn in context if turn["role"] == "user" for part in turn["content"] if part["type"] == "text"
    )


def _turns(context: list[Row]) -> Iterable[tuple[str, str]]:
    for turn in context:
        parts = (part["text"] if part["type"] == "text" else f"[{part['type']}] " for part in turn["content"])
        yield turn["role"], shortened("".join(parts))


def _reason(judgement: Row) -> Reason:
    value = judgement.get("value")
    score = "not readable" if value is None else f"{value + 0.0:.4g}" if isinstance(value, int | float) else str(value)
    raw = judgement.get("raw")
    return Reason(
        _judge(judgement),
        score,
        shortened(str(judgement.get("reason") or ""), MOST_RAW),
        _plain(raw) if raw else "",
    )


def _facts(row: PairRow) -> Iterable[tuple[str, str]]:
    yield "Sample", row.sample_id
    yield "Method", row.method
    yield "Round", str(row.round)
    yield "Seed", str(row.seed)
    if row.stage:
        yield "Stage", str(row.stage)
    for name, value in sorted(row.values.items()):
        yield f"Value {name}", _plain(to_json(value, float))
    for name, side in sorted(row.sides.items()):
        yield f"Side {name}", _plain(to_json(side, lambda answer: answer.text))
    for key, value in sorted(row.provenance.items()):
        yield key.replace("_", " "), _plain(value)


def _plain(value: object) -> str:
    """A provenance value as text: JSON on one line where it is short."""
    if isinstance(value, str):
        return shortened(value, MOST_RAW)
    line = json.dumps(value, ensure_ascii=False)
    return line if len(line) <= 100 else shortened(json.dumps(value, ensure_ascii=False, indent=1), MOST_RAW)


@dataclass(frozen=True, slots=True)
class Example:
    """A picture, or a clip as a strip, with the model's answers before and after; marked pieces are wrong about it."""

    picture: str
    strip: Strip | None
    prompt: str
    before: list[Piece]
    after: list[Piece]
    truth: tuple[str, ...]


def examples(entries: Sequence[Mapping[str, Any]], gallery: Gallery) -> list[Example]:
    """The examples of `evaluation.json`: of a picture (`image`: path) or a clip (`frames`: paths, `times`: seconds).

    Wrong mentions are marked where the file says so (`wrong_before`, `wrong_after`: half-open character ranges), else
    wherever an answer names a known object (of the drawn world or of any example's truth) that is not in the truth.
    """
    truths = [_names(entry) for entry in entries]
    known = {*KINDS, *(name for names in truths for name in names)}
    found = _finder(known)
    shown = []
    for entry, truth in zip(entries, truths, strict=True):

        def side(name: str, entry: Mapping[str, Any] = entry, truth: tuple[str, ...] = truth) -> list[Piece]:
            text = shortened(str(entry.get(name) or ""))
            spans = entry.get(f"wrong_{name}")
            return pieces(text, spans if isinstance(spans, list) else found(text, truth))

        film = _film(entry, gallery) if "frames" in entry else None
        picture = "" if film else gallery.add(MediaRef(str(entry.get("image", ""))))
        shown.append(Example(picture, film, str(entry.get("prompt", "")), side("before"), side("after"), truth))
    return shown


def _film(entry: Mapping[str, Any], gallery: Gallery) -> Strip:
    """The strip of an example whose frames lie in the run directory, each as a picture."""
    try:
        opened = [gallery.open(MediaRef(str(path))) for path in entry["frames"]]
        images = tuple(picture.image for picture in opened if isinstance(picture, Picture))
        return strip_of(Clip(images, tuple(map(float, entry["times"])), MediaRef("example", "video")), gallery)
    except MMAlignError as error:
        return Strip(said_missing("Frame", error))
    except (KeyError, TypeError, ValueError) as error:
        return Strip(f"Clip cannot be shown: {error}")


def _names(entry: Mapping[str, Any]) -> tuple[str, ...]:
    """What is in a picture, sorted; what happens in a clip, in order."""
    value = entry.get("truth")
    names = dict.fromkeys(map(str, value)) if isinstance(value, list) else {}
    return tuple(names if "frames" in entry else sorted(names))


def _finder(known: set[str]) -> Callable[[str, Sequence[str]], list[Span]]:
    """A function that gives the spans of known names in a text that are not among the true ones."""
    names = "|".join(re.escape(name) for name in sorted(known, key=lambda name: (-len(name), name)) if name)
    pattern = re.compile(rf"\b({names})(?:e?s)?\b", re.IGNORECASE)

    def find(text: str, truth: Sequence[str]) -> list[Span]:
        there = {name.lower() for name in truth}
        return [found.span() for found in pattern.finditer(text) if found[1].lower() not in there]

    return find
