"""One run in several processes, as torchrun starts them; in a single process nothing here does anything.

Every process executes the same program. Rank 0 is the main one: what depends on the clock or on files is decided there
and broadcast, since processes that disagree on the next step wait for each other for ever.
"""

from __future__ import annotations

import contextlib
import os
import random
import sys
from collections.abc import Iterator
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

Value, Item = TypeVar("Value"), TypeVar("Item")
TIMEOUT = timedelta(minutes=30)  # of waiting for another process: above a download or a compilation, but finite


def start() -> str | None:
    """Join the other processes of this torchrun (NCCL on GPUs, Gloo on CPUs); returns this one's device, as text.

    `None`, and nothing done, where torchrun's environment is not there or tells of one process. Of the others than
    rank 0, standard output is discarded from here on; errors go to standard error all the same.
    Raises `RuntimeError` where the environment is incomplete, or this machine has fewer GPUs than processes.
    """
    world = os.environ.get("WORLD_SIZE", "1")
    if world == "1":
        return None
    missing = [name for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise RuntimeError(f"WORLD_SIZE={world}, but {', '.join(missing)} not set: start with torchrun, or unset it")
    gpus, local_rank = torch.cuda.device_count(), int(os.environ["LOCAL_RANK"])
    if gpus and local_rank >= gpus:
        raise RuntimeError(f"LOCAL_RANK={local_rank}, but torch sees {gpus} GPUs here: --nproc-per-node at most {gpus}")
    if gpus:
        device = torch.device("cuda", local_rank)
        torch.cuda.set_device(device)
        dist.init_process_group("nccl", timeout=TIMEOUT, device_id=device)
    else:
        device = "cpu"
        dist.init_process_group("gloo", timeout=TIMEOUT)
    if not is_main():
        sys.stdout = open(os.devnull, "w")  # noqa: PTH123, SIM115 (it lasts as long as the process)
    return str(device)


def leave() -> None:
    """End every process but rank 0 (`SystemExit` with status 0), which goes on as a single one."""
    if size() > 1:
        main = is_main()
        barrier()  # so that none takes its connections away while another still needs them
        dist.destroy_process_group()
        if not main:
            raise SystemExit(0)


def _joined() -> bool:
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """Number of this process, from 0."""
    return dist.get_rank() if _joined() else 0


def size() -> int:
    """How many processes there are."""
    return dist.get_world_size() if _joined() else 1


def is_main() -> bool:
    """Whether this process prints, draws and writes files."""
    return rank() == 0


def is_launched() -> bool:
    """Whether torchrun started this process."""
    return dist.is_available() and dist.is_torchelastic_launched()


# ---- agreement ----


def barrier() -> None:
    """Wait until every process is here; raises torch's error if one has ended, or does not come within `TIMEOUT`."""
    if size() > 1:
        dist.barrier()


@contextlib.contextmanager
def local_rank0_first() -> Iterator[None]:
    """The first process of each machine runs the block, then its others: for what is fetched once and then found."""
    first = size() == 1 or os.environ["LOCAL_RANK"] == "0"
    if not first:
        barrier()
    yield
    if first:
        barrier()


def broadcast(value: Value) -> Value:
    """Rank 0's `value` (anything that can be pickled) in every process."""
    if size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def check_same(value: object, what: str) -> None:
    """Raise `ValueError` where `value` is not rank 0's: machines that found different images, say."""
    first = broadcast(value)
    if first != value:
        raise ValueError(f"process {rank()} has other {what} ({value}) than process 0 ({first}): give all the same")


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """Sum of every process's `tensor`, of the same shape and dtype; on a GPU, without waiting for it."""
    if size() == 1:
        return tensor
    total = tensor.clone()
    dist.all_reduce(total)
    return total


def any_rank(flag: bool) -> bool:
    """Whether `flag` holds in any process."""
    device = "cuda" if torch.cuda.is_available() and size() > 1 else "cpu"  # as `start` chose the backend
    return bool(all_reduce_sum(torch.tensor(int(flag), device=device)))


# ---- sharing the work ----


def own_seed(seed: int, step: int) -> int:
    """A 32-bit seed for this process at this step, unlike that of any other: what it draws need not be stored."""
    return random.Random(f"{seed} {step} {rank()}").getrandbits(32)


def shard(count: int) -> slice:
    """This process's slice of `count` items; the slices of all follow each other and cover everything.

    Each begins at an even item, so that a batch may be shared unequally.
    """
    begin, end = (count // 2 * k // size() * 2 for k in (rank(), rank() + 1))
    return slice(begin, count if rank() == size() - 1 else end)


def share(items: list[Item]) -> list[Item]:
    """This process's part of a list, every `size()`-th; see `all_gather`."""
    return items[rank() :: size()]


def all_gather(parts: list[Item]) -> list[Item]:
    """What every process made of its `share`, in the order of the whole list, in every process."""
    if size() == 1:
        return parts
    shares: list[list[Item]] = [[] for _ in range(size())]
    dist.all_gather_object(shares, parts)
    whole: list = [None] * sum(map(len, shares))
    for k, part in enumerate(shares):
        whole[k :: size()] = part
    return whole


def check_batch_size(batch_size: int) -> None:
    """Raise `ValueError` where a batch has no two images for each process."""
    least = 2 * size()
    if size() > 1 and batch_size < least:
        raise ValueError(f"batch_size={batch_size}: expected at least {least}, two for each of {size()} processes")


def wrap(module: nn.Module) -> nn.Module:
    """`module` in DistributedDataParallel, which averages the gradients of all processes; itself in a single one."""
    return module if size() == 1 else DistributedDataParallel(module, gradient_as_bucket_view=True)
