"""Laying a training schedule out so that it ends within the time given."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from helpers import checkpoint
from helpers.device import Compute


@dataclass(frozen=True)
class Plan:
    """When things happen, in optimizer steps from the start."""

    steps_per_epoch: int
    total: int
    warmup: int
    mix_off: int  # from this step on images are not mixed


def make_plan(
    epochs: float, warmup_epochs: float, mix_off_epochs: float, steps_per_epoch: int, affordable: int | None = None
) -> Plan:
    """Plan the epochs asked for, or as many steps as are `affordable`; warmup and unmixed end shrink in proportion.

    Warmup takes at most half of the steps, so that the learning rate always comes down again.
    """
    full = max(1, round(epochs * steps_per_epoch))
    total = full if affordable is None else max(1, min(full, affordable))
    epoch = steps_per_epoch * total / full
    warmup = min(round(warmup_epochs * epoch), total // 2)
    return Plan(steps_per_epoch, total, warmup, total - round(mix_off_epochs * epoch))


class Pace:
    """How long a training step and a validation take here, in seconds, kept up to date while training."""

    def __init__(self, step: float, validation: float = 0.0):
        self.step = step
        self.validation = validation
        self._mark: tuple[float, int] | None = None
        self._paused: float | None = None

    def tick(self, step: int) -> None:
        """Note that `step` steps are done: the mean since the last call counts a fifth, so that one hiccup does not."""
        now = time.perf_counter()
        if self._paused is not None:
            self.validation, self._paused = now - self._paused, None
        if self._mark is not None and step > self._mark[1]:
            self.step += 0.2 * ((now - self._mark[0]) / (step - self._mark[1]) - self.step)
        self._mark = (now, step)

    def pause(self) -> None:
        """Note that validation and saving begin; they last until the next `tick`."""
        self._mark, self._paused = None, time.perf_counter()

    def affordable(self, seconds: float, steps_per_epoch: int) -> int:
        """Training steps that fit into `seconds`, with a validation after each epoch and after a broken last one."""
        return int(max(0.0, seconds - self.validation) / (self.step + self.validation / steps_per_epoch))

    def seconds(self, steps: int, steps_per_epoch: int) -> float:
        """What `steps` steps and their validations will take."""
        return steps * (self.step + self.validation / steps_per_epoch)


def measure(state: Any, step: Callable[[], Any], validate: Callable[[], Any], compute: Compute, steps: int = 8) -> Pace:
    """Time `steps` calls of `step` and one of `validate`, then put `state` (a dataclass) and all random states back.

    Its `micro_batch` stays: a step that ran out of memory would do so again.
    """
    before = copy.deepcopy(checkpoint.pack(state))
    for i in range(2 + steps):
        if i == 2:  # by then kernels are compiled and caches warm
            compute.synchronize()
            start = time.perf_counter()
        step()
    compute.synchronize()
    trained = time.perf_counter() - start
    if compute.device.type != "cpu":
        validate()  # a GPU loads kernels of its own for it the first time
        compute.synchronize()
    start = time.perf_counter()
    validate()
    pace = Pace(trained / steps, time.perf_counter() - start)
    before["micro_batch"] = state.micro_batch
    checkpoint.unpack(state, before)
    return pace


def log_line(row: Mapping[str, Any], minutes_left: float) -> str:
    """An epoch, a row of history.csv, in one line."""
    named = {"val": row["val_accuracy"], "EMA": row["ema_accuracy"]}
    accuracies = [f"{name} {value:5.2f} %" for name, value in named.items() if value is not None]
    speed = f"{row['images_per_second']:,.0f} images/s, {row['seconds']:.0f} s, {minutes_left:.1f} min left"
    return ", ".join([f"epoch {row['epoch']:g}: loss {row['loss']:.3f}", *accuracies, f"lr {row['lr']:.1e}", speed])
