"""What an objective remembers depends on a step's pairs, and not on how they were cut up."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mmalign.objectives import DPO
from mmalign.objectives.noisy import LCPO, Selfie
from mmalign.train.memory import Memory, Seen
from mmalign.train.schedule import micro_batches

CPU = torch.device("cpu")


def left(indices: list[int]) -> dict[str, Tensor]:
    """What pairs leave: numbers that tell them apart, one of them a row."""
    number = torch.tensor(indices)
    return {"margin": number / 7, "annotator": number % 3, "gradient": torch.stack([number.sin(), number.cos()], -1)}


@given(
    batch=st.lists(st.integers(0, 30), min_size=1, max_size=9, unique=True),
    kinds=st.integers(1, 3),
    world=st.integers(1, 3),
    size=st.integers(1, 4),
)
def test_micro_batches_and_ranks_change_nothing(batch: list[int], kinds: int, world: int, size: int) -> None:
    of = [f"kind {index % kinds}" for index in range(31)]
    ranks = []
    for rank in range(world):
        seen = Seen(batch)
        for part in micro_batches(batch, of, rank, world, size):
            seen.add(part, left(part.indices))
        ranks.append(seen.gathered(lambda value: value))
    for name, expected in left(batch).items():
        total = torch.stack([rank[name] for rank in ranks]).sum(0)
        assert total.dtype == expected.dtype
        assert torch.equal(total, expected), name


def test_a_step_is_remembered() -> None:
    memory = Memory(LCPO(annotators=2, rate=0.5), CPU)
    assert memory.kept["reliability"].tolist() == pytest.approx([0.9, 0.9])
    seen = Seen([4, 2])
    for part, values in zip(micro_batches([4, 2], [""] * 5, 0, 1, 1), (0.5, 0.7), strict=True):
        seen.add(part, {"posterior": torch.tensor([values]), "annotator": torch.tensor([1])})
    memory.after(seen, lambda value: value)
    assert memory.kept["reliability"].tolist() == pytest.approx([0.9, 0.5 * 0.9 + 0.5 * 0.6])
    other = Memory(LCPO(annotators=2, rate=0.5), CPU)
    other.load(memory.kept)
    assert torch.equal(other.kept["reliability"], memory.kept["reliability"])


def test_an_objective_without_memory_has_none() -> None:
    memory = Memory(DPO(), CPU)
    memory.after(Seen([0]), lambda value: value)
    assert memory.kept == {}
    assert Memory(Selfie(), CPU).kept["margins"].shape == (0,)
