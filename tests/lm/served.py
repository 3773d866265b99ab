"""`python -m tests.lm.served PORT`: the embedded model behind the OpenAI protocol, with the fields that vLLM adds.

A process and an HTTP server like any other (FastAPI on uvicorn); what answers is the package's own model, so answers
can be compared with it one for one: with greedy decoding, with seeds, with stop strings and with log-probabilities.
"""

from __future__ import annotations

import asyncio
import base64
import io
import sys
from typing import Any

import av
import torch
import uvicorn
from fastapi import FastAPI, HTTPException
from PIL import Image

from mmalign.errors import SampleError
from mmalign.lm.batch import BatchModel
from mmalign.lm.load import load_model
from mmalign.lm.local import LocalLM
from mmalign.lm.spec import ModelSpec
from mmalign.types import Chat, Clip, MediaRef, Message, Part, Picture, Sampling

app = FastAPI()
#: What the template puts behind an answer besides the end of turn, as many templates do.
CLOSING = "."
#: Requests in flight, and most of them since `/most` was asked.
seen = {"now": 0, "most": 0}


def part_of(part: dict[str, Any]) -> Part:
    if part["type"] == "text":
        return str(part["text"])
    content = io.BytesIO(base64.b64decode(part[part["type"]]["url"].partition(",")[2]))
    if part["type"] == "image_url":
        return Picture(Image.open(content).convert("RGB"), MediaRef("sent"))
    with av.open(content) as film:
        frames = list(film.decode(video=0))
    return Clip(
        tuple(frame.to_image() for frame in frames), tuple(frame.time for frame in frames), MediaRef("sent", "video")
    )


def chat_of(body: dict[str, Any]) -> Chat:
    def parts(content: Any) -> tuple[Part, ...]:
        return (content,) if isinstance(content, str) else tuple(map(part_of, content))

    return Chat(tuple(Message(turn["role"], parts(turn["content"])) for turn in body["messages"]))


def prompt_logprobs(body: dict[str, Any]) -> list[Any]:
    """As vLLM reports them: of each token of the prompt behind the first, in the order of the prompt.

    Computed by transformers' own template and model, so that nothing of the package checks itself.
    """
    turns, pictures = [], []
    for turn in body["messages"]:
        content = []
        for part in [turn["content"]] if isinstance(turn["content"], str) else turn["content"]:
            shown = part if isinstance(part, str) else part_of(part)
            if isinstance(shown, Picture):
                pictures.append(shown.image)
            content.append({"type": "text", "text": shown} if isinstance(shown, str) else {"type": "image"})
        turns.append({"role": turn["role"], "content": content})
    text = loaded.processor.apply_chat_template(
        turns,
        add_generation_prompt=body.get("add_generation_prompt", True),
        continue_final_message=body.get("continue_final_message", False),
    ) + (CLOSING if not body.get("continue_final_message") and turns[-1]["role"] == "assistant" else "")
    inputs = loaded.processor(text=[text], images=pictures or None, return_tensors="pt", add_special_tokens=False)
    with torch.inference_mode():
        logps = torch.log_softmax(loaded.model(**inputs).logits[0].double(), -1)
    ids = inputs["input_ids"][0].tolist()
    return [None, *({str(i): {"logprob": logps[at, i].item(), "rank": 1}} for at, i in enumerate(ids[1:]))]


@app.get("/v1/models")
async def models() -> dict[str, Any]:
    return {"object": "list", "data": [{"id": "tiny", "object": "model", "created": 1, "owned_by": "vllm"}]}


@app.get("/most")
async def most() -> dict[str, int]:
    told = dict(seen)
    seen["most"] = 0
    return told


@app.post("/v1/chat/completions")
async def complete(body: dict[str, Any]) -> dict[str, Any]:
    seen["now"] += 1
    seen["most"] = max(seen["most"], seen["now"])
    try:
        return await answer(body)
    except SampleError as error:
        raise HTTPException(400, str(error)) from None
    finally:
        seen["now"] -= 1


async def answer(body: dict[str, Any]) -> dict[str, Any]:
    if body["model"] != "tiny":
        raise HTTPException(404, f"The model `{body['model']}` does not exist.")
    chat = chat_of(body)
    if "prompt_logprobs" in body:
        async with alone:
            told = await asyncio.to_thread(prompt_logprobs, body)
        return {"choices": [{"index": 0, "message": {"content": "."}}], "prompt_logprobs": told}
    if (chat.messages[-1].role == "assistant") != body.get("continue_final_message", False):
        raise HTTPException(400, "continue_final_message does not fit the messages")
    choice: dict[str, Any] = {"index": 0}
    if body.get("logprobs"):
        prompt = batches.prompt(chat)
        async with alone:
            [logits] = await asyncio.to_thread(batches.next_logits, [prompt])
        best = torch.log_softmax(logits.double(), 0).topk(body["top_logprobs"])
        tokenizer = batches.renderer.tokenizer
        tops = [
            {"token": tokenizer.decode([token]), "logprob": logp, "bytes": None}
            for token, logp in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ]
        choice["logprobs"] = {"content": [{**tops[0], "top_logprobs": tops}]}
    sampling = Sampling(
        temperature=body["temperature"],
        top_p=body["top_p"],
        top_k=max(0, body["top_k"]),
        repetition_penalty=body["repetition_penalty"],
        max_new_tokens=body["max_tokens"],
        stop=tuple(body.get("stop", ())),
    )
    async with alone:
        completion = await lm.generate(chat, sampling, seed=body["seed"])
    choice |= {"message": {"role": "assistant", "content": completion.text}, "finish_reason": completion.finish}
    usage = {"prompt_tokens": 1, "completion_tokens": completion.num_tokens, "total_tokens": 1 + completion.num_tokens}
    return {"id": "1", "object": "chat.completion", "created": 1, "model": "tiny", "choices": [choice], "usage": usage}


if __name__ == "__main__":
    torch.set_num_threads(1)
    loaded = load_model(ModelSpec())
    batches, lm, alone = BatchModel(loaded), LocalLM(loaded), asyncio.Lock()
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="warning")
