"""The limits in force unless a recipe sets others: what is refused before it can do harm."""

from __future__ import annotations

from mmalign.cli.doctor.findings import Finding
from mmalign.engine.work import MAX_TEXT
from mmalign.lm.size import MAX_POSITIONS
from mmalign.media.child import MAX_MEMORY
from mmalign.recipe.schema import DataConfig


def findings() -> list[Finding]:
    """One line for each limit, with the key that sets it where there is one."""
    data = DataConfig(scenes=1)
    gib = 2**30
    lines = {
        "data.max_pixels": f"{data.max_pixels:,} pixels of a picture or frame",
        "data.max_side": f"pictures are shown with at most {data.max_side} pixels a side",
        "data.max_frame_side": f"frames are shown with at most {data.max_frame_side} pixels a side",
        "data.num_frames": f"{data.num_frames} frames of a video",
        "data.max_seconds": f"{data.max_seconds:,.0f} s of a video",
        "data.decode_seconds": f"{data.decode_seconds:g} s to decode a file",
        "decoding memory": f"{MAX_MEMORY / gib:g} GiB for the process that decodes",
        "prompt in the data": f"{MAX_TEXT:,} characters",
        "chat": f"as many tokens as the model takes; {MAX_POSITIONS:,} where it sets no limit",
        "network": "no media from addresses, no code from checkpoints; models with model.download",
    }
    return [Finding("limits", name, "ok", text) for name, text in lines.items()]
