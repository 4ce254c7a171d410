"""Runs of a tiny ViT by the notebook's own code, alone or under torchrun: train_ranks.py OUT everything|long [EPOCHS].

What a run returns is OUT/rank<N>.pth; while `long` goes on, a test can kill it by the process number in OUT/pid<N>.
"""

import math
import os
import shutil
import sys
from pathlib import Path

import torch

sys.path[:0] = [str(Path(__file__).resolve().parents[i]) for i in (1, 2)]
import nbload
from helpers.common import distributed
from helpers.vit import checkpoint as ckpt
from helpers.vit import engine
from helpers.vit.data import Split
from test_recipe import Greedy, Poisoned, make_run

BATCH, STEPS = 18, 10  # 9 pairs of images: two processes get 8 and 10 images; steps of an epoch
AUGMENTED = {"randaug_n": 1, "erase_prob": 0.1, "mixup": 0.2, "cutmix": 0.2, "drop_path": 0.05, "label_smoothing": 0.1}


def new_run(q1, epochs, n=BATCH * STEPS, **changes):
    """A run, the same in every process; each class is a pattern of its own, and noise."""
    ckpt.SAVE_SECONDS = 0
    run = make_run(q1, n, **{"seed": 0, "epochs": epochs, "batch_size": BATCH, "lr": 2e-3} | changes)
    torch.manual_seed(1)
    patterns = torch.rand(10, 3, 4, 4).repeat_interleave(8, 2).repeat_interleave(8, 3)
    labels = torch.arange(n + 101) % 10
    images = (255 * (0.5 * patterns[labels] + 0.5 * torch.rand(len(labels), 3, 32, 32))).byte()
    run.train, run.val = Split(images[:n], labels[:n]), Split(images[n:], labels[n:])
    return run


def plain(q1, out, half=None):
    """50 steps without augmentation (from the checkpoint `half` on): the loss after each, and what else to compare.

    OUT/half.pth is last.pth as it was after the third epoch.
    """
    augment, train_step, losses, slices = q1.augment, q1.train_step, [], []

    def recorded(run, images, targets):
        result = train_step(run, images, targets)
        slices.append(images.double().mean((1, 2, 3)))  # tells images apart
        losses.append(distributed.all_reduce_sum(result[0]) / distributed.size())
        return result

    run = new_run(q1, epochs=5)
    before = q1.validate(run, run.val)
    if half:
        ckpt.resume(run, half)
    save = ckpt.save_last

    def saved(run, path):
        save(run, path)
        if run.step == 3 * STEPS and distributed.is_main():
            shutil.copy(path, out / "half.pth")

    q1.augment, q1.train_step, ckpt.save_last = q1.normalise, recorded, saved
    q1.train(run, out)
    q1.augment, q1.train_step, ckpt.save_last = augment, train_step, save
    weights = [run.model.state_dict(), run.ema.state_dict()]
    steps = 2 * STEPS if half else 5 * STEPS  # without the rehearsal
    return {"losses": torch.stack(losses[-steps:]), "slices": slices[-steps:], "weights": weights, "before": before}


def continued(q1, out):
    """The same from OUT/../half.pth on, left by a run in another number of processes; None if it is not there."""
    half = out.parent / "half.pth"
    return plain(q1, out, half) if half.is_file() else None


def augmented(q1, out):
    """A run with everything on; by its own clock the first process has time for 200 steps, the second for 250."""
    run = new_run(q1, epochs=30, max_minutes=1, mix_off_epochs=10, **AUGMENTED)
    seconds = q1.Clock.seconds
    q1.Clock.seconds = lambda clock: run.step * 60 / (200 + 50 * distributed.rank())
    q1.train(run, out)
    q1.Clock.seconds = seconds
    return {"history": run.history, "steps": run.step, "best": run.best and run.best["val_accuracy"]}


def run_short_of_memory(q1, out):
    """The last process has room for 3 images; all go on in parts, and the step is that of the whole batch."""
    run = new_run(q1, epochs=1)
    run.forward = Greedy(run.model, 3 if distributed.rank() == distributed.size() - 1 else 1000)
    part, scale = distributed.shard(BATCH), run.scale
    x, y = q1.normalise(run.train.images[part], run.cfg, scale), torch.eye(10)[run.train.labels[part]]
    step = engine.prepare(run, q1.train_step, lambda: (x, y))
    losses = [distributed.all_reduce_sum(step(x, y)[0]) / distributed.size() for _ in range(2)]
    return {"losses": torch.stack(losses), "weights": run.model.state_dict(), "parts": run.parts}


def not_finite(q1, out):
    """The last process meets an infinite loss, later nothing else: all skip the same steps and give up together."""
    run = new_run(q1, epochs=2)
    last = distributed.rank() == distributed.size() - 1
    run.chunk, run.forward = 1, Poisoned(run.model, {2, *range(6, 21)} if last else (), math.inf)
    try:
        q1.train(run, out)
        error = None
    except FloatingPointError as caught:
        error = str(caught)
    return {"error": error, "step": run.step, "skipped": run.skipped, "weights": run.model.state_dict()}


def everything(q1, out):
    """Each of the runs above, what they return under their names."""
    return {
        run.__name__: run(q1, out / run.__name__)
        for run in (plain, continued, augmented, run_short_of_memory, not_finite)
    }


def long(q1, out, epochs):
    """A run from OUT/last.pth on, where there is one; returns the step at which it began."""
    run = new_run(q1, epochs, **AUGMENTED)
    if distributed.broadcast((out / "last.pth").is_file()):
        ckpt.resume(run, out / "last.pth")
    began = run.step
    (out / f"pid{distributed.rank()}").write_text(str(os.getpid()))
    q1.train(run, out)
    return began


def main(out: Path, what: str, *numbers: int) -> None:
    torch.set_num_threads(1)
    distributed.start()
    result = {"everything": everything, "long": long}[what](nbload.load("q1.ipynb"), out, *numbers)
    torch.save(result, out / f"rank{distributed.rank()}.pth")
    distributed.leave()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], *map(int, sys.argv[3:]))
