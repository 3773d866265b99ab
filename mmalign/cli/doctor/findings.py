"""What the doctor finds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

#: `note`: something could be better, or is not there and need not be; `broken`: mmalign does not work like this.
Status = Literal["ok", "note", "broken"]
Section = Literal["needed", "loads", "extras", "machine", "limits"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One line: what was looked at, what was found, and what to do about it (empty where it is well)."""

    section: Section
    check: str
    status: Status
    found: str
    remedy: str = ""
