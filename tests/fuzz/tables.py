"""Parquet files that a stranger may have written: samples and pairs."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from functools import cache
from io import BytesIO
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mmalign.pairs import SCHEMA as PAIRS
from mmalign.pairs import pair_of_json
from mmalign.samples import ROOT_KEY
from mmalign.samples import SCHEMA as SAMPLES
from tests.fuzz.damage import DAMAGES
from tests.fuzz.lines import PATHS, ROWS, TEXTS

ROOTS = (b".", b"..", b"/", b"/etc", b"sub", b"~", b"\xff", b"a\0b", b"file:///", b"")


def _file(table: pa.Table, **options: Any) -> bytes:
    stream = BytesIO()
    pq.write_table(table, stream, **{"compression": "zstd", **options})
    return stream.getvalue()


def _samples(rng: random.Random, path: str = "good.png") -> list[dict[str, Any]]:
    media = json.dumps([{"type": "image", "path": path, "sha256": ""}])
    ids = [f"s{rng.getrandbits(40)}" for _ in range(rng.randrange(1, 5))]
    return [{"id": name, "media": media, "prompt": "What?", "system": "", "meta": "{}"} for name in ids]


def _pairs(rng: random.Random) -> list[dict[str, Any]]:
    return [pair_of_json(ROWS["pairs"](rng)).to_row() for _ in range(rng.randrange(1, 5))]


def _good(rng: random.Random, kind: str) -> pa.Table:
    if kind == "pairs":
        return pa.Table.from_pylist(_pairs(rng), schema=PAIRS)
    return pa.Table.from_pylist(_samples(rng), schema=SAMPLES)


def _cells(rng: random.Random, kind: str) -> bytes:
    """One cell of a JSON or text column with junk in it."""
    rows = _samples(rng, rng.choice(PATHS[:20])) if kind == "samples" else _pairs(rng)
    columns = ("id", "media", "prompt", "meta") if kind == "samples" else ("id", "context", "sides", "values", "chosen")
    deep = "[" * 100_000 + "]" * 100_000
    junk = rng.choice((*TEXTS, deep, "[1]", "{}", '{"a": NaN}', '[{"type": "image"}]', '[{"role": "user"}]', "1e999"))
    rows[0][rng.choice(columns)] = junk.encode("utf-8", "replace").decode()
    return _file(pa.Table.from_pylist(rows, schema=PAIRS if kind == "pairs" else SAMPLES))


def _types(rng: random.Random, kind: str) -> bytes:
    """A column of another type, twice, gone, or with nulls."""
    table = _good(rng, kind)
    place = rng.randrange(len(table.schema))
    name, num = table.schema.names[place], len(table)
    others: tuple[Callable[[], Any], ...] = (
        lambda: pa.array([1] * num),
        lambda: pa.array([None] * num),
        lambda: pa.array([[["a"]]] * num),
        lambda: pa.array([{"a": {"b": [1]}}] * num),
        lambda: pa.array([b"\xff\xfe"] * num),
        lambda: pa.array(["a\xffb"] * num).cast(pa.large_string()),
        lambda: pa.array([1e300] * num),
        lambda: pa.array([2**62] * num),
        lambda: pa.array(["x"] * num).dictionary_encode(),
        lambda: pa.array([0] * num, pa.timestamp("ns", "Nowhere/Land")),
    )
    act = rng.randrange(4)
    if act == 0:
        return _file(table.drop_columns([name]))
    if act == 1:
        return _file(table.append_column(rng.choice((name, "extra", "")), table.column(name)))
    return _file(table.set_column(place, name, rng.choice(others)()))


@cache
def bomb(kind: str, shape: str) -> bytes:
    """Kilobytes that stand for gigabytes."""
    names = [field.name for field in (PAIRS if kind == "pairs" else SAMPLES)]
    long = "a" * (300 * 2**20 if shape == "one text" else 8 * 2**20)
    num = {"one text": 1, "one text in all rows": 2000, "rows": 3_000_000}[shape]
    column = pa.DictionaryArray.from_arrays(pa.array([0] * num, pa.int32()), [long if shape != "rows" else "a"])
    good = _good(random.Random(0), kind).slice(0, 1).to_pylist()[0]
    columns: dict[str, Any] = {}
    for name in names:
        value = good[name]
        plain = isinstance(value, str)
        columns[name] = (
            pa.DictionaryArray.from_arrays(pa.array([0] * num, pa.int32()), [value]) if plain else [value] * num
        )
    columns["chosen" if kind == "pairs" else "prompt"] = column
    table = pa.table({name: columns[name] for name in names if num < 10**6 or isinstance(good[name], str)})
    return _file(table, store_schema=False)


def _bombs(rng: random.Random, kind: str) -> bytes:
    return bomb(kind, rng.choice(("one text", "one text in all rows", "rows")))


def _roots(rng: random.Random, kind: str) -> bytes:
    """A data folder elsewhere, and paths below it."""
    table = pa.Table.from_pylist(_samples(rng, rng.choice(("etc/passwd", "good.png", "passwd"))), schema=SAMPLES)
    return _file(table.replace_schema_metadata({ROOT_KEY: rng.choice(ROOTS)}))


def _footer(rng: random.Random, kind: str) -> bytes:
    """A footer of any length, or with other bytes in it."""
    content = bytearray(_file(_good(rng, kind)))
    if rng.random() < 0.4:
        content[-8:-4] = rng.choice((0, 1, 8, len(content), 2**31 - 1, 2**32 - 1)).to_bytes(4, "little")
        return bytes(content)
    size = int.from_bytes(content[-8:-4], "little")
    for _ in range(rng.choice((1, 3, 20))):
        content[rng.randrange(len(content) - 8 - size, len(content) - 8)] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, 0x15))
    return bytes(content)


def made(rng: random.Random, kind: str) -> bytes:
    """A file; one in seven is good."""
    act = rng.randrange(14)
    if act < 2:
        return _file(_good(rng, kind), compression=rng.choice(("zstd", "snappy", "none")), use_dictionary=act == 0)
    if act < 5:
        return _footer(rng, kind)
    if act < 7:
        return _types(rng, kind)
    if act < 9:
        return _cells(rng, kind)
    if act == 9:
        return _bombs(rng, kind)
    if act == 10 and kind == "samples":
        return _roots(rng, kind)
    return rng.choice(DAMAGES)(rng, _file(_good(rng, kind)), _file(_good(rng, kind)))
