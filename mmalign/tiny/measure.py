"""Measures a model folder on held-out scenes and clips: `python -m mmalign.tiny.measure DIR`. Seeds are fixed."""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from PIL import Image

from mmalign.text import prompts
from mmalign.tiny import MODEL_PATH, happenings, questions
from mmalign.tiny.clips import Clip, clips, frames
from mmalign.tiny.draw import Pixels, blank, draw_scene
from mmalign.tiny.figures import Figures, auc, caption_figures, false_by_position, false_kinds, share
from mmalign.tiny.language import a
from mmalign.tiny.questions import Turn
from mmalign.tiny.reader import Film, Reader, Shown
from mmalign.tiny.world import Scene, scenes, stream

#: What the shipped weights must reach: name of the figure, lowest and highest value allowed.
GATES: Final[dict[str, tuple[float, float]]] = {
    "exists.present": (0.95, 1.0),
    "exists.absent_typical": (0.95, 1.0),
    "exists.absent_random": (0.95, 1.0),
    "exists_hint.present": (0.95, 1.0),
    "exists_hint.absent_typical": (0.95, 1.0),
    "exists_hint.absent_random": (0.95, 1.0),
    "short.colour": (0.95, 1.0),
    "detail.recall": (0.95, 1.0),
    "detail.chair_s": (0.35, 0.60),
    "step.chair_s": (0.0, 0.05),
    "blank.present": (0.0, 0.10),
    "judge.statement_auc": (0.95, 1.0),
    "no_picture.exists": (0.35, 0.65),
    "frames_8.first": (0.80, 1.0),
    "frames_8.last": (0.80, 1.0),
    "frames_8.first_drop": (0.40, 1.0),
    "frames_8.last_drop": (0.40, 1.0),
    "frames_8.truth_accuracy": (0.85, 1.0),
    "frames_8.before_after_accuracy": (0.80, 1.0),
    "frames_16.first": (0.80, 1.0),
    "frames_16.last": (0.80, 1.0),
    "frames_16.first_drop": (0.40, 1.0),
    "frames_16.last_drop": (0.40, 1.0),
    "frames_16.truth_accuracy": (0.85, 1.0),
    "frames_16.before_after_accuracy": (0.80, 1.0),
    "no_clip.truth": (0.35, 0.65),
    "no_clip.before_after": (0.35, 0.65),
}


def existence(reader: Reader, shown: Sequence[Scene], media: Sequence[Shown], hint: str = "") -> Figures:
    """Accuracy on a present kind, an absent kind of the theme, and any absent kind, by the likeliest first token."""
    asked: dict[str, tuple[list[Shown], list[str]]] = {
        name: ([], []) for name in ("present", "absent_typical", "absent_random")
    }
    for scene, picture in zip(shown, media, strict=True):
        rng = stream("existence", scene.grain)
        picks = (sorted(scene.kinds), scene.absent_typical(), scene.absent())
        for name, kinds in zip(asked, picks, strict=True):
            if kinds:
                asked[name][0].append(picture)
                asked[name][1].append(prompts.IS_THERE.format(thing=a(rng.choice(kinds))) + hint)
    return {
        name: share([said == ("Yes" if name == "present" else "No") for said in reader.says(pictures, asks)])
        for name, (pictures, asks) in asked.items()
    }


def _flat(reader: Reader, turns: Sequence[Sequence[Turn]], media: Sequence[Shown]) -> tuple[list[Turn], list[Shown]]:
    flat = [(turn, shown) for group, shown in zip(turns, media, strict=True) for turn in group]
    return [turn for turn, _ in flat], [shown for _, shown in flat]


def verdicts(reader: Reader, turns: Sequence[Sequence[Turn]], media: Sequence[Shown]) -> Figures:
    """Accuracy and AUC of yes/no turns by P(yes)."""
    flat, pictures = _flat(reader, turns, media)
    scores = reader.yes_probability(pictures, [turn.ask for turn in flat])
    true = [score for score, turn in zip(scores, flat, strict=True) if turn.answer == "Yes."]
    false = [score for score, turn in zip(scores, flat, strict=True) if turn.answer == "No."]
    return {"accuracy": share([s > 0.5 for s in true] + [s < 0.5 for s in false]), "auc": auc(true, false)}


def exact(reader: Reader, turns: Sequence[Sequence[Turn]], media: Sequence[Shown]) -> float:
    """Share of whole answers that are exactly right."""
    flat, pictures = _flat(reader, turns, media)
    said = reader.answers(pictures, [turn.ask for turn in flat], tokens=32)
    return share([text == turn.answer for text, turn in zip(said, flat, strict=True)])


def _turns(asker: questions.Asker, shown: Sequence[Scene], name: str) -> list[list[Turn]]:
    return [asker(scene, stream(name, scene.grain)) for scene in shown]


def captions(reader: Reader, shown: Sequence[Scene], media: Sequence[Shown], prompt: str) -> tuple[Figures, list[str]]:
    texts = reader.answers(media, [prompt] * len(media))
    return caption_figures(shown, texts), texts


def variety(reader: Reader, shown: Sequence[Scene], media: Sequence[Shown], samples: int = 4) -> Figures:
    """Sampled detail captions at temperature 1: how false, how complete, and how much the slips of one scene differ."""
    sampled = [reader.answers(media, [prompts.DETAIL[0]] * len(media), sample_seed=seed) for seed in range(samples)]
    merged = caption_figures([*shown] * samples, [text for texts in sampled for text in texts])
    slips = [{tuple(false_kinds(scene, texts[at])) for texts in sampled} for at, scene in enumerate(shown)]
    return {**merged, "scenes_with_different_slips": share([len(kinds) > 1 for kinds in slips])}


def measure_gates(reader: Reader, num: int = 80, seed: int = 0) -> dict[str, Any]:
    """The figures that `GATES` names, on `num` scenes of the test split."""
    shown = scenes(num, seed, "test")
    media: list[Shown] = [draw_scene(scene) for scene in shown]
    found: dict[str, Any] = {
        "exists": existence(reader, shown, media),
        "exists_hint": existence(reader, shown, media, f" {prompts.YES_OR_NO}"),
    }
    found["detail"], texts = captions(reader, shown, media, prompts.DETAIL[0])
    found["detail_false_by_position"] = false_by_position(shown, texts)
    found["step"], _ = captions(reader, shown, media, prompts.STEP_BY_STEP)
    found["short"] = {"colour": exact(reader, _turns(questions.colour, shown, "short"), media)}
    scores = verdicts(reader, _turns(questions.statements, shown, "judge"), media)
    found["judge"] = {f"statement_{key}": value for key, value in scores.items()}
    found["blank"] = {
        "present": existence(reader, shown, [blank()] * num)["present"],
        "present_tinted": existence(reader, shown, [blank(scene.theme) for scene in shown])["present"],
    }
    nothing: list[Shown] = [None] * num
    found["no_picture"] = {
        "exists": verdicts(reader, _turns(questions.existence, shown, "judge"), nothing)["accuracy"],
        "statement": verdicts(reader, _turns(questions.statements, shown, "judge"), nothing)["accuracy"],
    }
    return found


def measure_pictures(reader: Reader, num: int = 200, seed: int = 0) -> dict[str, Any]:
    """All figures about pictures, on `num` scenes of the test split."""
    found = measure_gates(reader, num, seed)
    shown = scenes(num, seed, "test")
    media: list[Shown] = [draw_scene(scene) for scene in shown]
    pools = {
        "detail_other": prompts.DETAIL[4],
        "plain": prompts.PLAIN[0],
        "imagine": prompts.IMAGINE[0],
        "brief": prompts.BRIEF[0],
        "list": prompts.LIST_OBJECTS,
    }
    for name, prompt in pools.items():
        found[name], _ = captions(reader, shown, media, prompt)
    half = len(shown) // 2
    found["sampled"] = variety(reader, shown[:half], media[:half])
    for asker in (questions.where, questions.what_is_at, questions.count, questions.total, questions.size):
        found["short"][asker.__name__] = exact(reader, _turns(asker, shown, "short"), media)
    for asker in (questions.existence, questions.caption_judging, questions.relation):
        scores = verdicts(reader, _turns(asker, shown, "judge"), media)
        found["judge"] |= {f"{asker.__name__}_{key}": value for key, value in scores.items()}
    found["lowres"] = captions(reader, shown[:half], [_lowres(m) for m in media[:half]], prompts.DETAIL[0])[0]
    return found


def _lowres(picture: Shown) -> Shown:
    """The picture brought down to 16x16 and back: a damage that makes the model rely on habit."""
    if not isinstance(picture, Image.Image):
        return picture
    return picture.resize((16, 16), Image.Resampling.BOX).resize(picture.size, Image.Resampling.BICUBIC)


def _clip_turns(
    asker: Callable[[Clip, random.Random], list[Turn]], shown: Sequence[Clip], name: str
) -> list[list[Turn]]:
    return [asker(clip, stream(name, clip.grain)) for clip in shown]


def clip_captions(reader: Reader, shown: Sequence[Clip], media: Sequence[Shown], prompt: str) -> Figures:
    """Recall of events, share of told events that do not happen, and share of captions with such an event."""
    recall, false, captions = [], [], []
    for clip, text in zip(shown, reader.answers(media, [prompt] * len(media)), strict=True):
        true = [happenings.clause(event) for event in clip.events]
        told = [event.clause for event in happenings.told_events(text)]
        recall += [clause in told for clause in true]
        false += [clause not in true for clause in told]
        captions.append(any(clause not in true for clause in told))
    return {"event_recall": share(recall), "event_false": share(false), "captions_false": share(captions)}


def _shuffled(film: Sequence[Pixels], grain: int) -> Film:
    order = [*range(len(film))]
    stream("shuffle", grain).shuffle(order)
    return Film([film[at] for at in order])


def clip_ends(reader: Reader, shown: Sequence[Clip], media: Sequence[Shown]) -> Figures:
    """Share of exact answers to what happens first and last."""
    found = {}
    for at, word in enumerate(("first", "last")):
        turns = [happenings.ends(clip)[at] for clip in shown]
        said = reader.answers(media, [turn.ask for turn in turns], tokens=32)
        found[word] = share([text == turn.answer for text, turn in zip(said, turns, strict=True)])
    return found


def measure_clip_gates(reader: Reader, num: int = 80, seed: int = 0) -> dict[str, Any]:
    """The figures about clips that `GATES` names, on `num` clips of the test split."""
    shown = clips(num, seed, "test")
    found: dict[str, Any] = {}
    yes_no = {
        asker.__name__: _clip_turns(asker, shown, "judge") for asker in (happenings.truth, happenings.before_after)
    }
    for count in (8, 16):
        drawn = [frames(clip, count) for clip in shown]
        media: list[Shown] = [Film(film) for film in drawn]
        mixed: list[Shown] = [_shuffled(film, clip.grain) for film, clip in zip(drawn, shown, strict=True)]
        here = clip_ends(reader, shown, media)
        for word, value in clip_ends(reader, shown, mixed).items():
            here |= {f"shuffled_{word}": value, f"{word}_drop": round(here[word] - value, 4)}
        for name, turns in yes_no.items():
            here |= {f"{name}_{key}": value for key, value in verdicts(reader, turns, media).items()}
        found[f"frames_{count}"] = here
    nothing: list[Shown] = [None] * num
    found["no_clip"] = {name: verdicts(reader, turns, nothing)["accuracy"] for name, turns in yes_no.items()}
    return found


def measure_clips(reader: Reader, num: int = 80, seed: int = 0) -> dict[str, Any]:
    """All figures about clips, on `num` clips of the test split, with 8 and 16 frames."""
    found = measure_clip_gates(reader, num, seed)
    shown = clips(num, seed, "test")
    for count in (8, 16):
        media: list[Shown] = [Film(frames(clip, count)) for clip in shown]
        here = found[f"frames_{count}"]
        for asker in (happenings.existence, happenings.told_truth, happenings.caption_judging):
            scores = verdicts(reader, _clip_turns(asker, shown, "judge"), media)
            here |= {f"{asker.__name__}_{key}": value for key, value in scores.items()}
        here["neighbour"] = exact(reader, _clip_turns(happenings.neighbour, shown, "short"), media)
        here["single"] = exact(reader, _clip_turns(happenings.single, shown, "short"), media)
        pools = {"detail": prompts.DETAIL[0], "tell": prompts.TELL[1], "step": prompts.STEP_BY_STEP}
        for name, prompt in pools.items():
            here[name] = clip_captions(reader, shown, media, prompt.replace("picture", "video"))
    return found


def gate_values(found: dict[str, Any]) -> dict[str, tuple[float, bool]]:
    """Each gate's figure and whether it holds."""
    values: dict[str, tuple[float, bool]] = {}
    for name, (low, high) in GATES.items():
        group, key = name.split(".")
        value = float(found[group][key])
        values[name] = (value, low <= value <= high)
    return values


def measure(folder: Path, num: int = 200, num_clips: int = 80, seed: int = 0) -> dict[str, Any]:
    """Every figure of a model folder as JSON values. `num_clips` 0 leaves the clips out."""
    reader = Reader(folder)
    found = {"pictures": num, "seed": seed, **measure_pictures(reader, num, seed)}
    if num_clips:
        found |= {"clips": num_clips, **measure_clips(reader, num_clips, seed)}
    return {**found, "gates": {name: {"value": v, "holds": ok} for name, (v, ok) in gate_values(found).items()}}


def as_json(found: dict[str, Any]) -> str:
    """The figures as strict JSON; what could not be measured is null."""
    return json.dumps(json.loads(json.dumps(found), parse_constant=lambda _: None), indent=1) + "\n"


def main() -> None:
    """Measure a folder and print JSON."""
    parser = argparse.ArgumentParser(description="Measure an embedded model on held-out scenes and clips.")
    parser.add_argument("folder", type=Path, nargs="?", default=MODEL_PATH, help="the shipped model when left out")
    parser.add_argument("--pictures", type=int, default=200)
    parser.add_argument("--clips", type=int, default=80)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    print(as_json(measure(options.folder, options.pictures, options.clips, options.seed)), end="")


if __name__ == "__main__":
    main()
