"""Media that given pairs name by path alone are recorded by content: what is computed of them is found again."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mmalign.cli import main
from mmalign.pairs import PairRow, read_pairs
from mmalign.recorded import with_sha256
from mmalign.sides import AnswerRow

RECIPE = """
objective: {name: dpo}
data: {pairs: PAIRS}
model: {name: tiny}
train: {batch_size: 2, micro_batch_size: 2, lora: {rank: 2}, feature_cache: CACHE}
output: RUN
"""


def asked(path: str, **more: Any) -> list[dict[str, Any]]:
    parts = [{"type": "image", "path": path, **more}, {"type": "text", "text": "What is it?"}]
    return [{"role": "user", "content": parts}]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name, colour in (("a.png", "red"), ("b.png", "blue")):
        Image.new("RGB", (64, 64), colour).save(tmp_path / name)
    return tmp_path


def test_every_context_is_recorded(root: Path) -> None:
    sums = {name: hashlib.sha256((root / name).read_bytes()).hexdigest() for name in ("a.png", "b.png")}
    row = PairRow(
        id="p",
        sample_id="s",
        method="own",
        context=asked("a.png"),
        rejected_context=asked("b.png"),
        chosen="A.",
        rejected="B.",
        sides={"answers": (AnswerRow(text="A."), AnswerRow(text="B.", context=asked("b.png")), None)},
    )
    (found,) = with_sha256([row], root)
    wanted = [asked(name, sha256=sums[name]) for name in ("a.png", "b.png", "b.png")]
    assert found.contexts == wanted
    assert found.sides["answers"][2] is None  # type: ignore[index]


@pytest.mark.parametrize("part", [{"path": "a.png", "sha256": "0" * 64}, {"path": "nowhere.png"}, {"path": "../a.png"}])
def test_what_is_recorded_or_cannot_be_read_stays(part: dict[str, str], root: Path) -> None:
    row = PairRow(id="p", sample_id="s", method="own", context=asked(**part), chosen="A.", rejected="B.")
    assert with_sha256([row], root) == [row]


def test_features_of_given_pairs_are_found_again(root: Path, tmp_path: Path) -> None:
    lines = [json.dumps({"context": asked(name), "chosen": "Red.", "rejected": "Blue."}) for name in ("a.png", "b.png")]
    (root / "pairs.jsonl").write_text("\n".join(lines), encoding="utf-8")
    recipe, cache = tmp_path / "recipe.yaml", tmp_path / "cache"
    text = RECIPE.replace("PAIRS", str(root / "pairs.jsonl")).replace("CACHE", str(cache))
    kept = []
    for run in ("first", "second"):
        recipe.write_text(text.replace("RUN", str(tmp_path / run)), encoding="utf-8")
        assert main(["train", str(recipe)]) == 0
        kept.append({path.name: path.stat().st_ino for path in cache.glob("features-*.safetensors")})
    assert len(kept[0]) == 2
    assert kept[0] == kept[1], "the second run computed nothing anew"
    assert all(ref.sha256 for row in read_pairs(tmp_path / "first" / "round-0" / "pairs.parquet") for ref in row.media)
