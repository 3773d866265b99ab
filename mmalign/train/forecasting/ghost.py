"""Whole training steps on tensors without data, to know memory and operations before anything is computed.

A ghost has a shape, a type and a device, and nothing in it; weights and all that is made of them are ghosts, so a model
of any size takes no memory. What says where things are (token ids, masks, positions) is real as long as it is small,
since the code of models reads it. Where that code reads a ghost, it finds 1 and true.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

#: Larger results become ghosts.
MOST_REAL = 1 << 24

_aten = torch.ops.aten
_PLACED = {_aten.index.Tensor, _aten.index_put.default, _aten.index_put_.default}


class Ghosts(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While this is entered, what touches a ghost is a ghost, and what is done is counted.

    `live` are the bytes of all tensors that are now held, `peak` the most that `live` has been. `flops` are those of
    products (a multiplication and an addition are two), `moved` the bytes that operations read and write, `calls` the
    number of operations that compute.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._device, self._mode = device, FakeTensorMode(allow_non_fake_inputs=True)
        self._sizes: dict[int, int] = {}
        self.live = self.peak = self.flops = self.moved = self.calls = 0

    def adopt(self, module: nn.Module) -> int:
        """Make ghosts of a module's weights and buffers, which may be on the meta device; gives their bytes."""
        before, ghosts = self.live, dict[int, Tensor]()
        for part in module.modules():
            for held in (part._parameters, part._buffers):
                for name, value in held.items():
                    if value is not None:
                        if id(value) not in ghosts:
                            ghosts[id(value)] = self._ghost_like(value)
                        held[name] = ghosts[id(value)]  # type: ignore[assignment]
        return self.live - before

    def ghost(self, value: Tensor) -> Tensor:
        """A ghost of a tensor."""
        made = FakeTensor(self._mode, value.detach().to("meta"), self._device)
        self._hold(made)
        return made

    def forget(self) -> None:
        """Count from here: the peak is what is live, and nothing has been done."""
        self.peak, self.flops, self.moved, self.calls = self.live, 0, 0, 0

    def _ghost_like(self, value: Tensor) -> Tensor:
        made = self.ghost(value)
        return nn.Parameter(made, requires_grad=value.requires_grad) if isinstance(value, nn.Parameter) else made

    def _hold(self, value: Tensor) -> None:
        """Count a tensor's storage until it is let go."""
        storage = value.untyped_storage()
        key = storage._cdata
        if key not in self._sizes:
            self._sizes[key] = storage.nbytes()
            self.live += self._sizes[key]
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self._let_go, key)

    def _let_go(self, key: int) -> None:
        self.live -= self._sizes.pop(key)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        given = [*_tensors(args), *_tensors(kwargs.values())]
        if func.namespace == "prim":
            return func(*args, **kwargs)
        if any(isinstance(value, FakeTensor) for value in given):
            found = self._ghostly(func, args, kwargs)
        else:
            found = _changed(func(*args, **kwargs), self._hidden)
        made = list(_tensors((found,)))
        for value in made:
            self._hold(value)
        if not _is_view(func):
            self.calls += 1
            self.moved += sum(value.numel() * value.element_size() for value in (*given, *made))
            if (count := flop_registry.get(func._overloadpacket)) is not None:
                self.flops += count(*args, **kwargs, out_val=found)
        return found

    def _ghostly(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        if func is _aten._local_scalar_dense.default:
            return args[0].dtype == torch.bool or (1.0 if args[0].is_floating_point() else 1)
        if func is _aten.allclose.default:
            return True
        if func in _PLACED:
            # How many places a mask names is known only of a real one.
            args = (args[0], [place for index in args[1] for place in _places(index)], *args[2:])
        args = _changed(args, self._shown)
        kwargs = {name: _changed(value, self._shown) for name, value in kwargs.items()}
        with self._mode:
            return func(*args, **kwargs)

    def _shown(self, value: Tensor) -> Tensor:
        """A tensor as a ghost; numbers of no dimension stay where they are, for they go along with any device."""
        if isinstance(value, FakeTensor):
            return value
        return FakeTensor(self._mode, value.to("meta"), self._device if value.dim() else value.device)

    def _hidden(self, value: Tensor) -> Tensor:
        return self._shown(value) if value.numel() > MOST_REAL else value


def _changed(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """A value with all tensors in it, and in lists of them, changed."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, list | tuple):
        return type(value)(_changed(part, change) for part in value)
    return value


def _tensors(values: Any) -> Any:
    """All tensors in a row of values, and in lists of them."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


def _places(index: Tensor | None) -> list[Tensor | None]:
    if index is None or index.dtype != torch.bool or isinstance(index, FakeTensor):
        return [index]
    return list(index.nonzero().unbind(1))


def _is_view(func: Any) -> bool:
    """Whether an operation gives back what it was given, seen in another way."""
    returned = func._schema.returns
    return bool(returned) and returned[0].alias_info is not None and not returned[0].alias_info.is_write
