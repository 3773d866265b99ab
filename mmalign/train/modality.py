"""Which pairs can share a forward: those whose contexts hold media of one kind."""

from __future__ import annotations

from PIL import Image

from mmalign.corrupt.framemap import FrameMap
from mmalign.corrupt.registry import find_corruption
from mmalign.lm.render import Renderer
from mmalign.pairs import PairRow
from mmalign.types import Clip, Media, MediaRef, Picture, Row


def modality(row: PairRow, renderer: Renderer) -> str:
    """A name for what the media of a pair need of a batch; pairs of one name fit together. Opens no file.

    It says whether there are pictures, clips, both or neither, and how many frames clips have where the model cannot
    take clips of different lengths at once.
    """
    contexts = [row.context] if row.rejected_context is None else [row.context, row.rejected_context]
    groups = {renderer.group([_stand_in(part) for part in _media(turns)]) for turns in contexts}
    return " + ".join(f"{kind} {frames}" if frames else kind for kind, frames in sorted(groups))


def _media(turns: list[Row]) -> list[Row]:
    return [part for turn in turns for part in turn["content"] if part["type"] != "text"]


def _stand_in(part: Row) -> Media:
    """An empty picture, or a clip of as many empty frames as are shown, in place of a file."""
    ref, blank = MediaRef.from_row(part), Image.new("RGB", (1, 1))
    if ref.kind == "image":
        return Picture(blank, ref)
    count = len(ref.frames.numbers) if ref.frames is not None else 1
    for corruption in ref.corruptions:
        if issubclass(find_corruption(corruption.name), FrameMap):
            count = len(corruption.params["frames"])
    return Clip((blank,) * count, tuple(map(float, range(count))), ref)
