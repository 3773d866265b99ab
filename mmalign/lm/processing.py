"""Pictures and clips through one processor: which form each takes, what can share a batch, and the tensors.

What a processor can do is found by trying it on a few tiny pictures, so a new kind of model needs no entry here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import pad
from transformers.video_utils import VideoMetadata

from mmalign.lm.clips import at_least, metadata, pixels
from mmalign.types import Clip, Media, MediaRef, Picture, Row

#: Rows with equal groups can always share a batch: the kind of their media, and the frames of a clip where they matter.
Group = tuple[str, int]
TEXT_ONLY: Group = ("text", 0)
#: Nothing is cut off, whatever a checkpoint's tokenizer was saved with.
_WHOLE: Row = {"truncation": False, "max_length": None, "return_tensors": "pt"}
#: What processors raise for media they cannot take.
REFUSALS = (ValueError, TypeError, RuntimeError, ArithmeticError, AttributeError, LookupError)


class MediaProcessor:
    """A processor that takes pictures and clips.

    Clips go in as videos where processor and chat template have a way for them, frame by frame as pictures otherwise:
    for models without video, and for the few chats that hold what the processor cannot take together (a picture beside
    a clip: SmolVLM; clips of different lengths: SmolVLM, LLaVA-OneVision, LLaVA-NeXT-Video, InternVL).

    Args:
        processor: of transformers.
        render: a chat turn of some media as the template's text, clips written as videos. May raise.
    """

    def __init__(self, processor: Any, render: Callable[[Sequence[Media]], str]) -> None:
        self.processor = processor
        self._render = render
        self._outlines: dict[tuple[tuple[int, int], int], Row] = {}
        self._least = getattr(getattr(processor, "video_processor", None), "temporal_patch_size", None) or 1

    @cached_property
    def takes_videos(self) -> bool:
        """Whether clips can go in as videos."""
        token = getattr(self.processor, "video_token", None)
        if getattr(self.processor, "video_processor", None) is None or not token:
            return False
        try:
            return self._render([_clip(2)]).count(token) == 1
        except Exception:
            return False  # whatever a template raises for a kind of part that it does not know

    @cached_property
    def mixes(self) -> bool:
        """Whether pictures and videos can go in together. SmolVLM's processor drops the pictures without a word."""
        clip = _clip(2)
        picture = Picture(clip.images[0], clip.ref)
        rows: list[list[Media]] = [[picture], [clip], [picture, clip]]
        try:
            first, second, both = (_num_pixels(self._try([row])) for row in rows)
        except REFUSALS:
            return False
        return first + second == both

    @cached_property
    def takes_lengths(self) -> bool:
        """Whether videos of different lengths can go in together. SmolVLM's text calls all as long as the longest."""
        rows = [[_clip(2)], [_clip(4)]]
        try:
            together = self._try(rows)
            texts = [self._try([row])["input_ids"][0] for row in rows]
        except REFUSALS:
            return False
        real = together["attention_mask"].bool()
        return all(torch.equal(together["input_ids"][i][real[i]], text) for i, text in enumerate(texts))

    def frame_by_frame(self, media: Sequence[Media]) -> bool:
        """Whether the clips of one chat must be shown as so many pictures."""
        lengths = {len(part.images) for part in media if isinstance(part, Clip)}
        if not lengths:
            return False
        if not self.takes_videos:
            return True
        has_pictures = any(isinstance(part, Picture) for part in media)
        return (has_pictures and not self.mixes) or (len(lengths) > 1 and not self.takes_lengths)

    def group(self, media: Sequence[Media]) -> Group:
        """What the media of one chat need of a batch. Chats with equal groups fit together, whatever the processor."""
        clips = [part for part in media if isinstance(part, Clip)]
        if not media:
            return TEXT_ONLY
        if not clips or self.frame_by_frame(media):
            return "pictures", 0
        kind = "clips" if len(clips) == len(media) else "pictures and clips"
        return kind, 0 if self.takes_lengths else max(len(at_least(clip, self._least).images) for clip in clips)

    def encode(self, texts: Sequence[str], media: Sequence[Sequence[Media]], side: str, **kwargs: Any) -> Any:
        """Texts and media as one batch of tensors, padded on `side`; texts without media may be among them.

        Raises ValueError for media that do not fit into one batch or that the processor refuses.
        """
        groups = [self.group(row) for row in media]
        seen = [index for index, group in enumerate(groups) if group != TEXT_ONLY]
        unseen = [index for index, group in enumerate(groups) if group == TEXT_ONLY]
        self._check({groups[index] for index in seen})
        kwargs = {**kwargs, **_WHOLE, "padding": True, "padding_side": side}
        if not seen or not unseen:
            return self._run(texts, media, kwargs)
        found = self._run([texts[index] for index in seen], [media[index] for index in seen], kwargs)
        plain = self._run([texts[index] for index in unseen], [()] * len(unseen), kwargs)
        fill = {"input_ids": self.processor.tokenizer.pad_token_id}
        order = torch.tensor([*seen, *unseen]).argsort()
        for name in plain:
            found[name] = _stacked(found[name], plain[name], fill.get(name, 0), side)[order]
        return found

    def expansions(self, text: str, media: Sequence[Media]) -> list[tuple[str, str]] | None:
        """What the processor writes for each medium of a text, as (placeholder, text in its place), in order.

        None for a processor that does not tell. Pixels of a clip alone are processed once for each size and length.
        """
        only = media[0] if len(media) == 1 else None
        if isinstance(only, Clip) and not self.frame_by_frame(media) and self._retells:
            return [(self.processor.video_token, self._retold(at_least(only, self._least)))]
        return self._told(text, media)

    # Inside ----------------------------------------------------------------------------------------------------------

    def _run(self, texts: Sequence[str], media: Sequence[Sequence[Media]], kwargs: Row) -> Any:
        """One call of the processor. Every row has media or none has."""
        return self._call(texts, [_pictured(row) if self.frame_by_frame(row) else row for row in media], kwargs)

    def _call(self, texts: Sequence[str], media: Sequence[Sequence[Media]], kwargs: Row) -> Any:
        pictures = [[part.image for part in row if isinstance(part, Picture)] for row in media]
        clips = [at_least(part, self._least) for row in media for part in row if isinstance(part, Clip)]
        given: Row = {"images": [row for row in pictures if row]} if any(pictures) else {}
        if clips:
            given["videos"] = [pixels(clip) for clip in clips]
            given["videos_kwargs"] = _as_they_are(clips)
        return self.processor(text=list(texts), **given, **kwargs)

    def _told(self, text: str, media: Sequence[Media]) -> list[tuple[str, str]] | None:
        made = self._run([text], [media], {**_WHOLE, "return_text_replacement_offsets": True})
        told = made.get("text_replacement_offsets")
        return None if told is None else [(entry["text"], entry["replacement"]) for entry in told[0]]

    @cached_property
    def _retells(self) -> bool:
        """Whether the text for a clip can be made without its pixels, once a clip of its size and length was seen."""
        clip = _clip(4)
        later = Clip(clip.images, tuple(3 * time + 11.5 for time in clip.times), clip.ref)
        try:
            text = self._render([clip])
            mark = self.processor.video_token
            return all(self._told(text, [one]) == [(mark, self._retold(one))] for one in (clip, later))
        except Exception:
            return False  # whatever a processor raises that is not asked in this way

    def _retold(self, clip: Clip) -> str:
        key = (clip.images[0].size, len(clip.images))
        if key not in self._outlines:
            made = self.processor.video_processor([pixels(clip)], **_as_they_are([clip]), return_tensors="pt")
            self._outlines[key] = {name: _outline(value) for name, value in made.items()}
        outline = self._outlines[key] | {"video_metadata": [VideoMetadata(**metadata(clip))]}
        return str(self.processor.replace_video_token(outline, video_idx=0))

    def _check(self, groups: set[Group]) -> None:
        kinds, lengths = {kind for kind, _ in groups}, {length for _, length in groups if length}
        if len(kinds) > 1 and any("clips" in kind for kind in kinds) and not self.mixes:
            raise ValueError("this model takes pictures or clips in one batch, not both")
        if len(lengths) > 1:
            shown = " and ".join(map(str, sorted(lengths)))
            raise ValueError(f"this model takes clips of one length in one batch, not of {shown} frames")

    def _try(self, rows: Sequence[Sequence[Media]]) -> Any:
        return self._call([self._render(row) for row in rows], rows, {**_WHOLE, "padding": True})


def _as_they_are(clips: Sequence[Clip]) -> Row:
    """Arguments of a video processor under which it takes all frames of clips, at their times."""
    return {
        "video_metadata": [metadata(clip) for clip in clips],
        "do_sample_frames": False,  # the frames were chosen when the clip was opened
        "input_data_format": "channels_last",  # a frame three pixels wide could pass for channels
    }


def _outline(value: Any) -> Any:
    """A tensor of one zero for pixels, which takes no room; anything small as it is."""
    return (
        torch.zeros(()).expand(value.shape)
        if torch.is_tensor(value) and value.ndim > 1 and value.is_floating_point()
        else value
    )


def _pictured(media: Sequence[Media]) -> list[Media]:
    """The same media with every frame of a clip as a picture."""
    images = (
        (image, part.ref) for part in media for image in ([part.image] if isinstance(part, Picture) else part.images)
    )
    return [Picture(image, ref) for image, ref in images]


def _num_pixels(made: Any) -> int:
    return sum(value.numel() for name, value in made.items() if name.startswith("pixel_values"))


def _clip(frames: int) -> Clip:
    """A clip of `frames` frames to try a processor on."""
    image = Image.new("RGB", (32, 32), (200, 100, 50))
    return Clip((image,) * frames, tuple(float(number) for number in range(frames)), MediaRef("", "video"))


def _stacked(first: Tensor, second: Tensor, fill: int, side: str) -> Tensor:
    """Rows (N, L) and (M, K) as (N + M, max(L, K))."""
    width = max(first.shape[1], second.shape[1])
    missing = [width - rows.shape[1] for rows in (first, second)]
    ends = [(gap, 0) if side == "left" else (0, gap) for gap in missing]
    return torch.cat([pad(rows, end, value=fill) for rows, end in zip((first, second), ends, strict=True)])
