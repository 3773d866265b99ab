"""`mmalign demo`: the whole loop on the embedded model."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path

from rich.console import Console

from mmalign.cli import recipes
from mmalign.cli.table import result_table
from mmalign.errors import MMAlignError
from mmalign.evaluate.table import read_evaluation
from mmalign.recipe.load import load_recipe
from mmalign.report import write_report


def main(method: str, *, num_seeds: int, output: Path, dry_run: bool) -> int:
    """Run the method's recipe of the embedded world with seeds 0, 1, ... and print the table over all of them."""
    folder = Path(str(files("mmalign.tiny"))) / "recipes"
    path = folder / f"{method}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(found.stem for found in folder.glob("*.yaml")))
        raise MMAlignError(f"demo: --method {method}: no demo of that name, there are {known}")
    if num_seeds < 1:
        raise MMAlignError(f"demo: --seeds {num_seeds}: must be 1 or more")
    outputs = [output / method / f"seed-{seed}" for seed in range(num_seeds)]
    for seed, run in enumerate(outputs):
        flags = ["--seed", str(seed), "--train.seed", str(seed), "--output", str(run)]
        if dry_run:
            recipes.main("run", path, flags, dry_run=True)
        else:
            recipes.run(load_recipe(path, flags))
    if num_seeds > 1 and not dry_run:
        evaluations = [read_evaluation(run) for run in outputs]
        Console(soft_wrap=True).print(result_table(evaluations))
        summary = output / method / "results.json"
        kept = [{key: value for key, value in e.items() if key not in ("examples", "notes")} for e in evaluations]
        summary.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
        page = write_report(outputs[-1], other_seeds=outputs[:-1], out=output / method / "report.html")
        print(f"all seeds: {summary}\npage of all seeds: {page}")
    return 0
