"""Progress of a training run, and its counts, times and log."""

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from helpers.common import distributed
from helpers.vit.run_folder import new_id


class Clock:
    """Progress of a run, from 0 to 1: the larger share of the optimizer steps done and of the time used.

    A run that has time for all its `steps` follows them alone, so that it is the same on a faster or slower machine.
    `minutes` are for the whole run, 0 for no limit, of which `seconds` were used before a resume.
    """

    def __init__(self, steps: int, minutes: float = 0, seconds: float = 0.0):
        self.steps = steps
        self.limit = 60 * minutes or math.inf
        self.reserve = 0.0  # seconds to be kept for the last validation
        self._began, self._earlier = time.perf_counter() - seconds, seconds
        self._setup = self._share = 0.0

    def seconds(self) -> float:
        """Time used so far, that before a resume included."""
        return time.perf_counter() - self._began

    def start(self, validate: Callable[[int], object], held_out: int) -> None:
        """Begin to count progress: what came before (compiling, say) takes of the limit alone. `validate(count)` is
        timed on a few images, to know what to keep for all that are `held_out`."""
        if held_out and self.limit < math.inf:
            few = min(500, held_out)
            with self.reserving():
                validate(few)
            self.reserve *= held_out / few
        self._setup = self.seconds() - self._earlier

    @contextlib.contextmanager
    def reserving(self) -> Iterator[None]:
        """Keep as long for the last validation as the block took."""
        began = self.seconds()
        yield
        self.reserve = self.seconds() - began

    def progress(self, step: int, look: bool = False) -> float:
        """Progress after `step` steps. Several processes go by the first one's time, at every tenth and on `look`."""
        if look or distributed.size() == 1 or step % 10 == 0:
            available = max(1e-9, self.limit - self._setup - self.reserve)
            self._share = distributed.broadcast((self.seconds() - self._setup) / available)
        return min(1.0, max(step / self.steps, self._share))

    def minutes_left(self, progress: float) -> float:
        return (self.seconds() - self._setup) * (1 - progress) / max(progress, 1e-9) / 60


@dataclass(kw_only=True)
class Progress:
    """The counts and times of a run, beside the things that learn, which q1's `Run` adds."""

    clock: Clock | None = None
    progress: float = 0.0  # 0 to 1, see Clock
    step: int = 0
    steps_per_epoch: int = 1
    id: str = field(default_factory=new_id)  # in all of a run's files; a resumed run has that of the one it goes on
    chunk: int = 1  # batches that the input pipeline makes at once
    parts: int = 1  # in which a batch is computed, one after the other, where memory is short
    skipped: int = 0  # steps whose gradients were not finite
    seconds: float = 0.0  # of training, validation and saving included
    train_seconds: float = 0.0  # of training steps alone
    saved: float = -math.inf  # when last.pth was written, in these seconds
    best: dict[str, Any] | None = None  # content of best_vit_cifar10.pth
    best_is_saved: bool = False
    history: list[dict[str, Any]] = field(default_factory=list)  # rows of history.csv
    recent: list[Tensor] = field(default_factory=list)  # loss and gradient norm of the last ten steps

    def stopped_by(self) -> str:
        """Return what ended the run: "epochs", "time" where max_minutes allowed fewer, or "interrupted"."""
        return "interrupted" if self.progress < 1 else "epochs" if self.step >= self.clock.steps else "time"


def log_line(row: Mapping[str, Any], minutes_left: float) -> str:
    """An epoch, a row of history.csv, in one line."""
    raw, ema = row["val_accuracy"], row["ema_accuracy"]
    accuracies = "" if raw is None else f", val {raw:5.2f} %, EMA {ema:5.2f} %"
    skipped = f", {row['skipped']} steps skipped (gradients not finite)" if row["skipped"] else ""
    speed = f"{row['images_per_second']:,.0f} images/s, {row['seconds']:.0f} s, {minutes_left:.1f} min left"
    return f"epoch {row['epoch']:g}: loss {row['loss']:.3f}{accuracies}, lr {row['lr']:.1e}{skipped}, {speed}"
