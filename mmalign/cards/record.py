"""The record of a run as cards need it: what it was, counted. Nothing that is not in the run directory is told."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmalign.cards.private import without_paths
from mmalign.errors import RecipeError, StoreError
from mmalign.methods import MethodInfo, describe, find_method
from mmalign.pairs import PairRow, iter_pairs
from mmalign.report.files import read_evaluation, read_facts, read_quarantine
from mmalign.report.stats import Evaluation
from mmalign.types import Row


@dataclass(slots=True)
class Counts:
    """What the pairs of a run are, counted."""

    pairs: int = 0
    samples: int = 0
    images: int = 0
    videos: int = 0
    texts: int = 0
    per_round: Counter[int] = field(default_factory=Counter)
    sources: Counter[str] = field(default_factory=Counter)
    judges: Counter[str] = field(default_factory=Counter)
    corruptions: Counter[str] = field(default_factory=Counter)
    seeds: set[int] = field(default_factory=set)

    def add(self, row: PairRow) -> None:
        """Count a pair."""
        self.pairs += 1
        self.per_round[row.round] += 1
        self.sources[row.source] += 1
        self.seeds.add(row.seed)
        self.judges.update({str(judgement.get("judge", "")) for judgement in row.judgements} - {""})
        kinds = {ref.kind for ref in row.media}
        self.images += "image" in kinds
        self.videos += "video" in kinds
        self.texts += not kinds
        self.corruptions.update(set(_corruptions([*row.contexts, row.provenance])))


def _corruptions(value: Any) -> Iterator[str]:
    """The names of all damage on record, in contexts and in what a method says of where a pair comes from."""
    if isinstance(value, Mapping):
        for key, entry in value.items():
            found = entry if isinstance(entry, list) else [entry]
            if key in ("corruptions", "corruption"):
                yield from (str(one["name"]) for one in found if isinstance(one, Mapping) and "name" in one)
            yield from _corruptions(entry)
    elif isinstance(value, list | tuple):
        for entry in value:
            yield from _corruptions(entry)


@dataclass(frozen=True, slots=True)
class Record:
    """A run directory as cards tell of it: the recipe without paths of this machine, counts and numbers."""

    run: Path
    recipe: Row
    versions: Mapping[str, str]
    pair_files: tuple[Path, ...]
    counts: Counts
    quarantine: Counter[str]
    evaluation: Evaluation | None
    trained: Row | None

    @classmethod
    def read(cls, run: Path) -> Record:
        """Raises StoreError, one line, for what is no run directory and for pairs that cannot be read."""
        if not (run / "recipe.yaml").is_file():
            raise StoreError(f"{run}: not a run directory (no recipe.yaml); `mmalign run RECIPE` makes one")
        facts = read_facts(run)
        files = sorted(run.glob("round-*/pairs.parquet"), key=lambda path: (len(path.parent.name), path.parent.name))
        counts, samples = Counts(), set[str]()
        for path in files:
            for row in iter_pairs(path):
                counts.add(row)
                samples.add(row.sample_id)
        counts.samples = len(samples)
        environment = dict(facts.environment)
        versions = {"python": environment["python"]} if "python" in environment else {}
        versions |= {name: str(version) for name, version in _object(environment.get("packages")).items()}
        quarantined = read_quarantine(run).value or []
        return cls(
            run,
            without_paths(facts.recipe),
            versions,
            tuple(files),
            counts,
            Counter(entry.stage for entry in quarantined),
            read_evaluation(run).value,
            _json(run / "train" / "result.json"),
        )

    def section(self, name: str) -> Row:
        """A section of the recipe; empty where it has none."""
        value = self.recipe.get(name)
        return value if isinstance(value, dict) else {}

    @property
    def method(self) -> MethodInfo | None:
        """The method as it describes itself; None for pairs that were given, and for one's own that is not there."""
        try:
            return describe(find_method(str(self.section("method").get("name", ""))))
        except (RecipeError, ImportError, OSError):
            return None

    @property
    def method_name(self) -> str:
        """The method's name; "given" where the pairs were there already."""
        return str(self.section("method").get("name") or "given")

    @property
    def model_name(self) -> str:
        return str(self.section("model").get("name") or "")

    @property
    def media(self) -> str:
        """The kind of data that a hub sorts by: "video", "image" or "text"."""
        return "video" if self.counts.videos else "image" if self.counts.images else "text"

    @property
    def model_folder(self) -> Path | None:
        """The trained adapter or model; None where there is none."""
        if self.trained is None:
            return None
        folders = (self.run / "train" / name for name in ("adapter", "model"))
        return next((folder for folder in folders if folder.is_dir()), None)


def _json(path: Path) -> Row | None:
    if not path.is_file():
        return None
    try:
        return _object(path.read_text(encoding="utf-8"))
    except OSError:
        return None


def _object(text: str | None) -> Row:
    try:
        value = json.loads(text or "{}")
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
