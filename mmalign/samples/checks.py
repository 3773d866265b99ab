"""What a row of sample files must hold, told in one line with its place."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from typing import Any, Final

from mmalign.errors import DataError
from mmalign.types import Row

_NEEDS: Final = {"str": "text", "list": "a list", "dict": "an object"}


def check_keys(row: Mapping[str, Any], known: tuple[str, ...], where: str) -> None:
    """Raise DataError naming the nearest known key when a row has an unknown one."""
    for key in row:
        if key not in known:
            near = difflib.get_close_matches(key[:100], known, n=1, cutoff=0.0)[0]
            raise DataError(
                f"{where}: unknown key {key!r:.100}, did you mean {near!r}? Known are {', '.join(known)}; "
                "other values go under 'meta'"
            )


def typed(row: Row, key: str, kind: type, where: str, default: Any) -> Any:
    """The value of a key, `default` where there is none. Raises DataError where it is of another kind."""
    value = row.get(key)
    if value is None:
        return default
    if not isinstance(value, kind):
        raise DataError(f"{where}: {key} is {shown(value)}, need {_NEEDS[kind.__name__]}")
    return value


def shown(value: Any) -> str:
    """A value as it stands in a message."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."
