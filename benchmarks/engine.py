"""What the engine costs: samples a second with a model that answers at once, and a million samples from start to end.

    python -m benchmarks.engine                                    # all of it, a few minutes; writes docs/results
    python -m benchmarks.engine --parts rate overhead
    python -m benchmarks.engine --parts million --samples 100000 --output engine.json

- *rate*: samples and processor seconds of a run in which every sample asks the scripted lm twice and makes one pair.
- *million*: a Parquet file of so many samples through the scripted lm, each step a process of its own: `first` does
  all but the last thousand, `resume` these, `again` finds that nothing is left, `changed` has another word in one row.
  Told are the seconds from the command to the first sample that is worked on and to the end, and the memory in use
  (RSS) in tenths of the samples. One row in a hundred is quarantined with a reason of its own.
- *overhead*: the same requests about drawn pictures to the embedded model, by the engine and by hand, in turn.

Processor seconds are those of the whole process: on a machine that does other work, too, they tell more than the clock.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import psutil

from mmalign.engine import RunDir, Silent, generate, generate_async
from mmalign.engine.journal import Status
from mmalign.errors import SampleError
from mmalign.lm.bound import SampleLM, call_seed
from mmalign.lm.protocol import LM
from mmalign.lm.scripted import ScriptedLM
from mmalign.methods import method
from mmalign.types import MediaRef, Pair, Sample, SampleRow, Sampling

PARTS = ("rate", "million", "overhead")
RESULTS = Path(__file__).resolve().parents[1] / "docs" / "results" / "engine.json"
WARM = Sampling(temperature=1.0, max_new_tokens=32)
COLD = Sampling(max_new_tokens=32)
LAST = 1000
Told = dict[str, Any]


@method("two_answers", media=("image", "text"))
class TwoAnswers:
    """A greedy answer against a sampled one; about one sample in a hundred cannot be used."""

    bad_share: float = 0.01

    async def pairs(self, sample: Sample, lm: SampleLM, rng: random.Random) -> AsyncIterator[Pair]:
        if rng.random() < self.bad_share:
            raise SampleError(f"nothing could be judged in {sample.id}")
        chat = sample.ask(sample.prompt or "What is in the picture?")
        chosen, rejected = await asyncio.gather(lm.generate(chat, COLD), lm.generate(chat, WARM))
        yield Pair(chat, chosen, rejected, provenance={"seeds": [chosen.seed, rejected.seed]})


def scripted() -> ScriptedLM:
    return ScriptedLM({"*": ("A cup stands on the table.", "A dog.", "A cat sleeps on a red chair.")})


# A run in a process of its own ------------------------------------------------------------------------------------


class Watch(Silent):
    """Notes memory in tenths of the samples, and when the first one was finished."""

    def __init__(self, num: int) -> None:
        self.num = num
        self.done = 0
        self.tenths: list[list[int]] = [[] for _ in range(10)]
        self.first_s: float | None = None
        self._process = psutil.Process()

    def rss(self) -> int:
        return int(self._process.memory_info().rss)

    def found(self, status: Status) -> None:
        self.done += 1

    def finished(self, status: Status) -> None:
        if self.first_s is None:
            self.first_s = time.time() - self._process.create_time()
        self.done += 1
        if self.done % 1000 == 0:
            self.tenths[min(9, (self.done - 1) * 10 // self.num)].append(self.rss())


def one_run(data: Path, folder: Path, limit: int) -> None:
    """What the processes of `million` do."""
    from mmalign.samples import read_samples

    watch = Watch(limit)
    with RunDir(folder) as run:
        rows = read_samples(data, limit)
        summary = generate(TwoAnswers(), rows, scripted(), run=run, data_root=folder, progress=watch)
    process = psutil.Process()
    took, state = process.cpu_times(), run.pairs_path().stat()
    told = {
        "first_s": None if watch.first_s is None else round(watch.first_s, 2),
        "whole_s": round(time.time() - process.create_time(), 2),
        "processor_s": round(took.user + took.system, 2),
        "samples": summary.num_samples,
        "resumed": summary.resumed,
        "pairs": summary.pairs,
        "quarantined": summary.quarantined.total(),
        "tenths_mib": [round(statistics.mean(tenth) / 2**20, 1) for tenth in watch.tenths if tenth],
        "end_mib": round(watch.rss() / 2**20, 1),
        "journal_mib": round((run.round_path(0) / "journal.sqlite").stat().st_size / 2**20),
        "pairs_state": [state.st_ino, state.st_mtime_ns],
    }
    print(json.dumps(told))


def started(data: Path, folder: Path, limit: int) -> Told:
    command = [sys.executable, "-m", "benchmarks.engine", "--run", str(data), str(folder), str(limit)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, cwd=Path(__file__).resolve().parents[1])
    told: Told = json.loads(done.stdout)
    return told


def write_data(path: Path, num: int, changed: int | None = None) -> None:
    """A sample file as `mmalign prepare` writes it, without pictures behind it."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from mmalign.samples import SCHEMA

    names = ("id", "media", "prompt", "system", "meta")
    schema = pa.schema([SCHEMA.field(name) for name in names])
    with pq.ParquetWriter(path, schema) as writer:
        for first in range(0, num, 10_000):
            numbers = range(first, min(first + 10_000, num))
            ids = [f"pictures/{number * 7919 % 1000:03d}/{number:08d}.jpg" for number in numbers]
            prompts = [f"What is in picture {number}?{' Say it.' * (number == changed)}" for number in numbers]
            same = [[text] * len(numbers) for text in ("[]", "", '{"source": "made"}')]
            writer.write_table(pa.table([ids, same[0], prompts, *same[1:]], schema=schema))


def million(num: int, root: Path) -> Told:
    data, other, folder = root / "samples.parquet", root / "changed.parquet", root / "run"
    write_data(data, num)
    write_data(other, num, changed=num // 2)
    told: Told = {}
    for name, source, limit in (
        ("first", data, num - LAST),
        ("resume", data, num),
        ("again", data, num),
        ("changed", other, num),
    ):
        told[name] = started(source, folder, limit)
        print(f"{name}: {told[name]}", flush=True)
    tenths = told["first"]["tenths_mib"]
    told["memory_growth"] = round(tenths[-1] / tenths[0] - 1, 3)
    told["rewritten_again"] = told["again"]["pairs_state"] != told["resume"]["pairs_state"]
    for name in ("first", "resume", "again", "changed"):
        del told[name]["pairs_state"]
    return {"samples": num, **told}


# In this process --------------------------------------------------------------------------------------------------


def text_rows(num: int) -> Iterator[SampleRow]:
    return (SampleRow(f"sample-{number}", prompt=f"What is {number}?") for number in range(num))


def rate(num: int, runs: int) -> Told:
    clocks, processors = [], []
    for _ in range(runs):
        with tempfile.TemporaryDirectory() as folder, RunDir(Path(folder) / "run") as run:
            clock, processor = time.perf_counter(), time.process_time()
            summary = generate(TwoAnswers(), text_rows(num), scripted(), run=run, data_root=Path(folder))
            clocks.append(num / (time.perf_counter() - clock))
            processors.append((time.process_time() - processor) / num)
            assert summary.num_samples == num
    told = {
        "samples": num,
        "runs": runs,
        "per_s": round(statistics.median(clocks)),
        "per_s_lowest": round(min(clocks)),
        "processor_us": round(statistics.median(processors) * 1e6, 1),
    }
    print(f"rate: {told}", flush=True)
    return told


def overhead(num: int, runs: int, engine_us: float | None) -> Told:
    import torch

    from mmalign.lm.load import load_model
    from mmalign.lm.local import LocalLM
    from mmalign.lm.spec import ModelSpec
    from mmalign.pairs import iter_pairs
    from mmalign.tiny import draw_scene, scenes

    torch.set_num_threads(1)
    loaded = load_model(ModelSpec(name="tiny"))
    times: dict[str, list[float]] = {"engine": [], "by hand": []}
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        for number, scene in enumerate(scenes(num, seed=0, split="pairs")):
            draw_scene(scene).save(root / f"{number}.png")
        rows = [SampleRow(f"{number}.png", (MediaRef(f"{number}.png"),)) for number in range(num)]

        async def by_engine(turn: int) -> dict[str, tuple[str, str]]:
            async with LocalLM(loaded) as lm:  # one for each, as it keeps what it computed
                with RunDir(root / f"run-{turn}") as run:
                    begun = time.process_time()
                    await generate_async(TwoAnswers(bad_share=0), rows, lm, run=run, data_root=root)
                    times["engine"].append(time.process_time() - begun)
            pairs = iter_pairs(run.pairs_path())
            return {pair.sample_id: (pair.chosen, pair.rejected) for pair in pairs}

        async def asked(turn: int) -> dict[str, tuple[str, str]]:
            async with LocalLM(loaded) as lm:
                begun = time.process_time()
                answers = await by_hand(rows, lm, root)
                times["by hand"].append(time.process_time() - begun)
            return {name: told for name, told in answers.items() if told[0].strip() != told[1].strip()}

        for turn in range(runs + 1):  # the first one warms up
            answers = [asyncio.run(ask(turn)) for ask in ((by_engine, asked) if turn % 2 else (asked, by_engine))]
            assert answers[0] == answers[1]
    ratios = [ours / theirs for ours, theirs in zip(times["engine"][1:], times["by hand"][1:], strict=True)]
    sample_us = statistics.median(times["by hand"][1:]) / num * 1e6
    told = {
        "samples": num,
        "runs": runs,
        "model_us": round(sample_us),
        "ratios": [round(ratio, 3) for ratio in ratios],
        "ratio": round(statistics.median(ratios), 3),
        "share": None if engine_us is None else round(engine_us / sample_us, 4),
    }
    print(f"overhead: {told}", flush=True)
    return told


async def by_hand(rows: Iterable[SampleRow], lm: LM, root: Path) -> dict[str, tuple[str, str]]:
    """Both answers about each picture, 64 at a time, as the engine asks for them."""
    from mmalign.media.read import MediaLimits, open_media

    left = iter(rows)
    answers: dict[str, tuple[str, str]] = {}

    async def take() -> None:
        for row in left:
            sample = await asyncio.to_thread(open_media, row, root, MediaLimits())
            chat = sample.ask("What is in the picture?")
            seeds = [call_seed(0, 0, row.id, call) for call in range(2)]
            told = await asyncio.gather(lm.generate(chat, COLD, seed=seeds[0]), lm.generate(chat, WARM, seed=seeds[1]))
            answers[row.id] = (told[0].text, told[1].text)

    await asyncio.gather(*(take() for _ in range(64)))
    return answers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--samples", type=int, default=1_000_000, help="samples of the part million")
    parser.add_argument("--rate-samples", type=int, default=30_000)
    parser.add_argument("--pictures", type=int, default=384, help="pictures of the part overhead")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where the runs are written; a temporary folder by default")
    parser.add_argument("--output", type=Path, default=RESULTS, help="JSON file; parts that are not run are kept")
    parser.add_argument("--run", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.run:
        data, folder, limit = given.run
        one_run(Path(data), Path(folder), int(limit))
        return
    found: Told = json.loads(given.output.read_text()) if given.output.exists() else {}
    if "rate" in given.parts:
        found["rate"] = rate(given.rate_samples, given.runs)
    if "million" in given.parts:
        with tempfile.TemporaryDirectory(dir=given.folder) as folder:
            found["million"] = million(given.samples, Path(folder))
    if "overhead" in given.parts:
        found["overhead"] = overhead(given.pictures, given.runs, found.get("rate", {}).get("processor_us"))
    given.output.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
