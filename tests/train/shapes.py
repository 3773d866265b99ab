"""What tensors a computation makes."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

PRODUCTS = {"mm", "addmm", "bmm"}


class RecordShapes(TorchDispatchMode):
    """Within the block the shapes of all results, and the number of matrix products, also in the backward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: set[tuple[int, ...]] = set()
        self.products = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        self.shapes |= {tuple(value.shape) for value in tree_leaves(found) if isinstance(value, Tensor)}
        self.products += func.overloadpacket.__name__ in PRODUCTS
        return found
