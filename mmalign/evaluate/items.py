"""What a model is measured on: pictures and clips whose content is known.

Drawn scenes and clips carry exact truth. Photographs come with a label file: JSON lines of
`{"image": path, "objects": [names]}`. Truth stays in this room: no method and no pair ever sees it.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mmalign.errors import RecipeError
from mmalign.jsontext import numbered_lines, parse_json
from mmalign.media.image import PictureLimits, open_picture, safe_path
from mmalign.text.objects import Vocabulary
from mmalign.tiny import clause, draw_scene, scenes
from mmalign.tiny.clips import clips
from mmalign.tiny.film import opened
from mmalign.types import MediaRef, Picture, Sample


@dataclass(frozen=True, slots=True)
class Item:
    """A picture or a clip, and what is in it.

    `colours` and `places` give the right values per object, empty where unknown; `events` are what happens in a clip,
    in order, as clauses of the drawn world's language.
    """

    sample: Sample
    objects: frozenset[str]
    colours: Mapping[str, frozenset[str]] = field(default_factory=dict)
    places: Mapping[str, frozenset[str]] = field(default_factory=dict)
    events: tuple[str, ...] = ()


def scene_items(num: int, *, seed: int, split: str) -> list[Item]:
    """Drawn scenes of one split; splits never share a scene."""
    items = []
    for index, scene in enumerate(scenes(num, seed=seed, split=split)):
        colours: dict[str, set[str]] = {}
        places: dict[str, set[str]] = {}
        for thing in scene.objects:
            colours.setdefault(thing.kind, set()).add(thing.colour)
            places.setdefault(thing.kind, set()).add(thing.place)
        name = f"{split}-{seed}-{index:05d}.png"
        items.append(
            Item(
                Sample(name, (Picture(draw_scene(scene), MediaRef(name)),)),
                frozenset(scene.kinds),
                {kind: frozenset(values) for kind, values in colours.items()},
                {kind: frozenset(values) for kind, values in places.items()},
            )
        )
    return items


def clip_items(num: int, *, seed: int, split: str, num_frames: int) -> list[Item]:
    """Drawn clips of one split, as `num_frames` frames each; splits never share a clip."""
    items = []
    for index, drawn in enumerate(clips(num, seed=seed, split=split)):
        name = f"{split}-{seed}-{index:05d}.mkv"
        shown = Sample(name, (opened(drawn, num_frames, name),))
        items.append(Item(shown, drawn.kinds, events=tuple(clause(event) for event in drawn.events)))
    return items


def _known(label: str, vocabulary: Vocabulary, where: str) -> str:
    found = vocabulary.mentions(label)
    if not found:
        near = difflib.get_close_matches(label.lower(), vocabulary.names, n=1, cutoff=0.0)[0]
        raise RecipeError(f"{where}: objects: {label!r} is not in the vocabulary, did you mean {near!r}?")
    return found[0].name


def labelled_items(path: Path, limits: PictureLimits, vocabulary: Vocabulary) -> list[Item]:
    """Photographs with object labels; image paths are relative to the label file.

    Raises RecipeError with file and line for a row that cannot be used, and MediaError for a picture that cannot.
    """
    items = []
    for number, line in numbered_lines(path, RecipeError):
        try:
            row = parse_json(line)
            image, names = row["image"], row["objects"]
            if not isinstance(image, str) or not isinstance(names, list):
                raise TypeError
        except (ValueError, KeyError, TypeError):
            raise RecipeError(f'{path}:{number}: need {{"image": path, "objects": [names]}}, got {line[:80]}') from None
        objects = frozenset(_known(str(name)[:100], vocabulary, f"{path}:{number}") for name in names)
        ref = MediaRef(image)
        items.append(Item(Sample(image, (open_picture(safe_path(path.parent, image), ref, limits),)), objects))
    if not items:
        raise RecipeError(f"evaluate.labels: {path}: holds no rows")
    return items
