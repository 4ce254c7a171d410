"""Laying a training schedule out so that it ends within the time given."""

from __future__ import annotations

import time
from dataclasses import dataclass


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
    """Plan the epochs asked for, or as many steps as are `affordable`; warmup and unmixed end shrink in proportion."""
    full = max(1, round(epochs * steps_per_epoch))
    total = full if affordable is None else max(1, min(full, affordable))
    epoch = steps_per_epoch * total / full
    warmup = min(round(warmup_epochs * epoch), total - 1)
    return Plan(steps_per_epoch, total, warmup, total - round(mix_off_epochs * epoch))


class Pace:
    """How long a training step and a validation take here, in seconds, kept up to date while training."""

    def __init__(self, step: float, validation: float = 0.0):
        self.step = step
        self.validation = validation
        self._mark: tuple[float, int] | None = None

    def tick(self, step: int) -> None:
        """Note that `step` steps are done: the mean since the last call counts a fifth, so that one hiccup does not."""
        now = time.perf_counter()
        if self._mark is not None and step > self._mark[1]:
            self.step += 0.2 * ((now - self._mark[0]) / (step - self._mark[1]) - self.step)
        self._mark = (now, step)

    def pause(self) -> None:
        """Forget the last call: what follows it is no training."""
        self._mark = None

    def affordable(self, seconds: float, steps_per_epoch: int) -> int:
        """Training steps that fit into `seconds`, with a validation after each epoch and after a broken last one."""
        return int(max(0.0, seconds - self.validation) / (self.step + self.validation / steps_per_epoch))

    def seconds(self, steps: int, steps_per_epoch: int) -> float:
        """What `steps` steps and their validations will take."""
        return steps * (self.step + self.validation / steps_per_epoch)
