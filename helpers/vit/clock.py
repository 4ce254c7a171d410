"""How far a training run is, and what one epoch of it says in the log."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from helpers.common import distributed


class Clock:
    """Progress of a run, from 0 to 1: the larger share of the optimizer steps done and of the time used.

    A run that has time for all its `steps` follows them alone, so that it is the same on a faster or slower machine.
    steps: of the whole run. minutes: for the whole run, 0 for no limit. seconds: that were used before a resume.
    """

    def __init__(self, steps: int, minutes: float = 0, seconds: float = 0.0):
        self.steps = steps
        self.limit = 60 * minutes or math.inf
        self.reserve = 0.0  # seconds to be kept for the last validation
        self._began = time.perf_counter() - seconds
        self._earlier = seconds
        self._setup = 0.0
        self._share = 0.0

    def seconds(self) -> float:
        """Time used so far, that before a resume included."""
        return time.perf_counter() - self._began

    def start(self, validate: Callable[[int], object], held_out: int) -> None:
        """Begin to count: what came since the clock was made (compiling, say) takes of the limit, but is no progress.

        `validate` tries that many images: a few are timed, to know what to keep for all that are `held_out`.
        """
        if held_out and self.limit < math.inf:
            few, began = min(500, held_out), self.seconds()
            validate(few)
            self.reserve = (self.seconds() - began) * held_out / few
        self._setup = self.seconds() - self._earlier

    @contextlib.contextmanager
    def reserving(self) -> Iterator[None]:
        """Keep as long for the last validation as the block took."""
        began = self.seconds()
        yield
        self.reserve = self.seconds() - began

    def progress(self, step: int, look: bool = False) -> float:
        """Progress when `step` steps are done. Several processes go by the first one's time, every ten steps and where
        told to `look`."""
        if look or distributed.size() == 1 or step % 10 == 0:
            available = max(1e-9, self.limit - self._setup - self.reserve)
            self._share = distributed.broadcast((self.seconds() - self._setup) / available)
        return min(1.0, max(step / self.steps, self._share))

    def minutes_left(self, progress: float) -> float:
        """At the pace so far."""
        return (self.seconds() - self._setup) * (1 - progress) / max(progress, 1e-9) / 60


def log_line(row: Mapping[str, Any], minutes_left: float) -> str:
    """An epoch, a row of history.csv, in one line."""
    named = {"val": row["val_accuracy"], "EMA": row["ema_accuracy"]}
    accuracies = [f"{name} {value:5.2f} %" for name, value in named.items() if value is not None]
    skipped = [f"{row['skipped']} steps skipped (gradients not finite)"] if row["skipped"] else []
    speed = f"{row['images_per_second']:,.0f} images/s, {row['seconds']:.0f} s, {minutes_left:.1f} min left"
    parts = [f"epoch {row['epoch']:g}: loss {row['loss']:.3f}", *accuracies, f"lr {row['lr']:.1e}", *skipped, speed]
    return ", ".join(parts)
