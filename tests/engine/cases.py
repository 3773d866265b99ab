"""Methods, samples and a model for the engine's tests, and a program that runs them in a process of its own."""

from __future__ import annotations

import asyncio
import hashlib
import random
import resource
import signal
import sys
from collections.abc import AsyncIterator, Iterable, Sequence
from pathlib import Path

from mmalign.engine import Summary, generate
from mmalign.engine.rundir import RunDir
from mmalign.errors import MMAlignError, NoPair, SampleError
from mmalign.lm.bound import SampleLM
from mmalign.lm.scripted import ScriptedLM
from mmalign.methods import Method, SurveyMethod, method
from mmalign.pairs import PairRow
from mmalign.types import Chat, Completion, Pair, Row, Sample, SampleRow, Sampling

WARM = Sampling(temperature=1.0)


def sample_rows(num: int) -> list[SampleRow]:
    return [SampleRow(f"sample-{index}", prompt=f"What is {index}?") for index in range(num)]


def answer(chat: Chat, sampling: Sampling, seed: int) -> str:
    """Words that hang on all that an answer may hang on."""
    text = f"{chat.prompt}|{sampling.temperature}|{seed}"
    return hashlib.sha256(text.encode()).hexdigest()


@method("plain", media=("image", "text"))
class Plain:
    """Draws, asks several things at once, and makes 0 to 3 pairs; some samples have none, some cannot be used."""

    strength: int = 1

    async def pairs(self, sample: Sample, lm: SampleLM, rng: random.Random) -> AsyncIterator[Pair]:
        draw = rng.randrange(10)
        if draw == 0:
            raise NoPair("all answers agree")
        if draw == 1:
            raise SampleError("no claim could be judged")
        chat = sample.ask(f"{sample.prompt} ({self.strength})")
        first, others = await asyncio.gather(lm.generate(chat, WARM), lm.generate_n(chat, 3, WARM))
        for other in others[: draw % 4]:
            await asyncio.sleep(0)
            yield Pair(chat, first, other, source=f"draw {draw}", gap=rng.random(), provenance={"seed": other.seed})


@method("two_pass", media=("image", "text"))
class TwoPass:
    """Compares each sample with the mean of all."""

    async def survey(self, sample: Sample, lm: SampleLM, rng: random.Random) -> Row:
        if rng.randrange(8) == 0:
            raise SampleError("cannot be surveyed")
        text = (await lm.generate(sample.ask(sample.prompt), WARM)).text
        return {"value": int(text[:6], 16), "text": text}

    def learn(self, surveys: Iterable[Row]) -> float:
        values = [row["value"] for row in surveys]
        return sum(values) / len(values)

    async def pairs(
        self, sample: Sample, lm: SampleLM, rng: random.Random, survey: Row, known: float
    ) -> AsyncIterator[Pair]:
        if survey["value"] < known:
            raise NoPair("below the mean")
        chat = sample.ask(sample.prompt)
        yield Pair(chat, await lm.generate(chat, WARM), Completion(survey["text"]), gap=survey["value"] - known)


@method("choosy", media=("image", "text"))
class Choosy(Plain):
    """Keeps the half of the pairs with the larger gap."""

    def select(self, rows: list[PairRow]) -> list[PairRow]:
        return sorted(rows, key=lambda row: -(row.gap or 0.0))[: len(rows) // 2]


METHODS: dict[str, type] = {"plain": Plain, "two_pass": TwoPass, "choosy": Choosy}


def make(
    path: Path,
    rows: Iterable[SampleRow],
    way: Method | SurveyMethod | None = None,
    *,
    lm: ScriptedLM | None = None,
    seed: int = 0,
    concurrency: int = 16,
    max_bad_share: float = 0.5,
    retry_quarantined: bool = False,
) -> Summary:
    """Generate into a run directory under `path`."""
    with RunDir(path) as run:
        return generate(
            way or Plain(),
            rows,
            lm or ScriptedLM(answer),
            run=run,
            data_root=path,
            seed=seed,
            concurrency=concurrency,
            max_bad_share=max_bad_share,
            retry_quarantined=retry_quarantined,
        )


def pair_bytes(path: Path) -> bytes:
    return (path / "round-0" / "pairs.parquet").read_bytes()


class SlowLM(ScriptedLM):
    """Takes a moment for each answer and prints a line for it, so that there are moments to be killed in."""

    async def generate(self, chat: Chat, sampling: Sampling, *, seed: int) -> Completion:
        await asyncio.sleep(random.random() * 0.01)
        print("answer", flush=True)
        return await super().generate(chat, sampling, seed=seed)


def main(arguments: Sequence[str]) -> int:
    """`PATH METHOD NUM [LARGEST_FILE_IN_BYTES]`: one run, with frequent writes to the journal."""
    path, name, num, *largest = arguments
    module = sys.modules["mmalign.engine.generate"]
    module.FLUSH_NUM, module.FLUSH_S = 7, 0.02  # type: ignore[attr-defined]
    if largest:
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(largest[0]), resource.RLIM_INFINITY))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        with RunDir(Path(path)) as run:
            run.begin({"method": name, "num": int(num)})
            print("began", flush=True)
            generate(METHODS[name](), sample_rows(int(num)), SlowLM(answer), run=run, data_root=Path(path))
    except MMAlignError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
