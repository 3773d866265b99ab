"""Features that are found again: those of the same media through the same processor and tower, and no others."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mmalign.media.files import file_sha256
from mmalign.media.image import PictureLimits
from mmalign.media.read import MediaLimits
from mmalign.pairs import PairRow
from mmalign.train.data.collate import Collator
from mmalign.types import Corruption
from tests.models import picture, tiny
from tests.train.rows import damaged, make_rows, quick
from tests.train.seen import LIMITS, counted, encoder_of, trained


def is_asked(root: Path, row: PairRow, model: Any = None, **changes: Any) -> bool:
    """Whether the tower is asked for a row, with the folder that others have filled."""
    loaded = tiny("qwen2.5-vl")
    if model is not None:
        model(loaded)
    settings = {"feature_cache": root / "cache", **changes}
    policy = trained(loaded, **settings)
    encoder = encoder_of(loaded, policy, quick(**settings))
    with counted(policy) as passes:
        Collator(loaded.renderer, root, LIMITS, encoder=encoder)([row])
    return bool(passes)


def test_other_media_processors_and_towers_are_computed_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (row,) = make_rows(tmp_path, 1)
    assert is_asked(tmp_path, row)
    assert not is_asked(tmp_path, row)

    def tower(loaded: Any) -> None:
        with torch.no_grad():
            loaded.model.model.visual.merger.mlp[2].bias[0] += 1e-3

    def language(loaded: Any) -> None:
        with torch.no_grad():
            loaded.model.model.language_model.layers[0].mlp.up_proj.weight[0] += 1

    def processor(loaded: Any) -> None:
        loaded.processor.image_processor.image_mean = [0.4, 0.4, 0.4]

    def kernel(loaded: Any) -> None:
        loaded.model.set_attn_implementation("eager")

    def settings(loaded: Any) -> None:
        loaded.model.config.vision_config.fullatt_block_indexes = [0, 1]

    for change in (tower, processor, kernel, settings):
        assert is_asked(tmp_path, row, change), change.__name__
    assert not is_asked(tmp_path, row, language), "rounds train the language model and keep the tower"
    assert not is_asked(tmp_path, row, lora=None)
    assert is_asked(tmp_path, row, precision="bf16")
    monkeypatch.setattr("tests.train.seen.LIMITS", MediaLimits(picture=PictureLimits(max_pixels=10**6)))
    assert is_asked(tmp_path, row), "media are cut down to limits"
    assert is_asked(tmp_path, damaged(row, Corruption("gaussian_blur", {"radius": 2.0})))

    moved = tmp_path / "moved.png"
    (tmp_path / "0-0.png").rename(moved)
    part = row.context[0]["content"][0]
    renamed = [{"role": "user", "content": [{**part, "path": "moved.png"}, row.context[0]["content"][1]]}]
    assert not is_asked(tmp_path, replace(row, context=renamed)), "content counts, not its name"
    picture(77).image.save(moved)
    renamed[0]["content"][0]["sha256"] = file_sha256(moved)
    assert is_asked(tmp_path, replace(row, context=renamed))


def test_broken_files_are_computed_anew(tmp_path: Path) -> None:
    (row,) = make_rows(tmp_path, 1)
    assert is_asked(tmp_path, row)
    for path in (tmp_path / "cache").iterdir():
        path.write_bytes(path.read_bytes()[:-5])
    assert is_asked(tmp_path, row)
    assert not is_asked(tmp_path, row)


def test_media_without_a_checksum_are_not_kept_on_disk(tmp_path: Path) -> None:
    (row,) = make_rows(tmp_path, 1)
    for part in row.context[0]["content"]:
        part.pop("sha256", None)
    assert is_asked(tmp_path, row)
    assert is_asked(tmp_path, row)
    assert not list((tmp_path / "cache").iterdir())
