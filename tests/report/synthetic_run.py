"""Makes a run directory as a finished run leaves it, with a few drawn pictures, for the tests of the page."""

from __future__ import annotations

import hashlib
import json
import math
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from mmalign.pairs import PairRow, write_pairs
from mmalign.tiny.draw import draw_scene
from mmalign.tiny.world import Scene, Thing, scene

#: Text that would do harm wherever it is not escaped.
HOSTILE = (
    '<script>window.harmed=1</script><img src="https://example.invalid/x.png" onerror="window.harmed=1">'
    "\"'`--></style></textarea></pre>{{ 7*7 }}{% raw %}&lt;\u202e\x00 ${1} </p><iframe srcdoc='<b>'>"
)
RECIPE = """\
method: {name: self_consistency, samples: 4}
objective: {name: dpo, beta: 0.2}
seed: 0
model: {name: tiny}
data: {max_pixels: 100000000, max_side: 2048}
"""
METRICS = ("chair_i", "chair_s", "recall", "mentions", "colour")


def say(things: tuple[Thing, ...]) -> str:
    return " ".join(
        f"There is{' also' * (place > 0)} a {thing.size} {thing.colour} {thing.kind} {thing.place}."
        for place, thing in enumerate(things)
    )


def photograph(seed: int) -> Image.Image:
    """A larger picture with gradients, so that its thumbnail has the size of a real one."""
    rng = random.Random(seed)
    image = Image.radial_gradient("L").resize((640, 420)).convert("RGB")
    pen = ImageDraw.Draw(image)
    for _ in range(60):
        x, y, size = rng.randrange(640), rng.randrange(420), rng.randrange(10, 120)
        pen.ellipse((x, y, x + size, y + size), fill=tuple(rng.randrange(256) for _ in range(3)))
    return image


def make_pairs(root: Path, num: int, text: str = "", pictures: int = 12) -> Iterator[PairRow]:
    """Pairs of three sources over drawn scenes (and every fifth over a photograph) written below `root`."""
    root.mkdir(parents=True, exist_ok=True)
    for index in range(num):
        rng = random.Random(index)
        here = scene(0, "pairs", index % pictures)
        name = f"scene-{index % pictures:03d}.png"
        if index % 5 == 4:
            name = f"photo-{index % pictures:03d}.jpg"
        path = root / name
        if not path.exists():
            (photograph(index) if name.startswith("photo") else draw_scene(here)).save(path)
        ref = {"type": "image", "path": name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
        source = ("best_worst", "tempted", "damaged")[index % 3]
        provenance: dict[str, Any] = {"note": text or "made for a test", "seeds": [index, index + 1]}
        rejected_context = None
        if source == "damaged":
            damage = {"name": "gaussian_noise", "params": {"sigma": 60.0 + index % 40, "seed": index}}
            provenance["corruptions"] = [damage]
        prompt = text or "Describe the picture in detail."
        context = [
            {"role": "system", "content": [{"type": "text", "text": "You describe pictures."}]},
            {"role": "user", "content": [ref, {"type": "text", "text": prompt}]},
        ]
        if source == "tempted":
            rejected_context = [{"role": "user", "content": [ref, {"type": "text", "text": f"{prompt} Imagine."}]}]
        wrong = Thing(rng.choice(here.absent()), "red", "small", "in the middle")
        chosen, rejected = say(here.in_order()), say((*here.in_order()[:-1], wrong))
        gap = None if source == "tempted" else round(rng.uniform(0.5, 4.0), 3)
        at = rejected.rindex(wrong.kind)
        yield PairRow(
            id=f"{name}#0.{index}",
            sample_id=name,
            method="self_consistency",
            source=text or source,
            context=context,
            rejected_context=rejected_context,
            chosen=f"{chosen} {text}".strip(),
            rejected=f"{rejected} {text}".strip(),
            gap=gap,
            p=0.9,
            rejected_spans=((at, at + len(wrong.kind)),) if source == "best_worst" else (),
            judgements=[
                {
                    "judge": text or "consistency",
                    "value": 0.0 if side == "chosen" else -(gap or 1.0),
                    "reason": text or f"{side}: asked for each thing; the model denies {wrong.kind!r}",
                    "raw": {"side": side, "claims": [{"name": text or wrong.kind, "p_yes": 0.03}]},
                }
                for side in ("chosen", "rejected")
            ],
            provenance=provenance,
            seed=index,
        )


def evaluation(run: Path, seeds: tuple[int, ...] = (0, 1, 2), text: str = "", num_examples: int = 4) -> dict[str, Any]:
    """Content of evaluation.json, the pictures of its examples written into the run."""
    means = {
        ("before", "before"): (0.114, 0.47, 0.98, 4.4, 0.99),
        ("after", "after"): (0.011, 0.035, 0.953, 3.9, 0.985),
        ("control: random signs", "control"): (0.101, 0.42, 0.978, 4.4, 0.99),
        ("control: sft on chosen", "control"): (0.051, 0.193, 0.98, 4.2, 0.99),
        ("control: cut to as many mentions", "control"): (0.08, 0.25, 0.87, 3.9, 0.99),
    }
    rng = random.Random(7)
    rows = [
        {
            "name": f"{name} {text}".strip(),
            "kind": kind,
            "seed": seed,
            "values": {
                key: max(0.0, mean * rng.uniform(0.93, 1.07)) for key, mean in zip(METRICS, values, strict=True)
            },
        }
        for (name, kind), values in means.items()
        for seed in seeds
    ]
    for row in rows:
        for key in ("recall", "colour"):
            row["values"][key] = min(row["values"][key], 0.995)
    examples = []
    (run / "examples").mkdir(parents=True, exist_ok=True)
    for index in range(num_examples):
        here: Scene = scene(0, "test", index)
        draw_scene(here).save(run / "examples" / f"{index}.png")
        wrong = Thing(here.absent()[0], "red", "small", "in the middle")
        examples.append(
            {
                "image": f"examples/{index}.png",
                "prompt": text or "Describe the picture in detail.",
                "before": f"{say((*here.in_order(), wrong))} {text}".strip(),
                "after": f"{say(here.in_order())} {text}".strip(),
                "truth": sorted(here.kinds),
            }
        )
    notes = [text or "The pictures are drawn, and the model was trained to slip: easier to mend than a large model."]
    return {
        "task": "Describe the picture in detail.",
        "num_scenes": 200,
        "seeds": list(seeds),
        "columns": list(METRICS),
        "rows": rows,
        "notes": notes,
        "examples": examples,
    }


def make_run(
    run: Path,
    *,
    pairs: int = 40,
    seeds: tuple[int, ...] = (0, 1, 2),
    text: str = "",
    quarantined: int = 7,
    pictures: int = 12,
) -> Path:
    """A finished run in `run`, its pictures in `run/data`; returns the folder of the pictures."""
    run.mkdir(parents=True, exist_ok=True)
    data = run / "data"
    (run / "recipe.yaml").write_text(RECIPE + (f"# {text!r}\n" if text else ""), encoding="utf-8")
    (run / "environment.json").write_text(json.dumps({"python": "3.11.2", "torch": text or "2.12.0", "cpus": 2}))
    write_pairs(run / "round-0" / "pairs.parquet", make_pairs(data, pairs, text, pictures))
    with (run / "quarantine.jsonl").open("w", encoding="utf-8") as stream:
        for index in range(quarantined):
            name = f"bad-{index}.jpg"
            reason = "the file is cut off" if index % 3 else "is 4x4 pixels; each side needs at least 8"
            row = {"id": name, "path": name, "stage": "media", "reason": f"{name}: {reason} {text}".strip()}
            stream.write(json.dumps(row) + "\n")
    (run / "train").mkdir(exist_ok=True)
    rng = random.Random(1)
    with (run / "train" / "metrics.jsonl").open("w", encoding="utf-8") as stream:
        for step in range(1, 61):
            gone = 1 - math.exp(-step / 20)
            noise = rng.gauss(0, 0.03)
            row = {
                "step": step,
                "epoch": step / 30,
                "loss": 0.693 - 0.45 * gone + noise,
                "lr": 5e-5 * (1 - step / 61),
                "grad_norm": 2.0 + rng.random(),
                "chosen_reward": -0.2 * gone + noise,
                "rejected_reward": -1.7 * gone + noise,
                "margin": 1.5 * gone + noise,
                "accuracy": min(1.0, 0.5 + 0.45 * gone + noise),
                "chosen_logps_change": -gone,
                "rejected_logps_change": -8 * gone,
                "chosen_logps": -21 - gone,
                "rejected_logps": -24 - 8 * gone,
            }
            stream.write(json.dumps(row) + "\n")
    (run / "evaluation.json").write_text(json.dumps(evaluation(run, seeds, text)), encoding="utf-8")
    return data
