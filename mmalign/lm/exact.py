"""A model's forward in float64, whatever number type its own code asks for.

In float32 the last bits of a logit hang on the shape of the batch and on the number of threads. In float64 they do,
too, but a hundred million times less, so that what is computed here stands for the exact value.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from mmalign.errors import MMAlignError
from mmalign.lm.memory import is_out_of_memory
from mmalign.lm.prefix import REFUSALS
from mmalign.lm.stable import FORBIDDEN, largest

log = logging.getLogger("mmalign.lm")
T = TypeVar("T")

#: Float32 has not been seen to be off by a tenth of this.
_TOO_NOISY = 1e-4
#: Where a config of transformers has the name of the kernel for experts.
_EXPERTS = "_experts_implementation_internal"
#: Properties of a tensor that are views of it.
_VIEWS = (Tensor.T.__get__, Tensor.mT.__get__, Tensor.H.__get__, Tensor.mH.__get__)  # type: ignore[attr-defined]


class _Calls(TorchFunctionMode):
    """Says float64 where a model asks for the number type of a tensor in float32; views of weights are in float64, too.

    For such a view (LLaVA's class token, once for each picture) `_Operations` is too late: inside `inference_mode`
    torch refuses what is no view of the weight itself. Weights that were themselves made in there are no matter.

    What a model writes into a tensor of its own (Phi-3's rotary frequencies) is written there, until `forget`.
    """

    def __init__(self) -> None:
        super().__init__()
        self._before: dict[int, tuple[Tensor, Tensor]] = {}

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if args and isinstance(args[0], Tensor) and args[0].dtype is torch.float32:
            name = getattr(func, "__name__", "")
            if name == "__setitem__" or (name.endswith("_") and not name.endswith("__")):
                return self._write(func, *args, **(kwargs or {}))
            if name != "__get__" or func in _VIEWS:
                args = (args[0].double(), *args[1:])
        found = func(*args, **(kwargs or {}))
        return torch.float64 if found is torch.float32 else found

    def forget(self) -> None:
        """Give tensors that were written into their values back."""
        with as_usual():
            for tensor, before in self._before.values():
                tensor.copy_(before)

    def _write(self, func: Any, tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
        wide = tensor.double()
        self._before.setdefault(id(tensor), (tensor, wide.clone()))
        found = func(wide, *args, **kwargs)
        with as_usual():
            tensor.copy_(wide)
        return found


class _Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch tells mypy nothing of it
    """Gives every operation float64 in place of float32, weights included, whatever type of result it is to have."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return _widened(func(*map(_widened, args), **{name: _widened(value) for name, value in (kwargs or {}).items()}))


def _widened(value: Any) -> Any:
    """An argument or a result, alone or in a list."""
    if isinstance(value, Tensor):
        return value.double() if value.dtype is torch.float32 else value
    if type(value) in (list, tuple):
        return type(value)(map(_widened, value))
    return torch.float64 if value is torch.float32 else value


@contextmanager
def in_double(model: Any) -> Iterator[None]:
    """Inside, what torch would compute in float32 is computed in float64. `model` remembers nothing of it.

    A copy of the model in float64 would not do: norms, softmax and positions turn to float32 on their own. Weights are
    widened when they are used, so no second model is kept in memory. Call it inside `torch.inference_mode`. Some models
    note positions during a forward that the next step of an answer needs (Qwen-VL), and such a step may be under way.
    """
    places = [place for module in model.modules() for place in (vars(module), module._buffers)]
    before = [dict(place) for place in places]
    calls = _Calls()
    try:
        with _plain_experts(model), calls, _Operations():  # type: ignore[no-untyped-call]
            yield
    finally:
        calls.forget()
        for place, known in zip(places, before, strict=True):
            # Only tensors and numbers: at its first forward a model also notes that it is prepared for forwards.
            changed = [name for name, value in place.items() if value is not known.get(name) and _is_noted(value)]
            gone = [name for name, value in known.items() if place.get(name) is not value and _is_noted(value)]
            for name in {*changed, *gone}:
                if name in known:
                    place[name] = known[name]
                else:
                    del place[name]


@contextmanager
def _plain_experts(model: Any) -> Iterator[None]:
    """Inside, experts of a mixture are computed by the model's own code: the kernels for them take no float64."""
    configs = {id(config): config for module in model.modules() if (config := getattr(module, "config", None))}
    before = {key: getattr(config, _EXPERTS, None) for key, config in configs.items()}
    try:
        for key in (key for key, kernel in before.items() if kernel is not None):
            setattr(configs[key], _EXPERTS, "eager")
        yield
    finally:
        for key in (key for key, kernel in before.items() if kernel is not None):
            setattr(configs[key], _EXPERTS, before[key])


def _is_noted(value: Any) -> bool:
    return isinstance(value, Tensor | int | float) and not isinstance(value, bool)


@contextmanager
def as_usual() -> Iterator[None]:
    """Inside, `in_double` has no say: for processors, whose pixels are the same for all and who keep what they find."""
    with torch._C.DisableTorchFunction(), _disable_current_modes():
        yield


class Exact:
    """What a float32 model's forwards give in float64, for decisions that hang on the last bits.

    Where that fails (on a device or with a kernel that has no float64), it is said once and there is nothing exact.

    Attributes:
        noise: Largest error seen in logits of a batch, as a share of the row's largest logit.
        is_measured: Whether any were seen, or none ever will be.
    """

    def __init__(self, name: str, model: Any) -> None:
        self._name, self._model = name, model
        self.noise, self.is_measured = 0.0, False
        self._has_failed = self._has_warned = False

    def __call__(self, forward: Callable[[], T]) -> T | None:
        """What `forward` gives in float64, None where the model cannot."""
        try:
            with in_double(self._model):
                return forward()
        except MMAlignError:
            raise
        except REFUSALS as error:
            if is_out_of_memory(error):
                raise
            if not self._has_failed:
                self._has_failed = self.is_measured = True
                reason = str(error).strip().partition("\n")[0]
                log.warning("model %s: fails in float64, so answers may depend on the batch: %s", self._name, reason)
            return None

    def compare(self, exact: Tensor, found: Tensor) -> None:
        """Learn from exact logits (vocab,) and those found in a batch how far these are off."""
        is_forbidden = (exact < FORBIDDEN) & (found < FORBIDDEN)  # the least number of a type, say
        off = (exact - found.to(exact)).masked_fill(is_forbidden, 0).abs().nan_to_num(nan=0.0).max() / largest(exact)
        self.noise, self.is_measured = max(self.noise, float(off)), True
        if self.noise > _TOO_NOISY and not self._has_warned:
            self._has_warned = True
            log.warning(
                "model %s: its float32 logits are off by %.2g of the largest, so writing is slow and may depend on the "
                "batch (is TF32 on?)",
                self._name,
                self.noise,
            )


def grown(inputs: Mapping[str, Tensor], tokens: Sequence[int]) -> dict[str, Tensor]:
    """The forward's arguments for one row without padding, longer by text tokens."""
    found = dict(inputs)
    for name, value in inputs.items():
        if value.shape == inputs["input_ids"].shape:
            more = {"input_ids": list(tokens), "attention_mask": [1] * len(tokens)}.get(name, [0] * len(tokens))
            found[name] = torch.cat([value, torch.tensor([more], dtype=value.dtype, device=value.device)], dim=1)
    return found
