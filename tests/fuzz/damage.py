"""Damage to the bytes of any file. Each takes a generator, the file, and another good file of the same kind."""

from __future__ import annotations

import random
from collections.abc import Callable

Damage = Callable[[random.Random, bytes, bytes], bytes]


def _place(rng: random.Random, content: bytes) -> int:
    """A position; half of them in the first kilobyte, where headers are."""
    if not content:
        return 0
    return rng.randrange(min(1024, len(content)) if rng.random() < 0.5 else len(content))


def none(rng: random.Random, content: bytes, other: bytes) -> bytes:
    return content


def flip_bits(rng: random.Random, content: bytes, other: bytes) -> bytes:
    damaged = bytearray(content)
    for _ in range(rng.choice((1, 3, 20, 200))):
        if damaged:
            damaged[_place(rng, content)] ^= 1 << rng.randrange(8)
    return bytes(damaged)


def set_bytes(rng: random.Random, content: bytes, other: bytes) -> bytes:
    """Extreme values where a size, a count or an offset may stand."""
    damaged = bytearray(content)
    for _ in range(rng.choice((1, 2, 8))):
        place, width = _place(rng, content), rng.choice((1, 2, 4, 8))
        damaged[place : place + width] = rng.choice((b"\xff", b"\0", b"\x7f", b"\x80", b"\x01"))[:1] * width
    return bytes(damaged)


def truncate(rng: random.Random, content: bytes, other: bytes) -> bytes:
    return content[: _place(rng, content)]


def drop_start(rng: random.Random, content: bytes, other: bytes) -> bytes:
    return content[_place(rng, content) :]


def insert(rng: random.Random, content: bytes, other: bytes) -> bytes:
    place = _place(rng, content)
    return content[:place] + rng.randbytes(rng.choice((1, 7, 300))) + content[place:]


def delete(rng: random.Random, content: bytes, other: bytes) -> bytes:
    place = _place(rng, content)
    return content[:place] + content[place + rng.choice((1, 5, 200)) :]


def duplicate(rng: random.Random, content: bytes, other: bytes) -> bytes:
    place = _place(rng, content)
    end = place + rng.choice((4, 64, 2000))
    return content[:end] + content[place:end] * rng.choice((1, 5)) + content[end:]


def swap(rng: random.Random, content: bytes, other: bytes) -> bytes:
    """Two pieces of one length change places."""
    one, two = sorted((_place(rng, content), _place(rng, content)))
    width = min(rng.choice((4, 64, 2000)), two - one, len(content) - two)
    first, second = content[one : one + width], content[two : two + width]
    return content[:one] + second + content[one + width : two] + first + content[two + width :]


def splice(rng: random.Random, content: bytes, other: bytes) -> bytes:
    return content[: _place(rng, content)] + other[_place(rng, other) :]


def zeros(rng: random.Random, content: bytes, other: bytes) -> bytes:
    place = _place(rng, content)
    width = rng.choice((16, 500, len(content)))
    return content[:place] + bytes(min(width, len(content) - place)) + content[place + width :]


def repeat_tail(rng: random.Random, content: bytes, other: bytes) -> bytes:
    return content + content[_place(rng, content) :] * rng.choice((1, 3))


def polyglot(rng: random.Random, content: bytes, other: bytes) -> bytes:
    """One file that begins as one thing and goes on as another."""
    return rng.choice((content + other, b"GIF89a" + content, b"%PDF-1.4\n" + content, content + b"PK\3\4" + other))


def empty(rng: random.Random, content: bytes, other: bytes) -> bytes:
    return b""


DAMAGES: tuple[Damage, ...] = (
    *(none, flip_bits, flip_bits, set_bytes, set_bytes, truncate, drop_start, insert, delete, duplicate, swap),
    *(splice, zeros, repeat_tail, polyglot, empty),
)
