"""A model's chat template: the form in which it reads turns, how it ends them, and what it writes beside their texts.

Nothing is known about a template but what comes out of it, so all of this is found by rendering a few words.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from jinja2.exceptions import TemplateError

from mmalign.errors import ModelError, SampleError
from mmalign.types import Clip, Message, Part, Role, Row

_PROBE = "mmalign-probe"
#: Chats that show how turns are written. A thought that a template writes only into the answer to come is not between
#: two of them but in the last one, which is tried only where the others are refused.
_CHATS: tuple[tuple[Role, ...], ...] = (
    ("system", "user", "assistant", "user"),
    ("user", "assistant", "user"),
    ("user", "assistant"),
)
#: What templates raise for chats that they were not written for.
_REFUSALS = (TemplateError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError)


@dataclass(frozen=True, slots=True)
class Scaffold:
    """What a template writes: `between` the texts of two turns, and `around` the first one and media."""

    between: tuple[str, ...]
    around: tuple[str, ...]


class ChatTemplate:
    """The chat template of a processor, or of a tokenizer for a text-only model.

    Raises ModelError when there is none, or one that shows no text or ends no turn.

    Attributes:
        end_of_turn: the token that ends an assistant's turn, as the template writes it (else the tokenizer's EOS).
        lead: white space that the template puts before an answer.
    """

    def __init__(self, processor: Any) -> None:
        self._processor = processor
        self._tokenizer: Any = getattr(processor, "tokenizer", processor)
        template = getattr(processor, "chat_template", None) or getattr(self._tokenizer, "chat_template", None)
        if not template:
            name = getattr(self._tokenizer, "name_or_path", "") or type(processor).__name__
            raise ModelError(f"model {name!r} has no chat template: use an instruct model or add chat_template.jinja")
        self._kwargs: Row = {"enable_thinking": False} if "enable_thinking" in str(template) else {}
        self._takes_parts = self._find_content_form()
        self.end_of_turn, self.lead = self._find_turn_form()

    def apply(self, turns: Sequence[Message], *, frames: bool = False, ends: bool = False) -> str:
        """The template's text: up to where the answer starts, or goes on where the last turn is the assistant's.

        Texts are data to the template; nothing in them is run. Raises SampleError where the template refuses the turns.

        Args:
            turns: of a chat.
            frames: whether clips are written frame by frame.
            ends: whether a last turn of the assistant is closed.
        """
        rows = [self._row(turn, frames) for turn in turns]
        is_answered = bool(turns) and turns[-1].role == "assistant"
        return self._rendered(rows, starts=bool(turns) and not is_answered, continuing=is_answered and not ends)

    def scaffold(self) -> Scaffold:
        """What the template writes beside the texts of turns."""
        between: list[str] = []
        around: list[str] = []
        for roles in _CHATS:
            if between and len(roles) == 2:
                break
            turns = [Message(role, (f"{_PROBE}{place}",)) for place, role in enumerate(roles)]
            with suppress(SampleError):
                first, *rest = re.split(f"{_PROBE}[0-9]", self.apply(turns, ends=True))
                around.append(first)
                between += rest[:-1]
        for kind in ("image", "video") if self._takes_parts else ():
            with suppress(SampleError):
                content = [{"type": kind}, {"type": "text", "text": _PROBE}]
                around.append(self._rendered([{"role": "user", "content": content}]).partition(_PROBE)[0])
        return Scaffold(tuple(between), tuple(around))

    # Inside ----------------------------------------------------------------------------------------------------------

    def _row(self, turn: Message, frames: bool) -> Row:
        parts = [row for part in turn.content for row in _rows_of(part, frames)]
        if self._takes_parts:
            return {"role": turn.role, "content": parts}
        marks = {kind: f"{getattr(self._processor, f'{kind}_token', '')}\n" for kind in ("image", "video")}
        return {
            "role": turn.role,
            "content": "".join(row["text"] if "text" in row else marks[row["type"]] for row in parts),
        }

    def _rendered(self, rows: Sequence[Row], *, starts: bool = False, continuing: bool = False) -> str:
        try:
            text: str = self._processor.apply_chat_template(
                rows,
                tokenize=False,
                add_generation_prompt=starts,
                continue_final_message=continuing,
                **self._kwargs,
            )
        except _REFUSALS as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise SampleError(f"the model's chat template refuses this chat: {reason}") from error
        return text

    def _find_content_form(self) -> bool:
        """Whether the template reads `content` as a list of parts; found by trying, list first where media are."""
        sees = self._tokenizer is not self._processor
        for takes_parts in (True, False) if sees else (False, True):
            self._takes_parts = takes_parts
            try:
                text = self.apply((Message("user", (_PROBE,)),))
            except SampleError:
                continue
            if _PROBE in text and "'type'" not in text and '"type"' not in text:
                return takes_parts
        raise ModelError("the model's chat template reads `content` neither as text nor as a list of parts")

    def _find_turn_form(self) -> tuple[str, str]:
        user = Message("user", ("x",))
        prompt = self.apply((user,))
        whole = self.apply((user, Message("assistant", (_PROBE,))), ends=True)
        added = whole[len(prompt) :] if whole.startswith(prompt) else whole[whole.index(_PROBE) :]
        start = added.find(_PROBE)
        before, behind = added[:start], added[start + len(_PROBE) :].lstrip()
        lead = before if before and not before.strip() else ""
        # Added tokens need not be registered as special (some fine-tunes leave them plain).
        for tokens in (self._tokenizer.all_special_tokens, self._tokenizer.get_added_vocab()):
            longest_first = sorted((token for token in tokens if token), key=len, reverse=True)
            end = next((token for token in longest_first if behind.startswith(token)), None)
            if end is not None:
                return end, lead
        if not self._tokenizer.eos_token:
            raise ModelError("the model's chat template ends no turn and its tokenizer has no EOS token")
        return self._tokenizer.eos_token, lead


def _rows_of(part: Part, frames: bool) -> list[Row]:
    """A part of a turn as templates read it; with `frames`, a clip is as many pictures as it has frames."""
    if isinstance(part, str):
        return [{"type": "text", "text": part}]
    if isinstance(part, Clip):
        return [{"type": "image"} for _ in part.images] if frames else [{"type": "video"}]
    return [{"type": "image"}]
