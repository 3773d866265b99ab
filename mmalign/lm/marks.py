"""Control tokens of the usual families by their letters, for models behind a server, whose tokenizer nobody can ask.

A server puts texts into the model's chat template and reads the whole as tokens, so `<|im_end|>` in a text ends a turn
there. For a model that is loaded here `Control` knows its very tokens; this list is longer for one model and shorter
for another. Loads no torch.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from mmalign.errors import SampleError
from mmalign.types import Message

#: Qwen, Llama 3, Phi, DeepSeek, GLM, InternLM; Llama 2, Vicuna; Mistral; Gemma; LLaVA, InternVL, Idefics, SmolVLM.
_MARKS = re.compile(
    r"<\|[A-Za-z][A-Za-z0-9_/ -]{0,40}\|>|<\uff5c[^<>\uff5c]{1,40}\uff5c>|</?s>|<(?:bos|eos|pad)>"
    r"|<(?:start|end)_of_(?:turn|image|utterance)>|<image_soft_token>|<(?:image|video|audio)>"
    r"|</?(?:img|IMG_CONTEXT)>|<(?:fake_token_around_image|global-img|row_\d+_col_\d+)>"
    r"|\[/?(?:INST|SYSTEM_PROMPT|IMG|IMG_BREAK|IMG_END|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS)\]|<</?SYS>>"
)
#: Most characters of a chat: 262,144 tokens of 32 each.
_MOST = 1 << 23


def refuse_marks(turns: Sequence[Message]) -> None:
    """Raises SampleError for texts that a server's model could take for the chat's own marks, or that are far too long.

    Parts next to each other are read as one text.
    """
    size = sum(len(part) for turn in turns for part in turn.content if isinstance(part, str))
    if size > _MOST:
        raise SampleError(f"the chat has {size:,} characters, servers are sent at most {_MOST:,}")
    for turn in turns:
        for text in runs(turn):
            refuse_halves(text)
            if found := _MARKS.search(text):
                raise SampleError(f"the {turn.role} text contains {found[0]!r}, which models read as a mark: remove it")


def runs(turn: Message) -> list[str]:
    """The texts of a turn, those next to each other as one."""
    found = [""]
    for part in turn.content:
        if isinstance(part, str):
            found[-1] += part
        else:
            found.append("")
    return [text for text in found if text]


def refuse_halves(text: str) -> None:
    """Raises SampleError for a text with half a character, which no tokenizer takes."""
    if text.isascii():
        return
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise SampleError(
            f"the text has half a character (a lone surrogate) at place {error.start}: it is no valid Unicode"
        ) from None
