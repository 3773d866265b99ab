"""The findings as a table: readable at 80 columns, plain where nobody looks at a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mmalign.cli.doctor.findings import Finding
from mmalign.errors import one_line

_TITLES = {
    "needed": "what mmalign needs",
    "loads": "what really works",
    "extras": "extras",
    "machine": "this machine",
    "limits": "limits in force",
}
_MARKS = {"ok": ("ok", "green"), "note": ("note", "yellow"), "broken": ("BROKEN", "bold red")}


def show(findings: Sequence[Finding], console: Console | None = None) -> None:
    """Print one table for each kind of findings, and what to do below each that is not well."""
    console = console or Console()
    for section, title in _TITLES.items():
        lines = [finding for finding in findings if finding.section == section]
        if not lines:
            continue
        table = Table(title=title, title_justify="left", box=None, pad_edge=False, show_header=False)
        table.add_column(width=6, no_wrap=True)
        table.add_column(min_width=15, no_wrap=True)
        table.add_column(overflow="fold")
        for finding in lines:
            mark, style = _MARKS[finding.status]
            told = Text(one_line(finding.found))
            if finding.remedy:
                told.append(f"\n-> {one_line(finding.remedy)}", style="bold")
            table.add_row(Text(mark, style=style), Text(one_line(finding.check)), told)
        console.print(table)
        console.print()
    broken = [finding.check for finding in findings if finding.status == "broken"]
    notes = sum(finding.status == "note" for finding in findings)
    well = "works" if any(finding.section == "loads" for finding in findings) else "is installed; nothing was tried"
    verdict = f"broken: {', '.join(broken)}" if broken else f"everything that mmalign needs {well}"
    console.print(Text(f"{verdict}{f'; {notes} remarks' if notes > 1 else '; 1 remark' if notes else ''}"))
