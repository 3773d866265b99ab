"""The processes that `accelerate launch` starts: all train, the first does everything else while the others wait."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from torch import distributed

from mmalign.errors import MMAlignError

Result = TypeVar("Result")

#: A rank waits this long for another in training, which may be saving a large model.
PATIENCE = timedelta(hours=2)
#: What the first rank does on its own takes as long as it takes: making pairs can be days.
FOREVER = timedelta(days=365)


@dataclass(frozen=True)
class Launch:
    """This process among `count`; alone without `accelerate launch`."""

    index: int = 0
    count: int = 1
    #: Ranks wait in it on the CPU, without a time limit and without keeping an accelerator busy.
    group: Any = None

    @classmethod
    def begin(cls, *, on_cpu: bool) -> Launch:
        """Meet the other processes of the launch, if there are any; each takes an accelerator of its own.

        Raises MMAlignError for what a launch file asks and cannot be had.
        """
        if num_processes() == 1:
            return cls()
        for key, name in (
            ("FSDP_CPU_RAM_EFFICIENT_LOADING", "fsdp_cpu_ram_efficient_loading"),
            ("ACCELERATE_DEEPSPEED_ZERO3_INIT", "zero3_init_flag"),
        ):
            if is_set(key):
                raise MMAlignError(
                    f"accelerate launch: {name} is true, but every rank reads the weights; set it to false"
                )
        state = PartialState(cpu=on_cpu, timeout=PATIENCE)
        if state.process_index:
            logging.getLogger("mmalign").setLevel(logging.ERROR)
        group = distributed.new_group(backend="gloo", timeout=FOREVER)
        return cls(state.process_index, state.num_processes, group)

    @property
    def is_first(self) -> bool:
        return self.index == 0

    def by_first(self, work: Callable[[], Result]) -> Result | None:
        """What `work` gives, to the first process; the others wait for it and get None, or end when it fails."""
        if not self.is_first:
            if not self._told(False):
                raise SystemExit(2)  # the first says why
            return None
        try:
            result = work()
        except BaseException:
            self._told(False)
            raise
        self._told(True)
        return result

    def agreed(self, question: Callable[[], bool]) -> bool:
        """The first process's answer, to all."""
        answer = self.by_first(question)
        return self._told(bool(answer))

    def end(self) -> None:
        """Part from the others."""
        if self.count > 1:
            PartialState().destroy_process_group()

    def _told(self, value: bool) -> bool:
        if self.count == 1:
            return value
        told = torch.tensor([value])
        try:
            distributed.broadcast(told, src=0, group=self.group)
        except RuntimeError as error:
            raise MMAlignError("the first process of the launch is gone") from error
        return bool(told)


ALONE = Launch()


def num_processes() -> int:
    """How many processes the launch has; 1 without one."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def process_index() -> int:
    """The number of this process in the launch."""
    return int(os.environ.get("RANK", "0")) if num_processes() > 1 else 0


def is_set(name: str) -> bool:
    """Whether a launch file sets a switch."""
    return os.environ.get(name, "false").lower() == "true"


def asks_to_share() -> bool:
    """Whether the launch file asks for FSDP or DeepSpeed, which part something of the training among the ranks."""
    return is_set("ACCELERATE_USE_FSDP") or is_set("ACCELERATE_USE_DEEPSPEED")


def shares_weights() -> bool:
    """Whether the launch file asks that each rank hold a part of the weights."""
    return is_set("ACCELERATE_USE_FSDP") or (
        is_set("ACCELERATE_USE_DEEPSPEED") and os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE") == "3"
    )
