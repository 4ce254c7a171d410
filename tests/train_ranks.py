"""Runs of a tiny ViT by the notebook's own code, alone or under torchrun: train_ranks.py OUT everything|long [EPOCHS].

What a run returns is OUT/rank<N>.pth; while `long` goes on, a test can kill it by the process number in OUT/pid<N>.
"""

import math
import os
import shutil
import sys
from pathlib import Path

import torch

import nbload

sys.path.insert(0, str(nbload.ROOT))
from helpers import budget, distributed
from helpers import checkpoint as ckpt
from helpers.data import Split
from test_recipe import Greedy, Poisoned, make_state, make_task

BATCH, STEPS = 18, 10  # 9 pairs of images: two processes get 8 and 10 images; steps of an epoch
CLASSES = tuple("abcdefghij")
AUGMENTED = {"randaug_n": 1, "erase_prob": 0.1, "mixup": 0.2, "cutmix": 0.2, "drop_path": 0.05, "label_smoothing": 0.1}


def new_run(q1, epochs, n=BATCH * STEPS, **changes):
    """Task and state, the same in every process; each class is a pattern of its own, and noise."""
    ckpt.seed_everything(0)
    settings = {"seed": 0, "epochs": epochs, "batch_size": BATCH, "lr": 2e-3} | changes
    task = make_task(q1, n, **settings)
    patterns = torch.rand(10, 3, 4, 4).repeat_interleave(8, 2).repeat_interleave(8, 3)
    labels = torch.arange(n + 101) % 10
    images = (255 * (0.5 * patterns[labels] + 0.5 * torch.rand(len(labels), 3, 32, 32))).byte()
    task.train, task.val = Split(images[:n], labels[:n]), Split(images[n:], labels[n:])
    state = make_state(q1, task)
    state.plan = budget.make_plan(epochs, 1, 0, n // BATCH)
    return task, state


def plain(q1, out, half=None):
    """50 steps without augmentation (from the checkpoint `half` on): the loss after each, and what else to compare.

    OUT/half.pth is last.pth as it was after the third epoch.
    """
    augment, step, losses, slices = q1.augment, q1.train_step, [], []

    def recorded(state, images, targets, task):
        if len(losses) == 3 * STEPS and distributed.is_main():
            shutil.copy(out / "last.pth", out / "half.pth")
        slices.append(images.double().mean((1, 2, 3)))  # tells images apart
        losses.append(step(state, images, targets, task))
        return losses[-1]

    task, state = new_run(q1, epochs=5)
    before = q1.validate(state, task)
    if half:
        ckpt.unpack(state, ckpt.load_checkpoint(half))
    q1.augment, q1.train_step = lambda images, task: task.normalise(images), recorded
    q1.train(state, task, budget.Pace(0.01), out, CLASSES)
    q1.augment, q1.train_step = augment, step
    weights = [state.model.state_dict(), state.ema.module.state_dict()]
    return {"losses": torch.stack(losses), "slices": slices, "weights": weights, "before": before}


def continued(q1, out):
    """The same from OUT/../half.pth on, left by a run in another number of processes; None if it is not there."""
    half = out.parent / "half.pth"
    return plain(q1, out, half) if half.is_file() else None


def augmented(q1, out):
    """A run with everything on; by its own clock the first process has time for 200 steps, the second for 250."""
    task, state = new_run(q1, epochs=30, max_minutes=1, mix_off_epochs=10, **AUGMENTED)
    pace = budget.Pace(0.01)
    pace.affordable = lambda *_: 200 + 50 * distributed.rank() - state.step
    q1.train(state, task, pace, out, CLASSES)
    return {"history": state.history, "plan": state.plan.total, "best": state.best_accuracy}


def run_short_of_memory(q1, out):
    """The last process has room for 3 images; all go on in parts, and the step is that of the whole batch."""
    task, state = new_run(q1, epochs=1)
    limit = 3 if distributed.rank() == distributed.size() - 1 else 1000
    state.forward = distributed.wrap(Greedy(state.model, limit))
    part = distributed.shard(BATCH)
    x, y = task.normalise(task.train.images[part]), torch.eye(10)[task.train.labels[part]]
    losses = [q1.train_step(state, x, y, task) for _ in range(2)]
    return {"losses": torch.stack(losses), "weights": state.model.state_dict(), "micro_batch": state.micro_batch}


def not_finite(q1, out):
    """The last process meets an infinite loss, later nothing else: all skip the same steps and give up together."""
    task, state = new_run(q1, epochs=2)
    last = distributed.rank() == distributed.size() - 1
    state.rehearsed = state.micro_batch  # so that a call is a step
    state.forward = distributed.wrap(Poisoned(state.model, {1, *range(5, 20)} if last else (), math.inf))
    try:
        q1.train(state, task, budget.Pace(0.01), out, CLASSES)
        error = None
    except FloatingPointError as caught:
        error = str(caught)
    return {"error": error, "step": state.step, "bad": state.bad_losses, "weights": state.model.state_dict()}


def everything(q1, out):
    """Each of the runs above, what they return under their names."""
    return {
        run.__name__: run(q1, out / run.__name__)
        for run in (plain, continued, augmented, run_short_of_memory, not_finite)
    }


def long(q1, out, epochs):
    """A run from OUT/last.pth on, where there is one; returns the step at which it began."""
    task, state = new_run(q1, epochs, **AUGMENTED)
    if last := distributed.broadcast(ckpt.load_checkpoint(out / "last.pth") if (out / "last.pth").is_file() else None):
        ckpt.unpack(state, last)
    began = state.step
    (out / f"pid{distributed.rank()}").write_text(str(os.getpid()))
    q1.train(state, task, budget.Pace(0.01), out, CLASSES)
    return began


def main(out: Path, what: str, *numbers: int) -> None:
    torch.set_num_threads(1)
    distributed.start()
    result = {"everything": everything, "long": long}[what](nbload.load("q1.ipynb"), out, *numbers)
    torch.save(result, out / f"rank{distributed.rank()}.pth")
    distributed.leave()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], *map(int, sys.argv[3:]))
