"""One conversion: pairs are read twice, first to see that all fit, then to write them; few are in memory at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from mmalign.atomic import make_parent, replacing
from mmalign.convert.format import Format, Survey
from mmalign.convert.llamafactory import LlamaFactory
from mmalign.convert.own import Own
from mmalign.convert.seen import Seen, Unfit
from mmalign.convert.shelf import Shelf
from mmalign.convert.sources import OWN, Source
from mmalign.convert.swift import Swift
from mmalign.convert.trl import TRL
from mmalign.errors import DataError
from mmalign.pairs import PairRow

FORMATS: Mapping[str, Callable[[], Format]] = {
    TRL.name: TRL,
    LlamaFactory.name: LlamaFactory,
    Swift.name: Swift,
    OWN: Own,
}
#: Told what is done ("checking", "writing") and how many rows are.
Progress = Callable[[str, int], None]


@dataclass(frozen=True, slots=True)
class Options:
    """How a conversion is done.

    `copies`: OUT has its own media. `frames`: clips become pictures of their frames. `skips`: pairs that do not fit are
    left out and counted, where they would end the conversion otherwise.
    """

    copies: bool = False
    frames: bool = False
    skips: bool = False


class Conversion:
    """Pairs of a source in another format. Raises DataError, one line, naming the file and the row that do not fit."""

    def __init__(self, source: Source, to: str, options: Options, progress: Progress = lambda what, done: None) -> None:
        if options.frames and (to != TRL.name or not options.copies):
            raise DataError("--frames writes the frames of clips as new pictures; it goes with --to trl --copy-media")
        self._source, self._format, self._options, self._progress = source, FORMATS[to](), options, progress
        self._shelf = Shelf(source.root, copies=options.copies, frames=options.frames, limits=source.limits)

    def survey(self) -> Survey:
        """Read all pairs, write nothing; say what there is and what does not fit."""
        return self._each("checking", Survey(), lambda row, seen, shelf: None)

    def write(self, output: Path) -> Survey:
        """Write `output`, a folder that is new or empty: it is there whole at the end, or as it was."""
        refuse_output(output)
        survey = self.survey()
        if not survey.pairs:
            told = f" ({survey.first_unfit})" if survey.first_unfit else ""
            raise DataError(f"{self._source.files[0]}: no pair of it can be converted{told}")
        with _appearing(output) as folder, self._format.writer(folder, survey, self._shelf) as writer:

            def write(row: PairRow, seen: Seen, shelf: Shelf) -> None:
                self._format.put_media(row, seen, shelf, folder)
                writer.add(row, seen)

            return self._each("writing", Survey(), write)

    def _each(self, what: str, survey: Survey, act: Callable[[PairRow, Seen, Shelf], None]) -> Survey:
        """`act` on every pair that fits, as the format sees it, and count."""
        for done, (where, make) in enumerate(self._source.pairs()):
            try:
                found = make()
                shelf = replace(self._shelf, held=found.held) if found.held else self._shelf
                seen = self._format.seen_of(found.row, shelf)
                self._format.check(seen)
                act(found.row, seen, shelf)
            except Unfit as error:
                told = f"{where}: {error}"
                if not self._options.skips:
                    raise DataError(f"{told}; --skip-unfit leaves such pairs out") from None
                survey.skip(told)
            else:
                survey.add(seen)
                for medium in seen.media:
                    if medium.part is not None and medium.part["path"] == medium.name and not shelf.has(medium.name):
                        survey.miss(medium.name)
            self._progress(what, done + 1)
        return survey


def refuse_output(output: Path) -> None:
    """Raises DataError unless a folder can be put there without taking anything away."""
    if output.is_symlink() or (output.exists() and (not output.is_dir() or any(output.iterdir()))):
        raise DataError(f"{output}: exists and is not empty; name a new folder, nothing is ever overwritten")


@contextmanager
def _appearing(output: Path) -> Iterator[Path]:
    """A folder to write to that becomes `output` at the end of the block, or is gone."""
    make_parent(output)
    with replacing(output) as partial:
        partial.mkdir()
        yield partial
        refuse_output(output)  # somebody may have filled it meanwhile
