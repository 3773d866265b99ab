"""`mmalign inspect RUN`: the page of a run."""

from __future__ import annotations

from pathlib import Path

from mmalign.errors import StoreError


def main(run: Path, out: Path | None, *, max_pairs: int, dry_run: bool) -> int:
    """Write the page and print its path."""
    if not (run / "recipe.yaml").is_file():
        raise StoreError(f"{run}: not a run directory (no recipe.yaml); `mmalign run RECIPE --output {run}` makes one")
    if dry_run:
        print(f"would write {out or run / 'report.html'}")
        return 0
    from mmalign.report import write_report

    print(write_report(run, out=out, max_pairs=max_pairs))
    return 0
