"""`mmalign card RUN`: cards of a run's pairs and of its model."""

from __future__ import annotations

from pathlib import Path

from mmalign.errors import StoreError


def main(run: Path, output: Path | None, *, license: str | None, dry_run: bool) -> int:
    """Write the cards and print their paths."""
    from mmalign.cards.record import Record
    from mmalign.cards.write import write_cards

    record = Record.read(run)
    if not record.counts.pairs and record.model_folder is None:
        raise StoreError(f"{run}: has neither pairs nor a trained model yet, so there is nothing to tell")
    folder = output or run / "cards"
    if dry_run:
        print(f"would write cards to {folder}")
        return 0
    for path in write_cards(record, folder, license):
        print(path)
    if license is None:
        print("the cards name no licence; --license does")
    return 0
