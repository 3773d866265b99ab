"""Chats as the text and tensors that one model wants: its own chat template, its own processor, nothing else.

Generation, scoring and training all build their inputs here, so that what is scored or trained on is, token for token,
what the model would have generated. Imports no model code; torch comes in only through the processor that is given.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from jinja2.exceptions import TemplateError

from mmalign.errors import ModelError, SampleError
from mmalign.types import Chat, MediaRef, Message, Picture, Row

if TYPE_CHECKING:
    from PIL.Image import Image
    from transformers import BatchEncoding

PaddingSide = Literal["left", "right"]
_PROBE = "mmalign-probe"


class Renderer:
    """Text and tensors for one processor (or, for a text-only model, one tokenizer).

    Raises ModelError when there is no chat template or no way to end a turn.

    Attributes:
        tokenizer: the tokenizer, also when it came inside a processor.
        is_multimodal: whether pictures can be given.
        end_of_turn: the token that ends an assistant's turn, as the template writes it (else the tokenizer's EOS).
        lead: white space that the template puts before an answer (LLaVA 1.5: one blank). A model generates it, but it
            is not part of the answer's text.
    """

    def __init__(self, processor: Any) -> None:
        self.processor = processor
        self.tokenizer: Any = getattr(processor, "tokenizer", processor)
        self.is_multimodal = self.tokenizer is not processor
        template = getattr(processor, "chat_template", None) or getattr(self.tokenizer, "chat_template", None)
        if not template:
            name = getattr(self.tokenizer, "name_or_path", "") or type(processor).__name__
            raise ModelError(f"model {name!r} has no chat template: use an instruct model or add chat_template.jinja")
        self._template_kwargs: Row = {"enable_thinking": False} if "enable_thinking" in str(template) else {}
        self._takes_parts = self._find_content_form()
        self._specials: tuple[str, ...] = tuple(
            sorted((token for token in self.tokenizer.all_special_tokens if token), key=len, reverse=True)
        )
        self.end_of_turn, self.lead = self._find_turn_form()
        self._growths: dict[tuple[int, int], int] = {}

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
        self, texts: Sequence[str], media: Sequence[Sequence[Image]], padding_side: PaddingSide = "right"
    ) -> BatchEncoding:
        """Rendered texts and their pictures as one padded batch: `input_ids`, `attention_mask` (batch, time), media.

        `media[i]` are the pictures of `texts[i]`, in order. Beginning-of-sequence tokens are added where the tokenizer
        adds them and the template has not.
        """
        kwargs: Row = {"padding": True, "padding_side": padding_side, "return_tensors": "pt"}
        kwargs["add_special_tokens"] = self._adds_specials(texts[0])
        if not self.is_multimodal:
            return self.tokenizer(list(texts), **kwargs)
        if not any(media):
            images: Any = None
        elif all(media):
            images = [list(row) for row in media]
        else:
            images = [image for row in media for image in row]
        return self.processor(text=list(texts), images=images, **kwargs)

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

    def num_tokens(self, prompt: str, media: Sequence[Image]) -> int:
        """Length of a prompt in tokens with its pictures expanded; measured once per picture size."""
        return len(self.token_ids(prompt)) + sum(self._growth(image) for image in media)

    def _growth(self, image: Image) -> int:
        if image.size not in self._growths:
            shown = self._apply((Message("user", (Picture(image, MediaRef("")),)),), continuing=False)
            grown = self.encode([shown], [[image]])["input_ids"].shape[1]
            self._growths[image.size] = grown - len(self.token_ids(shown))
        return self._growths[image.size]

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
                raise SampleError("the chat holds a picture, but this model reads text only: use an image-text model")
            for part in turn.content:
                found = isinstance(part, str) and next((t for t in self._specials if t in part), None)
                if found:
                    raise SampleError(f"the {turn.role} text contains the model's control token {found!r}: remove it")

    def _row(self, turn: Message) -> Row:
        if self._takes_parts:
            content: Any = [
                {"type": "text", "text": part} if isinstance(part, str) else {"type": "image"} for part in turn.content
            ]
        else:
            token = getattr(self.processor, "image_token", "")
            content = "".join(part if isinstance(part, str) else f"{token}\n" for part in turn.content)
        return {"role": turn.role, "content": content}

    def _apply(self, turns: Sequence[Message], *, continuing: bool) -> str:
        rows = [self._row(turn) for turn in turns]
        starts = bool(rows) and rows[-1]["role"] != "assistant"
        try:
            text: str = self.processor.apply_chat_template(
                rows,
                tokenize=False,
                add_generation_prompt=starts,
                continue_final_message=continuing,
                **self._template_kwargs,
            )
        except (TemplateError, ValueError) as error:
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
