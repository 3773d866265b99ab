"""A recipe: method, model, data, training and evaluation of one run, as frozen values. Loads no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from mmalign.lm.spec import ModelSpec, ServerSpec
from mmalign.text.prompts import DETAIL
from mmalign.train.config import TrainConfig


def _at_least(least: int, **values: int) -> None:
    for key, value in values.items():
        if value < least:
            raise ValueError(f"{key} is {value}; it must be {least} or more")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where samples come from, or pairs: exactly one of images, videos, samples, scenes, clips and pairs.

    Args:
        images: A folder of pictures; every picture below it is one sample.
        videos: A folder of videos; every video below it is one sample.
        samples: A file made by `mmalign prepare`, or JSON lines with `image` or `video` and `prompt`.
        scenes: Draw this many scenes of the embedded world; for trying methods where the truth is known.
        clips: Draw this many clips of the embedded world.
        pairs: A file of pairs to train on, Parquet or JSON lines; then none are made and the recipe names no method.
        media_root: The folder that media paths of `samples` and `pairs` start from; that of the file by default.
        limit: Take the first samples only.
        max_pixels: A picture, or a frame, with more pixels goes to quarantine before it is decoded.
        max_side: Larger pictures are scaled down to this many pixels on the longer side.
        max_frame_side: Larger frames of videos are scaled down to this many pixels on the longer side.
        num_frames: Frames taken of a video, spread evenly; of one with fewer frames all are taken.
        fps: Take this many frames per second, as long as they are no more than `num_frames`.
        max_seconds: A longer video goes to quarantine before it is decoded.
        decoder: What decodes videos; auto is PyAV, which is always there.
        decode_seconds: A decoder that takes longer for one picture or video is ended, and this goes to quarantine.
    """

    images: Path | None = None
    samples: Path | None = None
    videos: Path | None = None
    scenes: int = 0
    clips: int = 0
    pairs: Path | None = None
    media_root: Path | None = None
    limit: int | None = None
    max_pixels: int = 100_000_000
    max_side: int = 2048
    max_frame_side: int = 768
    num_frames: int = 16
    fps: float | None = None
    max_seconds: float = 3600.0
    decoder: Literal["auto", "pyav", "decord", "torchcodec"] = "auto"
    decode_seconds: float = 120.0

    def __post_init__(self) -> None:
        _at_least(0, scenes=self.scenes, clips=self.clips)
        _at_least(1, max_pixels=self.max_pixels, max_side=self.max_side)
        _at_least(1, max_frame_side=self.max_frame_side, num_frames=self.num_frames)
        for key in ("fps", "max_seconds", "decode_seconds"):
            value = getattr(self, key)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{key} is {value}; it must be a number above 0")
        if self.limit is not None:
            _at_least(1, limit=self.limit)


@dataclass(frozen=True, kw_only=True)
class Given:
    """In place of a method where the pairs are there already (`data.pairs`)."""

    name: ClassVar[str] = "given"


@dataclass(frozen=True, kw_only=True)
class GenerateConfig:
    """How pairs are made. None of these keys changes which pairs come out.

    Args:
        batch_size: Most requests that the model answers at once.
        concurrency: Samples in flight of each worker; more of them fill batches better and take more memory.
        max_bad_share: Stop when more than this share of the samples had to be quarantined.
        retry_quarantined: Try the samples again that an earlier start put into quarantine.
        workers: Workers with a model of their own: processes on this machine, which take its GPUs in turn, or Ray
            actors. A single one on this machine is this process itself.
        cpus_per_worker: Processor cores of each worker, where there are several: its threads, and what is asked of Ray.
            By default the cores of this machine shared out among the workers, and 1 of Ray.
        gpus_per_worker: GPUs that are asked of Ray for each worker, such as 1 or 0.5; by default 1 where the cluster
            has any and the model is not for the CPU or behind a server.
        hung_s: Seconds in which a worker that has samples may finish none of them, where there are several workers,
            before it is taken for dead: it is started again, and its samples are handed out again. By default that is
            told every 10 minutes and left to you.
        ray_address: host:port of the head of a Ray cluster, or auto on one of its machines; by default Ray is started
            on this machine alone.
    """

    batch_size: int = 16
    concurrency: int = 64
    max_bad_share: float = 0.5
    retry_quarantined: bool = False
    workers: int = 1
    cpus_per_worker: float | None = None
    gpus_per_worker: float | None = None
    hung_s: float | None = None
    ray_address: str | None = None

    def __post_init__(self) -> None:
        _at_least(1, batch_size=self.batch_size, concurrency=self.concurrency, workers=self.workers)
        if self.cpus_per_worker is not None and not 0 < self.cpus_per_worker < math.inf:
            raise ValueError(f"cpus_per_worker is {self.cpus_per_worker}; it must be a number above 0")
        if self.gpus_per_worker is not None and not 0 <= self.gpus_per_worker < math.inf:
            raise ValueError(f"gpus_per_worker is {self.gpus_per_worker}; it must be 0 or more")
        if self.hung_s is not None and not 0 < self.hung_s < math.inf:
            raise ValueError(f"hung_s is {self.hung_s}; it must be a number of seconds above 0")
        if not 0 <= self.max_bad_share <= 1:
            raise ValueError(f"max_bad_share is {self.max_bad_share}; it must be between 0 and 1")


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """What the model is measured on before and after training. Nothing is measured where both sources are off.

    Args:
        scenes: Number of held-out drawn scenes.
        clips: Number of held-out drawn clips, measured where there are no scenes; they have `data.num_frames` frames.
        split: The split they are drawn from: "dev" to choose settings, "test" for results.
        labels: Photographs with known objects: JSON lines of `{"image": path, "objects": [names]}`.
        prompt: The request for a description; one of the package's own speaks of a video where clips are measured.
        max_new_tokens: Token limit of a description.
        controls: Also train on random signs and by plain SFT, and cut answers to the same number of mentions.
        examples: Pictures shown with both answers on the page.
    """

    scenes: int = 0
    clips: int = 0
    split: Literal["dev", "test"] = "test"
    labels: Path | None = None
    prompt: str = DETAIL[0]
    max_new_tokens: int = 256
    controls: bool = True
    examples: int = 8

    def __post_init__(self) -> None:
        _at_least(0, scenes=self.scenes, clips=self.clips, examples=self.examples)
        _at_least(1, max_new_tokens=self.max_new_tokens)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """All that a run needs. `method` and `objective` are instances; `resolved` is the full recipe as plain values."""

    method: Any
    objective: Any
    seed: int = 0
    output: Path = Path("runs/latest")
    engine: Literal["local", "ray"] = "local"
    model: ModelSpec = field(default_factory=ModelSpec)
    server: ServerSpec = field(default_factory=ServerSpec)
    data: DataConfig = field(default_factory=DataConfig)
    generate: GenerateConfig = field(default_factory=GenerateConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    resolved: dict[str, Any] = field(default_factory=dict)


#: Keys of `server` that change no pair. Which model answered is in the journal, so no other one is gone on with.
SERVER_FREE_KEYS = ("url", "api_key_env", "max_in_flight", "timeout_s", "retries", "backoff_s", "max_backoff_s")

#: Keys that may differ between a run and its continuation, because no pair depends on them. Training and evaluation
#: look after their own.
FREE_KEYS = (
    "output",
    "data.decode_seconds",
    "engine",
    "generate",
    "model.device",
    "model.download",
    *(f"server.{key}" for key in SERVER_FREE_KEYS),
    "train",
    "objective",
    "evaluate",
)
