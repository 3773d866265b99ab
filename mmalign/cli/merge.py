"""`mmalign merge RUN`: the trained model of a run as one folder that loads without peft."""

from __future__ import annotations

from pathlib import Path

from mmalign.errors import StoreError


def main(run: Path, out: Path | None, *, dry_run: bool) -> int:
    """Write the merged model and print its path."""
    if not (run / "recipe.yaml").is_file():
        raise StoreError(f"{run}: not a run directory (no recipe.yaml); `mmalign run RECIPE --output {run}` makes one")
    folder = out or run / "merged"
    if dry_run:
        print(f"would write {folder}")
        return 0
    if folder.exists() and not (folder / "config.json").is_file():
        raise StoreError(f"{folder}: exists and is no model; give --out another folder")
    from transformers.utils.logging import disable_progress_bar

    from mmalign import pipeline
    from mmalign.recipe.load import load_recipe
    from mmalign.train.output.merging import merge

    disable_progress_bar()
    recipe = load_recipe(run / "recipe.yaml", ["--output", str(run)])
    if folder.resolve() == Path(recipe.model.name).expanduser().resolve():
        raise StoreError(f"{folder}: is the model that was trained on; give --out another folder")
    with pipeline.open_run(recipe) as held:
        merge(pipeline.trained(recipe, held), folder)
    print(folder)
    return 0
