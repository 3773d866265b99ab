"""Pairs of every kind with their media on disk, and conversions there and back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hypothesis import strategies as st
from PIL import Image

from mmalign.convert.conversion import Conversion, Options
from mmalign.convert.format import Survey
from mmalign.convert.sources import open_source
from mmalign.media.files import file_sha256
from mmalign.pairs import PairRow, read_pairs, write_pairs
from mmalign.sides import AnswerRow
from mmalign.types import Row

#: Files that pairs in these tests may be about.
PICTURES = ("a.png", "sub folder/b.png", "ü/ç.png")
CLIPS = ("c.mkv", "sub folder/d.mp4")


def make_media(root: Path) -> Path:
    """The folder `root` with all media; clips are files that nobody opens here."""
    for place, name in enumerate(PICTURES):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (24 + 8 * place, 24), (40 * place, 90, 200)).save(path)
    for name in CLIPS:
        (root / name).write_bytes(b"a clip: " + name.encode())
    return root


def text(value: str) -> Row:
    return {"type": "text", "text": value}


def picture(name: str = PICTURES[0], root: Path | None = None, **more: Any) -> Row:
    return {"type": "image", "path": name, "sha256": "" if root is None else file_sha256(root / name), **more}


def clip(name: str = CLIPS[0], **more: Any) -> Row:
    return {"type": "video", "path": name, "sha256": "", **more}


def turn(role: str, *content: Row) -> Row:
    return {"role": role, "content": list(content)}


def pair(*context: Row, **changes: Any) -> PairRow:
    """A pair about one picture, unless `context` or `changes` say otherwise."""
    values: dict[str, Any] = {
        "id": "s#0.0",
        "sample_id": "s",
        "method": "test",
        "context": list(context) or [turn("user", picture(), text("What is there?"))],
        "chosen": "A fish.",
        "rejected": "A crab.",
    }
    return PairRow(**values | changes)


def convert(
    source: Path, to: str, output: Path, *, given: str = "auto", root: Path | None = None, **options: Any
) -> Survey:
    """One conversion; what it says it did."""
    return Conversion(open_source(source, given, root), to, Options(**options)).write(output)


def there_and_back(rows: list[PairRow], to: str, folder: Path, root: Path, **options: Any) -> list[PairRow]:
    """Pairs written in another format and read from it again."""
    write_pairs(folder / "given.parquet", rows)
    convert(folder / "given.parquet", to, folder / "out", root=root, **options)
    convert(folder / "out", "mmalign", folder / "back")
    return read_pairs(folder / "back" / "pairs.parquet")


# Pairs as hypothesis draws them -------------------------------------------------------------------------------------

WORDS = st.text(st.characters(codec="utf-8", exclude_characters="<"), max_size=12)
_FINITE = st.floats(allow_nan=False, allow_infinity=False)
_JSON = st.recursive(st.none() | st.booleans() | st.integers(-9, 9) | _FINITE | WORDS, st.lists, max_leaves=3)
_SPANS = st.lists(st.tuples(st.integers(0, 5), st.integers(6, 9)), max_size=2).map(tuple)
_FRAMES = st.just({"numbers": [0, 4], "times": [0.0, 0.5], "fps": 8.0, "total": 9, "backend": "pyav"})


def parts(kinds: tuple[str, ...]) -> st.SearchStrategy[list[Row]]:
    """Contents of a turn: texts and media in any order, side by side too."""
    kind_of = {
        "text": st.builds(text, WORDS),
        "image": st.builds(picture, st.sampled_from(PICTURES)),
        "video": st.builds(clip, st.sampled_from(CLIPS)) | st.builds(clip, st.just(CLIPS[0]), frames=_FRAMES),
    }
    return st.lists(st.one_of([kind_of[kind] for kind in kinds]), max_size=4)


def contexts(kinds: tuple[str, ...]) -> st.SearchStrategy[list[Row]]:
    """A system prompt or none, then user and assistant in turns, the user last."""
    asked = st.builds(lambda content: turn("user", *content), parts(kinds))
    said = st.builds(lambda content: turn("assistant", *content), parts(("text",)))
    earlier = st.lists(st.tuples(asked, said), max_size=2).map(lambda pairs: [turn for pair in pairs for turn in pair])
    system = st.lists(st.builds(lambda words: turn("system", text(words)), WORDS), max_size=1)
    return st.builds(lambda first, between, last: [*first, *between, last], system, earlier, asked)


_ANSWERS = st.builds(AnswerRow, text=WORDS, context=st.none() | contexts(("text", "image")), spans=_SPANS)


def _has_no_frames(context: list[Row]) -> bool:
    """Contexts that differ in the frames of a clip alone are refused."""
    return not any("frames" in part for turn in context for part in turn["content"])


@st.composite
def pairs(draw: st.DrawFn, kinds: tuple[str, ...], *, own_contexts: bool = False) -> PairRow:
    """Any pair that a format can express which takes media of these kinds."""
    words = draw(st.tuples(WORDS.filter(bool), WORDS.filter(bool)).filter(lambda both: both[0] != both[1]))
    return pair(
        *draw(contexts(kinds)),
        id=draw(WORDS),
        sample_id=draw(WORDS),
        method=draw(WORDS),
        source=draw(WORDS),
        chosen=words[0],
        rejected=words[1],
        round=draw(st.integers(0, 9)),
        p=draw(st.floats(0, 1)),
        weight=draw(st.floats(0, 1e300)),
        gap=draw(st.none() | _FINITE),
        stage=draw(st.integers(0, 9)),
        chosen_spans=draw(_SPANS),
        rejected_spans=draw(_SPANS),
        rejected_context=draw(st.none() | contexts(kinds).filter(_has_no_frames)) if own_contexts else None,
        judgements=draw(st.lists(st.dictionaries(WORDS, _JSON, max_size=2), max_size=2)),
        provenance=draw(st.dictionaries(WORDS, _JSON, max_size=2)),
        seed=draw(st.integers(0, 2**62)),
        values=draw(st.dictionaries(st.sampled_from("xy"), _FINITE | st.lists(_FINITE, min_size=1, max_size=2))),
        sides=draw(st.dictionaries(st.sampled_from("uv"), _ANSWERS | st.lists(_ANSWERS, min_size=1, max_size=2))),
    )
