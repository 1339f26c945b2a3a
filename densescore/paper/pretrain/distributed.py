"""One process, or the many that torchrun starts: who this one is, and sums over all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from densescore.errors import DensescoreError
from densescore.network.devices import find_device


@dataclass(frozen=True)
class Process:
    """This process's rank among all processes.

    Attributes:
        device: that it works on.
        rank: its number, from 0.
        world: how many there are.
    """

    device: torch.device
    rank: int = 0
    world: int = 1

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all processes of what each passes."""
        if self.world > 1:
            dist.all_reduce(values)
        return values

    def wait(self) -> None:
        """Wait until all processes are here."""
        if self.world > 1:
            dist.barrier()


@contextmanager
def process_group(device: str = "auto") -> Iterator[Process]:
    """This process, from torchrun's environment, or the only one without torchrun.

    Args:
        device: ``"auto"`` (a CUDA device per process if there is one), ``"cpu"``, ``"cuda"``, ``"cuda:1"``. Processes
            talk by nccl on CUDA devices, and by gloo on CPUs.
    """
    world = int(os.environ.get("WORLD_SIZE", 1))
    if world == 1:
        yield Process(find_device(device))
        return
    kind = str(find_device(device)) if device == "auto" else device  # a look at cuda itself would wake device 0
    if ":" in kind:
        raise DensescoreError(f"device: with {world} processes each takes its own; pass auto or cuda, not {device!r}")
    if kind == "cuda":
        local = int(os.environ["LOCAL_RANK"])
        torch.cuda.set_device(local)
        kind = f"cuda:{local}"
    dist.init_process_group("nccl" if kind.startswith("cuda") else "gloo")
    try:
        yield Process(torch.device(kind), dist.get_rank(), world)
    finally:
        dist.destroy_process_group()
