"""Recipe files that a stranger may have written."""

from __future__ import annotations

import random
from collections.abc import Callable

from tests.fuzz.damage import DAMAGES

GOOD = """seed: 0
output: runs/mine
model:
  name: tiny
data:
  scenes: 20
method:
  name: stic
  p_bad_prompt: 0.5
objective:
  name: dpo
  beta: 0.1
train:
  learning_rate: 1.0e-5
  epochs: 1
  lora: {rank: 8, alpha: 16, dropout: 0.0}
"""
KEYS = (
    *("seed", "output", "model", "model.name", "data", "data.images", "data.samples", "data.scenes", "data.num_frames"),
    *("data.fps", "method", "method.name", "method.p_bad_prompt", "objective", "objective.name", "objective.beta"),
    *("train", "train.epochs", "train.lora", "train.lora.rank", "train.batch_size", "generate.batch_size", "extra"),
    *("evaluate.labels", "generate.max_bad_share", "data.decoder", "model.dtype", "0", "null", "~", "data.pairs"),
)
VALUES = (
    *("[]", "{}", "null", "''", "-1", "1e999", ".nan", ".inf", "-.inf", "0x" + "f" * 6000, "9" * 400, "9" * 5000),
    *(
        "true",
        "2001-99-99",
        "2001-01-01",
        "1:2:3",
        "!!python/object:os.system x",
        "!!python/name:os.system",
        "!!set {a}",
    ),
    *("!!python/object/apply:os.system ['true']", "!!binary '@@'", "!!int x", "!!float x", "!!timestamp x", "!ruby x"),
    *(
        "&a [*a]",
        "*nowhere",
        "[" * 100_000,
        "{a: " * 500,
        '"\\ud800"',
        '"\\0"',
        '"a\\nb\\e[31m"',
        "'" + "x" * 10_000 + "'",
    ),
    *("[1, [2, [3]]]", "{a: {b: {c: 1}}}", "? [a]", "|\n  text", "!!omap [a: 1]", "0.5", "3", "1_000", "0b101", "~/x"),
)
NAMES = (
    *("../../../etc/passwd:X", "/etc/passwd.py:X", "os:system", "os.path:join", "no_such_module:X", "stic.py:STIC"),
    *("mmalign.types:Pair", "a.py:", ":X", ":", ".py:X", "../x.py:../Y", "x" * 10_000, "a\0b.py:X", "json:JSONDecoder"),
    *(
        "/dev/null.py:X",
        "recipe.yaml:X",
        "builtins:eval",
        "",
        "STIC",
        "stik",
        "loop/x.py:X",
        "~/x.py:X",
        "os:",
        "a..b:c",
    ),
)


def _replaced(key: str, value: str) -> str:
    """The good recipe with a dotted key set to the text of a value."""
    section, _, name = key.partition(".")
    lines, kept, inside = GOOD.splitlines(), [], False
    for line in lines:
        is_top = not line.startswith(" ")
        if is_top:
            inside = line.partition(":")[0] == section
        if inside and (not name or (not is_top and line.strip().partition(":")[0] == name)):
            continue
        kept.append(line)
    if not name:
        return "\n".join([*kept, f"{section}: {value}\n"])
    head = f"{section}:"
    at = kept.index(head) + 1 if head in kept else len(kept)
    inner, _, last = name.partition(".")
    line = f"  {inner}: {{{last}: {value}}}" if last else f"  {inner}: {value}"
    return "\n".join([*kept[:at], *([] if head in kept else [head]), line, *kept[at:], ""])


def _laughs(width: int, depth: int) -> str:
    lines = ["a0: &a0 [" + ", ".join(["lol"] * width) + "]"]
    lines += [f"a{n}: &a{n} [" + ", ".join([f"*a{n - 1}"] * width) + "]" for n in range(1, depth)]
    return "\n".join(lines) + "\n"


_WHOLE: tuple[Callable[[], str], ...] = (
    lambda: _laughs(9, 12),
    lambda: _laughs(2, 200),
    lambda: "data: &d {images: &i [" + "x, " * 100 + "]}\n" + _laughs(5, 4) + GOOD,
    lambda: "x: &x {a: 1}\n" + "".join(f"y{n}: {{<<: [*x, *x]}}\n" for n in range(50)) + GOOD,
    lambda: "[" * 100_000,
    lambda: "{" * 5000,
    lambda: "- " * 40_000,
    lambda: "a: " * 3000 + "b",
    lambda: "? " * 3000,
    lambda: "\t" + GOOD,
    lambda: GOOD.replace("  ", "\t"),
    lambda: GOOD + "\0",
    lambda: GOOD + GOOD,
    lambda: GOOD + "---\n" + GOOD,
    lambda: GOOD + "seed: 1\n",
    lambda: "%YAML 9.9\n---\n" + GOOD,
    lambda: "\ufeff" + GOOD,
    lambda: "# " + "x" * 3_000_000 + "\n" + GOOD,
    lambda: "a" * 100_000 + ": 1\n" + GOOD,
    lambda: "- 1\n- 2\n",
    lambda: "text",
    lambda: "",
    lambda: "1: 2\nnull: 3\n[a]: b\n",
    lambda: GOOD.replace("\n", "\r\n"),
    lambda: GOOD.replace("\n", "\u2028"),
)


def made(rng: random.Random) -> bytes:
    """A file; some are good."""
    act = rng.randrange(10)
    if act == 0:
        return GOOD.replace("scenes: 20", f"scenes: {rng.randrange(1, 99)}").encode()
    if act < 4:
        return _replaced(rng.choice(KEYS), rng.choice(VALUES)).encode("utf-8", "surrogatepass")
    if act < 6:
        return _replaced(rng.choice(("method.name", "objective.name")), f"{rng.choice(NAMES)!r}").encode()
    if act < 8:
        return rng.choice(_WHOLE)().encode("utf-8", "surrogatepass")
    damaged = rng.choice(DAMAGES)(rng, GOOD.encode(), _laughs(3, 3).encode())
    return damaged
