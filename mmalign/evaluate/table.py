"""The table of a run: before, after and controls, each measured on the same held-out pictures."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from mmalign.evaluate.answers import describe
from mmalign.evaluate.descriptions import Reader, measure, read_scene, reader_of, shortened
from mmalign.evaluate.items import Item, labelled_items, scene_items
from mmalign.lm.load import load_model
from mmalign.lm.local import LocalLM
from mmalign.lm.spec import ModelSpec
from mmalign.media.image import PictureLimits
from mmalign.text.objects import Vocabulary

NOTES = (
    "Measured on {num} {what} that gave no pair{settings}; the answers are greedy.",
    "CHAIR_s is the share of answers that name something absent; a cut in it counts only if recall holds.",
    "Random signs: the same pairs and steps without the preference. SFT: only the chosen side, no comparison. "
    "Cut: the untrained model's answers, all ended after the number of mentions that the trained model averages.",
)
SCENES_NOTE = (
    "The embedded model was taught to slip when asked for detail while its short answers stayed true, so its "
    "hallucinations are easier to remove than those of a large model: the numbers show that the loop works, not how "
    "much it would give elsewhere. Its own step-by-step prompt hallucinates less still, without any training."
)


SCENES = "drawn scenes"
#: The embedded model's own gates, and a choice in its training, used test scenes of low seeds; results use others.
FIRST_SEED = 1000


class Settings(Protocol):
    """What this room reads of a recipe's `evaluate` section."""

    @property
    def scenes(self) -> int: ...
    @property
    def split(self) -> str: ...
    @property
    def labels(self) -> Path | None: ...
    @property
    def prompt(self) -> str: ...
    @property
    def max_new_tokens(self) -> int: ...
    @property
    def examples(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Items:
    """Held-out pictures and how answers about them are read."""

    items: Sequence[Item]
    read: Reader
    what: str


def evaluation_items(settings: Settings, *, seed: int, limits: PictureLimits) -> Items | None:
    """The pictures that the settings name; None when they name none."""
    if settings.labels is not None:
        vocabulary = Vocabulary.load(None)
        return Items(labelled_items(settings.labels, limits, vocabulary), reader_of(vocabulary), "labelled photographs")
    if settings.scenes:
        items = scene_items(settings.scenes, seed=FIRST_SEED + seed, split=settings.split)
        return Items(items, read_scene, SCENES)
    return None


@dataclass(frozen=True, slots=True)
class Measured:
    """One line of the table and the answers behind it."""

    name: str
    kind: str
    texts: Sequence[str]
    values: dict[str, float]


@dataclass
class Evaluation:
    """Lines measured so far, in order; `made_with` are the settings that the table depends on."""

    settings: Settings
    seed: int
    held_out: Items
    made_with: Mapping[str, Any] = field(default_factory=dict)
    lines: list[Measured] = field(default_factory=list)

    def cut_to(self, before: Measured, after: Measured) -> list[str]:
        """The answers before training, cut to as many mentions on average as the answers after it make."""
        return shortened(before.texts, after.values["mentions"], self.held_out.read)

    def write(self, run: Path) -> None:
        """Write `evaluation.json` and the pictures of its examples below the run directory."""
        names = {line.kind: line for line in self.lines if line.kind != "control"}
        examples = []
        folder = run / "examples"
        folder.mkdir(exist_ok=True)
        for index in self._examples():
            item = self.held_out.items[index]
            picture = item.sample.media[0].image
            picture.save(folder / f"{index:05d}.png")
            examples.append(
                {
                    "image": f"examples/{index:05d}.png",
                    "prompt": self.settings.prompt,
                    "before": names["before"].texts[index],
                    "after": names["after"].texts[index],
                    "truth": sorted(item.objects),
                    "wrong_before": self._wrong(names["before"].texts[index], item),
                    "wrong_after": self._wrong(names["after"].texts[index], item),
                }
            )
        # Settings are chosen on the dev split; of somebody's photographs we do not know what they were used for.
        unseen = ", and chose no setting" if self.held_out.what == SCENES and self.settings.split == "test" else ""
        notes = [note.format(num=len(self.held_out.items), what=self.held_out.what, settings=unseen) for note in NOTES]
        if self.made_with.get("model", {}).get("name") == "tiny":
            notes.append(SCENES_NOTE)
        record: dict[str, Any] = {
            "task": self.settings.prompt,
            "num_scenes": len(self.held_out.items),
            "split": self.settings.split,
            "seeds": [self.seed],
            "columns": list(dict.fromkeys(column for line in self.lines for column in line.values)),
            "rows": [
                {"name": line.name, "kind": line.kind, "seed": self.seed, "values": line.values} for line in self.lines
            ],
            "notes": notes,
            "made_with": self.made_with,
            "examples": examples,
        }
        partial = run / ".evaluation.json.partial"
        partial.write_text(json.dumps(record, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
        partial.replace(run / "evaluation.json")

    def _wrong(self, text: str, item: Item) -> list[list[int]]:
        """Character ranges of the mentions of things that are not there."""
        return [[found.start, found.end] for found in self.held_out.read(text) if found.name not in item.objects]

    def _examples(self) -> list[int]:
        """Which pictures the page shows: evenly spread, so that they are neither the best nor the worst."""
        total = len(self.held_out.items)
        num = min(self.settings.examples, total)
        return [index * total // num for index in range(num)]


def measure_texts(table: Evaluation, name: str, kind: str, texts: Sequence[str]) -> Measured:
    """Add a line for answers that are there already."""
    line = Measured(name, kind, texts, measure(texts, table.held_out.items, table.held_out.read))
    table.lines.append(line)
    return line


def measure_model(table: Evaluation, name: str, kind: str, spec: ModelSpec, batch_size: int) -> Measured:
    """Add a line for a model: load it, let it describe every picture, measure."""

    async def ask() -> list[str]:
        async with LocalLM(load_model(spec), max_batch_size=batch_size) as lm:
            return await describe(lm, table.held_out.items, table.settings.prompt, table.settings.max_new_tokens)

    return measure_texts(table, name, kind, asyncio.run(ask()))


def is_measured(run: Path, made_with: Mapping[str, Any]) -> bool:
    """Whether the run directory holds a table that was made with these settings."""
    if not (run / "evaluation.json").is_file():
        return False
    try:
        return read_evaluation(run).get("made_with") == made_with
    except ValueError:  # damaged: it is made anew
        return False


def read_evaluation(run: Path) -> dict[str, Any]:
    """The table that `Evaluation.write` left in a run directory."""
    record: dict[str, Any] = json.loads((run / "evaluation.json").read_text(encoding="utf-8"))
    return record
