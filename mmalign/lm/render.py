"""Chats as the text and tensors that one model wants: its own chat template, its own processor, nothing else.

Generation, scoring and training all build their inputs here, so that what is scored or trained on is, token for token,
what the model would have generated.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch

from mmalign.errors import SampleError
from mmalign.lm.control import Control
from mmalign.lm.features import num_features, placeholder_ids
from mmalign.lm.lengths import Lengths
from mmalign.lm.processing import REFUSALS, TEXT_ONLY, Group, MediaProcessor
from mmalign.lm.size import TextLimit
from mmalign.lm.template import ChatTemplate
from mmalign.types import Chat, Clip, Media, Message, Row

if TYPE_CHECKING:
    from transformers import BatchEncoding

PaddingSide = Literal["left", "right"]
#: Texts whose tokens are kept, and the most characters of one: prompts are asked for several times in a row.
_MAX_KEPT, _MAX_KEPT_CHARACTERS = 256, 1 << 14


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
        marks = (getattr(processor, f"{kind}_token", None) for kind in ("image", "video"))
        self._marks: tuple[str, ...] = tuple(mark for mark in marks if isinstance(mark, str) and mark)
        self.media_ids: list[int] = sorted(self.tokenizer.convert_tokens_to_ids(mark) for mark in self._marks)
        self._kept: dict[str, list[int]] = {}
        self._template = ChatTemplate(processor)
        self.end_of_turn, self.lead = self._template.end_of_turn, self._template.lead
        self._media = MediaProcessor(
            processor, lambda media: self._template.apply([Message("user", tuple(media))], frames=False)
        )
        places = [*self.media_ids, *placeholder_ids(config)]
        self._control = Control(self.tokenizer, processor, places, self._template.scaffold(), self.end_of_turn)
        self._lengths = Lengths(self._marks, self.token_ids, self._expansions, self._grown)
        text_config = config.get_text_config() if config is not None else None
        self._limit = TextLimit(self.tokenizer, getattr(text_config, "max_position_embeddings", None))

    # Text ------------------------------------------------------------------------------------------------------------

    def prompt(self, chat: Chat) -> str:
        """The chat up to where the model's words start: with the generation prompt, or inside a begun answer.

        Templates that can think aloud are told not to. Raises SampleError when the template refuses the chat, when the
        chat holds pictures and the model takes none, when it is too long, and when its texts would steer the chat
        (`Control`): what is a turn, and where media stand, never depends on them.
        """
        turns = _without_empty_answer(chat)
        self._check(turns)
        text = self._apply(turns)
        self._compare(text, _shape(turns), lambda: self._apply(_bare(turns)))
        return text

    def answer(self, chat: Chat, text: str) -> str:
        """What follows `prompt(chat)` when the assistant answers `text`, up to and with the end-of-turn token.

        It is the part that the template adds for the assistant's turn, cut after the first control token behind the
        text: a line break that a template writes after the turn is never generated, so it is not part of an answer.
        A template that writes no such token (LLaVA 1.5) gets the tokenizer's EOS, which its model does generate.
        Where the template rewrites the prompt or the text once an answer is there, the answer is the text and the end
        of turn. Raises SampleError as `prompt` does.
        """
        turns, prompt = _without_empty_answer(chat), self.prompt(chat)
        self._check((Message("assistant", (_begun(turns) + text,)),))
        added = self._added(prompt, turns, text)

        def harmless() -> str:
            bare = _bare(turns)
            begins = self._apply(bare)
            return begins + self._added(begins, bare, _word(text))

        self._compare(prompt + added, (_shape(turns), _word(text)), harmless)
        return added

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
            self._count_places(encoded)
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
        ids = self._kept.get(text)
        if ids is None:
            ids = self.tokenizer(text, add_special_tokens=self._adds_specials(text), verbose=False)["input_ids"]
            if len(text) <= _MAX_KEPT_CHARACTERS:
                if len(self._kept) >= _MAX_KEPT:
                    self._kept.clear()
                self._kept[text] = ids
        return list(ids)

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
        return self._lengths.num_tokens(prompt, media if self.is_multimodal else ())

    def _count_places(self, encoded: Any) -> None:
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

    def _added(self, prompt: str, turns: Sequence[Message], text: str) -> str:
        """What `turns`, whose prompt is given, grow by as the assistant answers `text`."""
        begun = _begun(turns)
        asked = turns[:-1] if begun else turns
        whole = self._apply((*asked, Message("assistant", (begun + text,))), ends=True)
        added, own = whole[len(prompt) :], text.strip()
        if not whole.startswith(prompt) or own not in added:
            return ("" if begun else self.lead) + text + self.end_of_turn
        body = added.index(own) + len(own) if own else 0
        end = added.find(self.end_of_turn, body)
        return (added[:body] if end < 0 else added[:end]) + self.end_of_turn

    def _apply(self, turns: Sequence[Message], *, ends: bool = False) -> str:
        media = [part for turn in turns for part in turn.content if not isinstance(part, str)]
        frames = bool(media) and self.is_multimodal and self._media.frame_by_frame(media)
        return self._template.apply(turns, frames=frames, ends=ends)

    def _compare(self, text: str, shape: Hashable, harmless: Callable[[], str]) -> None:
        self._control.compare(self.token_ids(text), shape, lambda: self.token_ids(harmless()))

    def _check(self, turns: Sequence[Message]) -> None:
        for turn in turns:
            if turn.role not in ("system", "user", "assistant"):
                raise SampleError(f"the chat has a turn of {turn.role!r:.40}: it must be system, user or assistant")
            if not self.is_multimodal and any(not isinstance(part, str) for part in turn.content):
                raise SampleError("the chat holds a picture or clip, but this model reads text only: use one that sees")
        self._limit.refuse(part for turn in turns for part in turn.content if isinstance(part, str))
        self._control.refuse(turns)

    def _expansions(self, media: Sequence[Media]) -> list[tuple[str, str]] | None:
        """What the processor writes for media, as (placeholder, text in its place)."""
        return self._media.expansions(self._apply([Message("user", tuple(media))]), media)

    def _grown(self, media: Sequence[Media]) -> int:
        """By how many tokens a prompt grows when its media are expanded."""
        shown = self._apply([Message("user", tuple(media))])
        return int(self.encode([shown], [media])["input_ids"].shape[1]) - len(self.token_ids(shown))


def _without_empty_answer(chat: Chat) -> tuple[Message, ...]:
    turns = chat.messages
    return turns[:-1] if turns and turns[-1].role == "assistant" and not turns[-1].text else turns


def _begun(turns: Sequence[Message]) -> str:
    """How the answer was begun that is to be gone on with; empty where a fresh one is asked for."""
    return turns[-1].text if turns and turns[-1].role == "assistant" else ""


def _shape(turns: Sequence[Message]) -> Hashable:
    """What a template can tell of turns without reading them; a clip may be as many pictures as it has frames."""
    return tuple(
        (
            turn.role,
            *(
                _word(part) if isinstance(part, str) else len(part.images) if isinstance(part, Clip) else None
                for part in turn.content
            ),
        )
        for turn in turns
    )


def _bare(turns: Sequence[Message]) -> list[Message]:
    """The same turns with a harmless word for every text."""
    return [
        Message(turn.role, tuple(_word(part) if isinstance(part, str) else part for part in turn.content))
        for turn in turns
    ]


def _word(text: str) -> str:
    """A harmless text; templates may leave out what is empty or white space."""
    return "x" if text.strip() else text and " "
