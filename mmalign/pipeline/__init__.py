"""The whole loop of a recipe: samples -> pairs -> model -> numbers -> page. Each step goes on where it was."""

from mmalign.pipeline.generating import crew_of, make_pairs
from mmalign.pipeline.measuring import evaluate, held_out
from mmalign.pipeline.run import open_run
from mmalign.pipeline.source import limits_of, root_of, source_of
from mmalign.pipeline.training import train, trained

__all__ = [
    "crew_of",
    "evaluate",
    "held_out",
    "limits_of",
    "make_pairs",
    "open_run",
    "root_of",
    "source_of",
    "train",
    "trained",
]
