"""A folder in which most pictures are hostile, from `generate` to pairs and quarantine."""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from mmalign.engine import generate
from mmalign.engine.recorder import TooManyBad
from mmalign.engine.rundir import RunDir
from mmalign.engine.work import MAX_TEXT
from mmalign.errors import MediaError
from mmalign.lm.bound import SampleLM
from mmalign.lm.scripted import ScriptedLM
from mmalign.media.image import PictureLimits, decode_picture
from mmalign.methods import method
from mmalign.pairs import read_pairs
from mmalign.samples import read_samples
from mmalign.types import Chat, Pair, Sample, SampleRow, Sampling
from tests.fuzz.corpus import made
from tests.media.hostile import encoded, quarters

WARM = Sampling(temperature=1.0)


@method("two_answers", media=("image", "text"))
class TwoAnswers:
    """Any two answers about a picture."""

    async def pairs(self, sample: Sample, lm: SampleLM, rng: random.Random) -> AsyncIterator[Pair]:
        chat = sample.ask(sample.prompt or "What is this?")
        one, two = await lm.generate_n(chat, 2, WARM)
        yield Pair(chat, one, two)


def answer(chat: Chat, sampling: Sampling, seed: int) -> str:
    return hashlib.sha256(f"{chat.prompt}|{seed}".encode()).hexdigest()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, set[str], set[str]]:
    """A folder with 60 hostile pictures that must be refused and 20 good ones; and the names of both."""
    root, workplace = tmp_path_factory.mktemp("data"), tmp_path_factory.mktemp("clips")
    good = {f"good {number}.png": encoded(quarters(shade=number), "PNG") for number in range(20)}
    bad: dict[str, bytes] = {}
    for number in range(2000):
        case = made(11, number, workplace)
        if case.door == "picture" and len(case.content) < 10**6 and not case.name.endswith(".mp4"):
            try:
                decode_picture(case.content, "a", PictureLimits())
            except MediaError:
                bad[f"bad {number}\n{case.name}"] = case.content
        if len(bad) == 60:
            break
    for name, content in (good | bad).items():
        (root / name).write_bytes(content)
    return root, set(good), set(bad)


def test_the_run_ends_and_says_of_each_bad_picture_why(folder: tuple[Path, set[str], set[str]], tmp_path: Path) -> None:
    root, good, bad = folder
    with RunDir(tmp_path / "run") as run:
        summary = generate(
            TwoAnswers(), read_samples(root), ScriptedLM(answer), run=run, data_root=root, max_bad_share=1.0
        )
    assert {row.sample_id for row in read_pairs(run.pairs_path())} == good
    lines = (tmp_path / "run" / "quarantine.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert {row["path"] for row in rows} == bad
    assert all(row["stage"] == "media" and re.fullmatch(r"[^\n\x1b]+", row["reason"]) for row in rows)
    assert len({row["reason"].rpartition(": ")[2] for row in rows}) >= 5  # not one reason for all
    assert summary.quarantined.total() == len(bad) == 60


def test_too_many_bad_pictures_stop_the_run(folder: tuple[Path, set[str], set[str]], tmp_path: Path) -> None:
    root, _, bad = folder
    with RunDir(tmp_path / "run") as run, pytest.raises(TooManyBad) as caught:
        generate(TwoAnswers(), read_samples(root), ScriptedLM(answer), run=run, data_root=root, max_bad_share=0.3)
    assert "\n" not in str(caught.value)
    assert 0 < len((tmp_path / "run" / "quarantine.jsonl").read_text().splitlines()) <= len(bad)


def test_prompts_of_megabytes_are_put_aside_before_they_are_read(tmp_path: Path) -> None:
    words = {"short": "What?", "full": "a" * MAX_TEXT, "long": "a" * (MAX_TEXT + 1)}
    rows = [SampleRow(name, prompt=text) for name, text in words.items()]
    rows.append(SampleRow("system", prompt="What?", system="a" * 10**7))
    seen: list[str] = []

    def counted(chat: Chat, sampling: Sampling, seed: int) -> str:
        seen.append(chat.prompt)
        return answer(chat, sampling, seed)

    with RunDir(tmp_path / "run") as run:
        generate(TwoAnswers(), rows, ScriptedLM(counted), run=run, data_root=tmp_path, max_bad_share=1.0)
    assert {row.sample_id for row in read_pairs(run.pairs_path())} == {"short", "full"}
    bad = [json.loads(line) for line in (tmp_path / "run" / "quarantine.jsonl").read_text().splitlines()]
    assert {row["id"]: row["reason"] for row in bad} == {
        "long": f"its prompt has {MAX_TEXT + 1} characters, over the limit of {MAX_TEXT}; shorten it",
        "system": f"its prompt has {10**7} characters, over the limit of {MAX_TEXT}; shorten it",
    }
    assert max(map(len, seen)) == MAX_TEXT
