"""Corruptions in words, and where provenance records them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from mmalign.report.glossary import percent
from mmalign.types import Corruption, MediaRef

Params = Mapping[str, Any]


def damages(value: object) -> list[tuple[Corruption, ...]]:
    """The corruptions recorded anywhere in a provenance value; those that stand in one list were done in a row."""
    if isinstance(value, Mapping):
        if (found := _corruption(value)) is not None:
            return [(found,)]
        return [chain for part in value.values() for chain in damages(part)]
    if isinstance(value, list | tuple):
        chain = tuple(found for part in value if (found := _corruption(part)) is not None)
        if chain:
            return [chain]
        return [chain for part in value for chain in damages(part)]
    return []


def _corruption(value: object) -> Corruption | None:
    if isinstance(value, Mapping) and set(value) == {"name", "params"} and isinstance(value["params"], Mapping):
        return Corruption(str(value["name"]), value["params"])
    return None


def all_in_words(ref: MediaRef) -> str:
    """All corruptions of a picture or clip, in the order in which they were done."""
    said = in_words if ref.kind == "image" else in_clip_words
    return ", then ".join(map(said, ref.corruptions))


def in_words(corruption: Corruption) -> str:
    """'gaussian noise (sigma 0.3, seed 5)'."""
    params = ", ".join(
        f"{key} {_short(value)}" for key, value in corruption.params.items() if not isinstance(value, list | Mapping)
    )
    return corruption.name.replace("_", " ") + (f" ({params})" if params else "")


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def in_clip_words(corruption: Corruption) -> str:
    """What a corruption did to a clip, as a clause; frames are counted from 1."""
    said = CLAUSES.get(corruption.name)
    if said is None:
        return f"every frame: {in_words(corruption)}"
    try:
        return said(corruption.params)
    except (KeyError, IndexError, TypeError):
        # What a clip's length settles (which frames) is recorded once the damage was done, and not before.
        return in_words(corruption)


def _covered(params: Params) -> str:
    return f"a square box of {percent(min(params['area'], 1))} of the frame is painted over, at one place in all frames"


def _kept(params: Params) -> str:
    num = len(params["frames"])
    return f"all frames but {num} are dropped; {'it keeps its time' if num == 1 else 'they keep their times'}"


def _still(params: Params) -> str:
    frames: Sequence[int] = params["frames"]
    still = [place for place in range(1, len(frames)) if frames[place] == frames[place - 1]]
    first, num = frames[still[0]] + 1, len(still)
    return f"the picture stands still at frame {first} for {num} more frame{'s' if num > 1 else ''}"


def _sped(params: Params) -> str:
    factor = params["factor"]
    if factor > 1:
        return f"the clip runs {factor:.2g} times as fast, then stands still at its end"
    return f"the clip runs at {percent(factor)} of its speed and is cut off"


def _swapped(params: Params) -> str:
    first, last = params["start"] + 1, params["stop"]
    what = f"frame {first} comes" if first == last else f"frames {first} to {last} come"
    return f"{what} from another clip ({params['other']['path']})"


CLAUSES: Final[dict[str, Callable[[Params], str]]] = {
    "box_mask": _covered,
    "local_shuffle": lambda params: f"the frames are shuffled inside windows of {params['window']}",
    "global_shuffle": lambda params: "all frames are shuffled",
    "reverse": lambda params: "the clip runs backwards",
    "drop_frames": _kept,
    "freeze": _still,
    "speed": _sped,
    "segment_shuffle": lambda params: f"the clip is cut into {params['segments']} segments, which change places",
    "block_drop": lambda params: f"{_kept(params)} (ratio {params['ratio']})",
    "block_reverse": lambda params: (
        f"blocks of frames stand from last to first, time runs on inside each (ratio {params['ratio']})"
    ),
    "block_shuffle": lambda params: (
        f"blocks of frames change places, time runs on inside each (ratio {params['ratio']})"
    ),
    "clip_swap": _swapped,
}
