"""Fusing three 20,000 x 20,000 GeoTIFFs in their own legends into a label, against gdal_calc.py; whole processes, wall time and peak memory.

python benchmarks/bench_fuse_files.py [--real FOLDER [--window ROW COLUMN SIDE]] [--side N] [--json FILE]

Ours is always tiled and compressed with ZSTD 1. gdal_calc.py writes three kinds of file: tiled and compressed with DEFLATE as most published products are,
tiled and compressed with ZSTD 1 as ours, and without compression, which is what it does when not told otherwise.
The inputs are made up, or with --real three maps of 0 and 1 (such as the built-up products of Beijing; all of them or a window), mirrored until they fill the side.
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
from rasterio.transform import from_origin
from scipy.ndimage import gaussian_filter

LEGENDS = {"gisa": {v: int(v > 0) for v in range(38)} | {255: 255}, "glc": {**dict.fromkeys((210, 60, 20, 10, 130, 71, 200), 0), 190: 1, 250: 255}, "esa": {**dict.fromkeys((80, 10, 40, 30, 20, 60), 0), 50: 1, 0: 255}}
NODATA = {"gisa": 255, "glc": 250, "esa": 0}
CALC = "where((A==255)|(B==250)|(C==0),255,where((A>0)&(B==190)&(C==50),1,where((A==0)&(B!=190)&(C!=50),0,2)))"


def profile(side: int) -> dict:
    return dict(driver="GTiff", height=side, width=side, count=1, dtype="uint8", crs="EPSG:32650", transform=from_origin(300000, 4500000, 16, 16), tiled=True, blockxsize=512, blockysize=512,
                compress="deflate", num_threads="ALL_CPUS")


def make_real(real: Path, part: list[int] | None, folder: Path, side: int) -> None:
    "The last three maps of 0 and 1 in a folder, in the three legends, mirrored."
    maps = []
    for path in sorted(real.glob("*.tif"))[-3:]:
        with rasterio.open(path) as src:
            maps.append(src.read(1) == 1)
    row, col, size = part or (0, 0, min(n for m in maps for n in m.shape))
    maps = [m[row:row + size, col:col + size] for m in maps]
    for (name, nodata), m, (no, yes) in zip(NODATA.items(), maps, ((0, 20), (10, 190), (10, 50)), strict=True):
        a = np.pad(np.where(m, yes, no).astype(np.uint8), (0, max(0, side - size)), mode="symmetric")[:side, :side]
        with rasterio.open(folder / f"{name}.tif", "w", **profile(side), nodata=nodata) as dst:
            dst.write(a, 1)


def make(folder: Path, side: int) -> None:
    "Patches of land cover at several scales with ragged edges: products that agree on about nine pixels in ten (made-up data)."
    draw = np.random.default_rng(0)

    def field(n: int) -> np.ndarray:
        f = gaussian_filter(draw.standard_normal((n, n)).astype(np.float32), 1.2, mode="wrap")
        return f / f.std()

    parts = lambda *scales: [(field(-(-side // k)), k, w) for k, w in scales]  # noqa: E731
    town, cover, own = parts((64, 1.0), (8, 0.7), (2, 0.35)), parts((32, 1.0), (4, 0.6)), {k: parts((16, 0.3), (2, w)) for k, w in (("gisa", 0.2), ("glc", 0.45), ("esa", 0.3))}
    paths = {k: folder / f"{k}.tif" for k in LEGENDS}
    files = {k: rasterio.open(p, "w", **profile(side), nodata=NODATA[k]) for k, p in paths.items()}
    edges, classes = [-1.6, -0.9, -0.3, 0.2, 0.7, 1.3], {"glc": [210, 60, 20, 10, 130, 71, 200], "esa": [80, 10, 40, 40, 30, 20, 60]}
    for y in range(0, side, 1000):
        rows = np.arange(y, min(side, y + 1000))
        add = lambda fields, rows=rows: sum(w * f[rows // k][:, np.arange(side) // k] for f, k, w in fields)  # noqa: E731
        built, kind = add(town), add(cover)
        for k, f in files.items():
            noise = add(own[k])
            isa = built + noise > 1.7
            if k == "gisa":
                a = np.where(isa, np.clip(37 - (built + noise - 1.7) * 20, 1, 37), 0).astype(np.uint8)
            else:
                a = np.array(classes[k], np.uint8)[np.digitize(kind + 0.5 * noise, edges)]
                a[isa] = 190 if k == "glc" else 50
            if k == "glc":
                a[:, :300] = 250
            f.write(a, 1, window=((y, y + len(rows)), (0, side)))
    for f in files.values():
        f.close()


def ours(paths: dict[str, Path], out: Path, only: tuple[str, ...], rule: str = "paper") -> list[str]:
    legends = {k: (str(p), LEGENDS[k]) for k, p in paths.items()}
    return [sys.executable, "-c", f"from isa_nb.fuse_files import FileProduct, fuse_files; fuse_files({{k: FileProduct(*v) for k, v in {legends!r}.items()}}, {str(out)!r}, only={only!r}, rule={rule!r}, overwrite=True)"]


def again(paths: dict[str, Path], out: Path, only: tuple[str, ...]) -> list[str]:
    "The same twice in one process, which says how long the second time took."
    *python, code = ours(paths, out, only)
    start, work = code.split("; ", 1)
    return [*python, f"import time; {start}; {work}; start = time.perf_counter(); {work}; print(time.perf_counter() - start)"]


def gdal_calc(paths: dict[str, Path], out: Path, *options: str) -> list[str]:
    inputs = [v for letter, p in zip("ABC", paths.values(), strict=True) for v in (f"-{letter}", str(p))]
    return ["gdal_calc.py", *inputs, f"--outfile={out}", f"--calc={CALC}", "--type=Byte", "--NoDataValue=255", "--hideNoData", "--overwrite", "--quiet", *(f"--co={o}" for o in options)]


def measure(command: list[str]) -> tuple[float, float, float]:
    "Wall seconds, processor seconds and peak memory (GB) of a process; if it prints a number, that is its wall time."
    os.sync()  # what the case before has left to write is not this one's to pay
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    said = process.stdout.read().strip()
    _, status, used = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"failed: {' '.join(command)[:200]}")
    return float(said) if said else time.perf_counter() - start, used.ru_utime + used.ru_stime, used.ru_maxrss / 1e6


def main() -> None:
    args = argparse.ArgumentParser()
    args.add_argument("--json")
    args.add_argument("--side", type=int, default=20_000)
    args.add_argument("--repeats", type=int, default=3)
    args.add_argument("--real", type=Path, help="folder of maps of 0 and 1 to be used instead of made-up ones")
    args.add_argument("--window", type=int, nargs=3, metavar=("ROW", "COLUMN", "SIDE"), help="the part of the real maps to be used")
    args.add_argument("--make", type=Path, help="only make the test rasters")
    args.add_argument("--keep", type=Path, help="folder for the test rasters, made once")
    asked = args.parse_args()
    if asked.make:
        make_real(asked.real, asked.window, asked.make, asked.side) if asked.real else make(asked.make, asked.side)
        return
    folder = asked.keep or Path(tempfile.mkdtemp())
    folder.mkdir(parents=True, exist_ok=True)
    paths = {k: folder / f"{k}.tif" for k in LEGENDS}
    if not all(p.exists() for p in paths.values()):
        real = (["--real", str(asked.real)] if asked.real else []) + (["--window", *map(str, asked.window)] if asked.window else [])
        subprocess.run([sys.executable, __file__, "--side", str(asked.side), "--make", str(folder), *real], check=True)  # apart: a child's peak memory starts from its parent's
    print("inputs", {k: f"{p.stat().st_size / 1e6:.0f} MB" for k, p in paths.items()})
    every = ("label", "votes", "rule", "confidence")
    peers = {"DEFLATE": gdal_calc(paths, folder / "calc.tif", "COMPRESS=DEFLATE", "TILED=YES"), "ZSTD 1": gdal_calc(paths, folder / "calc.tif", "COMPRESS=ZSTD", "ZSTD_LEVEL=1", "TILED=YES"), "plain": gdal_calc(paths, folder / "calc.tif")}
    cases = {f"gdal_calc.py, label, {k}": v for k, v in peers.items()} | {
        "fuse_files, label": ours(paths, folder / "out", ("label",)), "fuse_files, all four": ours(paths, folder / "out", every),
        "label, in a Python that has fused": again(paths, folder / "out", ("label",)), "all four, in a Python that has fused": again(paths, folder / "out", every),
        "fuse_files, all four, posterior": ours(paths, folder / "out", every, "posterior"), "python that only imports fuse_files": [sys.executable, "-c", "import isa_nb.fuse_files"]}
    measure(cases["fuse_files, all four, posterior"])  # compiles what is not compiled yet
    found = {k: [] for k in cases}
    for _ in range(asked.repeats):  # the cases take turns
        for k, command in cases.items():
            found[k].append(measure(command))
    middle = {k: [statistics.median(v) for v in zip(*times, strict=True)] for k, times in found.items()}
    walls = {k: middle[f"gdal_calc.py, label, {k}"][0] for k in peers}
    rows = [{"case": k, "wall_s": w, "cpu_s": c, "peak_gb": m, "ratios": {p: v / w for p, v in walls.items()}} for k, (w, c, m) in middle.items()]
    print(f"{'medians of ' + str(asked.repeats) + ' runs':36s} {'wall':>8s} {'cpu':>8s} {'peak':>9s}   times as fast as gdal_calc.py with {', '.join(peers)}")
    for r in rows:
        print(f"{r['case']:36s} {r['wall_s']:6.2f} s {r['cpu_s']:6.2f} s {r['peak_gb']:6.2f} GB   " + "  ".join(f"{v:5.2f}" for v in r["ratios"].values()))
    if asked.json:
        Path(asked.json).write_text(json.dumps({"side": asked.side, "real": bool(asked.real), "cases": rows}, indent=1))
    for name in ("calc.tif", "out"):
        shutil.rmtree(folder / name) if (folder / name).is_dir() else (folder / name).unlink(missing_ok=True)
    if not asked.keep:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
