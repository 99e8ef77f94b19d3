"""Several processes (`accelerate launch`, `torchrun`): rank, size, and gathering on rank 0.

Rows are small and travel as Python objects over gloo, so the same code runs on CPUs and GPUs.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import torch.distributed as dist

from planner.errors import CalibrationError


@dataclass(frozen=True)
class Ranks:
    """This process's place among `size` equal ones."""

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """True on the process that merges and writes."""
        return self.rank == 0

    def gather(self, value: Any) -> list[Any]:
        """Everyone's value on rank 0, in rank order; an empty list on the others."""
        if self.size == 1:
            return [value]
        received: list[Any] | None = [None] * self.size if self.first else None
        dist.gather_object(value, received, dst=0, group=_group())
        return received or []

    def agree(self, value: str, what: str) -> None:
        """Raises CalibrationError on every rank unless all have the same value."""
        if self.size == 1:
            return
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=_group())
        if len(set(values)) > 1:
            odd = [rank for rank, one in enumerate(values) if one != values[0]]
            raise CalibrationError(
                f"ranks disagree on the {what}: {', '.join(map(str, odd))} differ from rank 0",
                "Give every rank the same files, seed and arguments",
            )


def local_rank() -> int:
    """Which of the machine's accelerators is this process's."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def world() -> Ranks:
    """The processes of this launch; a process group is made if the launcher's environment asks for one."""
    global _made
    if not dist.is_available():
        return Ranks()
    if not dist.is_initialized():
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            return Ranks()
        dist.init_process_group("gloo")
        _made = True
    return Ranks(dist.get_rank(), dist.get_world_size())


def leave() -> None:
    """Close the process group that `world` made; one that the caller made stays."""
    global _made
    if _made:
        dist.destroy_process_group()
        _made = False


_made = False
_gloo: Any = None


def _group() -> Any:
    """A group that carries CPU objects, whatever backend the launcher chose; None is the default group."""
    global _gloo
    if dist.get_backend() != "gloo" and _gloo is None:
        _gloo = dist.new_group(backend="gloo")
    return _gloo
