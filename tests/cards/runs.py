"""A run directory as one leaves it, with things on record that nobody else should see."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

from mmalign.pairs import PairRow, write_pairs

#: What must be in no upload and on no card.
SECRETS = ("/home/jo", "/data/secret", "gpu01", "jo-laptop", "10.0.0.7", "C:\\Users")


def make_run(folder: Path, *, model: str = "Qwen/Qwen3-VL-8B-Instruct", adapter: bool = True) -> Path:
    """Two pairs about one picture, a trained adapter or model, numbers, one quarantined sample."""
    run = folder / "run"
    (folder / "pictures").mkdir(parents=True)
    Image.new("RGB", (8, 8), (200, 0, 0)).save(folder / "pictures" / "a.png")
    turns = [
        {"role": "user", "content": [{"type": "image", "path": "a.png", "sha256": ""}, {"type": "text", "text": "?"}]}
    ]
    judgement = {"judge": "pairwise", "value": 1.0, "reason": "see /home/jo/notes/a.txt and 1/2", "raw": {}}
    noted = {"corruption": {"name": "crop", "params": {}}, "file": "C:\\Users\\jo\\a.png"}
    rows = [
        PairRow(
            id=f"s#0.{n}",
            sample_id="s",
            method="stic",
            context=turns,
            chosen="/home/jo is what the picture says.",
            rejected="no",
            source="bad_prompt",
            judgements=[judgement],
            provenance=noted,
            seed=7,
        )
        for n in range(2)
    ]
    write_pairs(run / "round-0" / "pairs.parquet", rows)
    recipe: dict[str, Any] = {
        "method": {"name": "stic", "p_bad_prompt": 0.25},
        "objective": {"name": "dpo", "beta": 0.2},
        "model": {"name": model},
        "data": {"images": str(folder / "pictures"), "pairs": None, "media_root": None},
        "train": {"learning_rate": 1e-5, "threads": 3, "lora": {"rank": 8}, "models": {"other": "/data/secret/m"}},
        "evaluate": {"scenes": 10},
        "server": {"url": "http://gpu01.internal:8000/v1", "model": "m"},
        "generate": {"ray_address": "ray://10.0.0.7:10001"},
        "output": "/home/jo/runs/mine",
        "seed": 7,
    }
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    environment = {
        "python": "3.11.7",
        "host": "jo-laptop",
        "packages": {"mmalign": "0.1.0", "torch": "2.14.1"},
        "starts": [{"command": ["mmalign", "run", "/home/jo/r.yaml"]}],
    }
    (run / "environment.json").write_text(json.dumps(environment))
    (run / "quarantine.jsonl").write_text(
        json.dumps({"id": "b", "path": "/home/jo/b.png", "stage": "open", "reason": "broken"}) + "\n"
    )
    values = {"chair_s": 0.5, "recall": 0.9}
    rows_of = [
        {"name": name, "kind": kind, "seed": seed, "values": {**values, "chair_s": number + seed / 10}}
        for name, kind, number in (
            ("before", "before", 0.5),
            ("after", "after", 0.25),
            ("random signs", "control", 0.6),
        )
        for seed in (0, 1)
    ]
    table = {"task": "Describe.", "num_scenes": 10, "columns": ["chair_s", "recall"], "rows": rows_of}
    (run / "evaluation.json").write_text(json.dumps(table))
    weights = run / "train" / ("adapter" if adapter else "model")
    weights.mkdir(parents=True)
    name = "adapter_model.safetensors" if adapter else "model.safetensors"
    (weights / name).write_bytes(b"weights")
    config = {"base_model_name_or_path": "/data/secret/Qwen"} if adapter else {"_name_or_path": "/data/secret/Qwen"}
    (weights / ("adapter_config.json" if adapter else "config.json")).write_text(json.dumps(config))
    (weights / "tokenizer.json").write_text('{"vocab": {"/": 0, "/a/b": 1}}')
    (weights / "README.md").write_text("of somebody else: /home/jo")
    (weights / "optimizer.pt").write_bytes(b"not for others")
    (run / "train" / "result.json").write_text(json.dumps({"num_pairs": 2, "num_dropped": 0, "steps": 4}))
    return run
