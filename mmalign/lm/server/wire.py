"""What is asked of a server: a chat and its settings as the body of a request to `chat/completions`.

OpenAI's own fields leave things open that a pair depends on: top-k, the repetition penalty, whether a stop string stays
in the text, whether a last turn by the assistant is gone on with. Servers have fields of their own for them, by kind.
What a server would take from the model's `generation_config.json`, or from defaults of its own, is sent switched off.
"""

from __future__ import annotations

import json
from typing import Any

from PIL import Image

from mmalign.errors import RecipeError
from mmalign.lm.marks import refuse_marks
from mmalign.lm.server.media import media_parts
from mmalign.lm.spec import ClipForm, Serving
from mmalign.types import Chat, Clip, Media, MediaRef, Message, Picture, Sampling

Body = dict[str, Any]

#: Most first tokens that OpenAI and, unless told otherwise, vLLM report.
TOP_LOGPROBS = 20

#: Fields that make a server go on with the assistant's last turn; openai and transformers have none.
_CONTINUE: dict[Serving, Body] = {
    "vllm": {"add_generation_prompt": False, "continue_final_message": True},
    "sglang": {"continue_final_message": True},
    "llamacpp": {},
}
#: Fields that keep a stop string in the text. Other servers are not told of stop strings; the text is cut here.
_KEEP_STOP: dict[Serving, Body] = {"vllm": {"include_stop_str_in_output": True}, "sglang": {"no_stop_trim": True}}

#: A side of the pictures that a server is tried with, in pixels; models refuse very small ones.
_TRIAL_SIDE = 224


def generate_body(chat: Chat, sampling: Sampling, *, seed: int, kind: Serving, clips: ClipForm) -> Body:
    """The request for one answer. Raises RecipeError for what servers of this kind have no field for."""
    body = _body(chat, kind, clips) | {
        "max_tokens": sampling.max_new_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p if sampling.temperature else 1.0,
        "seed": _short(seed),
    }
    if sampling.stop and kind in _KEEP_STOP:
        body |= {"stop": list(sampling.stop), **_KEEP_STOP[kind]}
    return body | _own_sampling(sampling, kind)


def choose_body(chat: Chat, *, kind: Serving, clips: ClipForm) -> Body:
    """The request for the likeliest first tokens of the answer.

    The temperature is 1, so that servers that report log-probabilities after it report those of the model.
    """
    plain = Sampling(temperature=1.0, max_new_tokens=1)
    body = generate_body(chat, plain, seed=0, kind=kind, clips=clips)
    return body | {"logprobs": True, "top_logprobs": TOP_LOGPROBS}


def score_body(chat: Chat, *, closed: bool = False, clips: ClipForm) -> Body:
    """The request for the log-probabilities of the chat's own tokens, in the words of vLLM.

    The chat is shown up to where the assistant's answer starts or, where it is begun, goes on; `closed` shows a last
    turn by the assistant with its end.
    """
    body = _body(chat, "vllm", clips) | {"max_tokens": 1, "temperature": 0.0, "seed": 0, "prompt_logprobs": 0}
    return body | ({"continue_final_message": False} if closed else {})


def answered(chat: Chat, text: str) -> Chat:
    """The chat with a whole answer; one that was begun is ended by it."""
    if not is_begun(chat):
        return chat.answering(text)
    return Chat((*chat.messages[:-1], Message("assistant", (*chat.messages[-1].content, text))))


def trial_chat(chat: Chat) -> Chat:
    """A chat of the same form, one small medium of each kind and a word: no server that takes the like refuses it."""
    media: list[Media] = []
    if any(isinstance(part, Picture) for part in chat.media):
        media.append(Picture(_grey(), MediaRef("")))
    if any(isinstance(part, Clip) for part in chat.media):
        media.append(Clip((_grey(), _grey()), (0.0, 1.0), MediaRef("", "video")))
    begun = chat.messages[-1:] if is_begun(chat) else ()
    system = (Message("system", ("Answer.",)),) if chat.messages[0].role == "system" else ()
    return Chat((*system, Message("user", (*media, "Say yes.")), *(Message(turn.role, ("Y",)) for turn in begun)))


def is_begun(chat: Chat) -> bool:
    """Whether the assistant's answer is begun already."""
    return bool(chat.messages) and chat.messages[-1].role == "assistant"


def _body(chat: Chat, kind: Serving, clips: ClipForm) -> Body:
    refuse_marks(chat.messages)
    body: Body = {"messages": [_message(turn, clips) for turn in chat.messages]}
    if not is_begun(chat):
        return body
    if kind not in _CONTINUE:
        raise RecipeError(
            f"server.kind {kind}: cannot go on with an answer that was begun, which this method asks for; "
            f"serve the model with one of {', '.join(_CONTINUE)}"
        )
    return body | _CONTINUE[kind]


def _message(turn: Message, clips: ClipForm) -> Body:
    if all(isinstance(part, str) for part in turn.content):
        return {"role": turn.role, "content": turn.text}  # some chat templates take a list in user turns only
    content: list[Body] = []
    for part in turn.content:
        if isinstance(part, str):
            content.append({"type": "text", "text": part})
        else:
            content.extend(media_parts(part, clips))
    return {"role": turn.role, "content": content}


def _own_sampling(sampling: Sampling, kind: Serving) -> Body:
    top_k, penalty = (sampling.top_k if sampling.temperature else 0), sampling.repetition_penalty
    if kind in ("vllm", "sglang"):
        return {"top_k": top_k or -1, "min_p": 0.0, "repetition_penalty": penalty}
    if kind == "llamacpp":
        return {"top_k": top_k, "min_p": 0.0, "repeat_penalty": penalty, "repeat_last_n": -1}
    if kind == "transformers":
        settings: Body = {"do_sample": sampling.temperature > 0, "repetition_penalty": penalty}
        if sampling.temperature:
            settings |= {"temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": top_k}
        return {"generation_config": json.dumps(settings)}
    for name, value, off in (("top_k", top_k, 0), ("repetition_penalty", penalty, 1.0)):
        if value != off:
            raise RecipeError(
                f"server.kind openai: has no {name}, which is {value:g} here; "
                "say what runs there: --server.kind vllm, sglang, llamacpp or transformers"
            )
    return {}


def _short(seed: int) -> int:
    """31 bits of a seed: what every server takes (llama.cpp's seeds have 32 bits and its last one means any)."""
    return (seed ^ seed >> 31 ^ seed >> 62) & 0x7FFFFFFF


def _grey() -> Image.Image:
    return Image.new("RGB", (_TRIAL_SIDE, _TRIAL_SIDE), (128, 128, 128))
