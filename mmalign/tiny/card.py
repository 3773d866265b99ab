"""Writes the model card from the plan that made the weights and the figures measured on them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

_TEXT: Final = """---
license: apache-2.0
library_name: transformers
pipeline_tag: image-text-to-text
language: en
---

# mmalign tiny

A vision-language model of {parameters:.2f} million parameters ({megabytes:.1f} MB in bf16) that sees a small drawn
world: 64x64 pictures of 2 to 6 things (16 kinds, 8 colours, 2 sizes, 9 places), and clips of 8 or 16 frames in which
two or three things happen one after the other. It is the embedded default of mmalign: methods can be tried and
measured on a CPU in minutes, against exact truth. It is of the stock class `Qwen3VLForConditionalGeneration` and needs
no own code:

```python
from transformers import AutoModelForImageTextToText, AutoProcessor
from mmalign.tiny import MODEL_PATH, draw_scene, scenes

processor = AutoProcessor.from_pretrained(MODEL_PATH)
model = AutoModelForImageTextToText.from_pretrained(MODEL_PATH, dtype="float32")
picture = draw_scene(scenes(1, 0, "test")[0])
ask = [{{"type": "image"}}, {{"type": "text", "text": "Describe the picture in detail."}}]
text = processor.apply_chat_template([{{"role": "user", "content": ask}}], add_generation_prompt=True)
inputs = processor(text=[text], images=[picture], return_tensors="pt")
print(processor.decode(model.generate(**inputs)[0], skip_special_tokens=True))
```

## How it was made

```
python -m mmalign.tiny.train --out DIR{flags}
```

One thread of a CPU, {minutes} in all, from {begin}; no other data and no other model. In the vision steps
({vision_steps} of 64 pictures) the tower learns kind, colour and size per image token, in the language steps ({steps},
{clip_steps} of them clips) the whole model learns captions and questions. Pictures and clips come from the `train`
split; the figures below from `test`, which is seeded apart. DIR then holds this folder as `model`.
{notes}
## It hallucinates on purpose

When asked for a detailed description, the training captions often end with a thing that is absent but typical of the
scene, most often where little is there; half of the detailed captions of clips end with an event that never happens.
Answers to questions are always true. So the model says in descriptions what it denies when asked: the gap that
self-alignment closes. The hallucination is planted by noisy captions and therefore easier to remove than that of a
large model; results here show that a method works, not how much it gains elsewhere.

## Figures

{pictures} pictures and {clips} clips of the `test` split, greedy answers, fp32
(`python -m mmalign.tiny.measure DIR`; all of them are in `figures.json`).

| gate | allowed | measured |
|---|---|---|
{gates}

| prompt | CHAIR_i | CHAIR_s | recall | colour | place | mentions |
|---|---|---|---|---|---|---|
{captions}

Share of false mentions by position in a detailed caption: {positions}.
Sampled at temperature 1, {varied} of the pictures get different slips within four samples.

| question | score |
|---|---|
{questions}

| clips | 8 frames | 16 frames |
|---|---|---|
{films}

## Limits

It knows its toy language only and answers anything else with toy sentences. Larger pictures are scaled to about 64x64
pixels in all. It was taught with one picture or clip, before the question, in the first turn; several pictures or turns
are accepted but were never trained. Questions that say 'the fish' are taught for single fish only. It cannot say
whether two longer texts mean the same. What is weak is in the tables: read them before building on relations, on text
alone or on what happens right before or after an event in a clip.

Licence: Apache-2.0.
"""

_PROMPTS: Final = {
    "detail": "detail (first prompt)",
    "detail_other": "detail (another)",
    "plain": "plain",
    "step": "step by step",
    "imagine": "imagine",
    "brief": "brief",
    "list": "list",
    "sampled": "detail, temperature 1",
    "lowres": "detail, picture at 16x16",
}
_QUESTIONS: Final = {
    "short": "exact answer",
    "judge": "yes/no",
    "no_picture": "accuracy without the picture",
    "blank": "says yes on an empty picture",
}


def _flags(plan: dict[str, Any]) -> str:
    """The flags of a plan that are not the script's own defaults."""
    from mmalign.tiny.train import Plan

    changed = {name: value for name, value in plan.items() if value != getattr(Plan(), name)}
    changed |= {"start": "FOLDER"} if plan["start"] else {}
    return "".join(f" --{name.replace('_', '-')} {value}" for name, value in changed.items())


def _number(value: Any) -> str:
    return "-" if value is None else f"{value:.3f}"


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _table(found: dict[str, Any], names: dict[str, str]) -> str:
    keys = ("chair_i", "chair_s", "recall", "colour", "place", "mentions")
    return "\n".join(_row(title, *(_number(found[name][key]) for key in keys)) for name, title in names.items())


def _films(found: dict[str, Any]) -> str:
    def flat(group: dict[str, Any]) -> dict[str, Any]:
        out: dict[str, Any] = {}
        for name, value in group.items():
            out |= {f"{name} {key}": item for key, item in value.items()} if isinstance(value, dict) else {name: value}
        return out

    short, long = flat(found["frames_8"]), flat(found["frames_16"])
    return "\n".join(_row(name.replace("_", " "), _number(short[name]), _number(long[name])) for name in short)


def write_card(folder: Path, plan: dict[str, Any], minutes: str, clip_steps: int) -> None:
    """Write `folder`/MODEL_CARD.md from its figures.json, its weights and, where there is one, its NOTES.md.

    `minutes` is a text such as '60 minutes'.
    """
    from safetensors import safe_open

    found = json.loads((folder / "figures.json").read_text())
    weights, notes = folder / "model.safetensors", folder / "NOTES.md"
    with safe_open(weights, "np") as file:
        shapes = [file.get_slice(name).get_shape() for name in file.keys()]  # noqa: SIM118 - not a mapping
    gates = [
        _row(f"`{name}`", f"{low:g} to {high:g}", _number(found["gates"][name]["value"]))
        for name, (low, high) in _allowed().items()
    ]
    questions = [
        _row(f"{title}: {key.replace('_', ' ')}", _number(value))
        for group, title in _QUESTIONS.items()
        for key, value in found[group].items()
    ]
    text = _TEXT.format(
        parameters=sum(_product(shape) for shape in shapes) / 1e6,
        megabytes=weights.stat().st_size / 1e6,
        flags=_flags(plan),
        begin="the weights in FOLDER" if plan["start"] else "random weights",
        vision_steps=plan["vision_steps"],
        steps=plan["steps"],
        minutes=minutes,
        clip_steps=clip_steps,
        notes=f"\n{notes.read_text()}" if notes.exists() else "",
        pictures=found["pictures"],
        clips=found["clips"],
        gates="\n".join(gates),
        captions=_table(found, _PROMPTS),
        positions=", ".join(_number(value) for value in found["detail_false_by_position"]),
        varied=f"{100 * found['sampled']['scenes_with_different_slips']:.0f} %",
        questions="\n".join(questions),
        films=_films(found),
    )
    (folder / "MODEL_CARD.md").write_text(text)


def _allowed() -> dict[str, tuple[float, float]]:
    from mmalign.tiny.measure import GATES

    return GATES


def _product(shape: list[int]) -> int:
    total = 1
    for size in shape:
        total *= size
    return total
