"""The device to run on, the precision that suits it, and seeds."""

import contextlib
import platform
import random
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from helpers.common.files import reason

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Compute:
    """A device with the precision of its matrix products: `fp32`, `bf16` or `fp16` (which wants a gradient scaler)."""

    device: torch.device
    name: str
    precision: str

    def autocast(self) -> contextlib.AbstractContextManager:
        """Context in which a forward pass runs at this precision; weights stay float32."""
        if self.precision == "fp32":
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=PRECISIONS[self.precision])

    def synchronize(self) -> None:
        """Wait for the device, so that a clock read next tells the truth."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        elif self.device.type == "mps":
            torch.mps.synchronize()

    def __str__(self) -> str:
        return f"{self.name} ({self.device}), {self.precision}"


class Stopwatch:
    """Keeps the seconds of each stage in `seconds`, the device's work included: `with watch("encode"): ...`."""

    def __init__(self, compute: Compute) -> None:
        self.compute, self.seconds = compute, {}

    @contextlib.contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.compute.synchronize()
        self.seconds[stage] = time.perf_counter() - began


def pick_compute(amp: bool | str = True, device: str | None = None, cpu_bf16: bool = False) -> Compute:
    """Choose cuda, else mps, else cpu, and the precision: the one that `amp` names, float32 for `False`, and for `True`
    bf16 from compute capability 8.0, fp16 below it (a T4 reports bf16 support, but emulates it), float32 without a CUDA
    GPU; with `cpu_bf16` bf16 on a CPU that has instructions for it (without them float32 is faster)."""
    if not (amp in (True, False) or amp in PRECISIONS):
        raise ValueError(f"amp={amp!r}: expected True, False or one of {', '.join(PRECISIONS)}")
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    chosen, name, best = torch.device(device), "Apple GPU", "fp32"
    if chosen.type == "cuda":
        name, capability = torch.cuda.get_device_name(chosen), torch.cuda.get_device_capability(chosen)
        require_kernels(name, capability, torch.cuda.get_arch_list())
        best = "bf16" if capability >= (8, 0) else "fp16"
    elif chosen.type == "cpu":
        name = f"CPU, {cpu_name()}, {torch.get_num_threads()} threads"
        best = "bf16" if cpu_bf16 and re.search(r"^flags\s*:.*\b(avx512|amx)_bf16\b", _cpuinfo(), re.M) else "fp32"
    return Compute(chosen, name, amp if isinstance(amp, str) else best if amp else "fp32")


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch on all devices."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def compile_if_possible(modules: Sequence[torch.nn.Module], rehearse: Callable[[], object]) -> bool:
    """Have `modules` compiled, in place, when `rehearse()` calls them, and return whether that went well; where it
    fails, say why and go on without."""
    try:
        for module in modules:
            module.compile(dynamic=False)
        rehearse()
        return True
    except Exception as error:  # a compiler that is missing or too old, a GPU that is too old: each raises its own
        for module in modules:
            module._compiled_call_impl = None
        print(f"torch.compile does not work here, going on without: {reason(error)}")
        return False


def require_kernels(name: str, capability: tuple[int, int], arch_list: list[str]) -> None:
    """Raise `RuntimeError` if no architecture in `arch_list` runs on the GPU: a binary `sm_XY` does on one of the same
    major version X and a minor version of at least Y, PTX (`compute_XY`) is compiled for any later one (CUDA C++
    Programming Guide, "Binary compatibility" and "PTX compatibility")."""
    for kind, major, minor in re.findall(r"\b(sm|compute)_(\d+)(\d)", " ".join(arch_list)):
        built = int(major), int(minor)
        if capability >= built and (kind == "compute" or capability[0] == built[0]):
            return
    raise RuntimeError(
        f"{name} has compute capability {capability[0]}.{capability[1]}, and torch {torch.__version__} was built for "
        f"{', '.join(arch_list) or 'no GPU'} only: its first operation would fail. Choose another GPU (on Kaggle: "
        "Settings → Accelerator → GPU T4 x2), or run on the CPU by setting CUDA_VISIBLE_DEVICES to an empty string."
    )


def cpu_name() -> str:
    """The processor's model, as the system names it."""
    model = re.search(r"model name\s*:\s*(.+)", _cpuinfo())
    return model[1] if model else platform.processor() or platform.machine()


def _cpuinfo() -> str:
    info = Path("/proc/cpuinfo")
    return info.read_text() if info.is_file() else ""
