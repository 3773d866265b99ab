"""Asks a saved model through plain transformers: batches of chats, padded on the left, in fp32 on the CPU."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mmalign.tiny.draw import Pixels


@dataclass(frozen=True, slots=True)
class Film:
    """Frames (64, 64, 3) with their rate per second."""

    frames: Sequence[Pixels]
    fps: float = 2.0


Shown = Image.Image | Film | None


class Reader:
    """A model folder, ready to be asked. `media` are one per question: a picture, a film, or None for text alone."""

    def __init__(self, folder: Path, batch: int = 48) -> None:
        from transformers import AutoModelForImageTextToText, AutoProcessor

        self.processor: Any = AutoProcessor.from_pretrained(folder)
        self.processor.tokenizer.padding_side = "left"
        self.model: Any = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
        self.batch = batch
        self.yes, self.no = (self.processor.tokenizer.convert_tokens_to_ids(word) for word in ("Yes", "No"))

    def inputs(self, media: Sequence[Shown], asks: Sequence[str]) -> Any:
        """The processor's tensors for one batch, ready for generation."""
        from transformers.video_utils import VideoMetadata

        texts, images, films = [], [], []
        for shown, ask in zip(media, asks, strict=True):
            parts: list[dict[str, str]] = [{"type": "text", "text": ask}]
            if isinstance(shown, Film):
                parts.insert(0, {"type": "video"})
                films.append(shown)
            elif shown is not None:
                parts.insert(0, {"type": "image"})
                images.append(shown)
            chat = [{"role": "user", "content": parts}]
            texts.append(self.processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=False))
        given: dict[str, Any] = {"images": images} if images else {}
        if films:
            given["videos"] = [np.stack(film.frames) for film in films]
            given["video_metadata"] = [
                VideoMetadata(
                    total_num_frames=len(film.frames), fps=film.fps, frames_indices=list(range(len(film.frames)))
                )
                for film in films
            ]
        return self.processor(text=texts, padding=True, return_tensors="pt", **given)

    def _batches(self, media: Sequence[Shown], asks: Sequence[str]) -> Iterator[Any]:
        for at in range(0, len(asks), self.batch):
            yield self.inputs(media[at : at + self.batch], asks[at : at + self.batch])

    @torch.inference_mode()
    def first(self, media: Sequence[Shown], asks: Sequence[str]) -> Tensor:
        """Log-probabilities (N, vocabulary) of the first token of each answer."""
        found = [self.model(**given, logits_to_keep=1).logits[:, -1] for given in self._batches(media, asks)]
        return torch.cat(found).float().log_softmax(-1)

    def yes_probability(self, media: Sequence[Shown], asks: Sequence[str]) -> list[float]:
        """P(yes) / (P(yes) + P(no)) for each question."""
        scores = self.first(media, asks)[:, [self.yes, self.no]]
        return [float(value) for value in scores.softmax(-1)[:, 0]]

    def says(self, media: Sequence[Shown], asks: Sequence[str]) -> list[str]:
        """The likeliest first token of each answer, as text: 'Yes', 'No', 'Red'."""
        likeliest = self.first(media, asks).argmax(-1)[:, None]
        return [str(text) for text in self.processor.tokenizer.batch_decode(likeliest)]

    @torch.inference_mode()
    def answers(
        self, media: Sequence[Shown], asks: Sequence[str], *, sample_seed: int | None = None, tokens: int = 160
    ) -> list[str]:
        """Whole answers: greedy, or sampled at temperature 1 with a seed."""
        if sample_seed is not None:
            torch.manual_seed(sample_seed)
        texts: list[str] = []
        for given in self._batches(media, asks):
            sampling = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0}
            out = self.model.generate(
                **given, max_new_tokens=tokens, **({"do_sample": False} if sample_seed is None else sampling)
            )
            fresh = out[:, given["input_ids"].shape[1] :]
            texts += self.processor.tokenizer.batch_decode(fresh, skip_special_tokens=True)
        return texts
