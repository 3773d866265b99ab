"""Several answers to one prompt in one row, so that the prompt and its media are computed once.

A row is the prompt, the tokens with which all its answers begin, then what is each answer's own. A mask lets every
answer see the prompt and itself; its positions go on where the prompt ends. So every token gets what it would get in
a row of its own, through the model's own forward.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor

from mmalign.errors import ModelError
from mmalign.lm.attention import TailMask
from mmalign.lm.render import Renderer

#: Attention kernels that take a mask of any shape.
KERNELS = ("sdpa", "eager")
#: Kinds of layers whose attention such a mask describes in full.
_LAYERS = {"full_attention", "sliding_attention"}
#: Models in which tokens of one picture see each other both ways: where `token_type_ids` are 1 without a break.
_BOTH_WAYS = {"gemma3"}
#: What a forward raises that is given a mask or positions it cannot take.
REFUSALS = (ModelError, TypeError, ValueError, AttributeError, LookupError, RuntimeError)
#: What rounding explains: in float32 the largest difference beside the largest log-prob, in types that are less exact
#: the root mean square of one beside that of the other. Answers that see each other differ by more.
TOLERANCE, COARSE = 1e-4, 0.05
#: The same in float64.
EXACT_TOLERANCE = 1e-9


@dataclass(frozen=True, slots=True)
class Places:
    """Where M answer tokens are predicted: token m is `labels[m]` and its logits are those at `rows[m], columns[m]`."""

    rows: Tensor
    columns: Tensor
    labels: Tensor

    def at(self, index: Tensor) -> Places:
        """Some of the tokens."""
        return Places(self.rows[index], self.columns[index], self.labels[index])

    def to(self, device: torch.device) -> Places:
        """The same on `device`."""
        return Places(self.rows.to(device), self.columns.to(device), self.labels.to(device))


@dataclass(frozen=True, slots=True)
class Branches:
    """Which tokens of packed rows (B, L) belong together.

    `owner` is 0 in what all answers of a row share, n + 1 in what is answer n's own, -1 in padding. `depth` is the
    place that a token would have in a row with its own answer alone; 0 in padding.
    """

    owner: Tensor
    depth: Tensor

    def to(self, device: torch.device) -> Branches:
        """The same on `device`."""
        return Branches(self.owner.to(device), self.depth.to(device))

    def visible(self, window: int | None = None, blocks: Tensor | None = None, columns: Tensor | None = None) -> Tensor:
        """Which tokens each token sees, (B, 1, L, L) bool: those before it and itself, at most `window` of them.

        Tokens with the same number of 0 or more in `blocks` (B, L) see each other both ways. Padding sees something
        too: rows of a softmax over nothing would be no numbers. With `columns` (B, T) only what these tokens see,
        (B, 1, T, L); then there are no blocks.
        """
        depth, owner = self.depth, self.owner
        if columns is not None:
            depth, owner = depth.gather(1, columns), owner.gather(1, columns)
        behind = depth[:, :, None] - self.depth[:, None]
        seen = (behind >= 0) & ((self.owner[:, None] == 0) | (owner[:, :, None] == self.owner[:, None]))
        if blocks is not None:
            seen |= (blocks[:, :, None] == blocks[:, None]) & (blocks[:, None] >= 0)
        if window is not None:
            seen &= behind < window
        return seen[:, None]

    def tail(self) -> Tensor:
        """The same as `visible()`, for kernels that are faster without a mask: one for what the row's answers do not
        share, and what lies before it is causal.
        """
        count, width = self.owner.shape
        places = torch.arange(width, device=self.owner.device)
        starts = ((self.owner == 0) & (self.depth == places)).long().cumprod(1).sum(1)
        size = max(1, int(((self.owner >= 0).sum(1) - starts).max()))
        if not starts.any():
            return self.visible()
        columns = (starts[:, None] + places[:size]).clamp(max=width - 1)
        return TailMask.of(self.visible(None, None, columns).expand(count, 1, size, width), starts.tolist())


@dataclass(frozen=True, slots=True)
class Packed:
    """Prompts with their answers as a model takes them: `inputs` without mask and positions, which are in `branches`.

    `places` hold the tokens of all N answers, answer after answer. `lengths` (N,) are the tokens of prompt and answer.
    `ends` (N, 2) are row and column of each answer's last token, where it was kept.
    """

    inputs: dict[str, Tensor]
    branches: Branches
    places: Places
    lengths: Tensor
    ends: Tensor | None = None


def pack_texts(
    renderer: Renderer,
    inputs: Mapping[str, Tensor],
    contexts: Sequence[str],
    prompts: Sequence[int],
    texts: Sequence[str],
    *,
    keep_last: bool = False,
) -> Packed:
    """Rendered answers `texts` behind the rendered prompts `contexts`, of which answer n follows number `prompts[n]`.

    `inputs` are the contexts as `Renderer.encode` gives them, padded on the right; what is found about tokens is on the
    CPU, the rest where it was. Tokens are those of prompt and
    answer as one text: should the end of a prompt fuse with an answer, it is shared by none.
    """
    inputs = {**inputs, **{name: value.cpu() for name, value in _by_token(inputs).items()}}
    before = [renderer.token_ids(context) for context in contexts]
    wholes = [renderer.token_ids(contexts[row] + text) for row, text in zip(prompts, texts, strict=True)]
    own = [_num_common(before[row], whole) for row, whole in zip(prompts, wholes, strict=True)]
    shared = [min((own[n] for n, at in enumerate(prompts) if at == row), default=0) for row in range(len(contexts))]
    lengths = inputs["attention_mask"].sum(-1) + torch.tensor(shared) - torch.tensor(list(map(len, before)))
    kept = (torch.arange(inputs["input_ids"].shape[1]) < lengths[:, None]).long()
    answers = [whole[shared[row] :] for row, whole in zip(prompts, wholes, strict=True)]
    pad = renderer.tokenizer.pad_token_id or 0
    found = pack({**inputs, "attention_mask": kept}, prompts, answers, pad, keep_last=keep_last)
    is_answer = [at >= own[n] for n, whole in enumerate(wholes) for at in range(shared[prompts[n]], len(whole))]
    return replace(found, places=found.places.at(torch.tensor(is_answer)))


def _num_common(first: Sequence[int], second: Sequence[int]) -> int:
    """How many tokens two texts begin with together."""
    return next(
        (i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), min(len(first), len(second))
    )


def pack(
    inputs: Mapping[str, Tensor],
    prompts: Sequence[int],
    answers: Sequence[Sequence[int]],
    pad: int,
    *,
    keep_last: bool = False,
) -> Packed:
    """Prompts with their answers in one row each.

    `inputs` are the forward's arguments for B prompts alone, padded on the right. Answer n of N, at least one token
    each, follows prompt `prompts[n]`. `pad` fills up `input_ids`. An answer's last token predicts none of it, so it is
    a label only, unless `keep_last`: for what is read at or behind it.
    """
    lengths = inputs["attention_mask"].sum(-1).tolist()
    given = [list(answer if keep_last else answer[:-1]) for answer in answers]
    rows = [
        _Row.of(length, {n: given[n] for n, row in enumerate(prompts) if row == b}) for b, length in enumerate(lengths)
    ]
    width = max(len(row.tokens) + row.prompt for row in rows)
    owner = torch.full((len(rows), width), -1)
    depth = torch.zeros_like(owner)
    laid = {name: _widened(value, lengths, width) for name, value in _by_token(inputs).items()}
    laid["input_ids"].masked_fill_(torch.arange(width) >= torch.tensor(lengths)[:, None], pad)
    for b, row in enumerate(rows):
        end = row.prompt + len(row.tokens)
        laid["input_ids"][b, row.prompt : end] = torch.tensor(row.tokens, dtype=torch.long)
        owner[b, :end] = torch.tensor([0] * row.prompt + row.owner)
        depth[b, :end] = torch.tensor([*range(row.prompt), *row.depth])
    columns = [rows[b].column(n, at) for n, b in enumerate(prompts) for at in range(len(answers[n]))]
    places = Places(
        torch.tensor([b for b, answer in zip(prompts, answers, strict=True) for _ in answer]),
        torch.tensor(columns),
        torch.tensor([token for answer in answers for token in answer]),
    )
    total = [lengths[b] + len(answer) for b, answer in zip(prompts, answers, strict=True)]
    last = [(b, rows[b].column(n, len(answers[n]))) for n, b in enumerate(prompts)]
    ends = torch.tensor(last) if keep_last else None
    return Packed({**inputs, **laid}, Branches(owner, depth), places, torch.tensor(total), ends)


@dataclass(frozen=True, slots=True)
class _Row:
    """What stands behind a prompt of `prompt` tokens, and where the answers' own parts start among it."""

    prompt: int
    stem: int
    tokens: list[int]
    owner: list[int]
    depth: list[int]
    starts: dict[int, int]

    @classmethod
    def of(cls, prompt: int, answers: Mapping[int, list[int]]) -> _Row:
        stem = len(list(takewhile(lambda column: len(set(column)) == 1, zip(*answers.values(), strict=False))))
        tokens = next(iter(answers.values()))[:stem] if answers else []
        owner, depth, starts = [0] * stem, [prompt + at for at in range(stem)], {}
        for n, answer in answers.items():
            starts[n] = len(tokens)
            tokens = tokens + answer[stem:]
            owner += [n + 1] * (len(answer) - stem)
            depth += range(prompt + stem, prompt + len(answer))
        return cls(prompt, stem, tokens, owner, depth, starts)

    def column(self, n: int, at: int) -> int:
        """Where token `at` of answer n is predicted: at the token before it."""
        before = at - 1
        return self.prompt + (before if before < self.stem else self.starts[n] + before - self.stem)


def _by_token(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inputs that have one value for every token."""
    return {name: value for name, value in inputs.items() if value.shape == inputs["input_ids"].shape}


def _widened(values: Tensor, lengths: Sequence[int], width: int) -> Tensor:
    """The first `lengths[b]` values of every row, then zeros, (B, width)."""
    wide = values.new_zeros(len(values), width)
    for row, length in enumerate(lengths):
        wide[row, :length] = values[row, :length]
    return wide


# The forward ---------------------------------------------------------------------------------------------------------


def arguments(model: Any, inputs: Mapping[str, Tensor], branches: Branches) -> dict[str, Any]:
    """The forward's arguments for packed rows, mask and positions included.

    `model` is the bare transformers model. Raises ModelError where a mask cannot say what its layers do.
    """
    if "position_ids" not in inspect.signature(type(model).forward).parameters:
        raise ModelError("the model takes no positions")
    real = (branches.owner >= 0).to(inputs["attention_mask"].dtype)
    positions = _positions(model, {**inputs, "attention_mask": real}, branches)
    return {**inputs, "attention_mask": _mask(model, inputs, branches), "position_ids": positions}


def _positions(model: Any, inputs: Mapping[str, Tensor], branches: Branches) -> Tensor:
    """Position ids (B, L), or (3, B, L) where the model gives media positions in time, height and width."""
    places = getattr(getattr(model, "model", None), "get_rope_index", None)
    if places is None or not {"image_grid_thw", "video_grid_thw"} & inputs.keys():
        return branches.depth
    taken = inspect.signature(places).parameters
    found: Tensor = places(**{name: value for name, value in inputs.items() if name in taken})[0]
    # As if all answers followed one another: text goes on by one per token, so an answer starts too late by as much.
    columns = torch.arange(branches.depth.shape[1], device=branches.depth.device)
    return (found - (columns - branches.depth)).where(branches.owner >= 0, 0)


def _mask(model: Any, inputs: Mapping[str, Tensor], branches: Branches) -> Any:
    """The mask as the model's attention takes it; one for each kind of layers where there are several."""
    config = model.config.get_text_config()
    kernel = config._attn_implementation
    if kernel not in KERNELS:
        raise ModelError(f"its attention is {kernel}, which takes no such mask (sdpa does)")
    window = getattr(config, "sliding_window", None)
    kinds = set(getattr(config, "layer_types", None) or ["full_attention" if window is None else "sliding_attention"])
    if unknown := kinds - _LAYERS:
        raise ModelError(f"it has layers of {', '.join(sorted(unknown))}")
    blocks = _blocks(model, inputs)
    masks = {}
    for kind in kinds:
        own = window if kind == "sliding_attention" else None
        own = None if own is not None and own >= branches.owner.shape[1] else own
        if kernel == "sdpa" and own is None and blocks is None:
            masks[kind] = branches.tail()
            continue
        seen = branches.visible(own, blocks)
        masks[kind] = seen if kernel == "sdpa" else _added(seen, model.dtype)
    return masks if len(masks) > 1 else masks.popitem()[1]


def _blocks(model: Any, inputs: Mapping[str, Tensor]) -> Tensor | None:
    """Numbers (B, L) of the pictures that tokens belong to, -1 for none, where they see each other both ways."""
    if model.config.model_type in _BOTH_WAYS and "token_type_ids" in inputs:
        inside = inputs["token_type_ids"] == 1
        if not inside.any():
            return None
        begins = inside & ~inside.roll(1, 1)
        begins[:, 0] = inside[:, 0]
        return (begins.cumsum(1) - 1).where(inside, -1)
    taken = inspect.signature(type(model).forward).parameters
    if "token_type_ids" in taken or getattr(model.config.get_text_config(), "use_bidirectional_attention", None):
        raise ModelError("its tokens may see those behind them")
    return None


def _added(seen: Tensor, dtype: torch.dtype) -> Tensor:
    """The mask as numbers that are added to scores."""
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, torch.finfo(dtype).min)


# Whether it is right -------------------------------------------------------------------------------------------------


def compare(
    found: Callable[[], Tensor],
    expected: Tensor,
    *,
    is_exact: bool,
    how: str = "with the prompt shared",
    tolerance: float = TOLERANCE,
) -> tuple[Tensor | None, str]:
    """Log-probs (M,) that a forward finds, or None and why not: it fails, or is off from `expected` (M,).

    With `is_exact` both come from float32 weights without autocast. `how` says what that forward does otherwise,
    `tolerance` how far rounding can take exact ones apart, as a share of the largest.
    """
    try:
        values = found()
    except torch.OutOfMemoryError:
        raise
    except REFUSALS as error:
        return None, str(error).strip().partition("\n")[0] or type(error).__name__
    off, scale = (values - expected).abs(), expected.abs()
    if off.max() <= tolerance * scale.max():
        return values, ""
    if not is_exact and off.square().mean() <= COARSE**2 * scale.square().mean():
        return values, ""
    return None, f"{how}, log-probs are off by up to {off.max():.2g}"


def is_exact(model: Any) -> bool:
    """Whether all weights are float32."""
    return all(weight.dtype == torch.float32 for weight in model.parameters())
