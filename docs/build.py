"""Writes the parts of README and docs that are made from code and from stored results: `python docs/build.py`.

A test holds the pages to what this writes. `docs/results/NAME.json` is what `mmalign demo --method NAME --seeds 3`
leaves as `results.json`.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from statistics import mean
from typing import Any

import yaml

from mmalign.methods import list_methods
from mmalign.objectives import FAMILIES, LEGEND, OBJECTIVES, describe_objective
from mmalign.objectives.carried import example, told

ROOT = Path(__file__).resolve().parents[1]
COLUMNS = {
    "chair_s": "CHAIR_s",
    "chair_i": "CHAIR_i",
    "recall": "recall",
    "colour": "colour",
    "place": "place",
    "mentions": "mentions",
    "event_chair_s": "event CHAIR_s",
    "event_chair_i": "event CHAIR_i",
    "event_recall": "event recall",
    "order": "order",
    "events": "events",
}
COUNTS = ("mentions", "events")


def results_table(evaluations: list[dict[str, Any]], command: str) -> str:
    """Mean and range over seeds, one line per model."""
    first = evaluations[0]
    num_seeds = len(evaluations)
    what = "clips" if first.get("what") == "drawn clips" else "pictures"
    columns = {column: title for column, title in COLUMNS.items() if column in first["columns"]}
    lines = [
        f"`{command}`: {first['num_scenes']} held-out {what} per seed, {num_seeds} seeds, mean (lowest to highest).",
        "",
        f"| model | {' | '.join(columns.values())} |",
        f"|---|{'---|' * len(columns)}",
    ]
    for row in first["rows"]:
        cells = []
        for column in columns:
            values = [
                other["values"][column] for e in evaluations for other in e["rows"] if other["name"] == row["name"]
            ]
            digits = 1 if column in COUNTS else 2
            cells.append(f"{mean(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})")
        name = f"control: {row['name']}" if row["kind"] == "control" else row["name"]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def method_table() -> str:
    """One line per method of the package."""
    lines = ["| method | media | paper | pairs |", "|---|---|---|---|"]
    for info in list_methods():
        page = f"docs/methods/{info.name}.md"
        lines.append(f"| [{info.name}]({page}) | {', '.join(info.media)} | {info.paper} | {info.summary} |")
    return "\n".join(lines)


def family_table() -> str:
    """The names of all objectives, by family."""
    lines = ["| family | names |", "|---|---|"]
    for title, names in FAMILIES.items():
        lines.append(f"| {title} | {', '.join(f'[`{name}`](#{anchor(title)})' for name in names)} |")
    return "\n".join(lines)


def anchor(title: str) -> str:
    """The address of a heading within its page."""
    return re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")


def objective_list() -> str:
    """Of every objective formula, source, a line for a recipe, and what the pairs carry for it, with an example."""
    lines = [
        f"In formulas {LEGEND}. Under each formula stands the line of a recipe with all parameters and their defaults, "
        "and what the pairs carry beyond the texts that it names in its needs.",
        "",
    ]
    for title, names in FAMILIES.items():
        lines += [f"### {title}", ""]
        for name in names:
            lines += _objective(name)
    return "\n".join(lines).rstrip()


def _objective(name: str) -> list[str]:
    info = describe_objective(OBJECTIVES[name])
    objective = OBJECTIVES[name]()
    given = {"name": name, **dict(info.parameters)}
    others = [need for need in info.needs if need.partition(":")[0] in ("logits", "head", "tokens")]
    lines = [f"**`{name}`** `{info.formula}` ({info.source})", "", f"    objective: {_flow(given)}", ""]
    if others:
        lines += [f"Beside the pairs it needs {', '.join(f'`{need}`' for need in others)}.", ""]
    if carried := told(objective):
        row = {key: value for key, value in example(objective).items() if key not in ("context", "chosen", "rejected")}
        lines += [f"Pairs carry {'; '.join(carried)}.", "", "```json", *_rows(row), "```", ""]
    return lines


def _rows(row: dict[str, Any]) -> list[str]:
    """JSON with a line for each column, and one for each side."""
    lines = []
    for key, value in row.items():
        sides = [f'"{name}": {json.dumps(side)}' for name, side in value.items()] if key == "sides" else []
        inner = ",\n            ".join(sides)
        lines.append(f'"{key}": {{{inner}}}' if sides else f'"{key}": {json.dumps(value)}')
    return (",\n ".join(["{" + lines[0], *lines[1:]]) + "}").split("\n")


def _flow(value: Any) -> str:
    """A value as YAML on one line."""
    return yaml.safe_dump(_plain(value), default_flow_style=True, sort_keys=False, width=10_000).strip()


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, list | tuple) else value


def stored(name: str) -> list[dict[str, Any]]:
    """The stored results of one method over all seeds."""
    found: list[dict[str, Any]] = json.loads((ROOT / "docs" / "results" / f"{name}.json").read_text(encoding="utf-8"))
    return found


def command_of(name: str) -> str:
    if name == "video":
        return "mmalign demo --video --seeds 3"
    return "mmalign demo --seeds 3" if name == "self_consistency" else f"mmalign demo --method {name} --seeds 3"


def speed_table() -> str:
    """Ratios to TRL's trainer, with what was wanted of them nowhere rounded up."""
    found = json.loads((ROOT / "docs" / "results" / "train_step.json").read_text(encoding="utf-8"))
    what = f"`python -m benchmarks.train_step`, one thread of a CPU, medians of {found['runs']} runs"
    lines = [
        f"{what}: how many times as fast as the `DPOTrainer` of TRL 1.16 on the same pairs with equal losses, by the "
        "clock (by processor seconds; bound of the matrix products that are necessary).",
        "",
        "| model | cold | warm | peak memory | 8 answers to a long prompt, against rows of their own |",
        "|---|---|---|---|---|",
    ]
    for name, ratios in found["models"].items():
        cells = [_ratio(ratios["speed"][kind]) for kind in ("cold", "warm")]
        lists = ratios.get("lists")
        eight = "" if lists is None else f"{_ratio(lists['eight answers'])}, {lists['prompt']} tokens"
        lines.append(f"| {name} | {' | '.join(cells)} | {ratios['memory']:.2f} | {eight} |")
    return "\n".join(lines)


def _ratio(ratio: dict[str, float]) -> str:
    return f"{ratio['clock']:.2f} ({ratio['processor']:.2f}; {ratio['bound']:.2f})"


def engine_table() -> str:
    """What a million samples cost, and what the engine adds to a model's time."""
    found = json.loads((ROOT / "docs" / "results" / "engine.json").read_text(encoding="utf-8"))
    rate, million, overhead = found["rate"], found["million"], found["overhead"]
    first, tenths = million["first"], million["first"]["tenths_mib"]
    rows = {
        "samples a second, with a model that answers at once": f"{rate['per_s']:,}",
        "processor time of a sample": f"{rate['processor_us']:.0f} microseconds",
        "the same in percent of the embedded model's two answers about a picture": f"{overhead['share']:.2%}",
        "a run with the embedded model, against asking it by hand (processor time)": f"{overhead['ratio']:.3f}",
        f"memory in the first and the last tenth of {first['samples']:,} samples": (
            f"{tenths[0]:.0f} and {tenths[-1]:.0f} MiB"
        ),
        "from the command to the first sample: new run": f"{first['first_s']:.1f} s",
        f"the same when {million['resume']['resumed']:,} of {million['samples']:,} are done": (
            f"{million['resume']['first_s']:.1f} s"
        ),
        f"the same when one row of {million['samples']:,} was changed": f"{million['changed']['first_s']:.1f} s",
        "a finished run, started again, to its end": f"{million['again']['whole_s']:.1f} s",
    }
    lines = ["`python -m benchmarks.engine`, scripted model, two answers and one pair a sample.", ""]
    return "\n".join(
        [*lines, "| what | measured |", "|---|---|", *(f"| {what} | {cell} |" for what, cell in rows.items())]
    )


def built(text: str) -> str:
    """The page `text` with its made parts fresh."""

    def fill(marker: str, body: str, page: str) -> str:
        begin, end = f"<!-- {marker} -->", f"<!-- /{marker.split(':')[0].split()[0]} -->"
        pattern = re.compile(f"{re.escape(begin)}\n.*?{re.escape(end)}", re.DOTALL)
        return pattern.sub(lambda _: f"{begin}\n{body}\n{end}", page)

    for path in re.findall(r"<!-- results: docs/results/(\w+)\.json -->", text):
        text = fill(f"results: docs/results/{path}.json", results_table(stored(path), command_of(path)), text)
    parts = {
        "methods": method_table,
        "families": family_table,
        "objectives": objective_list,
        "speed: docs/results/train_step.json": speed_table,
        "engine: docs/results/engine.json": engine_table,
    }
    for marker, body in parts.items():
        if f"<!-- {marker} -->" in text:
            text = fill(marker, body(), text)
    return text


def main() -> None:
    pages = sorted((ROOT / "docs" / "methods").glob("*.md"))
    docs = ROOT / "docs"
    for page in (ROOT / "README.md", docs / "objectives.md", docs / "training.md", docs / "engine.md", *pages):
        text = page.read_text(encoding="utf-8")
        page.write_text(built(text), encoding="utf-8")


if __name__ == "__main__":
    main()
