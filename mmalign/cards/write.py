"""The cards themselves: YAML front matter that a hub reads, then what the run's record says, in Markdown."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from mmalign.cards.private import hub_id, without_paths
from mmalign.cards.record import Record
from mmalign.report.stats import Spread, table

_TASKS = {"image": "image-text-to-text", "video": "video-text-to-text", "text": "text-generation"}
_SIZES = (
    (1_000, "n<1K"),
    (10_000, "1K<n<10K"),
    (100_000, "10K<n<100K"),
    (1_000_000, "100K<n<1M"),
    (10_000_000, "1M<n<10M"),
    (100_000_000, "10M<n<100M"),
)
#: Settings of a training that say where it ran, not what it did.
_UNTOLD = ("threads", "checkpoint_every_steps", "keep_checkpoints", "report_to")


def dataset_card(record: Record, license: str | None, *, has_media: bool = False) -> str:
    """The card of the pairs. `license` is the caller's; without one the card names none."""
    counts, method = record.counts, record.method
    front = {
        **({"license": license} if license else {}),
        "task_categories": [_TASKS[record.media]],
        "size_categories": [next((name for limit, name in _SIZES if counts.pairs < limit), "100M<n<1B")],
        "tags": ["preference", "dpo", "mmalign", _tag(record.method_name)],
        "configs": [{"config_name": "default", "data_files": [{"split": "train", "path": "round-*/pairs.parquet"}]}],
    }
    paper = f" ({method.paper})" if method is not None and method.paper else ""
    made = (
        f"The method `{record.method_name}`{paper} made them with the model `{_shown(record.model_name)}`."
        if record.method_name != "given"
        else "They were given to the run, which did not make them."
    )
    facts = {
        "pairs": counts.pairs,
        "samples that gave pairs": counts.samples,
        "about pictures, videos, text alone": f"{counts.images}, {counts.videos}, {counts.texts}",
        "rounds": ", ".join(f"{number}: {num}" for number, num in sorted(counts.per_round.items())),
        "branches": _counted(counts.sources),
        "judges": _counted(counts.judges),
        "damage": _counted(counts.corruptions),
        "seed": _seeds(counts.seeds),
        "set aside (quarantine)": _counted(record.quarantine) or "none",
    }
    media = (
        "The media are in `media/`."
        if has_media
        else "The pictures and clips themselves are not part of this data set; each is named by its path and SHA-256."
    )
    parts = [
        "# Preference pairs",
        f"{counts.pairs} pairs of a chosen and a rejected answer. {made}",
        _facts(facts),
        *([] if record.media == "text" else [media]),
        "## Columns\n\n`context` (turns as JSON; media by path and SHA-256), `chosen`, `rejected`, `p` (probability "
        "that the label is right), `weight`, `gap` (difference of the judge's scores), `stage`, `chosen_spans` and "
        "`rejected_spans` (characters that differ), `judgements`, `provenance`, `seed`, and `prompt` and `media` for a "
        "quick look. `mmalign convert` writes them in the formats of TRL, LLaMA-Factory and ms-swift.",
        _settings("How they were made", {"method": record.section("method"), "seed": record.recipe.get("seed")}),
        _versions(record),
    ]
    return _page(front, parts)


def model_card(record: Record, license: str | None) -> str:
    """The card of the trained model or adapter. `license` is the caller's; without one the card names none."""
    trained = record.trained or {}
    is_adapter = record.model_folder is not None and record.model_folder.name == "adapter"
    base = hub_id(record.model_name)
    front = {
        **({"license": license} if license else {}),
        **({"base_model": base, "base_model_relation": "adapter" if is_adapter else "finetune"} if base else {}),
        "library_name": "peft" if is_adapter else "transformers",
        "pipeline_tag": _TASKS[record.media],
        "tags": ["preference", "mmalign", _tag(record.method_name), _tag(record.section("objective").get("name", ""))],
    }
    facts = {
        "base model": f"`{_shown(record.model_name)}`",
        "objective": f"`{record.section('objective').get('name', '')}`",
        "pairs": f"{trained.get('num_pairs', record.counts.pairs)}, made by `{record.method_name}`",
        "pairs left out": trained.get("num_dropped"),
        "steps": trained.get("steps"),
    }
    train = {key: value for key, value in record.section("train").items() if key not in _UNTOLD}
    parts = [
        f"# {'Adapter' if is_adapter else 'Model'} trained on preference pairs",
        "Trained with mmalign; all numbers below are from the record of one run.",
        _facts({name: value for name, value in facts.items() if value is not None}),
        _results(record),
        _settings("Hyper-parameters", {"objective": record.section("objective"), "train": train}),
        "## Limits\n\nMeasured was what the table says, on what it names, and nothing else. "
        + ("Nothing was measured in this run." if record.evaluation is None else _what(record)),
        _versions(record),
    ]
    return _page(front, parts)


def write_cards(record: Record, folder: Path, license: str | None) -> list[Path]:
    """Write `dataset/README.md` and, where a model was trained, `model/README.md`; returns their paths."""
    from mmalign.atomic import write_text

    cards = {"dataset": dataset_card(record, license)} if record.counts.pairs else {}
    if record.model_folder is not None:
        cards["model"] = model_card(record, license)
    paths = []
    for name, text in cards.items():
        path = folder / name / "README.md"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, text)
        paths.append(path)
    return paths


def _page(front: Mapping[str, Any], parts: Iterable[str]) -> str:
    head = yaml.safe_dump(dict(front), sort_keys=False, allow_unicode=True)
    return f"---\n{head}---\n\n" + "\n\n".join(part for part in parts if part) + "\n"


def _facts(facts: Mapping[str, object]) -> str:
    rows = (f"| {name} | {_cell(value)} |" for name, value in facts.items() if value not in ("", None))
    return "\n".join(["| | |", "|---|---|", *rows])


def _results(record: Record) -> str:
    """The table of `evaluation.json`: before, after and controls, as means over seeds."""
    evaluation = record.evaluation
    if evaluation is None or not evaluation.rows:
        return ""
    columns = [name for name in evaluation.columns if any(name in row.values for row in evaluation.rows)]
    lines = [f"| model | {' | '.join(map(_cell, columns))} |", "|---" * (len(columns) + 1) + "|"]
    for line in table(evaluation):
        name = line.name if line.kind != "control" else f"control: {line.name}"
        lines.append(f"| {_cell(name)} | {' | '.join(_spread(line.values.get(column)) for column in columns)} |")
    return f"## Results\n\n{_what(record)}\n\n" + "\n".join(lines)


def _what(record: Record) -> str:
    evaluation = record.evaluation
    assert evaluation is not None
    seeds = sorted({row.seed for row in evaluation.rows if row.seed is not None})
    settings = record.section("evaluate")
    is_drawn = settings.get("scenes") or settings.get("clips")
    about = evaluation.what or (f"drawn {evaluation.unit}" if is_drawn else f"{evaluation.unit} with known objects")
    told = f"Measured on {evaluation.num_scenes} {about}" if evaluation.num_scenes else f"Measured on {about}"
    return f"{told}, seed {', '.join(map(str, seeds))}." if seeds else f"{told}."


def _spread(value: Spread | None) -> str:
    if value is None:
        return "-"
    return f"{value.mean:.3f}" if value.num == 1 else f"{value.mean:.3f} ({value.low:.3f} to {value.high:.3f})"


def _settings(title: str, values: Mapping[str, Any]) -> str:
    text = yaml.safe_dump(without_paths({key: value for key, value in values.items() if value not in ({}, None)}))
    return f"## {title}\n\n```yaml\n{text}```"


def _versions(record: Record) -> str:
    told = ", ".join(f"{name} {version}" for name, version in record.versions.items())
    return f"## Versions\n\n{told}." if told else ""


def _counted(counts: Counter[str]) -> str:
    return ", ".join(f"{name} {num}" for name, num in sorted(counts.items()) if name)


def _seeds(seeds: set[int]) -> str:
    return ", ".join(map(str, sorted(seeds)[:10])) + (", ..." if len(seeds) > 10 else "")


def _shown(name: str) -> str:
    """A model's name for others to read: what of it is a path of this machine is left out."""
    return str(without_paths(name)) or "unknown"


def _tag(name: object) -> str:
    """A name as a hub takes it for a tag; of a class of one's own the class alone."""
    return str(without_paths(str(name))).rpartition(":")[2].lower().replace(" ", "-") or "own"


def _cell(value: object) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")
