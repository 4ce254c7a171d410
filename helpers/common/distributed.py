"""One run in several processes, as torchrun starts them; in a single process nothing here does anything.

Every process executes the same program. Rank 0 is the main one: what depends on the clock or on files is decided there
and broadcast, since processes that disagree on the next step wait for each other for ever.
"""

import contextlib
import os
import random
import sys
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


def start() -> str | None:
    """Join the other processes of this torchrun (NCCL on GPUs, Gloo on CPUs) and return this one's device, as text;
    `None` where there are no others. Only rank 0 keeps its standard output."""
    world = os.environ.get("WORLD_SIZE", "1")
    if world == "1":
        return None
    if missing := [name for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]:
        raise RuntimeError(f"WORLD_SIZE={world}, but {', '.join(missing)} not set: start with torchrun, or unset it")
    gpus, local_rank = torch.cuda.device_count(), int(os.environ["LOCAL_RANK"])
    if gpus and local_rank >= gpus:
        raise RuntimeError(f"LOCAL_RANK={local_rank}, but torch sees {gpus} GPUs here: --nproc-per-node at most {gpus}")
    device = torch.device("cuda", local_rank) if gpus else None
    if gpus:
        torch.cuda.set_device(device)
    patience = timedelta(minutes=30)  # with the other processes: above a download or a compilation, but finite
    dist.init_process_group("nccl" if gpus else "gloo", timeout=patience, device_id=device)
    if not is_main():
        sys.stdout = open(os.devnull, "w")  # noqa: PTH123, SIM115 (it lasts as long as the process)
    return str(device or "cpu")


def leave() -> None:
    """End every process but rank 0 (`SystemExit` with status 0), which goes on as a single one."""
    main = is_main()
    if size() > 1:
        barrier()  # so that none takes its connections away while another still needs them
        dist.destroy_process_group()
    if not main:
        raise SystemExit(0)


def size() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Number of this process, from 0."""
    return dist.get_rank() if size() > 1 else 0


def is_main() -> bool:
    """Tell whether this process prints, draws and writes files."""
    return rank() == 0


def is_launched() -> bool:
    """Tell whether torchrun started this process."""
    return dist.is_available() and dist.is_torchelastic_launched()


def barrier() -> None:
    """Wait until every process is here; raises torch's error if one has ended, or does not come in time."""
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


def broadcast(value: Any) -> Any:
    """Rank 0's `value` (anything that can be pickled) in every process."""
    box = [value]
    if size() > 1:
        dist.broadcast_object_list(box)
    return box[0]


def check_same(value: object, what: str) -> None:
    """Raise `ValueError` where `value` is not rank 0's: machines that found different images, say."""
    if value != (first := broadcast(value)):
        raise ValueError(f"process {rank()} has other {what} ({value}) than process 0 ({first}): give all the same")


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """Sum of every process's `tensor`, of the same shape and dtype; on a GPU, without waiting for it."""
    if size() > 1:
        tensor = tensor.clone()
        dist.all_reduce(tensor)
    return tensor


def any_rank(flag: bool) -> bool:
    """Tell whether `flag` holds in any process."""
    return any(all_gather([flag]))


def own_seed(seed: int, step: int) -> int:
    """A 32-bit seed for this process at this step, unlike that of any other: what it draws need not be stored."""
    return random.Random(f"{seed} {step} {rank()}").getrandbits(32)


def shard(count: int) -> slice:
    """This process's slice of `count` items, which begins at an even one; the slices of all cover them in order."""
    begin, end = (count // 2 * k // size() * 2 for k in (rank(), rank() + 1))
    return slice(begin, count if rank() == size() - 1 else end)


def share(items: list) -> list:
    """This process's part of a list, every `size()`-th; see `all_gather`."""
    return items[rank() :: size()]


def all_gather(parts: list) -> list:
    """Return what every process made of its `share`, in the order of the whole list, in every process."""
    shares = [parts] * size()
    if size() > 1:
        dist.all_gather_object(shares, parts)
    return [shares[i % size()][i // size()] for i in range(sum(map(len, shares)))]


def check_batch_size(batch_size: int) -> None:
    """Raise `ValueError` where a batch has no two images for each process."""
    least = 2 * size()
    if size() > 1 and batch_size < least:
        raise ValueError(f"batch_size={batch_size}: expected at least {least}, two for each of {size()} processes")


def wrap(module: nn.Module) -> nn.Module:
    """`module` in DistributedDataParallel, which averages the gradients of all processes; itself in a single one."""
    return module if size() == 1 else DistributedDataParallel(module, gradient_as_bucket_view=True)
