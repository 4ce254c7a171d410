"""Where a training run stands: what is counted, timed and remembered on the way."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from helpers.vit.clock import Clock


@dataclass(kw_only=True)
class Progress:
    """What q1's `Run` has beside the things that learn."""

    clock: Clock | None = None
    progress: float = 0.0  # 0 to 1, see Clock
    step: int = 0
    steps_per_epoch: int = 1
    chunk: int = 1  # batches that the input pipeline makes at once
    parts: int = 1  # in which a batch is computed, one after the other, where memory is short
    skipped: int = 0  # steps whose gradients were not finite
    seconds: float = 0.0  # of training, validation and saving included
    train_seconds: float = 0.0  # of training steps alone
    saved: float = -math.inf  # when last.pth was written, in these seconds
    best_accuracy: float = -1.0  # of what is saved, percent; -1: nothing yet
    history: list[dict[str, Any]] = field(default_factory=list)  # rows of history.csv
    recent: list[Tensor] = field(default_factory=list)  # loss and gradient norm of the last ten steps

    def stopped_by(self) -> str:
        """Return what ended the run: "epochs", "time" where max_minutes allowed fewer, or "interrupted"."""
        return "interrupted" if self.progress < 1 else "epochs" if self.step >= self.clock.steps else "time"
