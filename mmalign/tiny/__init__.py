"""The embedded world and model: drawn scenes and clips of known content, and a small model that really sees them.

Importing this loads no torch. Truth (`Scene.kinds`, `Clip.events`) is for evaluation only; no method may look at it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from mmalign.tiny.clips import Clip, Event, draw_clip
from mmalign.tiny.draw import blank, draw_scene
from mmalign.tiny.happenings import ToldEvent, clause, told_events
from mmalign.tiny.language import Mention, mentions
from mmalign.tiny.world import COLOURS, KINDS, PLACES, SIZES, THEMES, Scene, Thing, scene, scenes

#: Folder of the shipped weights, tokenizer and processor; the Auto classes of transformers load it offline.
MODEL_PATH: Final = Path(__file__).parent / "model"
#: The name under which recipes ask for it.
NAME: Final = "tiny"

__all__ = [
    "COLOURS",
    "KINDS",
    "MODEL_PATH",
    "NAME",
    "PLACES",
    "SIZES",
    "THEMES",
    "Clip",
    "Event",
    "Mention",
    "Scene",
    "Thing",
    "ToldEvent",
    "blank",
    "clause",
    "draw_clip",
    "draw_scene",
    "mentions",
    "scene",
    "scenes",
    "told_events",
]
