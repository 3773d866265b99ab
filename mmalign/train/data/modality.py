"""Which pairs can share a forward: those whose contexts hold media of one kind."""

from __future__ import annotations

from mmalign.lm.render import Renderer
from mmalign.pairs import PairRow
from mmalign.train.data.context import record_named, stand_in
from mmalign.types import Media, Row


def modality(row: PairRow, renderer: Renderer) -> str:
    """A name for what the media of a pair need of a batch; pairs of one name fit together. Opens no file.

    It says whether there are pictures, clips, both or neither, and how many frames clips have where the model cannot
    take clips of different lengths at once. Raises MediaError, naming pair and file, for a record that cannot be read.
    """
    groups = {renderer.group([_outlined(part, row.id) for part in _media(turns)]) for turns in row.contexts}
    return " + ".join(f"{kind} {frames}" if frames else kind for kind, frames in sorted(groups))


def _outlined(part: Row, pair: str) -> Media:
    with record_named(part, pair):
        return stand_in(part)


def _media(turns: list[Row]) -> list[Row]:
    return [part for turn in turns for part in turn["content"] if part["type"] != "text"]
