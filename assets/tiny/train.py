"""Train the embedded tiny models again, from a seed, on one CPU core in six to eight hours:

    python assets/tiny/train.py                    # all three, then the table of assets/tiny/measure.py
    python assets/tiny/train.py sam2 --seed 1      # one of them

A run that was interrupted goes on from its state in --work. Needs the packages of requirements.txt, and SciPy.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

import measure
import train_clipseg
import train_groundingdino
import train_sam2

from common import nbload
from helpers.common.device import pick_compute

HERE = Path(__file__).resolve().parent
MODELS = ("groundingdino", "sam2", "clipseg")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", metavar="model", help=f"of {', '.join(MODELS)}; all if none is named")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, default=Path("outputs/tiny"), help="for states to go on from")
    parser.add_argument("--out", type=Path, default=HERE, help="where the folders of the models are written")
    parser.add_argument(
        "--torch-muon",
        action="store_true",
        help="GroundingDINO with PyTorch's own Muon in bfloat16, as the weights in this folder were trained; on a CPU "
        "without instructions for bfloat16 several times as slow",
    )
    args = parser.parse_args()
    if unknown := set(args.models) - set(MODELS):
        parser.error(f"no such model: {', '.join(sorted(unknown))}; there are {', '.join(MODELS)}")
    trainings = {
        "groundingdino": partial(train_groundingdino.train, torch_muon=args.torch_muon),
        "sam2": train_sam2.train,
        "clipseg": train_clipseg.train,
    }
    args.work.mkdir(parents=True, exist_ok=True)
    for name in args.models or MODELS:
        trainings[name](args.seed, args.work, args.out / name)
    q2 = nbload.load("q2.ipynb")
    rows = measure.measure(q2, measure.load_tiny(q2, pick_compute(), args.out), scenes=500, seed=args.seed + 1)
    print(measure.table(rows, "500 scenes"))


if __name__ == "__main__":
    main()
