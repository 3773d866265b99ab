"""TRL's own trainer reads what is written for it: pictures, several of them, text, and both in one file."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from mmalign.pairs import PairRow, write_pairs
from tests.convert.cases import PICTURES, convert, make_media, pair, picture, text, turn
from tests.models import tiny

#: TRL and datasets warn of their own deprecations.
pytestmark = pytest.mark.filterwarnings("ignore")


def one_picture(place: int) -> PairRow:
    return pair(turn("user", picture(PICTURES[place]), text(f"What is there? {place}")))


def two_pictures(place: int) -> PairRow:
    asked = turn("user", picture(PICTURES[place]), text("And here?"), picture(PICTURES[0]), text(f"Compare. {place}"))
    return pair(turn("system", text("Be brief.")), asked)


def words_alone(place: int) -> PairRow:
    return pair(turn("user", text("Say a word.")), turn("assistant", text("one")), turn("user", text(f"more {place}")))


def trained(name: str, rows: list[PairRow], folder: Path, **options: Any) -> tuple[list[float], Any]:
    """The losses of two steps of TRL's trainer on an export, and the export as `datasets` opens it."""
    from datasets import load_dataset
    from trl import DPOConfig, DPOTrainer

    root = make_media(folder / "media")
    write_pairs(folder / "pairs.parquet", rows)
    convert(folder / "pairs.parquet", "trl", folder / "out", root=root, **options)
    data = load_dataset("parquet", data_files=str(folder / "out" / "*.parquet"), cache_dir=folder / "cache")["train"]
    loaded = tiny(name)
    loaded.model.requires_grad_(True)
    config = DPOConfig(
        output_dir=str(folder / "trl"),
        per_device_train_batch_size=len(rows),
        max_steps=2,
        learning_rate=1e-2,
        activation_checkpointing=False,
        bf16=False,
        use_cpu=True,
        max_length=None,
        save_strategy="no",
        report_to=[],
        logging_steps=1,
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    trainer = DPOTrainer(
        model=loaded.model,
        ref_model=copy.deepcopy(loaded.model),
        args=config,
        train_dataset=data,
        processing_class=loaded.processor,
    )
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry], data


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("llama", [words_alone(0), words_alone(1)]),
        ("qwen2.5-vl", [one_picture(0), one_picture(1)]),
        ("llava", [two_pictures(1), two_pictures(2)]),
        ("qwen2.5-vl", [words_alone(0), two_pictures(1), one_picture(2)]),
    ],
    ids=["text", "one picture", "two pictures", "mixed"],
)
@pytest.mark.parametrize("copies", [False, True], ids=["paths", "bytes"])
def test_trl_trains_on_an_export(tmp_path: Path, name: str, rows: list[PairRow], copies: bool) -> None:
    losses, data = trained(name, rows, tmp_path, copies=copies)
    assert losses[0] == pytest.approx(0.6931, abs=1e-3), "the model and its reference are the same at first"
    assert losses[1] < losses[0] - 1e-3, "it learns from what it reads"
    assert "mmalign" in data.column_names
    sizes = {"a.png": (24, 24), "sub folder/b.png": (32, 24), "ü/ç.png": (40, 24)}
    for row, seen in zip(rows, data, strict=True):
        assert [image.size for image in seen.get("images", [])] == [sizes[ref.path] for ref in row.media]
