"""Confusion matrices, boundary scores, calibration and block bootstrap: ours and the peers'.

    python benchmarks/bench_metrics.py [--json FILE]

16 x 1024 x 1024 pixels of 9 classes (uint8, one in twenty ignored), best of three rounds in which all take turns. Peers: numpy.bincount on a
code array, scikit-learn, and torchmetrics where it is installed. Boundary scores of 1280 x 1280 pixels: MONAI's surface Dice (one tolerance,
no band) where it is installed; calibration: scikit-learn's curve and Brier score (benchmarks/requirements.txt). The labels are made up.
"""
import argparse
import importlib.util
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from scipy.ndimage import gaussian_filter

from isa_nb import boundary, calibration, metrics


def best(cases: dict[str, Callable], rounds: int = 3) -> dict[str, float]:
    "Seconds of each case, the best of some rounds in which they take turns."
    times = {name: [] for name in cases}
    for _ in range(rounds + 1):
        for name, f in cases.items():
            start = time.perf_counter()
            f()
            times[name].append(time.perf_counter() - start)
    return {name: min(t[1:]) for name, t in times.items()}


def bincount(pred: np.ndarray, truth: np.ndarray, c: int) -> np.ndarray:
    keep = truth != 255
    return np.bincount(truth[keep] * np.uint8(c) + pred[keep], minlength=c * c).reshape(c, c)


def sklearn(pred: np.ndarray, truth: np.ndarray, c: int) -> np.ndarray:
    from sklearn.metrics import confusion_matrix
    keep = truth != 255
    return confusion_matrix(truth[keep], pred[keep], labels=range(c))


def torchmetrics(pred: np.ndarray, truth: np.ndarray, c: int) -> np.ndarray:
    import torch
    from torchmetrics.functional.classification import multiclass_confusion_matrix
    return multiclass_confusion_matrix(torch.from_numpy(pred), torch.from_numpy(truth), c, ignore_index=255).numpy()


def monai(pred: np.ndarray, truth: np.ndarray) -> float:
    import torch
    from monai.metrics import compute_surface_dice
    one = lambda a: torch.from_numpy(np.stack([1 - a, a])[None])  # noqa: E731
    return float(compute_surface_dice(one(pred), one(truth), [1.0]))


def curve(p: np.ndarray, truth: np.ndarray) -> float:
    from sklearn.calibration import calibration_curve
    from sklearn.metrics import brier_score_loss
    calibration_curve(truth.ravel(), p.ravel(), n_bins=20)
    return brier_score_loss(truth.ravel(), p.ravel())


def say(what: str, seconds: dict[str, float], pixels: int | None = None) -> list[dict]:
    "Print a group of cases, the first of them ours."
    ours = next(iter(seconds.values()))
    print(what)
    for name, s in seconds.items():
        print(f"  {name:46} {s:8.3f} s" + (f" {pixels / s / 1e6:8.1f} Mpx/s" if pixels else "") + (f" {s / ours:7.1f} x isa_nb's time" if len(seconds) > 1 else ""))
    return [{"group": what, "case": name, "seconds": round(s, 4)} for name, s in seconds.items()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    gen = np.random.default_rng(0)
    truth, pred = gen.integers(0, 9, (2, 16, 1024, 1024), dtype=np.uint8)
    truth[gen.random(truth.shape) < 0.05] = 255
    cases = {"isa_nb confusion": lambda: metrics.confusion(pred, truth, 9), "numpy bincount": lambda: bincount(pred, truth, 9), "scikit-learn": lambda: sklearn(pred, truth, 9)}
    if importlib.util.find_spec("torchmetrics"):
        cases["torchmetrics"] = lambda: torchmetrics(pred, truth, 9)
    want = cases["numpy bincount"]()
    assert all((f() == want).all() for f in cases.values())
    table = say("16 x 1024 x 1024, 9 classes", best(cases), truth.size)

    field = gaussian_filter(gen.normal(size=(1280, 1280)), 4)
    town = (field > field.std()).astype(np.uint8)
    mapped = (field + 0.3 * field.std() * gen.normal(size=field.shape) > field.std()).astype(np.uint8)
    cases = {"isa_nb boundary, 3 distances, F1 and IoU": lambda: boundary.boundary_counts(mapped, town, (1, 2, 5), 1, block=64)}
    if importlib.util.find_spec("monai"):
        cases["MONAI surface Dice, 1 distance"] = lambda: monai(mapped, town)
    table += say("boundary, 1280 x 1280", best(cases), town.size)

    p = 1 / (1 + np.exp(-field / field.std()))
    cases = {"isa_nb reliability per block": lambda: calibration.reliability_counts(p, town, block=64), "scikit-learn curve and Brier": lambda: curve(p, town)}
    table += say("calibration, 1280 x 1280", best(cases), town.size)

    blocks = metrics.block_confusions(pred.reshape(4096, 4096), truth.reshape(4096, 4096), 256, 9, 255)
    table += say("intervals", best({"2000 draws of 256 blocks, 9 classes, 3 scores": lambda: metrics.block_bootstrap(blocks, ("aAcc", "mIoU", "isa_f1"))}))
    if args.json:
        args.json.write_text(json.dumps(table, indent=1))


if __name__ == "__main__":
    main()
