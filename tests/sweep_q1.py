"""What moves accuracy when minutes are given: q1.ipynb with one setting changed at a time, in equal training time.

    python tests/sweep_q1.py --data-root DIR [--minutes 1.5] [--seed 0] [--out assets/measured] [--only NAME ...]

Every run is the notebook itself under papermill, preset "quick"; what is recorded is the accuracy on 5,000 validation
images. Each run adds a row to q1_sweep.csv in --out, so that it can be stopped and gone on with: what is in the file
already is not run again. Run it on an idle machine, or the times are not equal.
"""

import argparse
import csv
import json
import subprocess
import sys
import tempfile
from datetime import date
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BASE = {"embed_dim": 128, "depth": 4, "pool": "mean", "val_size": 5000}  # on top of the preset "quick"
VARIANTS = {
    "baseline: depth 4, mean pooling": {},
    "attention weights not mimetic": {"without": "mimetic_attention(block.attn)"},  # a line that becomes `pass`
    "patch 8 (16 tokens)": {"patch_size": 8},
    "[CLS] token instead of the mean": {"pool": "cls"},
    "depth 2": {"depth": 2},
    "RandAugment and Random Erasing": {"randaug_n": 2, "erase_prob": 0.25},
    "MixUp and CutMix": {"mixup": 0.8, "cutmix": 1.0},
}
FIELDS = ["variant", "best_val_accuracy", "selected_weights", "epochs", "images_per_second", "seconds", "parameters"]
FIELDS += ["seed", "minutes", "dataset", "source", "device", "precision", "torch", "date", "changed"]


def run(changed: dict, data_root: str, minutes: float, seed: int) -> dict:
    """Train and test once; returns the run's summary."""
    with tempfile.TemporaryDirectory() as out:
        settings = {"preset": "quick", "data_root": data_root, "out_dir": out, "seed": seed, "tta": 0}
        settings |= {"max_minutes": minutes} | BASE | changed
        source = (ROOT / "q1.ipynb").read_text()
        if line := settings.pop("without", None):
            assert source.count(f"    {line}") == 1, f"{line!r} should be one line of the notebook"
            source = source.replace(f"    {line}", "    pass")
        notebook = Path(out) / "q1.ipynb"
        notebook.write_text(source)
        given = [part for name, value in settings.items() for part in ("-p", name, str(value))]
        command = [sys.executable, "-m", "papermill", "--no-progress-bar", "--kernel", "python3"]
        command += [str(notebook), str(notebook.with_name("executed.ipynb")), *given]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"the run with {changed} failed:\n{done.stderr[-2000:]}")
        return json.loads((Path(out) / "run_summary.json").read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", required=True)
    parser.add_argument("--minutes", type=float, default=1.5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=ROOT / "assets" / "measured")
    parser.add_argument("--only", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / "q1_sweep.csv"
    rows = list(csv.DictReader(path.open(newline=""))) if path.is_file() else []
    done = {(row["variant"], row["seed"], row["minutes"]) for row in rows}
    for name in args.only:
        if (name, str(args.seed), str(args.minutes)) in done:
            continue
        summary = run(VARIANTS[name], args.data_root, args.minutes, args.seed)
        row = {key: summary[key] for key in FIELDS if key in summary}
        row |= {
            "variant": name,
            "changed": json.dumps(VARIANTS[name]),
            "minutes": args.minutes,
            "date": str(date.today()),
        }
        row |= {"epochs": round(summary["epochs_run"], 2), "images_per_second": round(summary["images_per_second"])}
        row |= {"seconds": round(summary["seconds"], 1), "torch": summary["versions"]["torch"]}
        row |= {"dataset": summary["dataset"]["name"], "source": summary["dataset"]["source"]}
        rows.append(row)
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, FIELDS)
            writer.writeheader()
            writer.writerows(rows)
        print(
            f"{name}: {row['best_val_accuracy']:.2f} % after {row['epochs']} epochs in {row['seconds']} s", flush=True
        )


if __name__ == "__main__":
    main()
