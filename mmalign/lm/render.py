"""Chats as the text and tensors that one model wants: its own chat template, its own processor, nothing else.

Generation, scoring and training all build their inputs here, so that what is scored or trained on is, token for token,
what the model would have generated.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from jinja2.exceptions import TemplateError

from mmalign.errors import ModelError, SampleError
from mmalign.lm.clips import metadata
from mmalign.lm.features import num_features, placeholder_ids
from mmalign.lm.processing import REFUSALS, TEXT_ONLY, Group, MediaProcessor
from mmalign.types import Chat, Clip, Media, Message, Part, Row

if TYPE_CHECKING:
    from transformers import BatchEncoding

PaddingSide = Literal["left", "right"]
_PROBE = "mmalign-probe"
#: Measured lengths of media that are kept.
_MAX_MEASURED = 4096


class Renderer:
    """Text and tensors for one processor (or, for a text-only model, one tokenizer).

    Raises ModelError when there is no chat template or no way to end a turn.

    Args:
        processor: a processor, or a tokenizer.
        config: the model's; with it, media are checked to have as many placeholder tokens as the model makes features.

    Attributes:
        tokenizer: the tokenizer, also when it came inside a processor.
        is_multimodal: whether pictures and clips can be given.
        media_ids: ids of the tokens that stand for media in `input_ids`; empty for a text-only model.
        end_of_turn: the token that ends an assistant's turn, as the template writes it (else the tokenizer's EOS).
        lead: white space that the template puts before an answer (LLaVA 1.5: one blank). A model generates it, but it
            is not part of the answer's text.
    """

    def __init__(self, processor: Any, config: Any = None) -> None:
        self.processor, self._config = processor, config
        self.tokenizer: Any = getattr(processor, "tokenizer", processor)
        self.is_multimodal = self.tokenizer is not processor
        template = getattr(processor, "chat_template", None) or getattr(self.tokenizer, "chat_template", None)
        if not template:
            name = getattr(self.tokenizer, "name_or_path", "") or type(processor).__name__
            raise ModelError(f"model {name!r} has no chat template: use an instruct model or add chat_template.jinja")
        self._template_kwargs: Row = {"enable_thinking": False} if "enable_thinking" in str(template) else {}
        self._takes_parts = self._find_content_form()
        marks = (getattr(processor, f"{kind}_token", None) for kind in ("image", "video"))
        self._marks: tuple[str, ...] = tuple(mark for mark in marks if isinstance(mark, str) and mark)
        self.media_ids: list[int] = sorted(self.tokenizer.convert_tokens_to_ids(mark) for mark in self._marks)
        specials = {token for token in (*self.tokenizer.all_special_tokens, *self._marks) if token}
        self._specials: tuple[str, ...] = tuple(sorted(specials, key=lambda token: (-len(token), token)))
        self.end_of_turn, self.lead = self._find_turn_form()
        self._media = MediaProcessor(
            processor, lambda media: self._apply([Message("user", tuple(media))], frames=False)
        )
        self._measured: dict[tuple[Any, ...], list[tuple[str, str, int]] | int] = {}

    # Text ------------------------------------------------------------------------------------------------------------

    def prompt(self, chat: Chat) -> str:
        """The chat up to where the model's words start: with the generation prompt, or inside a begun answer.

        Templates that can think aloud are told not to. Raises SampleError when the template refuses the chat, when the
        chat holds pictures and the model takes none, or when its text contains one of the model's control tokens.
        """
        beginning = self._beginning(chat)
        turns = chat.messages if beginning is not None else self._without_empty_answer(chat)
        self._check(turns)
        return self._apply(turns, continuing=beginning is not None)

    def answer(self, chat: Chat, text: str) -> str:
        """What follows `prompt(chat)` when the assistant answers `text`, up to and with the end-of-turn token.

        It is the part that the template adds for the assistant's turn, cut after the first control token behind the
        text: a line break that a template writes after the turn is never generated, so it is not part of an answer.
        A template that writes no such token (LLaVA 1.5) gets the tokenizer's EOS, which its model does generate.
        Where the template rewrites the prompt once an answer is there, the answer is the text and the end of turn.
        """
        self._check((Message("assistant", (text,)),))
        prompt = self.prompt(chat)
        begun = self._beginning(chat)
        turns = chat.messages[:-1] if begun is not None else self._without_empty_answer(chat)
        whole = self._apply((*turns, Message("assistant", ((begun or "") + text,))), continuing=False)
        if not whole.startswith(prompt):
            return ("" if begun is not None else self.lead) + text + self.end_of_turn
        added = whole[len(prompt) :]
        body = added.find(text.strip()) + len(text.strip()) if text.strip() else 0
        end = added.find(self.end_of_turn, max(body, 0))
        if end >= 0:
            return added[: end + len(self.end_of_turn)]
        return added[: max(body, 0)] + self.end_of_turn

    def strip_lead(self, generated: str) -> str:
        """The text of a freshly started answer, given the decoded tokens: without the template's own white space."""
        return generated.removeprefix(self.lead) if self.lead else generated

    # Tensors ---------------------------------------------------------------------------------------------------------

    def encode(
        self, texts: Sequence[str], media: Sequence[Sequence[Media]], padding_side: PaddingSide = "right"
    ) -> BatchEncoding:
        """Rendered texts and their media as one padded batch: `input_ids`, `attention_mask` (batch, time), media.

        `media[i]` are the pictures and clips of `texts[i]`, in order. Clips are videos with exactly their own frames
        and times where the model takes videos, else every frame is a picture; a clip shorter than the model's least
        number of frames shows its last frame again. Nothing is ever truncated. Beginning-of-sequence tokens are added
        where the tokenizer adds them and the template has not.

        Raises ValueError for rows that cannot share a batch (`group`), for media that the processor refuses, and where
        placeholders in the texts are not as many as the features that the model will compute.
        """
        adds = self._adds_specials(texts[0])
        if not self.is_multimodal:
            options: Row = {"padding": True, "padding_side": padding_side, "return_tensors": "pt"}
            return self.tokenizer(list(texts), add_special_tokens=adds, **options)
        encoded = self._media.encode(texts, media, padding_side, add_special_tokens=adds)
        if self._config is not None:
            self._compare(encoded)
        return encoded

    @property
    def takes_videos(self) -> bool:
        """Whether clips go in as videos; else a model that sees is shown them frame by frame."""
        return self.is_multimodal and self._media.takes_videos

    def count(self, chat: Chat) -> tuple[int, int]:
        """How many tokens the prompt of a chat has, and how many of them stand for media, as encoded and checked.

        Raises SampleError, in one line, for a chat that the model cannot take.
        """
        text, media = self.prompt(chat), chat.media
        try:
            ids = self.encode([text], [media])["input_ids"]
        except REFUSALS as error:
            raise SampleError(f"the model cannot take this prompt: {str(error).splitlines()[0]}") from error
        return ids.numel(), int(torch.isin(ids, torch.tensor(self.media_ids)).sum())

    def group(self, media: Sequence[Media]) -> Group:
        """What one row of media needs of a batch: rows with equal groups can share one."""
        return self._media.group(media) if self.is_multimodal else TEXT_ONLY

    def token_ids(self, text: str) -> list[int]:
        """Tokens of a rendered text, media placeholders not expanded (one token each)."""
        ids: list[int] = self.tokenizer(text, add_special_tokens=self._adds_specials(text))["input_ids"]
        return ids

    def answer_length(self, prompt: str, answer: str) -> int:
        """How many last tokens of `prompt + answer` belong to the answer.

        Text is tokenised as a whole. Should the last letters of the prompt and the first of the answer fuse into one
        token, that token counts as the answer's.
        """
        before, whole = self.token_ids(prompt), self.token_ids(prompt + answer)
        shared = next((i for i, (a, b) in enumerate(zip(before, whole, strict=False)) if a != b), len(before))
        return len(whole) - min(shared, len(whole))

    def num_tokens(self, prompt: str, media: Sequence[Media]) -> int:
        """Length of a prompt in tokens with its media expanded.

        Media are measured once for each size, number of frames and times. Raises ValueError when the prompt does not
        have one place for each of them.
        """
        if not media or not self.is_multimodal:
            return len(self.token_ids(prompt))
        key = tuple(_shape(part) for part in media)
        if key not in self._measured:
            if len(self._measured) >= _MAX_MEASURED:
                self._measured.clear()
            self._measured[key] = self._measure(media)
        found = self._measured[key]
        if isinstance(found, int):
            return len(self.token_ids(prompt)) + found
        num_places = sum(prompt.count(mark) for mark in {mark for mark, _, _ in found})
        if num_places != len(found):
            raise ValueError(f"the prompt has {num_places} places for {len(found)} pictures or videos")
        extra, begin, pieces = 0, 0, []
        for mark, written, more in found:
            end = prompt.index(mark, begin)
            pieces += [prompt[begin:end], written]
            begin, extra = end + len(mark), extra + more
        return len(self.token_ids("".join([*pieces, prompt[begin:]]))) + extra

    def _measure(self, media: Sequence[Media]) -> list[tuple[str, str, int]] | int:
        """For each placeholder: itself, the text in its place with runs of marks as one, and the marks left out.

        For a processor that does not tell its text: by how many tokens a prompt grows.
        """
        shown = self._apply([Message("user", tuple(media))])
        written = self._media.expansions(shown, media)
        if written is None:
            return int(self.encode([shown], [media])["input_ids"].shape[1]) - len(self.token_ids(shown))
        runs = re.compile(f"({'|'.join(map(re.escape, self._marks))})\\1+")
        found = []
        for mark, text in written:
            short = runs.sub(r"\1", text)
            found.append((mark, short, sum(text.count(other) - short.count(other) for other in self._marks)))
        return found

    def _compare(self, encoded: Any) -> None:
        expected = num_features(self._config, encoded)
        places = torch.isin(encoded["input_ids"], torch.tensor(placeholder_ids(self._config)))
        if expected is not None and int(places.sum()) != expected:
            raise ValueError(
                f"the text has {int(places.sum())} placeholder tokens for media, but the model will compute {expected} "
                "features; processor and model do not belong together"
            )

    # Inside ----------------------------------------------------------------------------------------------------------

    def _adds_specials(self, text: str) -> bool:
        bos = self.tokenizer.bos_token
        return self.is_multimodal and not (bos and text.startswith(bos))

    def _beginning(self, chat: Chat) -> str | None:
        last = chat.messages[-1] if chat.messages else None
        return last.text if last is not None and last.role == "assistant" and last.text else None

    @staticmethod
    def _without_empty_answer(chat: Chat) -> tuple[Message, ...]:
        turns = chat.messages
        return turns[:-1] if turns and turns[-1].role == "assistant" else turns

    def _check(self, turns: Sequence[Message]) -> None:
        for turn in turns:
            if not self.is_multimodal and any(not isinstance(part, str) for part in turn.content):
                raise SampleError("the chat holds a picture or clip, but this model reads text only: use one that sees")
            for part in turn.content:
                found = isinstance(part, str) and next((t for t in self._specials if t in part), None)
                if found:
                    raise SampleError(f"the {turn.role} text contains the model's control token {found!r}: remove it")

    def _row(self, turn: Message, frames: bool) -> Row:
        parts = [row for part in turn.content for row in _rows_of(part, frames)]
        if self._takes_parts:
            return {"role": turn.role, "content": parts}
        marks = {kind: f"{getattr(self.processor, f'{kind}_token', '')}\n" for kind in ("image", "video")}
        return {
            "role": turn.role,
            "content": "".join(row["text"] if "text" in row else marks[row["type"]] for row in parts),
        }

    def _apply(self, turns: Sequence[Message], *, continuing: bool = False, frames: bool | None = None) -> str:
        """The template's text. `frames`: whether clips are written frame by frame; None where the model decides."""
        if frames is None:
            media = [part for turn in turns for part in turn.content if not isinstance(part, str)]
            frames = self.is_multimodal and self._media.frame_by_frame(media) if media else False
        rows = [self._row(turn, frames) for turn in turns]
        starts = bool(rows) and rows[-1]["role"] != "assistant"
        try:
            text: str = self.processor.apply_chat_template(
                rows,
                tokenize=False,
                add_generation_prompt=starts,
                continue_final_message=continuing,
                **self._template_kwargs,
            )
        except (TemplateError, ValueError, IndexError) as error:
            raise SampleError(f"the model's chat template refuses this chat: {str(error).splitlines()[0]}") from error
        return text

    def _find_content_form(self) -> bool:
        """Whether the template reads `content` as a list of parts; found by trying, list first where media are."""
        for takes_parts in (True, False) if self.is_multimodal else (False, True):
            self._takes_parts = takes_parts
            try:
                text = self._apply((Message("user", (_PROBE,)),), continuing=False)
            except (SampleError, TypeError):
                continue
            if _PROBE in text and "'type'" not in text and '"type"' not in text:
                return takes_parts
        raise ModelError("the model's chat template reads `content` neither as text nor as a list of parts")

    def _find_turn_form(self) -> tuple[str, str]:
        user = Message("user", ("x",))
        prompt = self._apply((user,), continuing=False)
        whole = self._apply((user, Message("assistant", (_PROBE,))), continuing=False)
        added = whole[len(prompt) :] if whole.startswith(prompt) else whole[whole.index(_PROBE) :]
        start = added.find(_PROBE)
        before, behind = added[:start], added[start + len(_PROBE) :].lstrip()
        lead = before if before and not before.strip() else ""
        written = next((token for token in self._specials if behind.startswith(token)), None)
        if written is None:
            # Added tokens need not be registered as special (some fine-tunes leave them plain).
            added_tokens = sorted(self.tokenizer.get_added_vocab(), key=len, reverse=True)
            written = next((token for token in added_tokens if behind.startswith(token)), None)
        end = written or self.tokenizer.eos_token
        if not end:
            raise ModelError("the model's chat template ends no turn and its tokenizer has no EOS token")
        return end, lead


def _rows_of(part: Part, frames: bool) -> list[Row]:
    """A part of a turn as templates read it; with `frames`, a clip is as many pictures as it has frames."""
    if isinstance(part, str):
        return [{"type": "text", "text": part}]
    if isinstance(part, Clip):
        return [{"type": "image"} for _ in part.images] if frames else [{"type": "video"}]
    return [{"type": "image"}]


def _shape(part: Media) -> tuple[Any, ...]:
    """What the number of tokens of a medium depends on."""
    if isinstance(part, Clip):
        return part.images[0].size, part.times, metadata(part)["duration"]
    return (part.image.size,)
