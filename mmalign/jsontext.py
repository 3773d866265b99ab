"""JSON as files of strangers hold it: what JSON does not allow, or no file of ours can hold, is refused in one line.

Python's own reader lets NaN and infinite numbers, keys given twice and halves of characters through, and fails with
anything on deep nesting.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from mmalign.errors import MMAlignError

#: Deeper nesting is refused; so is a longer line, which could take 20 times its size once read.
MAX_DEPTH: Final = 64
MAX_LINE_BYTES: Final = 16 * 2**20

_TOO_DEEP: Final = f"is nested deeper than {MAX_DEPTH} levels"

#: How JSON spells half of a character; the other half may follow.
_HALF: Final = re.compile(r"\\u[dD][89a-fA-F]")


def parse_json(text: str) -> Any:
    """The value of a JSON text.

    Raises ValueError with the rest of a sentence ("is not JSON (...)") for what is no JSON, is nested too deep or
    cannot be stored.
    """
    try:
        value = _DECODER.decode(text)
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None
    except _UnfitError:
        raise
    except ValueError as error:
        raise ValueError(f"is not JSON ({error})") from None
    if text.count("[") + text.count("{") > MAX_DEPTH:
        _check_depth(value)
    if _HALF.search(text):
        _check_characters(value)
    return value


def numbered_lines(path: Path, error: type[MMAlignError]) -> Iterator[tuple[int, str]]:
    """Line numbers, from 1, and texts of a UTF-8 file, read one at a time; empty lines are passed over.

    Raises `error` with file and line for what is not UTF-8 and for lines of more than `MAX_LINE_BYTES`, and with the
    file for one that cannot be read.
    """
    for first, lines in blocks_of_lines(path, error, 1):
        yield from texts_of(path, first, lines, error)


def blocks_of_lines(path: Path, error: type[MMAlignError], size: int) -> Iterator[tuple[int, list[bytes]]]:
    """The lines of a file as they are, at most `size` or about 1 MiB at a time, with the number of the first of them.

    A line beyond `MAX_LINE_BYTES` is the last one and cut off. Raises `error` for a file that cannot be read.
    """
    try:
        if not path.is_file():  # a pipe would be waited for without end
            raise error(f"{path}: {'is not a file' if path.exists() else 'no such file'}")
        with path.open("rb") as stream:
            first = 1
            lines: list[bytes] = []
            num_bytes = 0
            while raw := stream.readline(MAX_LINE_BYTES + 1):
                lines.append(raw.removeprefix(b"\xef\xbb\xbf") if first == 1 and not lines else raw)
                num_bytes += len(raw)
                is_last = len(raw) > MAX_LINE_BYTES
                if is_last or len(lines) == size or num_bytes >= 2**20:
                    yield first, lines
                    first, lines, num_bytes = first + len(lines), [], 0
                if is_last:
                    return
            if lines:
                yield first, lines
    except OSError as failed:
        raise error(f"{path}: cannot be read ({failed.strerror})") from None


def texts_of(path: Path, first: int, lines: list[bytes], error: type[MMAlignError]) -> Iterator[tuple[int, str]]:
    """Numbers and texts of the lines of a block that are not empty. Raises as `numbered_lines` does."""
    for number, raw in enumerate(lines, first):
        if len(raw) > MAX_LINE_BYTES:
            raise error(f"{path}:{number}: the line has more than {MAX_LINE_BYTES} bytes, the limit; split it")
        if raw.strip():
            try:
                yield number, raw.decode("utf-8")
            except UnicodeDecodeError as broken:
                raise error(f"{path}:{number}: is not UTF-8 (byte {broken.start}); save it as UTF-8") from None


class _UnfitError(ValueError):
    """A value that nothing of ours can hold."""


def _no_constant(name: str) -> None:
    raise _UnfitError(f"is not JSON: {name} is not a JSON value")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise _UnfitError(f"holds {text:.40}, more than a number can be")
    return value


def _no_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) != len(pairs):
        seen: set[str] = set()
        twin = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise _UnfitError(f"is not clear: key {twin!r:.80} stands twice")
    return row


#: Made once: `json.loads` with options builds a decoder for each call.
_DECODER = json.JSONDecoder(parse_constant=_no_constant, parse_float=_finite, object_pairs_hook=_no_twins)


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        lists = [part for part in level if isinstance(part, dict | list)]
        level = [inner for part in lists for inner in (part.values() if isinstance(part, dict) else part)]
        if not level:
            return
    raise ValueError(_TOO_DEEP)


def _check_characters(value: Any) -> None:
    for key, part in value.items() if isinstance(value, dict) else [("", value)]:
        try:
            json.dumps([key, part], ensure_ascii=False).encode("utf-8")
        except UnicodeEncodeError as error:
            half = f"(U+{ord(error.object[error.start]):04X})"
            raise ValueError(f"{key} holds half a character {half}; remove it".lstrip()) from None
