"""Writes the parts of the README that are made from code and from stored results: `python docs/build.py`.

A test holds the README to what this writes. `docs/results/NAME.json` is what `mmalign demo --method NAME --seeds 3`
leaves as `results.json`.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from statistics import mean
from typing import Any

from mmalign.methods import list_methods

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


def stored(name: str) -> list[dict[str, Any]]:
    """The stored results of one method over all seeds."""
    found: list[dict[str, Any]] = json.loads((ROOT / "docs" / "results" / f"{name}.json").read_text(encoding="utf-8"))
    return found


def command_of(name: str) -> str:
    if name == "video":
        return "mmalign demo --video --seeds 3"
    return "mmalign demo --seeds 3" if name == "self_consistency" else f"mmalign demo --method {name} --seeds 3"


def built(text: str) -> str:
    """The page `text` with its made parts fresh."""

    def fill(marker: str, body: str, page: str) -> str:
        begin, end = f"<!-- {marker} -->", f"<!-- /{marker.split(':')[0].split()[0]} -->"
        pattern = re.compile(f"{re.escape(begin)}\n.*?{re.escape(end)}", re.DOTALL)
        return pattern.sub(lambda _: f"{begin}\n{body}\n{end}", page)

    for path in re.findall(r"<!-- results: docs/results/(\w+)\.json -->", text):
        text = fill(f"results: docs/results/{path}.json", results_table(stored(path), command_of(path)), text)
    return fill("methods", method_table(), text)


def main() -> None:
    for page in (ROOT / "README.md", *sorted((ROOT / "docs" / "methods").glob("*.md"))):
        text = page.read_text(encoding="utf-8")
        page.write_text(built(text), encoding="utf-8")


if __name__ == "__main__":
    main()
