"""`mmalign demo`: the whole loop on the embedded model, on pictures or, with `--video`, on clips."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from mmalign.atomic import write_json
from mmalign.cli import recipes
from mmalign.cli.table import result_table
from mmalign.errors import MMAlignError
from mmalign.evaluate.table import read_evaluation
from mmalign.recipe.load import load_recipe
from mmalign.report import write_report

#: Recipe of the clip demo -> its line in the table. The first one brings the line before training and the controls.
VIDEO: Final = {"rrpo": "RRPO", "dpo": "DPO", "temple": "TEMPLE"}


def main(method: str | None, *, video: bool, num_seeds: int, output: Path, dry_run: bool) -> int:
    """Run recipes of the embedded world with seeds 0, 1, ... and print one table over all of them.

    On pictures that is the method's recipe, self_consistency by default; on clips all of `VIDEO` unless one is named.
    """
    folder = Path(str(files("mmalign.tiny"))) / "recipes" / ("video" if video else "")
    known = sorted(found.stem for found in folder.glob("*.yaml"))
    if method is not None and method not in known:
        raise MMAlignError(f"demo: --method {method}: no demo of that name, there are {', '.join(known)}")
    if num_seeds < 1:
        raise MMAlignError(f"demo: --seeds {num_seeds}: must be 1 or more")
    chosen = [method] if method else [*VIDEO] if video else ["self_consistency"]
    place = output / "video" if video else output
    runs = {name: [place / name / f"seed-{seed}" for seed in range(num_seeds)] for name in chosen}
    for seed in range(num_seeds):
        for name, outputs in runs.items():
            flags = ["--seed", str(seed), "--train.seed", str(seed), "--output", str(outputs[seed])]
            if dry_run:
                recipes.main("run", folder / f"{name}.yaml", flags, dry_run=True)
            else:
                recipes.run(load_recipe(folder / f"{name}.yaml", flags))
    if dry_run or num_seeds == len(chosen) == 1:
        return 0
    evaluations = [
        side_by_side({name: read_evaluation(outputs[seed]) for name, outputs in runs.items()})
        for seed in range(num_seeds)
    ]
    Console(soft_wrap=True).print(result_table(evaluations))
    summary = (place if len(chosen) > 1 else place / chosen[0]) / "results.json"
    kept = [{key: value for key, value in e.items() if key not in ("examples", "notes")} for e in evaluations]
    write_json(summary, kept)
    print(f"all runs: {summary}")
    if num_seeds > 1:
        for name, outputs in runs.items():
            page = write_report(outputs[-1], other_seeds=outputs[:-1], out=place / name / "report.html")
            print(f"page of all seeds, {name}: {page}")
    return 0


def side_by_side(evaluations: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """One evaluation with a line for each method; what is measured before training, and the controls, are the first's.

    The evaluations are of one seed, on the same held-out items.
    """
    if len(evaluations) == 1:
        return next(iter(evaluations.values()))
    first, *_ = evaluations.values()
    rows = [row for row in first["rows"] if row["kind"] == "before"]
    for name, evaluation in evaluations.items():
        rows += [{**row, "name": VIDEO[name]} for row in evaluation["rows"] if row["kind"] == "after"]
    rows += [{**row, "name": f"{row['name']} ({VIDEO[next(iter(evaluations))]})"} for row in _controls(first["rows"])]
    return {**first, "rows": rows, "made_with": {name: e["made_with"] for name, e in evaluations.items()}}


def _controls(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row for row in rows if row["kind"] == "control"]
