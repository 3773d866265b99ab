"""One sample through a method: opens the media, runs the method, and says what became of it.

Nothing here touches the store, so a sample can be worked on in another process; only the driver writes the journal.
Everything that can go wrong with one sample ends as an `Outcome` with a reason, never as an exception.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
import random
import traceback
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from mmalign.engine.journal import Outcome, Phase, Status
from mmalign.errors import (
    MediaError,
    MMAlignError,
    ModelError,
    NoPair,
    RecipeError,
    SampleError,
    ServerError,
    StoreError,
    one_line,
)
from mmalign.lm.bound import SampleLM
from mmalign.lm.protocol import LM
from mmalign.methods import Method, SurveyMethod, refuse_media
from mmalign.pairs import PairRow
from mmalign.types import Pair, Row, Sample, SampleRow

#: Characters of a prompt: more than models take, and what a tokenizer reads in about a second.
MAX_TEXT: Final = 500_000

#: A two-pass method is no `Method`: its `pairs` takes two more arguments.
AnyMethod = Method | SurveyMethod


@dataclass(frozen=True, slots=True)
class Worker:
    """Runs a method on single samples.

    Args:
        method: The method.
        lm: The model; each sample gets it bound to its own seeds.
        seed: The run's seed.
        round: Which round.
        open_sample: Opens a row's media; raises MediaError.
        pool: Threads in which media are opened.
    """

    method: AnyMethod
    lm: LM
    seed: int
    round: int
    open_sample: Callable[[SampleRow], Sample]
    pool: Executor

    async def survey(self, method: SurveyMethod, row: SampleRow) -> Outcome:
        """The first pass of a two-pass method over one sample."""

        async def look(sample: Sample, lm: SampleLM, rng: random.Random) -> _Found:
            return _Found("done", _json(await method.survey(sample, lm, rng)))

        return await self._run("survey", row, look)

    async def pairs(self, row: SampleRow, *passed: Any) -> Outcome:
        """The pairs of one sample. `passed`: its own survey row and what the method learned, for two-pass methods."""
        method: Any = self.method

        async def make(sample: Sample, lm: SampleLM, rng: random.Random) -> _Found:
            made: list[Row] = []
            discarded: Counter[str] = Counter()
            reason = ""
            pairs = method.pairs(sample, lm, rng, *passed)
            try:
                async for pair in pairs:
                    if isinstance(pair, NoPair):
                        discarded[_line(pair)] += 1
                    elif emptiness := no_preference(pair):
                        discarded[emptiness] += 1
                    else:
                        made.append(self._row(pair, sample.id, len(made)))
            except NoPair as error:
                reason = _line(error)
            finally:
                if isinstance(pairs, AsyncGenerator):
                    await pairs.aclose()
            if made:
                return _Found("done", _json(made), discarded=discarded)
            return _Found(
                "empty", reason=reason or next(iter(discarded), "the method made no pair"), discarded=discarded
            )

        return await self._run("pairs", row, make)

    def _row(self, pair: Pair, sample_id: str, index: int) -> Row:
        _check_numbers(pair)
        return PairRow.of(
            pair, sample_id=sample_id, index=index, method=method_name(self.method), round=self.round, seed=self.seed
        ).to_row()

    async def _run(self, phase: Phase, row: SampleRow, act: _Act) -> Outcome:
        # Without a seed of its own, the survey's n-th call would draw what the n-th call of the second pass draws.
        seed = self.seed if phase == "pairs" else keyed_seed(self.seed, phase)
        bound = SampleLM(self.lm, seed=seed, round=self.round, sample_id=row.id)
        rng = random.Random(keyed_seed(seed, self.round, row.id, "method"))
        try:
            refuse_media(self.method, row.media)
            found = await act(await self._open(row), bound, rng)
        except _UnusableError as error:
            found = _Found("quarantined", stage="data", reason=_line(error))
        except MediaError as error:
            found = _Found("quarantined", stage="media", reason=_line(error))
        except NoPair as error:
            found = _Found("empty", reason=_line(error))
        except SampleError as error:
            found = _Found("quarantined", stage=phase, reason=_line(error))
        except (RecipeError, ServerError, StoreError):
            raise  # Not about this sample: nothing would be gained by going on.
        except Exception as error:
            found = self._fault(phase, error)
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise  # The run is ending.
            found = self._fault(phase, error)
        return Outcome(
            phase=phase,
            sample_id=storable(row.id),
            status=found.status,
            fingerprint=fingerprint(row),
            calls=bound.num_calls,
            stage=found.stage,
            path=storable(", ".join(ref.path for ref in row.media)),
            reason=storable(found.reason),
            discarded=found.discarded,
            made=found.made,
            fault=found.fault,
        )

    async def _open(self, row: SampleRow) -> Sample:
        for text in (row.id, row.prompt, row.system, *(ref.path for ref in row.media)):
            if storable(text) != text:
                raise _UnusableError(f"{storable(text)!r} is not valid Unicode text; rename the file or mend the data")
        if (length := max(len(row.prompt), len(row.system))) > MAX_TEXT:
            raise _UnusableError(f"its prompt has {length} characters, over the limit of {MAX_TEXT}; shorten it")
        if not row.media:
            return row.opened(())
        return await asyncio.get_running_loop().run_in_executor(self.pool, self.open_sample, row)

    def _fault(self, phase: Phase, error: BaseException) -> _Found:
        """An error that nobody meant to raise: most likely a bug in the method, or a model that fails."""
        fault = f"{type(error).__name__} ({_place(error, self.method)})"
        text = _line(error) if isinstance(error, ModelError) else explain(error, self.method)
        return _Found("quarantined", stage=phase, reason=text, fault=fault)


class _UnusableError(MMAlignError):
    """A row whose own text cannot be stored."""


@dataclass(frozen=True, slots=True)
class _Found:
    status: Status
    made: str = ""
    stage: str = ""
    reason: str = ""
    fault: str = ""
    discarded: Mapping[str, int] = field(default_factory=dict)


_Act = Callable[[Sample, SampleLM, random.Random], Awaitable[_Found]]


def method_name(method: object) -> str:
    """The name that `@method` gave to the class."""
    cls: Any = type(method)
    return str(cls.method_name)


def keyed_seed(*key: int | str) -> int:
    """A 63-bit seed for a key; neighbouring keys give unrelated seeds."""
    digest = hashlib.blake2b(json.dumps(key).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


#: Made once: `json.dumps` with options builds an encoder for each call, and a million rows are resumed in seconds.
_ENCODE = json.JSONEncoder(sort_keys=True, default=str).encode
_ENCODE_MADE = json.JSONEncoder(ensure_ascii=False, allow_nan=False).encode


def fingerprint(row: SampleRow) -> int:
    """64 bits that hang on all that a method can see of a row; a sample that changed in the data is made again."""
    seen = [[ref.to_row() for ref in row.media], row.prompt, row.system, dict(row.meta)]
    return int.from_bytes(hashlib.blake2b(_ENCODE(seen).encode(), digest_size=8).digest(), "little", signed=True)


def storable(text: str) -> str:
    """`text` with what UTF-8 cannot hold (file names in other encodings) written as escapes."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()


def no_preference(pair: Pair) -> str:
    """Why a pair says nothing that could be learnt, or an empty text."""
    if not pair.chosen.text.strip():
        return "the chosen text is empty"
    if not pair.rejected.text.strip():
        return "the rejected text is empty"
    # The same words under different contexts are a preference too (mDPO: the picture is what differs).
    same_context = pair.rejected_context is None or pair.rejected_context.to_rows() == pair.context.to_rows()
    if same_context and pair.chosen.text.strip() == pair.rejected.text.strip():
        return "chosen and rejected are the same text"
    return ""


def _check_numbers(pair: Pair) -> None:
    if not 0 <= pair.p <= 1:
        raise ValueError(f"a pair's p is {pair.p}, it must lie in [0, 1]")
    if not 0 <= pair.weight < math.inf:
        raise ValueError(f"a pair's weight is {pair.weight}, it must be finite and not negative")
    if pair.gap is not None and not math.isfinite(pair.gap):
        raise ValueError(f"a pair's gap is {pair.gap}, it must be finite")


def _json(value: Any) -> str:
    text = _ENCODE_MADE(value)
    text.encode()  # Half a surrogate pair would fail later, in the journal, and stop the run.
    return text


def _line(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    line = one_line(lines[0])  # other people's errors quote other people's texts
    return line if len(line) <= 300 else line[:297] + "..."


def explain(error: BaseException, method: object) -> str:
    """An unexpected error in one line: type, message, and file and line in the method where there is one."""
    return f"{type(error).__name__}: {_line(error)} ({_place(error, method)})"


def _place(error: BaseException, method: object) -> str:
    """File and line of the last step inside the method's own file, or of the last step at all."""
    cls: Any = type(method)
    method_path = cls.pairs.__code__.co_filename
    steps = traceback.extract_tb(error.__traceback__)
    step = next((step for step in reversed(steps) if step.filename == method_path), steps[-1])
    return f"{Path(step.filename).name}:{step.lineno}"
