"""`mmalign push RUN`: a run's pairs or its model to a hub. Nothing is uploaded that is not listed first."""

from __future__ import annotations

import re
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress

from mmalign.errors import StoreError

#: Files that are listed by name; of media beyond that the number is told.
LISTED = 20


def main(
    run: Path, to: str, *, what: str, is_public: bool, with_media: bool, license: str | None, dry_run: bool
) -> int:
    """List what goes, upload it, print where it lies."""
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", to):
        raise StoreError(f"push: --to {to!r} is no repository; give NAMESPACE/NAME")
    if with_media and what == "model":
        raise StoreError("push: --with-media goes with --pairs; a model has no media")
    from mmalign.cards import hub
    from mmalign.cards.record import Record
    from mmalign.cards.upload import model_files, pair_files

    if not dry_run:
        hub.check_token()
    record = Record.read(run)
    if what == "pairs":
        files, kind = pair_files(record, license, with_media=with_media), "dataset"
    else:
        files, kind = model_files(record, license), "model"
    reach = "public" if is_public else "private"
    print(f"{'would upload' if dry_run else 'uploading'} to {to} ({reach} {kind}):")
    for file in files[:LISTED]:
        print(f"  {file.path}  {file.size:,} bytes")
    if rest := files[LISTED:]:
        print(f"  and {len(rest)} more, {sum(file.size for file in rest):,} bytes")
    if license is None:
        print("the card names no licence; --license does")
    if dry_run:
        return 0
    console = Console(stderr=True)
    columns = (BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=len(files))
        address = hub.push(
            files, to, kind=kind, is_public=is_public, progress=lambda done: bar.update(task, completed=done)
        )
    print(address)
    return 0
