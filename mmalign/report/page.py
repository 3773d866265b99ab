"""Assembles the page of a run: one HTML file with its pictures, style and script inside."""

from __future__ import annotations

import base64
import hashlib
from collections import Counter
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from mmalign.atomic import explained, writing_bytes
from mmalign.errors import StoreError
from mmalign.report.cards import MEDIA, card, examples
from mmalign.report.curves import CONTROL_CURVES
from mmalign.report.files import (
    Facts,
    Pairs,
    Part,
    read_control_metrics,
    read_evaluation,
    read_facts,
    read_metrics,
    read_pairs_of,
    read_quarantine,
)
from mmalign.report.glossary import metric
from mmalign.report.pictures import Gallery
from mmalign.report.plots import training_curves
from mmalign.report.stats import Evaluation, joined, pair_numbers, pick_evenly, table
from mmalign.report.words import account

#: Rows of the quarantine that are listed one by one; the counts by reason are of all of them.
MOST_QUARANTINED = 200


def write_report(
    run_dir: Path,
    *,
    out: Path | None = None,
    data_root: Path | None = None,
    max_pairs: int = 200,
    other_seeds: Sequence[Path] = (),
) -> Path:
    """Write the page of a run and return its path.

    A run need not be finished: what is absent is named on the page, with the command that makes it.

    Args:
        run_dir: The run directory.
        out: Where to write; `report.html` in the run directory when None.
        data_root: Folder that the media paths of the pairs start from; from the recipe when None.
        max_pairs: Most pairs on the page; more are thinned evenly over sources and gaps.
        other_seeds: Run directories of the same recipe with other seeds; their measurements join the result table.

    Raises:
        StoreError: When there is no such run directory, another seed's run was not measured alike, or the page cannot
            be written.
    """
    if not run_dir.is_dir():
        raise StoreError(f"{run_dir}: no such run directory; `mmalign run RECIPE --output {run_dir}` makes one")
    out = out or run_dir / "report.html"
    page = _render(run_dir, data_root, max_pairs, other_seeds).encode("utf-8", "replace")
    with explained(out):
        out.parent.mkdir(parents=True, exist_ok=True)
    with writing_bytes(out) as stream:
        stream.write(page)
    return out


def _render(run: Path, data_root: Path | None, max_pairs: int, other_seeds: Sequence[Path]) -> str:
    facts, pairs, evaluation = read_facts(run), read_pairs_of(run), read_evaluation(run)
    measured = _all_seeds(evaluation.value, run, other_seeds) if evaluation.value else None
    lines = table(measured) if measured else []
    gallery = Gallery(data_root or facts.data_root(run), facts.limits())
    run_gallery = Gallery(run, facts.limits())
    shown = examples(measured.examples, run_gallery) if measured else []
    browser = _browser(pairs, gallery, max_pairs)
    style, script = _asset("page.css"), _asset("page.js")
    return (
        _environment()
        .get_template("page.html.j2")
        .render(
            policy=_policy(style, script),
            style=Markup(style),
            script=Markup(script),
            title=run.resolve().name,
            facts=facts,
            about=_about(facts, browser),
            account=account(measured, browser["numbers"].num if browser["numbers"] else 0),
            evaluation=evaluation,
            lines=lines,
            has_spread=any(value.num > 1 for line in lines for value in line.values.values() if value),
            columns=[(name, metric(name)) for name in measured.columns] if measured else [],
            examples=shown,
            unit=measured.unit if measured else "",
            pairs=pairs,
            browser=browser,
            example_pictures=run_gallery.thumbnails(),
            pictures=gallery.thumbnails(),
            quarantine=_quarantine(run),
            training=_training(run),
        )
    )


def _all_seeds(measured: Evaluation, run: Path, others: Sequence[Path]) -> Evaluation:
    """The run's measurements with those of the other seeds' runs."""
    for other in others:
        if other.resolve() == run.resolve():
            continue
        part = read_evaluation(other)
        if part.value is None:
            raise StoreError(f"{other}: {part.missing}")
        try:
            measured = joined([measured, part.value])
        except ValueError as error:
            raise StoreError(f"{other}: cannot stand in one table with {run}: {error}") from None
    return measured


def _browser(pairs: Part[Pairs], gallery: Gallery, max_pairs: int) -> dict[str, Any]:
    if pairs.value is None:
        return {"numbers": None, "cards": [], "sources": [], "media": []}
    light = pairs.value.light
    picked = pick_evenly(light["source"].to_pylist(), light["gap"].to_pylist(), max_pairs)
    cards = [card(row, gallery) for row in pairs.value.take(picked)]
    sources = sorted(Counter(entry.source for entry in cards).items(), key=lambda entry: (-entry[1], entry[0]))
    about = Counter(entry.medium for entry in cards)
    media = [(medium, name, about[medium]) for medium, name in MEDIA.items() if about[medium]]
    has_pointed = any(piece.pointed for entry in cards for piece in (*entry.chosen, *entry.rejected))
    return {
        "numbers": pair_numbers(light),
        "cards": cards,
        "sources": sources,
        "media": media,
        "has_pointed": has_pointed,
    }


def _about(facts: Facts, browser: dict[str, Any]) -> list[tuple[str, str]]:
    method = facts.name_of("method")
    named = [("Method", method), ("Model", facts.name_of("model")), ("Objective", facts.name_of("objective"))]
    if browser["numbers"]:
        named += [
            ("Pairs", f"{browser['numbers'].num:,}"),
            ("Samples with pairs", f"{browser['numbers'].num_samples:,}"),
        ]
    return [(name, value) for name, value in named if value]


def _quarantine(run: Path) -> dict[str, Any]:
    part = read_quarantine(run)
    entries = part.value or []
    reasons = Counter((entry.stage, _kind_of_reason(entry.reason, entry.path, entry.id)) for entry in entries)
    return {
        "missing": part.missing,
        "num": len(entries),
        "rows": entries[:MOST_QUARANTINED],
        "reasons": reasons.most_common(),
    }


def _kind_of_reason(reason: str, *names: str) -> str:
    """The reason without the name of its file, so that equal reasons count together."""
    for name in names:
        if name:
            reason = reason.replace(name, "…")
    return reason.removeprefix("…: ")


def _training(run: Path) -> dict[str, Any]:
    part = read_metrics(run)
    return {
        "missing": part.missing,
        "plots": training_curves(part.value) if part.value else [],
        "controls": {name: training_curves(steps, CONTROL_CURVES) for name, steps in read_control_metrics(run).items()},
    }


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("mmalign.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["coded"] = _coded
    return environment


def _coded(text: str) -> Markup:
    """The text, escaped, with what stands between backticks set as code."""
    parts = (escape(part) for part in text.split("`"))
    return Markup("").join(
        part if place % 2 == 0 else Markup("<code>{}</code>").format(part) for place, part in enumerate(parts)
    )


def _asset(name: str) -> str:
    return (resources.files("mmalign.report") / "templates" / name).read_text(encoding="utf-8")


def _policy(style: str, script: str) -> str:
    """Nothing is loaded, nothing is sent; only this very style and this very script are used."""

    def digest(text: str) -> str:
        return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")

    return (
        f"default-src 'none'; img-src data:; style-src 'sha256-{digest(style)}'; script-src 'sha256-{digest(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )
