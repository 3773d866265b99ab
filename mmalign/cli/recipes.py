"""`mmalign run | generate | train | evaluate RECIPE`."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import yaml
from rich.console import Console

from mmalign.errors import one_line
from mmalign.recipe.load import load_recipe, recipe_parser
from mmalign.recipe.schema import Recipe

if TYPE_CHECKING:
    from mmalign.engine import Summary


def main(verb: str, path: Path, flags: Sequence[str], *, dry_run: bool) -> int:
    """Run the verb of a recipe, or say what it would do."""
    recipe = load_recipe(path, flags)
    if dry_run:
        from mmalign.cli import dry

        print(yaml.safe_dump(recipe.resolved, sort_keys=False, allow_unicode=True), end="")
        dry.report(verb, recipe)
        return 0
    run(recipe, verb)
    return 0


def print_keys(path: Path) -> int:
    """Print every key of a recipe with its meaning."""
    recipe = load_recipe(path)
    recipe_parser(type(recipe.method), type(recipe.objective)).print_help()
    return 0


def run(recipe: Recipe, verb: str = "run") -> None:
    """Do the verb and print what came out."""
    import torch
    from transformers.utils.logging import disable_progress_bar

    from mmalign import pipeline
    from mmalign.cli.table import result_table
    from mmalign.engine import RunDir
    from mmalign.evaluate.table import read_evaluation
    from mmalign.report import write_report
    from mmalign.train.distributed.launch import Launch

    if recipe.train.threads:
        torch.set_num_threads(recipe.train.threads)
    disable_progress_bar()  # of every load and save; the run has a progress line of its own
    console = Console(soft_wrap=True)
    launch = Launch.begin(on_cpu=recipe.model.device == "cpu" or not torch.cuda.is_available())
    with ExitStack() as stack:
        opened = launch.by_first(lambda: stack.enter_context(pipeline.open_run(recipe, trains=verb != "generate")))
        held = opened or RunDir(recipe.output, locked=False)
        if verb in ("run", "evaluate"):
            launch.by_first(lambda: pipeline.held_out(recipe))  # a mistake is told before hours of work, not after
        if verb in ("run", "generate") or (verb == "train" and recipe.data.pairs is not None):
            made = launch.by_first(lambda: in_words(pipeline.make_pairs(recipe, held)))
            if made is not None:
                console.print(made, highlight=False, markup=False)
        if verb in ("run", "train"):
            pipeline.train(recipe, held, launch)
        is_measured = False
        if verb in ("run", "evaluate"):
            is_measured = pipeline.evaluate(recipe, held, pipeline.trained(recipe, held), launch)
        launch.end()
        if not launch.is_first:
            return
        if is_measured:
            console.print(result_table([read_evaluation(recipe.output)]))
        elif verb in ("run", "evaluate"):
            print("nothing measured: set evaluate.scenes, evaluate.clips or evaluate.labels")
    print(f"page: {write_report(recipe.output)}")


def in_words(summary: Summary) -> str:
    """How many pairs there are, and what became of the samples without one."""
    lines = [f"{summary.pairs} pairs from {summary.num_samples} samples ({summary.resumed} done before)"]
    lines += [f"  no pair, {num}: {one_line(reason)}" for reason, num in summary.empty.most_common(8)]
    lines += [f"  quarantined, {num}: {one_line(reason)}" for reason, num in summary.quarantined.most_common(8)]
    if summary.dropped:
        lines.append(f"  {summary.dropped} pairs left out by the method's own selection")
    return "\n".join(lines)
