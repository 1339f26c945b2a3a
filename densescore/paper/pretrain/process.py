"""Where a training runs: this process among those that torchrun starts, its device and its precision."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from densescore.errors import DensescoreError
from densescore.network.dense_network import DTYPES, find_device


@dataclass(frozen=True)
class Process:
    """One process of a training."""

    device: torch.device
    rank: int = 0
    world: int = 1  # number of processes

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all processes, in place."""
        if self.world > 1:
            dist.all_reduce(values)
        return values

    def wait(self) -> None:
        """Wait for all processes."""
        if self.world > 1:
            dist.barrier()


@contextmanager
def process_group(device: str = "auto") -> Iterator[Process]:
    """This process, from torchrun's environment; processes talk by nccl on CUDA devices, by gloo on CPUs."""
    world = int(os.environ.get("WORLD_SIZE", 1))
    if world == 1:
        yield Process(find_device(device))
        return
    kind = str(find_device(device)) if device == "auto" else device  # find_device("cuda") would wake device 0
    if ":" in kind:
        raise DensescoreError(f"device: with {world} processes each takes its own; pass auto or cuda, not {device!r}")
    if kind == "cuda":
        kind = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(kind)
    dist.init_process_group("nccl" if kind.startswith("cuda") else "gloo")
    try:
        yield Process(torch.device(kind), dist.get_rank(), world)
    finally:
        dist.destroy_process_group()


def find_precision(name: str, device: torch.device) -> torch.dtype:
    """The dtype of autocast by name; ``"auto"``: float32 on a CPU, bfloat16 on a GPU that has it, else float16.

    >>> find_precision("auto", torch.device("cpu"))
    torch.float32
    """
    if name == "auto" and device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    if name not in ("auto", *DTYPES):
        raise DensescoreError(f"precision must be auto, {', '.join(DTYPES)}, got {name!r}")
    return DTYPES.get(name, torch.float32)


def autocast(process: Process, precision: torch.dtype) -> torch.autocast:
    """Mixed precision: weights stay float32, products are of `precision` where torch allows it."""
    return torch.autocast(process.device.type, precision, enabled=precision != torch.float32)
