"""Training steps with our loader and learner beside a bare loop of the same network on one fixed batch; and batches alone beside torch's DataLoader.

    python benchmarks/bench_training.py [--encoder resnest14d-quarter --aspp 32 --size 64 --batch 8] [--steps 20] [--rounds 3] [--device auto] [--json FILE]
    python benchmarks/bench_training.py --encoder resnest101e --aspp 256 --size 512 --batch 16     # where there is a GPU

The bare loop does nothing but forward, loss, backward and AdamW on a batch that lies on the device: it is the most that a training can reach.
Its time divided by ours is the share of the time in which the device is busy with the network. Ours turns chips, stacks them, converts them,
counts steps and schedules the learning rate besides. It is taken twice: with chips in memory, and read from the files of a chip store in every epoch.
On the processor the time is that of the processor (user and system, all threads), which other programs beside disturb little; on a GPU it is the wall's.
The chips are random numbers.
"""
import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from fastai.callback.core import Callback
from torch.utils.data import DataLoader

from isa_nb import models
from isa_nb.batches import ChipLoader
from isa_nb.core import raster, square_geobox
from isa_nb.learning import learner, plan
from isa_nb.losses import SegmentationLoss
from isa_nb.samples import StoredChips, cut

BANDS = ["blue", "green", "red", "nir"]


def store(folder: Path, size: int, n: int) -> StoredChips:
    side = size * int(np.ceil(n ** 0.5))
    gen, grid = np.random.default_rng(0), square_geobox(114.3, 30.6, side * 16, 16)
    image = (1000 + 500 * np.kron(gen.random((4, side // 16, side // 16)), np.ones((1, 16, 16))) + gen.integers(0, 64, (4, side, side))).astype(np.uint16)
    return StoredChips(cut(raster(image, grid, "image", nodata=0), raster(gen.integers(0, 2, (side, side)).astype(np.uint8), grid, "label", nodata=255), folder / "chips", size=size, overlap=0).assign(split="train"), "train")


def clock(device: str) -> float:
    if device.startswith("cuda"):
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


class Watch(Callback):
    "How long the last epoch's training took."
    order = 99

    def __init__(self, device: str):
        self.where = device

    def before_train(self) -> None:
        self.begun = clock(self.where)

    def after_train(self) -> None:
        self.took = clock(self.where) - self.begun


def bare(spec: models.Spec, chips: list, how, batch: int, steps: int) -> float:
    model = models.build(spec).to(how.device, memory_format=torch.channels_last if how.channels_last else torch.contiguous_format).train()
    x, y, w = next(iter(ChipLoader(chips, batch, device=how.device)))
    loss, opt = SegmentationLoss(), torch.optim.AdamW(model.parameters(), fused=True)
    for i in range(steps + 3):
        if i == 3:
            begun = clock(how.device)
        with torch.autocast(torch.device(how.device).type, torch.bfloat16, enabled=how.precision == "bf16"):
            out = model(x)
        loss(out, y, w).backward()
        opt.step()
        opt.zero_grad()
    return clock(how.device) - begun


def ours(spec: models.Spec, chips, how, batch: int, steps: int, workers: int) -> float:
    learn = learner(models.build(spec), chips, [chips[0]], batch=batch, steps=steps, how=how, workers=workers)
    watch = Watch(how.device)
    learn.fit(2, cbs=watch)
    return watch.took


def loaders(chips: list, batch: int) -> tuple[float, float]:
    "Chips per second of processor time."
    def rate(loader) -> float:
        begun, n = time.process_time(), 0
        for _ in range(5):
            for x, *_ in loader:
                n += len(x)
        return n / (time.process_time() - begun)
    plain = [(c.image.astype(np.float32), c.label, c.confidence) for c in chips]
    return rate(ChipLoader(chips, batch, shuffle=True, views=True)), rate(DataLoader(plain, batch, shuffle=True))


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("encoder", "resnest14d-quarter"), ("aspp", 32), ("size", 64), ("batch", 8), ("chips", 64), ("steps", 20), ("rounds", 3), ("device", "auto"), ("precision", "auto"), ("workers", 0), ("json", "")):
        p.add_argument(f"--{name}", type=type(default), default=default)
    a = p.parse_args()
    how = plan(a.device, a.precision)
    spec = models.Spec(architecture="ResNeStASPP", arguments={"encoder": a.encoder, "aspp": a.aspp, "rates": [1, 2, 3] if a.size < 256 else [6, 12, 18]}, bands=BANDS, mean=[1250.0] * 4, std=[200.0] * 4)
    print(how)
    with tempfile.TemporaryDirectory() as d:
        files = store(Path(d), a.size, a.chips)
        chips, rows = list(files), []
        for _ in range(a.rounds):
            most = bare(spec, chips, how, a.batch, a.steps)
            row = {"bare": most, "in memory": ours(spec, chips, how, a.batch, a.steps, a.workers), "files": ours(spec, files, how, a.batch, a.steps, a.workers)}
            rows.append({k: a.batch * a.steps / v for k, v in row.items()} | {f"busy, {k}": most / v for k, v in row.items() if k != "bare"})
            print({k: round(v, 2) for k, v in rows[-1].items()}, "chips/s, share of the time", flush=True)
        one, torchs = loaders(chips, a.batch)
        print(f"batches alone: {one:.0f} chips/s (turned), torch DataLoader {torchs:.0f} chips/s (not turned), {one / torchs:.2f} x")
    if a.json:
        Path(a.json).write_text(json.dumps({"plan": str(how), "rows": rows, "batches": one, "torch": torchs}, indent=1) + "\n")


if __name__ == "__main__":
    main()
