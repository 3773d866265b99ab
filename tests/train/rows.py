"""Pair rows with pictures on disk, for training tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmalign.media.files import file_sha256
from mmalign.pairs import PairRow
from mmalign.train.config import TrainConfig
from mmalign.types import Chat, Corruption, MediaRef, Message, Picture
from tests.models import picture

CHOSEN = (
    "There is a big blue fish at the top.",
    "Yes.",
    "There is a small tree on the left and a red boat.",
    "one two three four five six.",
)
REJECTED = (
    "There is a red boat at the top and a crab.",
    "No. There is a fish in the picture at the top.",
    "There is a crab.",
    "six.",
)


def make_rows(root: Path, count: int = 4, *, pictures: int = 1, **changes: Any) -> list[PairRow]:
    """`count` pairs, each about `pictures` pictures of its own that lie in `root`."""
    rows = []
    for index in range(count):
        media = []
        for number in range(pictures):
            path = root / f"{index}-{number}.png"
            picture(index * 10 + number, size=(32, 32) if index % 2 else (48, 32)).image.save(path)
            media.append(Picture(picture().image, MediaRef(path.name, sha256=file_sha256(path))))
        chat = Chat((Message("user", (*media, f"Describe the picture. {index}")),))
        rows.append(
            PairRow(
                **{
                    "id": f"s{index}#0.0",
                    "sample_id": f"s{index}",
                    "method": "test",
                    "context": chat.to_rows(),
                    "chosen": CHOSEN[index % 4],
                    "rejected": REJECTED[index % 4],
                    **changes,
                }
            )
        )
    return rows


def damaged(row: PairRow, corruption: Corruption) -> PairRow:
    """The row with a corruption recorded for every picture of its context."""
    turns = [
        {
            "role": turn["role"],
            "content": [
                part if part["type"] == "text" else {**part, "corruptions": [corruption.to_row()]}
                for part in turn["content"]
            ],
        }
        for turn in row.context
    ]
    return PairRow(**{name: getattr(row, name) for name in PairRow.__slots__} | {"context": turns})


def quick(**changes: Any) -> TrainConfig:
    """Small, deterministic settings; `changes` on top."""
    settings: dict[str, Any] = {
        "learning_rate": 1e-3,
        "batch_size": 4,
        "micro_batch_size": 2,
        "schedule": "constant",
        "warmup_ratio": 0.0,
        "checkpoint_every_steps": 0,
    }
    return TrainConfig(**{**settings, **changes})
