"""What is advised when memory runs out in training: keys that make this run's data smaller."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mmalign import pipeline
from mmalign.errors import TrainError
from mmalign.pairs import write_pairs
from mmalign.recipe.load import load_recipe
from mmalign.tiny.clips import clips
from mmalign.tiny.film import opened
from mmalign.types import Chat, Message
from tests.train.rows import make_rows


@pytest.mark.parametrize(
    ("kind", "advice"),
    [
        ("text", "lower train.micro_batch_size (3), or set"),
        ("picture", "lower train.micro_batch_size (3) or data.max_side, or set"),
        ("clip", "lower train.micro_batch_size (3) or data.max_frame_side or data.num_frames, or set"),
    ],
)
def test_the_advice_fits_the_media(kind: str, advice: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(pipeline, "train_pairs", full)
    monkeypatch.setattr(pipeline, "load_model", lambda spec: None)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"method: {{name: stic}}\nobjective: {{name: dpo}}\ndata: {{scenes: 1}}\n"
        f"output: {tmp_path / 'run'}\ntrain: {{micro_batch_size: 3, batch_size: 6}}\n"
    )
    [row] = make_rows(tmp_path, 1, pictures=0 if kind == "text" else 1)
    if kind == "clip":
        film = opened(clips(1)[0], 4, "a.mkv")
        row = replace(row, context=Chat((Message("user", (film, "Describe the video.")),)).to_rows())
    loaded = load_recipe(recipe)
    with pipeline.open_run(loaded) as run:
        write_pairs(run.pairs_path(), [row])
        with pytest.raises(TrainError) as caught:
            pipeline.train(loaded, run)
    assert advice in str(caught.value)
    assert str(caught.value).endswith("the same command goes on")
