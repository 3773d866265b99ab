"""What a dry run says of a training: what the model reads, what is computed once, what it will take; and no more."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mmalign.cli import dry_training, main
from mmalign.cli.dry_training import num_steps
from mmalign.pairs import PairRow, read_pairs, write_pairs
from mmalign.train.cache.keys import row_key
from mmalign.train.cache.parts import Numbers, Parts
from mmalign.train.config import TrainConfig
from tests.train.rows import CHOSEN, REJECTED, make_rows


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave memory and time out, which take a second or two."""
    monkeypatch.setattr("mmalign.cli.dry_training.forecast", fails)


def fails(*_: object) -> None:
    raise RuntimeError("a kernel of its own\nand more")


def dry(root: Path, rows: Sequence[PairRow], capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> str:
    """What `mmalign train --dry-run` prints of these pairs, or its error."""
    recipe = root / "recipe.yaml"
    if not recipe.exists():
        recipe.write_text(f"method: {{name: stic}}\nobjective: {{name: dpo}}\ndata: {{images: {root / 'pictures'}}}\n")
        write_pairs(root / "run" / "round-0" / "pairs.parquet", rows)
    before = sorted(root.rglob("*"))
    assert main(["train", str(recipe), "--output", str(root / "run"), "--dry-run", *words]) == code
    assert sorted(root.rglob("*")) == before  # nothing is written
    told = capsys.readouterr()
    return told.err if code else told.out[told.out.index("\nmodel:") :]


def pairs(root: Path, count: int, *, pictures: int = 1) -> list[PairRow]:
    """Pairs about pictures in a folder of their own."""
    (root / "pictures").mkdir(exist_ok=True)
    return make_rows(root / "pictures", count, pictures=pictures)


def amount(name: str, text: str) -> float:
    """Bytes that are told of something."""
    [(found, unit)] = re.findall(rf"{name} ([\d.]+) (kB|MB)", text)
    return float(found) * {"kB": 1e3, "MB": 1e6}[unit]


def number(pattern: str, text: str) -> float:
    [found] = re.findall(pattern, text)
    return float(found)


@pytest.mark.usefixtures("quick")
def test_three_rows_are_shown_as_the_model_reads_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = pairs(tmp_path, 1, pictures=0)[0]
    rows = [*pairs(tmp_path, 4), replace(text, id="words")]
    out = dry(tmp_path, rows, capsys)
    shown = re.findall(r"^(\S+):\n  prompt, (\d+) tokens, (\d+) of them media: (.*)\n", out, re.MULTILINE)
    assert [row[0] for row in shown] == ["s0#0.0", "words", "s1#0.0"]  # of each kind, then the first ones
    for name, tokens, media, prompt in shown:
        assert "Describe the picture. " in prompt
        counted = re.search(rf"^pair {re.escape(name)} .*: (\d+) tokens, (\d+) of them media", out, re.MULTILINE)
        assert counted is not None
        assert media == counted.group(2)
        # The longest side is the prompt with the longer answer.
        block = out[out.index(f"\n{name}:\n") :]
        answers = [int(n) for n in re.findall(r"^  (?:chosen|rejected), (\d+) tokens", block, re.MULTILINE)[:2]]
        assert int(counted.group(1)) == int(tokens) + max(answers)
        index = int(prompt.partition("Describe the picture. ")[2][0])
        assert f"tokens: {CHOSEN[index]}" in block
        assert f"tokens: {REJECTED[index]}" in block
    assert int(shown[0][2]) > 1
    assert re.search(rf"> x {shown[0][2]}<", shown[0][3])
    assert "of them media" not in shown[1][3]


@pytest.mark.usefixtures("quick")
def test_what_is_shared_is_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = dry(tmp_path, pairs(tmp_path, 1), capsys)
    prompt = number(r"prompt, (\d+) tokens", out)
    chosen, rejected = (number(rf"  {side}, (\d+) tokens", out) for side in ("chosen", "rejected"))
    plain, shared = 2 * prompt + chosen + rejected, number(r"before the run\): (\d+) tokens a pair", out)
    assert number(r"in place of (\d+)", out) == plain
    # Each answer's last token predicts nothing; what both begin with is computed once too.
    common = shared - (prompt + chosen + rejected - 2)
    assert -5 <= common <= 0
    assert number(r"([\d.]+) times less", out) == pytest.approx(plain / shared, abs=0.05)
    alone = dry(tmp_path, [], capsys, "--train.shared_prefix", "off")
    assert f"shared: nothing (train.shared_prefix is off), {plain:.0f} tokens a pair" in alone


@pytest.mark.usefixtures("quick")
def test_what_is_on_disk_is_known(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = pairs(tmp_path, 3)
    none = dry(tmp_path, rows, capsys)
    assert f"none are in {tmp_path}/run/train/reference yet" in none
    assert "features of media: once where the model can" in none
    known = Numbers(torch.tensor([9, 9]), torch.tensor([2, 1]), torch.zeros(3))
    unscored = Numbers(torch.tensor([9, 9]), torch.tensor([2, 1]))
    keys = [row_key(row, tmp_path / "pictures") for row in rows]
    Parts(tmp_path / "kept" / "form").write({keys[0]: known, keys[1]: unscored, "another": known})
    some = dry(tmp_path, rows, capsys, "--train.reference_cache", str(tmp_path / "kept"))
    assert f"1 of 3 pairs have some in {tmp_path}/kept (" in some
    never = dry(tmp_path, rows, capsys, "--train.precompute_reference", "false", "--train.vision_once", "off")
    assert "reference log-probs: at every step, with the adapter off" in never
    assert "features of media: in every forward" in never


def test_memory_weights_and_time_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = dry(tmp_path, pairs(tmp_path, 3), capsys, "--train.lora.rank", "8", "--train.epochs", "2")
    assert "training: LoRA of rank 8 on 3 pairs, 2 steps of 8" in out
    out = out[out.index("memory:") :]
    parts = [amount(name, out) for name in (": weights", "gradients", "optimizer", "activations")]
    assert sum(parts) == pytest.approx(amount("memory: about", out), rel=0.02)
    assert parts[2] == pytest.approx(2 * parts[1], rel=0.02)
    assert re.search(r"; [\d.,]+ [kMG]B are free\n", out)
    assert re.search(r"^weights: [\d,]+ of [\d,]+ are trained \(\d+\.\d+%\)$", out, re.MULTILINE)
    assert re.search(r"^time: about .*: .* to open all media and compute the reference, then 2 steps of ", out, re.M)


def test_weights_of_4_bits_are_counted_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = pairs(tmp_path, 1, pictures=0)
    assert "quantized" not in dry(tmp_path, rows, capsys)
    assert "\n  as if weights were not quantized; " in dry(tmp_path, rows, capsys, "--model.quantization", "nf4")


def test_bytes_are_told_in_three_digits() -> None:
    told = {0: "0 B", 999.4: "999 B", 999.6: "1 kB", 1234: "1.23 kB", 99.96e3: "100 kB", 999.9e6: "1 GB"}
    assert {count: dry_training._bytes(count) for count in told} == told
    assert dry_training._bytes(2e12) == "2,000 GB"


@pytest.mark.usefixtures("quick")
def test_needs_are_told_and_what_is_not_given_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [replace(row, values={"scores": (1.0, 0.0)}) for row in pairs(tmp_path, 2)]
    out = dry(tmp_path, rows, capsys)
    assert "objective dpo needs chosen, reference, rejected\n  all of it is given for 2 of 2 pairs\n" in out
    error = dry(tmp_path, rows, capsys, "--objective.name", "mm_dpo", code=2)
    assert "value:gap" in error
    assert error.count("\n") == 1


def test_steps_of_stages_are_added(tmp_path: Path) -> None:
    rows = [replace(row, stage=int(place > 0)) for place, row in enumerate(pairs(tmp_path, 4))]
    assert num_steps(rows, TrainConfig(batch_size=2, epochs=3)) == 6
    assert num_steps(rows, TrainConfig(batch_size=2, epochs=3, stages="renew")) == 9
    assert num_steps(rows, TrainConfig(batch_size=2, stages="renew", sft_after_stages=True)) == 5


@pytest.mark.usefixtures("quick")
def test_a_model_that_cannot_be_foreseen_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = dry(tmp_path, pairs(tmp_path, 1), capsys)
    assert "memory and time: cannot be told for this model (RuntimeError: a kernel of its own)\n" in out
    assert read_pairs(tmp_path / "run" / "round-0" / "pairs.parquet")
