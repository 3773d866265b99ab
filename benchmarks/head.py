"""What log-probs and RRPO's exact token-wise KL cost at a large vocabulary, in ratios.

    python benchmarks/head.py                             # the head alone, then whole steps; about 5 minutes
    python benchmarks/head.py --parts head --hidden 2048 --tokens 320
    python benchmarks/head.py --device cuda --dtype bf16 --runs 20

Part `head`: from hidden states of the completion tokens (half of them chosen) to their gradient, the head frozen or
trained. *plain* keeps the logits of all these tokens and leaves both directions to torch; DPO and RRPO are those of
`mmalign.train.logprobs.streamed` without and with the divergence, for which the reference pass has kept what it keeps.
Part `step`: forward and backward of Llamas of random weights with LoRA, one pair about a prompt, by `completion_logps`
and `completion_terms`.

Runs alternate in one process; times are medians of processor seconds (wall-clock seconds on a GPU), memory is the
most that tensors hold at once beyond what there was before, temporary ones of kernels included.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("KINETO_LOG_LEVEL", "5")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from transformers import LlamaConfig, LlamaForCausalLM

from mmalign.lm.prefix import pack
from mmalign.train.data.collate import PairBatch
from mmalign.train.logprobs.head import Anchor, Head
from mmalign.train.logprobs.logps import completion_logps, completion_states, completion_terms
from mmalign.train.logprobs.streamed import tangents, token_terms

#: Hidden size and layers of the models of part `step`.
MODELS = ((256, 4), (512, 8), (896, 24))
Run = Callable[[], Any]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=("head", "step"), default=["head", "step"])
    parser.add_argument("--vocabulary", type=int, default=150_000)
    parser.add_argument("--hidden", type=int, nargs="+", default=[512, 1024, 2048], help="of part head")
    parser.add_argument("--tokens", type=int, default=160, help="completion tokens")
    parser.add_argument("--prompt", type=int, default=300, help="prompt tokens of part step")
    parser.add_argument("--models", type=int, default=len(MODELS), help="how many of part step, the smallest first")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32")
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    if "head" in given.parts:
        for hidden in given.hidden:
            for trained in (False, True):
                name = f"head {hidden} x {given.vocabulary}, {'trained' if trained else 'frozen'}"
                report(name, heads(hidden, given, trained=trained), given)
    if "step" in given.parts:
        for hidden, layers in MODELS[: given.models]:
            report(f"step, hidden {hidden}, {layers} layers", steps(hidden, layers, given), given)


def heads(hidden: int, given: argparse.Namespace, *, trained: bool) -> dict[str, Run]:
    """Plain and streamed ways through a head of its own."""
    device, dtype = torch.device(given.device), torch.bfloat16 if given.dtype == "bf16" else torch.float32
    linear = nn.Linear(hidden, given.vocabulary, bias=False, device=device, dtype=dtype).requires_grad_(trained)
    head, reference = Head(linear), Head(linear).frozen()
    states = torch.randn(given.tokens, hidden, device=device, dtype=dtype)
    labels = torch.randint(given.vocabulary, (given.tokens,), device=device)
    moved = states[: given.tokens // 2] + 0.1 * torch.randn(given.tokens // 2, hidden, device=device, dtype=dtype)

    kept = tangents(reference, moved, labels[: len(moved)]) if head.is_concave else moved

    def way(compute: Callable[[Tensor, Anchor | None], tuple[Tensor, Tensor]], *, diverges: bool) -> Run:
        def run() -> None:
            linear.weight.grad = None
            own = states.clone().requires_grad_()
            logps, divergence = compute(own, Anchor(kept, reference) if diverges else None)
            (logps[: given.tokens // 2].sum() - logps[given.tokens // 2 :].sum() + 0.05 * divergence.sum()).backward()

        return run

    def plain(own: Tensor, anchor: Anchor | None) -> tuple[Tensor, Tensor]:
        ours = linear(own).float().log_softmax(-1)
        logps = ours.gather(-1, labels[:, None]).squeeze(-1)
        if anchor is None:
            return logps, logps[:0]
        with torch.no_grad():
            theirs = linear(anchor.inputs).float().log_softmax(-1)
        return logps, (theirs.exp() * (theirs - ours[: len(theirs)])).sum(-1)

    def streamed(own: Tensor, anchor: Anchor | None) -> tuple[Tensor, Tensor]:
        return token_terms(head, own, labels, anchor)

    return {
        "DPO": way(streamed, diverges=False),
        "RRPO": way(streamed, diverges=True),
        "plain DPO": way(plain, diverges=False),
        "plain RRPO": way(plain, diverges=True),
    }


def steps(hidden: int, layers: int, given: argparse.Namespace) -> dict[str, Run]:
    """Forward and backward of a whole model on one pair whose prompt is computed once."""
    device = torch.device(given.device)
    config = LlamaConfig(
        vocab_size=given.vocabulary,
        hidden_size=hidden,
        intermediate_size=4 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        num_key_value_heads=max(1, hidden // 256),
    )
    model = LlamaForCausalLM(config).to(device, torch.bfloat16 if given.dtype == "bf16" else torch.float32)
    model = get_peft_model(model, LoraConfig(target_modules="all-linear"))
    batch = pair(given.vocabulary, given.prompt, given.tokens // 2).to(device)
    head = Head.of(model).frozen()
    with torch.autocast(device.type, torch.bfloat16, enabled=given.dtype == "bf16"):
        _, states = completion_states(model, batch)

    def way(compute: Callable[[], tuple[Tensor, Tensor]]) -> Run:
        def run() -> None:
            model.zero_grad()
            with torch.autocast(device.type, torch.bfloat16, enabled=given.dtype == "bf16"):
                logps, divergence = compute()
            (logps[0].sum() - logps[1].sum() + 0.05 * divergence.sum()).backward()

        return run

    return {
        "DPO": way(lambda: (completion_logps(model, batch), torch.zeros(1, device=device))),
        "RRPO": way(lambda: completion_terms(model, batch, Anchor(states, head))),
    }


def pair(vocabulary: int, prompt: int, answer: int) -> PairBatch:
    """Two random answers to one random prompt."""
    ids = torch.randint(vocabulary, (1, prompt))
    answers = torch.randint(vocabulary, (2, answer))
    answers[0, 0], answers[1, 0] = 0, 1
    packed = pack({"input_ids": ids, "attention_mask": torch.ones_like(ids)}, [0, 0], answers.tolist(), 0)
    mask = torch.ones(2, answer, dtype=torch.bool)
    return PairBatch(
        ids=("p",),
        sides=("chosen", "rejected"),
        shapes=((), ()),
        inputs=packed.inputs,
        branches=packed.branches,
        places=packed.places,
        lengths=packed.lengths.view(2, 1),
        mask=mask,
        changed=mask,
        p=torch.ones(1),
        weight=torch.ones(1),
    )


def report(name: str, ways: dict[str, Run], given: argparse.Namespace) -> None:
    """Print what every way takes, and its ratios to the first."""
    peaks = {way: peak_mib(run, given.device) for way, run in ways.items()}
    took: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(given.runs):
        for way, run in ways.items():
            took[way].append(seconds(run, given.device))
    medians = {way: statistics.median(values) for way, values in took.items()}
    first = next(iter(ways))
    print(name, flush=True)
    for way in ways:
        spread = f"{min(took[way]):.3f}-{max(took[way]):.3f}"
        ratios = f"{medians[way] / medians[first]:.2f} x time, {peaks[way] / peaks[first]:.2f} x memory"
        print(f"  {way:11}{medians[way]:8.3f} s ({spread}){peaks[way]:9.0f} MiB   {ratios}", flush=True)


def seconds(run: Run, device: str) -> float:
    """Processor seconds, or on a GPU seconds by the clock."""
    clock = time.perf_counter if device.startswith("cuda") else time.process_time
    _wait(device)
    begin = clock()
    run()
    _wait(device)
    return clock() - begin


def peak_mib(run: Run, device: str) -> float:
    """The most that tensors hold at once during a run, over what there was before."""
    run()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        run()
    kineto: Any = recorded.profiler
    held = most = 0
    for event in sorted(kineto.kineto_results.events(), key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    return most / 2**20


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
