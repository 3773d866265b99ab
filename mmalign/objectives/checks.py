"""One-line refusals of parameters."""

from __future__ import annotations

from collections.abc import Collection


def require(holds: bool, key: str, value: object, allowed: str) -> None:
    """Raises ValueError, one line with the key, its value and what is allowed, unless it holds."""
    if not holds:
        raise ValueError(f"{key} is {value!r}; it must be {allowed}")


def positive(**values: float) -> None:
    """Raises ValueError for the first of `values` that is not more than 0."""
    for key, value in values.items():
        require(value > 0, key, value, "more than 0")


def not_negative(**values: float) -> None:
    """Raises ValueError for the first of `values` that is below 0."""
    for key, value in values.items():
        require(value >= 0, key, value, "0 or more")


def rate(**values: float) -> None:
    """Raises ValueError for the first of `values` that cannot be a share of wrong labels."""
    for key, value in values.items():
        require(0 <= value < 0.5, key, value, "at least 0 and below 0.5")


def one_of(known: Collection[str], **values: str) -> None:
    """Raises ValueError for the first of `values` that is not among `known`."""
    for key, value in values.items():
        *most, last = known
        require(value in known, key, value, f"{', '.join(most)} or {last}")
