"""A run as the notebook's cells make it, from the claim of its folder to its chosen weights: train_claimed.py OUT SEED
EPOCHS. Prints its id, a line for every epoch, and their held-out accuracy, as written and as read back."""

import sys
from pathlib import Path
from types import SimpleNamespace

import torch

sys.path[:0] = [str(Path(__file__).resolve().parents[i]) for i in (1, 2)]
import nbload
from helpers.vit import best_weights, run_folder
from helpers.vit import checkpoint as ckpt
from test_recipe import CLASSES, make_run

DATASET = SimpleNamespace(classes=CLASSES, source="random", held_out=False)


def main(out: Path, seed: int, epochs: int) -> None:
    torch.set_num_threads(1)
    q1 = nbload.load("q1.ipynb")
    run = make_run(q1, n=160, epochs=epochs, seed=seed, lr=1e-3 / 10**seed)
    out.mkdir(exist_ok=True)
    run_folder.claim(out, SimpleNamespace(resume=False, checkpoint=None))
    print("run", run.id, flush=True)
    q1.train(run, out)
    best = best_weights.load_best(out / ckpt.BEST, DATASET, run)
    run.model.load_state_dict(best["model"])
    print("tested", best["run"], best["val_accuracy"], q1.validate(run, run.val)["val_accuracy"], flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
