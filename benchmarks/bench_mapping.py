"""A model applied to 8192 x 8192 px x 4 bands (uint16): seconds and peak memory of whole processes, ours and MONAI's.

    python benchmarks/bench_mapping.py [--side 8192] [--net conv1|small|resnest14d] [--repeat 3] [--json FILE]

The peer is monai.inferers.sliding_window_inference with the same network, tiles of 512 px that overlap by 128, Gaussian
blending. It is given the raster as a tensor in memory and returns the scores of all classes in memory; the class is then taken.
Ours reads a GeoTIFF (tiles of 512 px, uncompressed) and writes two cloud-optimised GeoTIFFs, and the time includes both; parts,
which make it resumable, are written too. Both run in processes of their own, alternating; what is measured begins after the
imports, with the peak of the process's memory from then on beside that before it ("above the model"). The bounds are those of the
issue: no slower, at most 1 GB above the model. Needs monai (benchmarks/requirements.txt). The raster is random and smooth.
"""
import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

TILE, OVERLAP, CLASSES = 512, 128, 6


def write(path: Path, side: int) -> None:
    "A raster that compresses about as real ones do: smooth, with noise in the low bits."
    import numpy as np
    import rasterio
    from rasterio.transform import from_origin
    from rasterio.windows import Window
    gen = np.random.default_rng(0)
    with rasterio.open(path, "w", driver="GTiff", width=side, height=side, count=4, dtype="uint16", crs="EPSG:32650", transform=from_origin(500000, 4000000, 10, 10),
                       tiled=True, blockxsize=512, blockysize=512, nodata=0) as f:
        for top in range(0, side, 512):
            height = min(512, side - top)
            coarse = np.kron(gen.random((4, 16, -(-side // 32))), np.ones((1, 32, 32)))[:, :height, :side]
            f.write((500 + 3000 * coarse + gen.integers(0, 64, coarse.shape)).astype("uint16"), window=Window(0, top, side, height))


def network(name: str):
    import torch
    from torch import nn
    torch.manual_seed(0)
    if name == "conv1":
        return nn.Conv2d(4, CLASSES, 1).eval()
    if name == "small":
        return nn.Sequential(nn.Conv2d(4, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 3, 1, 1), nn.ReLU(), nn.Conv2d(32, CLASSES, 1), nn.Upsample(scale_factor=2, mode="bilinear")).eval()
    from isa_nb.segmentation import ResNeStASPP
    return ResNeStASPP(name, in_channels=4, n_classes=CLASSES).eval()


class Peak:
    "The largest memory of this process (resident set), looked at fifty times a second."

    def __enter__(self) -> "Peak":
        import psutil
        me, self.most, self.stop = psutil.Process(), 0, threading.Event()
        self.before = me.memory_info().rss

        def watch() -> None:
            while not self.stop.wait(0.02):
                self.most = max(self.most, me.memory_info().rss)
        self.thread = threading.Thread(target=watch)
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        self.thread.join()


def measured(net, who: str, path: Path, folder: Path) -> dict[str, float]:
    "Seconds (wall, processors) and memory of one of them, after a small raster."
    import numpy as np
    import rasterio
    import torch
    from monai.inferers import sliding_window_inference
    from odc.geo.geobox import GeoBox
    from rasterio.transform import from_origin

    from isa_nb.core import raster as wrap
    from isa_nb.mapping import map_array, map_raster

    def monai(image: torch.Tensor) -> None:
        with torch.inference_mode():
            sliding_window_inference(image, TILE, 4 if "batches" in who else 1, net, overlap=OVERLAP / TILE, mode="gaussian").max(1).indices.to(torch.uint8)

    small = np.full((4, 600, 600), 1000, np.uint16)
    map_array(net, wrap(small, GeoBox((600, 600), from_origin(0, 0, 10, 10), "EPSG:32650"), "small")) if who == "isa_nb" else monai(torch.from_numpy(small.astype(np.float32))[None])
    with Peak() as peak:
        if who != "isa_nb":
            with rasterio.open(path) as f:
                image = torch.from_numpy(f.read().astype(np.float32))[None]
        wall, cpu = time.perf_counter(), time.process_time()
        map_raster(net, path, folder / "map.tif", TILE, OVERLAP) if who == "isa_nb" else monai(image)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return {"s": wall, "cpu_s": cpu, "gb": (peak.most - peak.before) / 1e9, "total_gb": peak.most / 1e9}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=8192)
    parser.add_argument("--net", default="conv1", help="conv1 (1x1 convolution, as in the bound), small (three layers), or an encoder of segmentation.ResNeStASPP")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measured(network(args.net), args.one[0], Path(args.one[1]), Path(args.one[2]))))
        return
    got: dict[str, list[dict[str, float]]] = {"isa_nb": [], "monai": [], "monai, batches of 4": []}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "image.tif"
        write(path, args.side)
        for _ in range(args.repeat):
            for who, runs in got.items():
                with tempfile.TemporaryDirectory() as out:
                    done = subprocess.run([sys.executable, __file__, "--net", args.net, "--one", who, str(path), out], capture_output=True, text=True, check=True)
                runs.append(json.loads(done.stdout.splitlines()[-1]))
                print(f"{who:22} {runs[-1]['s']:7.1f} s ({runs[-1]['cpu_s']:.1f} s of processors) {runs[-1]['gb']:6.2f} GB above the model, {runs[-1]['total_gb']:.2f} GB in all", flush=True)
    median, cpu = ({k: statistics.median(r[c] for r in v) for k, v in got.items()} for c in ("s", "cpu_s"))
    best = min((k for k in median if k != "isa_nb"), key=median.get)
    print(f"{args.net}: {median[best] / median['isa_nb']:.1f} x as fast as {best} (median of {args.repeat}; processors {cpu[best] / cpu['isa_nb']:.1f} x); {max(r['gb'] for r in got['isa_nb']):.2f} GB above the model against {max(r['gb'] for r in got[best]):.2f} GB")
    if args.json:
        args.json.write_text(json.dumps({"side": args.side, "net": args.net, "cpus": os.cpu_count(), "runs": got}, indent=1))


if __name__ == "__main__":
    main()
