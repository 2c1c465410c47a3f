"""Land-cover labels from three 10,000 x 10,000 GeoTIFFs in their own legends, against a windowed loop of rasterio and numpy; whole processes, wall time and peak memory.

python benchmarks/bench_landcover.py [--side N] [--repeats N] [--json FILE]

Two times are given: of the whole process, which begins with importing Python packages, and of the call alone, the last one where there are two (the first also loads the compiled kernels).
Both read the same files and write label, rule and confidence as tiles compressed with ZSTD 1. The peer is what one would write by hand: window by window of 1024 pixels, a table of 256 bytes
per product, and comparisons of whole arrays. It knows one rule, three products and no legend without a class, and its labels are compared with ours pixel by pixel.
"""
import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import rasterio
from bench_fuse_files import profile
from rasterio.windows import Window
from scipy.ndimage import gaussian_filter

CODES = {"esa": [10, 20, 40, 30, 50, 60, 80, 90], "esri": [2, 6, 5, 3, 7, 8, 1, 4], "from": [20, 40, 10, 30, 80, 90, 60, 50]}  # tree, shrub, cropland, grass, building, bare, water, wetland


def make(folder: Path, side: int) -> None:
    "Patches of eight classes at several scales with ragged edges, which the products see a little differently (made-up data)."
    draw = np.random.default_rng(0)

    def field(k: int) -> np.ndarray:
        f = gaussian_filter(draw.standard_normal((-(-side // k),) * 2).astype(np.float32), 1.2, mode="wrap")
        return (f / f.std()).repeat(k, 0).repeat(k, 1)[:side, :side]

    common = field(64) + 0.6 * field(8)
    for k, codes in CODES.items():
        seen = common + 0.3 * field(16) + 0.15 * field(2)
        with rasterio.open(folder / f"{k}.tif", "w", **profile(side) | {"crs": "EPSG:4326", "transform": rasterio.transform.from_origin(113, 31, 8e-5, 8e-5)}, nodata=0) as dst:
            a = np.array(codes, np.uint8)[np.digitize(seen, [-1.6, -1.0, -0.5, 0.0, 0.5, 1.0, 1.6])]
            a[:, :200] = 0 if k == "esri" else a[:, :200]
            dst.write(a, 1)


def ours(folder: Path, out: Path, only: tuple[str, ...], calls: int = 1) -> list[str]:
    files = {k: (str(folder / f"{k}.tif"), dict(zip(codes, (1, 2, 3, 4, 5, 6, 7, 8), strict=True)) | {0: 255}) for k, codes in CODES.items()}
    return [sys.executable, "-c", f"""import time
from isa_nb.fuse_files import FileProduct
from isa_nb.landcover_files import intersect_files
files = {{k: FileProduct(*v) for k, v in {files!r}.items()}}
for _ in range({calls}):
    start = time.perf_counter()
    intersect_files(files, {str(out)!r}, only={only!r}, overwrite=True)
    print(time.perf_counter() - start)"""]


def timed(command: list[str]) -> tuple[float, float, float, float]:
    "Wall seconds, processor seconds and peak memory (GB) of a process, and the seconds of its call, which it prints."
    os.sync()
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    told = process.stdout.read()
    _, status, used = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"failed: {' '.join(command)[:200]}")
    return time.perf_counter() - start, used.ru_utime + used.ru_stime, used.ru_maxrss / 1e6, float(told.split()[-1])


def by_hand(folder: Path, out: Path) -> None:
    "The peer: all three name the class, or two where the third has no data."
    tables = []
    for codes in CODES.values():
        tables.append(np.zeros(256, np.uint8))
        tables[-1][codes] = 1, 2, 3, 4, 5, 6, 7, 8
    files = [rasterio.open(folder / f"{k}.tif") for k in CODES]
    out.mkdir(exist_ok=True)
    about = files[0].profile | {"compress": "zstd", "zstd_level": 1, "tiled": True, "blockxsize": 512, "blockysize": 512, "num_threads": "ALL_CPUS"}
    writers = [rasterio.open(out / f"{k}.tif", "w", **about | {"nodata": v}) for k, v in (("label", 0), ("rule", 255), ("confidence", 255))]
    for r in range(0, files[0].height, 1024):
        for c in range(0, files[0].width, 1024):
            w = Window(c, r, min(1024, files[0].width - c), min(1024, files[0].height - r))
            a, b, d = (t[f.read(1, window=w)] for t, f in zip(tables, files, strict=True))
            top = np.maximum(np.maximum(a, b), d)
            fits = ((a == top) | (a == 0)) & ((b == top) | (b == 0)) & ((d == top) | (d == 0))
            votes = (a == top).astype(np.uint8) + (b == top) + (d == top)
            good = fits & (top > 0) & (votes >= 2)
            label = np.where(good, top, 0).astype(np.uint8)
            rule = np.where(top == 0, 255, np.where(good, np.where(votes == 3, 1, 2), np.where(fits, 6, 5))).astype(np.uint8)
            for f, v in zip(writers, (label, rule, np.where(good, np.rint(votes * (100 / 3)), 0).astype(np.uint8)), strict=True):
                f.write(v, 1, window=w)
    for f in [*files, *writers]:
        f.close()


def same(a: Path, b: Path) -> dict[str, float]:
    "Share of pixels in which the files of two folders agree."
    out = {}
    for k in ("label", "rule", "confidence"):
        with rasterio.open(a / f"{k}.tif") as x, rasterio.open(b / f"{k}.tif") as y:
            out[k] = float((x.read(1) == y.read(1)).mean())
    return out


def main() -> None:
    args = argparse.ArgumentParser()
    args.add_argument("--json")
    args.add_argument("--side", type=int, default=10_000)
    args.add_argument("--repeats", type=int, default=3)
    args.add_argument("--make", type=Path, help="only make the test rasters")
    args.add_argument("--peer", type=Path, nargs=2, help="only run the peer: folder of the inputs, folder of the outputs")
    args.add_argument("--keep", type=Path, help="folder for the test rasters, made once")
    asked = args.parse_args()
    if asked.make:
        make(asked.make, asked.side)
        return
    if asked.peer:
        start = time.perf_counter()
        by_hand(*asked.peer)
        print(time.perf_counter() - start)
        return
    folder = asked.keep or Path(tempfile.mkdtemp())
    folder.mkdir(parents=True, exist_ok=True)
    if not all((folder / f"{k}.tif").exists() for k in CODES):
        subprocess.run([sys.executable, __file__, "--side", str(asked.side), "--make", str(folder)], check=True)  # apart: a child's peak memory starts from its parent's
    print("inputs", {k: f"{(folder / f'{k}.tif').stat().st_size / 1e6:.0f} MB" for k in CODES})
    every, mpx = ("label", "rule", "confidence"), asked.side ** 2 / 1e6
    cases = {"rasterio and numpy, all three": [sys.executable, __file__, "--peer", str(folder), str(folder / "peer")], "intersect_files, label": ours(folder, folder / "one", ("label",)),
             "intersect_files, all three": ours(folder, folder / "ours", every), "the same, called again": ours(folder, folder / "ours", every, 2)}
    timed(cases["intersect_files, all three"])  # compiles what is not compiled yet
    found = {k: [] for k in cases}
    for _ in range(asked.repeats):  # the cases take turns
        for k, command in cases.items():
            found[k].append(timed(command))
    rows = [{"case": k, **dict(zip(("wall_s", "cpu_s", "peak_gb", "call_s"), (statistics.median(v) for v in zip(*times, strict=True)), strict=True))} for k, times in found.items()]
    for r in rows:
        r["mpx_per_s"], r["call_mpx_per_s"], r["times_the_peer"] = mpx / r["wall_s"], mpx / r["call_s"], rows[0]["call_s"] / r["call_s"]
        print(f"{r['case']:30s} process {r['wall_s']:5.2f} s {r['cpu_s']:5.2f} s cpu {r['peak_gb']:4.2f} GB {r['mpx_per_s']:4.0f} Mpx/s   call {r['call_s']:5.2f} s {r['call_mpx_per_s']:4.0f} Mpx/s, {r['times_the_peer']:.2f} x the peer")
    agree = same(folder / "ours", folder / "peer")
    print("pixels in which ours and the peer's files agree:", agree)
    if asked.json:
        Path(asked.json).write_text(json.dumps({"side": asked.side, "cases": rows, "agree": agree}, indent=1))
    for name in ("peer", "one", "ours"):
        shutil.rmtree(folder / name)
    if not asked.keep:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
