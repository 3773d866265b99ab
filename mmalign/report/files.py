"""Reading a run directory, finished or not: each part is there, or a line says what is missing and what makes it."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from mmalign.errors import RecipeError, StoreError
from mmalign.media.image import PictureLimits
from mmalign.media.read import MediaLimits
from mmalign.media.video import ClipLimits
from mmalign.pairs import REQUIRED, SCHEMA, PairRow
from mmalign.report.stats import Evaluation
from mmalign.samples import data_folder

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Part(Generic[T]):
    """A part of the run, or `missing`: the line that is shown instead. Both may be set when a part is damaged."""

    value: T | None
    missing: str = ""


@dataclass(frozen=True, slots=True)
class Quarantined:
    """A sample that was set aside, why, and by which step."""

    id: str
    path: str
    stage: str
    reason: str


def read_evaluation(run: Path) -> Part[Evaluation]:
    """What was measured before and after training."""
    path = run / "evaluation.json"
    if not path.is_file():
        return Part(None, "Nothing has been measured yet: `mmalign evaluate RECIPE` makes these numbers.")
    try:
        return Part(Evaluation.of(json.loads(path.read_text(encoding="utf-8"))))
    except ValueError as error:
        return Part(None, f"evaluation.json cannot be read ({error}); `mmalign evaluate RECIPE` makes it anew.")


Steps = list[dict[str, float]]


def read_metrics(run: Path) -> Part[Steps]:
    """The numbers of each optimizer step. A last line that is still being written is left out."""
    path = run / "train" / "metrics.jsonl"
    if not path.is_file():
        return Part(None, "The model has not been trained yet: `mmalign train RECIPE` trains it.")
    steps, bad = _steps(path)
    if not steps:
        return Part(None, "Training has not finished a step yet: `mmalign train RECIPE` goes on with it.")
    return Part(steps, f"{bad} unreadable lines of train/metrics.jsonl were left out." if bad else "")


def read_control_metrics(run: Path) -> dict[str, Steps]:
    """The same of each control that was trained, by its name in words; those without a step are left out."""
    found = {path.parent.name.replace("_", " "): _steps(path)[0] for path in run.glob("controls/*/metrics.jsonl")}
    return {name: steps for name, steps in sorted(found.items()) if steps}


def _steps(path: Path) -> tuple[Steps, int]:
    """The steps of a metrics file and the number of its unreadable lines."""
    rows, bad = _json_lines(path)
    steps = [{k: float(v) for k, v in row.items() if isinstance(v, int | float)} for row in rows]
    return [row for row in steps if "step" in row], bad


def read_quarantine(run: Path) -> Part[list[Quarantined]]:
    """The samples that were set aside; an absent file means none."""
    path = run / "quarantine.jsonl"
    if not path.is_file():
        return Part([])
    rows, bad = _json_lines(path)
    entries = [
        Quarantined(
            *(str(row.get(key) if row.get(key) is not None else "") for key in ("id", "path", "stage", "reason"))
        )
        for row in rows
    ]
    return Part(entries, f"{bad} unreadable lines of quarantine.jsonl were left out." if bad else "")


def _json_lines(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The objects of a JSON-lines file and the number of lines that are none; a cut last line is not counted."""
    rows: list[dict[str, Any]] = []
    bad = 0
    content = path.read_text(encoding="utf-8", errors="replace")
    lines = content.split("\n")
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if isinstance(row, dict):
            rows.append(row)
        elif number < len(lines):
            bad += 1
    return rows, bad


@dataclass(frozen=True, slots=True)
class Facts:
    """The recipe as text and as values, and the environment as `(name, value)` text."""

    recipe_text: str
    recipe: dict[str, Any]
    environment: tuple[tuple[str, str], ...]

    def name_of(self, section: str) -> str:
        """`section.name` of the recipe, or ""."""
        value = self.recipe.get(section)
        return str(value.get("name", "")) if isinstance(value, dict) else ""

    def data_root(self, run: Path) -> Path:
        """The folder that the pairs' media paths start from: the recipe's, or the run's own where they were drawn."""
        data = self.recipe.get("data")
        named = data if isinstance(data, dict) else {}
        source = next(filter(None, map(named.get, ("media_root", "images", "videos", "samples", "pairs"))), None)
        if source and not named.get("scenes") and not named.get("clips"):
            return data_folder(Path(str(source)))
        return run / ("clips" if named.get("clips") else "scenes")

    def limits(self) -> MediaLimits:
        """The limits that the run opened its media with; the defaults where the recipe does not say."""
        data = self.recipe.get("data")
        named = data if isinstance(data, dict) else {}
        picture = {key: named[key] for key in ("max_pixels", "max_side") if isinstance(named.get(key), int)}
        clip = {
            key: named[name]
            for key, name in (("max_pixels", "max_pixels"), ("max_side", "max_frame_side"), ("decoder", "decoder"))
            if name in named
        }
        try:
            return MediaLimits(picture=PictureLimits(**picture), clip=ClipLimits(**clip))
        except (RecipeError, TypeError):
            return MediaLimits()


def read_facts(run: Path) -> Facts:
    """Recipe and environment; what is absent or unreadable stays empty."""
    text, recipe, environment = "", {}, {}
    if (run / "recipe.yaml").is_file():
        text = (run / "recipe.yaml").read_text(encoding="utf-8", errors="replace")
        try:
            recipe = yaml.safe_load(text)
        except yaml.YAMLError:
            recipe = {}
    if (run / "environment.json").is_file():
        try:
            environment = json.loads((run / "environment.json").read_text(encoding="utf-8", errors="replace"))
        except ValueError:
            environment = {}
    named = environment.items() if isinstance(environment, dict) else ()
    return Facts(
        text,
        recipe if isinstance(recipe, dict) else {},
        tuple((str(key), value if isinstance(value, str) else json.dumps(value)) for key, value in named),
    )


#: What the page needs of every pair; the other columns are read for the shown ones only.
LIGHT = ("sample_id", "source", "chosen", "rejected", "gap")


@dataclass(frozen=True, slots=True)
class PairFiles:
    """The pair files of all rounds, in order. `light` holds the columns of `LIGHT` of every pair."""

    paths: tuple[Path, ...]
    light: pa.Table

    def take(self, indices: list[int]) -> list[PairRow]:
        """The full rows of these row numbers (ascending), read one row group at a time."""
        rows: list[PairRow] = []
        start = 0
        for path in self.paths:
            with pq.ParquetFile(path) as file:
                for group in range(file.num_row_groups):
                    num = file.metadata.row_group(group).num_rows
                    inside = [index - start for index in indices if start <= index < start + num]
                    start += num
                    if inside:
                        rows += map(PairRow.from_row, file.read_row_group(group).take(inside).to_pylist())
        return rows


@dataclass(frozen=True, slots=True)
class PairsSoFar:
    """The pairs of a round that is not finished, with all their columns."""

    light: pa.Table

    def take(self, indices: list[int]) -> list[PairRow]:
        """The rows of these numbers."""
        return [PairRow.from_row(row) for row in self.light.take(indices).to_pylist()]


Pairs = PairFiles | PairsSoFar


def read_pairs_of(run: Path) -> Part[Pairs]:
    """The pairs of every round that has been finished; before the first one is, those that its journal holds."""
    paths = sorted(run.glob("round-*/pairs.parquet"), key=lambda path: (len(path.parent.name), path.parent.name))
    if not paths:
        journal = run / "round-0" / "journal.sqlite"
        if not journal.is_file():
            return Part(None, "No pairs have been made yet: `mmalign generate RECIPE` makes them.")
        begun = "Pairs are being made, or making them was interrupted: `mmalign generate RECIPE` goes on where it was."
        table = _journalled(journal)
        return Part(PairsSoFar(table) if table.num_rows else None, begun)
    try:
        tables = []
        for path in paths:
            missing = set(REQUIRED) - set(pq.read_schema(path).names)
            if missing:
                raise StoreError(f"it lacks the columns {', '.join(sorted(missing))}")
            tables.append(pq.read_table(path, columns=list(LIGHT), partitioning=None))
    except (pa.ArrowInvalid, OSError, StoreError) as error:
        reason = str(error).splitlines()[0]
        return Part(
            None, f"{path.parent.name}/{path.name} cannot be read ({reason}); `mmalign generate RECIPE` makes it."
        )
    return Part(PairFiles(tuple(paths), pa.concat_tables(tables)))


def _journalled(path: Path) -> pa.Table:
    """The pairs in a journal; none while the run that writes it holds it."""
    try:
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, timeout=1)) as journal:
            made = journal.execute(
                "SELECT value FROM outcome JOIN made USING (seq) WHERE phase = 'pairs' ORDER BY sample_id"
            )
            return pa.Table.from_pylist([row for (value,) in made for row in json.loads(value)], schema=SCHEMA)
    except (sqlite3.Error, ValueError, TypeError):
        return SCHEMA.empty_table()
