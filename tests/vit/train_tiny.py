"""Train a tiny ViT by the notebook's own code, from OUT/last.pth on: train_tiny.py OUT EPOCHS [FILE_LIMIT_BYTES].

A process of its own, so that a test can kill it, or forbid it to write large files from the second epoch on.
"""

import resource
import signal
import sys
from pathlib import Path

import torch

sys.path[:0] = [str(Path(__file__).resolve().parents[i]) for i in (1, 2)]
import nbload
from helpers.vit import checkpoint as ckpt
from test_recipe import make_run


def main(out: Path, epochs: int, file_limit: int | None = None) -> None:
    torch.set_num_threads(1)
    q1 = nbload.load("q1.ipynb")
    recipe = {"randaug_n": 2, "erase_prob": 0.25, "mixup": 0.8, "cutmix": 1.0, "drop_path": 0.2, "mix_off_epochs": 2}
    run = make_run(q1, n=160, epochs=epochs, **recipe)
    ckpt.SAVE_SECONDS = 0  # last.pth after every epoch, however short
    ckpt.resume(run, out / "last.pth")
    if file_limit is not None:  # a quota: a write beyond it fails as it does on a full disk
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        write = ckpt.write_csv

        def limit_after_first_epoch(rows, path):
            write(rows, path)
            resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))

        ckpt.write_csv = limit_after_first_epoch
    print("training", flush=True)
    q1.train(run, out)
    torch.save([run.model.state_dict(), run.ema.state_dict()], out / "end.pth")


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
