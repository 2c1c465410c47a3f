"""Random 256 px chips from 8192 x 8192 px rasters (uint16 x 4 and a mask): chips per second, ours and torchgeo's.

    python benchmarks/bench_chips.py [--side 8192] [--chips 600] [--json FILE]

The peer is torchgeo's RandomGeoSampler on image & mask, without worker processes. Both read the same files in the same
run: tiles of 512 px, uncompressed and with deflate. Plain rasterio windows are the ceiling;
with a least valid share the rasters are scanned first (timed apart), after which GDAL still holds some of their blocks. The bound is that of the issue:
10 x torchgeo. Needs torchgeo (benchmarks/requirements.txt). The rasters are random numbers.
"""
import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import rasterio
from rasterio.transform import from_origin
from rasterio.windows import Window

from isa_nb.chips import random_chips

SIZE = 256


def write(folder: Path, side: int, compress: str) -> dict[str, str]:
    "Rasters that compress about as real ones do: smooth, with noise in the low bits."
    gen = np.random.default_rng(0)
    paths = {k: str(folder / k / f"{k}.tif") for k in ("image", "label")}
    for (kind, path), count, dtype in zip(paths.items(), (4, 1), ("uint16", "uint8"), strict=True):
        Path(path).parent.mkdir(parents=True)
        with rasterio.open(path, "w", driver="GTiff", width=side, height=side, count=count, dtype=dtype, crs="EPSG:32650", transform=from_origin(500000, 4000000, 10, 10),
                           tiled=True, blockxsize=512, blockysize=512, nodata=0 if kind == "image" else 255, **({"compress": compress} if compress != "none" else {})) as f:
            for top in range(0, side, 512):
                coarse = np.kron(gen.random((count, 512 // 32, side // 32)), np.ones((1, 32, 32)))
                block = 500 + 3000 * coarse + gen.integers(0, 64, (count, 512, side)) if kind == "image" else coarse > 0.8
                f.write(block.astype(dtype), window=Window(0, top, side, 512))
    return paths


def rate(make: Callable, n: int) -> float:
    "Chips per second, not counting the opening; the last chip is held while the next is read, as in any loop over them."
    chips = make()
    chip = next(chips)  # noqa: F841
    start = time.perf_counter()
    for _ in range(n):
        chip = next(chips)  # noqa: F841
    return n / (time.perf_counter() - start)


def torchgeo(paths: dict[str, str], n: int):
    from torch.utils.data import DataLoader
    from torchgeo.datasets import RasterDataset, stack_samples
    from torchgeo.samplers import RandomGeoSampler

    class Mask(RasterDataset):
        is_image = False

    both = RasterDataset(str(Path(paths["image"]).parent)) & Mask(str(Path(paths["label"]).parent))
    loader = DataLoader(both, sampler=RandomGeoSampler(both, size=SIZE, length=n + 1), collate_fn=stack_samples)
    for sample in loader:
        assert sample["image"].shape[-2:] == (SIZE, SIZE)
        yield sample


def ours(paths: dict[str, str], n: int, min_valid: float):
    yield from random_chips(paths, SIZE, n + 1, min_valid=min_valid)


def windows(paths: dict[str, str], n: int):
    gen = np.random.default_rng(0)
    with rasterio.open(paths["image"]) as image, rasterio.open(paths["label"]) as label:
        for row, col in gen.integers(0, image.width - SIZE, (n + 1, 2)):
            w = Window(int(col), int(row), SIZE, SIZE)
            yield image.read(window=w), label.read(1, window=w)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=8192)
    parser.add_argument("--chips", type=int, default=600)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    table = []
    for compress in ("none", "deflate"):
        with tempfile.TemporaryDirectory() as folder:
            paths = write(Path(folder), args.side, compress)
            start = time.perf_counter()
            random_chips(paths, SIZE, 1)
            opening = time.perf_counter() - start
            cases = {"torchgeo RandomGeoSampler": (partial(torchgeo, paths, args.chips // 10), args.chips // 10),
                     "isa_nb": (partial(ours, paths, args.chips, 0), args.chips), "isa_nb, at least half valid": (partial(ours, paths, args.chips, 0.5), args.chips),
                     "rasterio windows": (partial(windows, paths, args.chips), args.chips)}
            peer = None
            for name, (make, n) in cases.items():
                got = rate(make, n)
                peer = peer or got
                table.append({"compression": compress, "reader": name, "chips_per_s": round(got, 1), "times_torchgeo": round(got / peer, 1)})
                print(f"{compress:8} {name:28} {got:8.1f} chips/s {got / peer:6.1f} x torchgeo")
            print(f"{compress:8} scan for valid pixels before the first chip: {opening:.2f} s")
    if args.json:
        args.json.write_text(json.dumps({"side": args.side, "size": SIZE, "cpus": os.cpu_count(), "cases": table}, indent=1))


if __name__ == "__main__":
    main()
