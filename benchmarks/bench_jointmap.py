"""A map of 1 m from imagery of 10 m, 10 km x 10 km: output Mpx/s and peak memory of whole processes, ours and opensr-utils'.

    python benchmarks/bench_jointmap.py [--side 1000] [--bands 4] [--classes 2] [--repeat 2] [--peer PYTHON] [--joint] [--json FILE]

Both enlarge two bands ten times by bilinear interpolation, the trivial model. The peer, opensr_utils.large_file_processing 2.1.0,
writes both as one GeoTIFF (uint16); ours takes them for scores of two classes and writes the class and the probability as two cloud-optimised
GeoTIFFs, with overviews, by way of parts that make it resumable. Tiles of 128 px that overlap by 8, as the peer's default is.
What is measured begins after the imports. `--bands 4` gives both four bands: the peer writes four, ours takes them for the scores of
four classes, or, with `--classes 2`, makes two scores of them before it enlarges (a 1 x 1 convolution), as a map of impervious surface has two. `--peer` names a Python that has opensr-utils, which wants pytorch-lightning; without it only ours is measured.
`--joint` measures the small JointSeg as well (tiles of 64 px that overlap by 16), which has no peer. The raster is random and smooth.
The bounds are those of the issue: ten times the peer's rate, at most 2 GB in all.
"""
import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench_mapping import Peak

SCALE = 10


def write(path: Path, side: int, bands: int) -> None:
    "A raster of 10 m, smooth with some noise."
    import numpy as np
    import rasterio
    from rasterio.transform import from_origin
    gen = np.random.default_rng(0)
    coarse = np.kron(gen.random((bands, -(-side // 25), -(-side // 25))), np.ones((1, 25, 25)))[:, :side, :side]
    with rasterio.open(path, "w", driver="GTiff", width=side, height=side, count=bands, dtype="uint16", crs="EPSG:32650", transform=from_origin(500000, 4000000, 10, 10), nodata=0) as f:
        f.write((500 + 3000 * coarse + gen.integers(0, 64, coarse.shape)).astype("uint16"))


def ours(path: Path, folder: Path, joint: bool, bands: int, classes: int) -> None:
    from torch import nn

    from isa_nb.jointseg import SIZES, JointSeg
    from isa_nb.mapping import map_raster
    if joint:
        map_raster(JointSeg(4, 2, **SIZES["small"]), path, folder / "map.tif", 64, 16)
    else:
        first = [] if classes == bands else [nn.Conv2d(bands, classes, 1)]
        map_raster(nn.Sequential(*first, nn.Upsample(scale_factor=SCALE, mode="bilinear")), path, folder / "map.tif", 128, 8)


def theirs(path: Path, folder: Path) -> None:
    from opensr_utils import large_file_processing
    with large_file_processing(str(path), model=None, factor=SCALE, window_size=(128, 128), overlap=8, device="cpu", output_path=str(folder / "sr.tif")) as runner:
        runner.run()


def measured(who: str, path: Path, folder: Path, bands: int, classes: int) -> dict[str, float]:
    "Seconds and memory of one of them."
    import rasterio  # noqa: F401
    import torch  # noqa: F401
    if who == "opensr-utils":
        import opensr_utils.pipeline  # noqa: F401
    else:
        import isa_nb.jointseg
        import isa_nb.mapping  # noqa: F401
    with Peak() as peak:
        wall, cpu = time.perf_counter(), time.process_time()
        theirs(path, folder) if who == "opensr-utils" else ours(path, folder, who == "JointSeg, small", bands, classes)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return {"s": wall, "cpu_s": cpu, "gb": peak.most / 1e9}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=1000, help="pixels of 10 m")
    parser.add_argument("--bands", type=int, default=2, help="of the trivial model")
    parser.add_argument("--classes", type=int, help="scores of ours; as many as bands if left out")
    parser.add_argument("--joint-side", type=int, default=300, help="pixels of 10 m")
    parser.add_argument("--repeat", type=int, default=2)
    parser.add_argument("--peer", help="a Python with opensr-utils")
    parser.add_argument("--joint", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--one", nargs=5, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measured(args.one[0], Path(args.one[1]), Path(args.one[2]), *map(int, args.one[3:]))))
        return
    cases = {"isa_nb": (sys.executable, args.side, args.bands)} | ({"opensr-utils": (args.peer, args.side, args.bands)} if args.peer else {}) | ({"JointSeg, small": (sys.executable, args.joint_side, 4)} if args.joint else {})
    got: dict[str, list[dict[str, float]]] = {k: [] for k in cases}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(args.repeat):
            for who, (python, side, bands) in cases.items():
                path = Path(folder) / f"image_{side}_{bands}.tif"
                if not path.exists():
                    write(path, side, bands)
                with tempfile.TemporaryDirectory() as out:
                    done = subprocess.run([python, __file__, "--one", who, str(path), out, str(bands), str(args.classes or bands)], capture_output=True, text=True)
                if done.returncode:
                    sys.exit(f"{who} failed: {done.stderr.strip().splitlines()[-1]}")
                run = json.loads(done.stdout.splitlines()[-1]) | {"mpx": (side * SCALE) ** 2 / 1e6}
                got[who].append(run)
                print(f"{who:16} {run['mpx']:.0f} Mpx in {run['s']:.1f} s ({run['cpu_s']:.1f} s of processors): {run['mpx'] / run['s']:.2f} Mpx/s, {run['gb']:.2f} GB in all", flush=True)
    rate = {k: statistics.median(r["mpx"] / r["s"] for r in v) for k, v in got.items()}
    if args.peer:
        print(f"{rate['isa_nb'] / rate['opensr-utils']:.1f} x the rate of opensr-utils (median of {args.repeat}); {max(r['gb'] for r in got['isa_nb']):.2f} GB against {max(r['gb'] for r in got['opensr-utils']):.2f} GB")
    if args.json:
        args.json.write_text(json.dumps({"cpus": os.cpu_count(), "runs": got}, indent=1))


if __name__ == "__main__":
    main()
