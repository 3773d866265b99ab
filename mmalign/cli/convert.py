"""`mmalign convert SOURCE`: pairs to and from the formats of other tools."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from mmalign.errors import Interrupted


def main(
    source: Path,
    *,
    to: str,
    output: Path,
    given: str,
    media_root: Path | None,
    copies: bool,
    frames: bool,
    skips: bool,
    dry_run: bool,
) -> int:
    """Convert and say what was written, what was left out and where the media lie."""
    from mmalign.convert.conversion import Conversion, Options, refuse_output
    from mmalign.convert.sources import open_source

    refuse_output(output)
    opened = open_source(source, given, media_root)
    columns = (TextColumn("{task.description}"), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=opened.total())

        def progress(what: str, done: int) -> None:
            if done % 100 == 1:
                bar.update(task, description=what, completed=done)

        conversion = Conversion(opened, to, Options(copies=copies, frames=frames, skips=skips), progress)
        try:
            done = conversion.survey() if dry_run else conversion.write(output)
        except KeyboardInterrupt:
            raise Interrupted(f"convert: interrupted; nothing was written to {output}") from None
    if done.unfit:
        print(f"{done.unfit} pairs do not fit and are left out; the first: {done.first_unfit}")
    if dry_run:
        print(f"would write {done.pairs} pairs ({opened.format} to {to}) to {output}")
        return 0
    print(f"{output}: {done.pairs} pairs ({opened.format} to {to})")
    if done.has_media and not copies and not done.has_held:
        start = "are absolute, for this machine" if to == "trl" else f"start from {opened.root}"
        print(f"media are not copied; their paths {start}")
    if done.missing:
        print(
            f"{done.missing} media files are not there, {done.first_missing} for one; give --media-root where they lie"
        )
    return 0
