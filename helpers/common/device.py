"""The device to run on, the precision that suits it, and seeds."""

from __future__ import annotations

import contextlib
import platform
import random
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

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
    """Seconds of each stage in `seconds`, the device's work included: `with watch("encode"): ...`."""

    def __init__(self, compute: Compute) -> None:
        self.compute, self.seconds = compute, {}

    @contextlib.contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.compute.synchronize()
        self.seconds[stage] = time.perf_counter() - began


def pick_compute(amp: bool | str = True, device: str | None = None, cpu_bf16: bool = False) -> Compute:
    """Choose cuda, else mps, else cpu, and a precision.

    `amp=True`: bf16 from compute capability 8.0, fp16 below it (a T4 reports bf16 support, but emulates it), float32
    without a CUDA GPU; with `cpu_bf16` bf16 on a CPU whose instructions multiply it.
    `amp=False`: float32. `amp="bf16"`, `"fp16"` or `"fp32"`: that one.

    Raises `RuntimeError` for a GPU that the installed torch has no kernels for, before anything runs on it, and
    `ValueError` for an `amp` that is none of these.
    """
    if not (amp in (True, False) or amp in PRECISIONS):
        raise ValueError(f"amp={amp!r}: expected True, False or one of {', '.join(PRECISIONS)}")
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    chosen = torch.device(device)
    if chosen.type != "cuda":
        name = f"CPU, {cpu_name()}, {torch.get_num_threads()} threads" if chosen.type == "cpu" else "Apple GPU"
        bf16 = amp is True and cpu_bf16 and chosen.type == "cpu" and multiplies_bf16()
        return Compute(chosen, name, amp if isinstance(amp, str) else "bf16" if bf16 else "fp32")
    name, capability = torch.cuda.get_device_name(chosen), torch.cuda.get_device_capability(chosen)
    require_kernels(name, capability, torch.cuda.get_arch_list())
    precision = amp if isinstance(amp, str) else cuda_precision(capability) if amp else "fp32"
    return Compute(chosen, name, precision)


def cuda_precision(capability: tuple[int, int]) -> str:
    """`bf16` where the hardware multiplies it (compute capability 8.0 and up), else `fp16`."""
    return "bf16" if capability >= (8, 0) else "fp16"


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch on all devices."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def multiplies_bf16() -> bool:
    """Whether this CPU has instructions for products of bf16 (AVX512-BF16, AMX); without, float32 is faster."""
    flags = re.findall(r"^flags\s*:(.*)", _cpuinfo(), re.MULTILINE)
    return bool(flags) and not {"avx512_bf16", "amx_bf16"}.isdisjoint(flags[0].split())


def require_kernels(name: str, capability: tuple[int, int], arch_list: list[str]) -> None:
    """Raise `RuntimeError` if no architecture in `arch_list` (`torch.cuda.get_arch_list()`) runs on the GPU.

    A binary `sm_XY` runs on a GPU of the same major version X and a minor version of at least Y; PTX (`compute_XY`) is
    compiled for any later GPU (CUDA C++ Programming Guide, "Binary compatibility" and "PTX compatibility").
    """
    if any(arch.startswith("gfx") for arch in arch_list):  # ROCm has its own names and checks
        return
    for arch in arch_list:
        kind, digits = re.fullmatch(r"(sm|compute)_(\d+)[a-z]?", arch).groups()
        built = int(digits[:-1]), int(digits[-1])
        if capability >= built and (kind == "compute" or capability[0] == built[0]):
            return
    raise RuntimeError(
        f"{name} has compute capability {capability[0]}.{capability[1]}, and torch {torch.__version__} was built for "
        f"{', '.join(arch_list) or 'no GPU'} only: its first operation would fail. Choose another GPU (on Kaggle: "
        "Settings → Accelerator → GPU T4 x2), or run on the CPU by setting CUDA_VISIBLE_DEVICES to an empty string."
    )


def cpu_name() -> str:
    """The processor's model, as the system names it."""
    models = re.findall(r"model name\s*:\s*(.+)", _cpuinfo())
    return models[0] if models else platform.processor() or platform.machine()


def _cpuinfo() -> str:
    info = Path("/proc/cpuinfo")
    return info.read_text() if info.is_file() else ""
