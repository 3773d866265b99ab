"""Opened media as data URLs, without loss: a server sees the pixels that the method sees, damage included."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import av
import numpy as np
from PIL.Image import Image

from mmalign.lm.spec import ClipForm
from mmalign.types import Clip, Media, Picture

#: Ticks of a clip's clock in a second.
_TICKS = 90_000


def media_parts(media: Media, clips: ClipForm) -> Iterator[dict[str, Any]]:
    """The content parts that stand for a picture or a clip in a message."""
    if isinstance(media, Picture):
        yield _picture(media.image)
    elif clips == "frames":
        for image in media.images:
            yield _picture(image)
    else:
        yield {"type": "video_url", "video_url": {"url": _data_url("video/mp4", mp4(media))}}


def png(image: Image) -> bytes:
    """The picture as PNG, with little effort spent on size: the way to the server is short."""
    stream = io.BytesIO()
    image.save(stream, format="PNG", compress_level=1)
    return stream.getvalue()


def mp4(clip: Clip) -> bytes:
    """The frames as lossless H.264 in RGB, each at its own time."""
    stream = io.BytesIO()
    width, height = clip.images[0].size
    span = clip.times[-1] - clip.times[0]
    rate = (len(clip.times) - 1) / span if span > 0 else 1.0
    with av.open(stream, "w", format="mp4") as container:
        codec = container.add_stream("libx264rgb", rate=Fraction(rate).limit_denominator(1000) or Fraction(1, 1000))
        codec.width, codec.height = width, height
        codec.pix_fmt = "rgb24"
        codec.time_base = codec.codec_context.time_base = Fraction(1, _TICKS)
        codec.options = {"qp": "0", "preset": "ultrafast", "bf": "0"}
        last = -1
        for image, time in zip(clip.images, clip.times, strict=True):
            frame = av.VideoFrame.from_ndarray(np.asarray(image), format="rgb24")
            last = max(last + 1, round((time - clip.times[0]) * _TICKS))  # two frames never share a tick
            frame.pts, frame.time_base = last, Fraction(1, _TICKS)
            container.mux(codec.encode(frame))
        container.mux(codec.encode(None))
    return stream.getvalue()


def _picture(image: Image) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": _data_url("image/png", png(image))}}


def _data_url(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
