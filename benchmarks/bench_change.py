"""Four yearly maps of 10,000 x 10,000 pixels made consistent: files to files, and the filter alone in memory; wall time and peak memory of whole processes.

python benchmarks/bench_change.py [--side N] [--repeats N] [--json FILE] [--keep FOLDER]

No peer does the same. The one here is what one would write by hand: a median of 3 x 3 x 3 (year, row, column; scipy.ndimage.median_filter) on the maps in memory, which neither forbids that
impervious surface vanishes nor weighs evidence. It is timed on a part of the maps, in Mpx/s.
"""
import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import rasterio
from bench_fuse_files import measure, profile
from scipy.ndimage import gaussian_filter

YEARS = (2017, 2019, 2021, 2023)


def make(folder: Path, side: int) -> None:
    "Towns that grow, and maps that miss a tenth of them and invent 3 % of the rest (made-up data)."
    draw = np.random.default_rng(0)
    level = gaussian_filter(draw.standard_normal((side // 20 + 1,) * 2).astype(np.float32), 4)
    level = (level / level.std()).repeat(20, 0).repeat(20, 1)[:side, :side]
    for y, q in zip(YEARS, (1.3, 1.2, 1.1, 1.0), strict=True):
        with rasterio.open(folder / f"isa_{y}.tif", "w", **profile(side), nodata=255) as dst:
            for r in range(0, side, 1000):
                built = level[r:r + 1000] > q
                dst.write(np.where(built, draw.random(built.shape) >= 0.1, draw.random(built.shape) < 0.03).astype(np.uint8), 1, window=((r, r + len(built)), (0, side)))


def files(folder: Path, **options: object) -> list[str]:
    return [sys.executable, "-c", f"import time; from isa_nb.change_files import filter_files; start = time.perf_counter(); filter_files({str(folder)!r} + '/isa_{{year}}.tif', {str(folder / 'out')!r}, {YEARS!r}, **{options!r}); print(time.perf_counter() - start)"]


def memory(folder: Path, work: str, part: int) -> list[str]:
    "One call on a part of the maps, after one on a corner that compiles."
    read = f"import numpy as np, rasterio, time; maps = np.stack([rasterio.open({str(folder)!r} + f'/isa_{{y}}.tif').read(1, window=((0, {part}), (0, {part}))) for y in {YEARS!r}])"
    return [sys.executable, "-c", f"{read}; {work.split(';')[0]}; work = lambda maps: {work.split(';')[1].strip()}; work(maps[:, :64, :64].copy()); start = time.perf_counter(); work(maps); print(time.perf_counter() - start)"]


def main() -> None:
    args = argparse.ArgumentParser()
    args.add_argument("--json")
    args.add_argument("--side", type=int, default=10_000)
    args.add_argument("--repeats", type=int, default=3)
    args.add_argument("--make", type=Path, help="only make the maps")
    args.add_argument("--keep", type=Path, help="folder for the maps, made once")
    asked = args.parse_args()
    if asked.make:
        make(asked.make, asked.side)
        return
    folder = asked.keep or Path(tempfile.mkdtemp())
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / f"isa_{YEARS[-1]}.tif").exists():
        subprocess.run([sys.executable, __file__, "--side", str(asked.side), "--make", str(folder)], check=True)  # apart: a child's peak memory starts from its parent's
    part = min(4000, asked.side)
    settle = "from isa_nb.change import settle; settle(maps, {years!r}, weight={weight})"
    cases = {"files to COGs, time and space": (files(folder), asked.side), "files to COGs, time alone": (files(folder, weight=0), asked.side), "files to COGs, patches of 4 px too": (files(folder, least=4), asked.side),
             "in memory, time and space, one thread": (memory(folder, settle.format(years=YEARS, weight=1.0), part), part), "in memory, time alone, one thread": (memory(folder, settle.format(years=YEARS, weight=0), part), part),
             "scipy.ndimage.median_filter 3 x 3 x 3": (memory(folder, "from scipy.ndimage import median_filter; median_filter(maps, 3)", min(2000, part)), min(2000, part))}
    measure(cases["files to COGs, time and space"][0])  # compiles what is not compiled yet
    rows = []
    for name, (command, side) in cases.items():
        wall, cpu, peak = (statistics.median(v) for v in zip(*(measure(command) for _ in range(asked.repeats)), strict=True))
        rows.append({"case": name, "side": side, "wall_s": wall, "cpu_s": cpu, "mpx_s": side ** 2 / 1e6 / wall, "peak_gb": peak})
        print(f"{name:40s} {side:6d} px  {wall:7.2f} s  {rows[-1]['mpx_s']:7.1f} Mpx/s  {peak:5.2f} GB", flush=True)
    if asked.json:
        Path(asked.json).write_text(json.dumps(rows, indent=1))
    shutil.rmtree(folder / "out", ignore_errors=True)
    if not asked.keep:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
