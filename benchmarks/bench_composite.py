"""A season's Sentinel-2 median of 10 km x 10 km from 20 scenes on a local server: ours against odc.stac.load and a median written by hand; whole processes, wall time and peak memory.

python benchmarks/bench_composite.py [--side METRES] [--scenes N] [--repeats N] [--json FILE] [--keep FOLDER]

The scenes are cloud-optimised GeoTIFFs as providers write them (tiles of 1024, DEFLATE, overviews), of 30 km x 30 km around the place; a STAC API server that is not ours (rustac) tells of them, and a file server of Python
answers range requests (tests/stac_peers.py). Their ground is the simulated world, mirrored, with noise, clouds and, in half of them, the offset of baseline 04.00.
All sides search, read the same bands and the mask at 10 m, and give 4 bands of uint16. By hand, in two ways: the values as float32 with NaN under the mask and xarray's median over time, lazily in chunks of 1024 with Dask,
or read at once with 8 threads. Results are compared pixel by pixel.
"""
import argparse
import datetime as dt
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))
PLACE = (114.30, 30.50)


def make(folder: Path, scenes: int, metres: int) -> None:
    "The scenes' files, once."
    from odc.geo.geobox import GeoBox
    from stac_peers import write_cog

    from isa_nb.core import square_geobox
    from isa_nb.lab import sensors
    ground = sensors.image("s2", square_geobox(*PLACE, 5120, 10), 2021).values
    n, draw = metres // 10, np.random.default_rng(0)
    block = np.block([[ground, ground[..., ::-1]], [ground[:, ::-1], ground[:, ::-1, ::-1]]])
    whole = np.tile(block, (1, n // block.shape[1] + 1, n // block.shape[2] + 1))[:, :n, :n]
    grid = square_geobox(*PLACE, metres, 10)
    coarse = GeoBox((n // 2, n // 2), grid.affine * grid.affine.scale(2), grid.crs)
    rows, cols = np.mgrid[:n // 2, :n // 2].astype(np.float32)
    for k in range(scenes):
        cloud = np.zeros((n // 2, n // 2), bool)
        for x, y, r in draw.uniform((0, 0, 20), (n // 2, n // 2, 150), (25, 3)):
            cloud |= np.hypot(rows - y, cols - x) < r
        for name, band in zip(sensors.BANDS, whole, strict=True):
            values = np.clip(band + draw.normal(0, 20, band.shape).astype(np.float32), 1, 20_000)
            values[cloud.repeat(2, 0).repeat(2, 1)] = 8000
            write_cog(folder / f"{k}/{name}.tif", (values + 1000 * (k % 2)).astype(np.uint16), grid, 0, block=1024, compress="deflate")
        write_cog(folder / f"{k}/scl.tif", np.where(cloud, 9, 4).astype(np.uint8), coarse, 0, block=1024, compress="deflate")
    (folder / "made").write_text(f"{scenes} {metres}")


def serve(folder: Path, scenes: int, metres: int):
    "The peers, with their items."
    from odc.geo.geobox import GeoBox
    from stac_peers import Peers, item

    from isa_nb.core import square_geobox
    peers, grid = Peers(folder).start(), square_geobox(*PLACE, metres, 10)
    coarse = GeoBox((metres // 20,) * 2, grid.affine * grid.affine.scale(2), grid.crs)
    items = []
    for k in range(scenes):
        hrefs = {b: f"{peers.url}/files/{k}/{b}.tif" for b in ("blue", "green", "red", "nir", "scl")}
        about = {"eo:cloud_cover": 20.0, "grid:code": "MGRS-50RKU", "s2:processing_baseline": "05.00" if k % 2 else "02.14"}
        items.append(item(f"scene{k:02d}", "sentinel-2-l2a", grid, dt.datetime(2021, 4, 5, 2, 55, tzinfo=dt.UTC) + dt.timedelta(days=10 * k), hrefs, **about))
        items[-1].assets["scl"].extra_fields |= {"proj:shape": list(coarse.shape.yx), "proj:transform": list(coarse.affine)[:6]}
        for a in items[-1].assets.values():
            a.extra_fields["raster:bands"] = [{"data_type": "uint8" if a.title == "scl" else "uint16", "nodata": 0}]
    peers.serve(items)
    return peers


def place(side: int):
    from isa_nb.core import square_geobox
    return square_geobox(*PLACE, side, 10)


def ours(side: int, scenes: int) -> np.ndarray:
    from isa_nb.catalog import Catalog
    from isa_nb.drivers import DRIVERS
    request = Catalog.load().request("sentinel2_l2a", place(side), 2021)
    request.options["scenes"] = scenes
    return DRIVERS["stac"](request).values


def by_hand(side: int, scenes: int, lazy: bool) -> np.ndarray:
    import odc.stac
    import pystac_client
    import xarray as xr
    service = pystac_client.Client.open(os.environ["BENCH_API"])
    lon, lat = PLACE
    items = list(service.search(collections=["sentinel-2-l2a"], bbox=(lon - 0.01, lat - 0.01, lon + 0.01, lat + 0.01), datetime="2021-04-01/2021-10-31").items())[:scenes]
    bands = ["blue", "green", "red", "nir"]
    parts = []
    for late in (False, True):
        of = [i for i in items if (i.properties["s2:processing_baseline"] >= "04.00") == late]
        seen = odc.stac.load(of, [*bands, "scl"], geobox=place(side), **({"chunks": {"x": 1024, "y": 1024}} if lazy else {"pool": 8}))
        parts.append((seen[bands].astype("float32") - 1000 * late).where(seen.scl.isin([2, 4, 5, 6, 7])))
    median = xr.concat(parts, "time").chunk({"time": -1} if lazy else None).median("time") if lazy else xr.concat(parts, "time").median("time")
    return np.nan_to_num(median.to_array("band").compute().values + 0.5).astype(np.uint16)


WAYS = {"isa_nb": ours, "by hand, lazy": lambda *a: by_hand(*a, True), "by hand, at once": lambda *a: by_hand(*a, False)}


def timed(way: str, api: str, asked: argparse.Namespace, out: Path) -> dict[str, float]:
    "Wall and call seconds and peak memory of a process."
    ends = {"https://earth-search.aws.element84.com/v1": api}
    environment = os.environ | {"BENCH_API": api, "ISA_ENDPOINTS": json.dumps(ends), "ISA_CACHE": str(out.parent / "cache"), "PYTHONPATH": str(ROOT)}
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-W", "ignore", __file__, "--way", way, "--out", str(out), "--side", str(asked.side), "--scenes", str(asked.scenes)], env=environment, stdout=subprocess.PIPE, text=True)
    told = process.stdout.read()
    _, status, used = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{way} failed")
    return {"wall_s": time.perf_counter() - start, "call_s": float(told.split()[-1]), "cpu_s": used.ru_utime + used.ru_stime, "peak_gb": used.ru_maxrss / 1e6}


def main() -> None:
    args = argparse.ArgumentParser()
    args.add_argument("--json")
    args.add_argument("--side", type=int, default=10_000)
    args.add_argument("--scenes", type=int, default=20)
    args.add_argument("--repeats", type=int, default=3)
    args.add_argument("--keep", type=Path, help="folder for the scenes, made once")
    args.add_argument("--make", action="store_true", help="only make the scenes, in --keep")
    args.add_argument("--way", choices=WAYS, help="only run one way, and write its result")
    args.add_argument("--out", type=Path)
    asked = args.parse_args()
    if asked.way:
        start = time.perf_counter()
        np.save(asked.out, WAYS[asked.way](asked.side, asked.scenes))
        print(time.perf_counter() - start)
        return
    folder, metres = asked.keep or Path(tempfile.mkdtemp()), 30_000
    folder.mkdir(parents=True, exist_ok=True)
    if asked.make:
        return make(folder, asked.scenes, metres)
    if not (folder / "made").exists():
        subprocess.run([sys.executable, "-W", "ignore", __file__, "--make", "--keep", str(folder), "--scenes", str(asked.scenes)], check=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
    peers = serve(folder, asked.scenes, metres)
    found, images = {w: [] for w in WAYS}, {}
    with tempfile.TemporaryDirectory() as tmp:
        timed("isa_nb", peers.url, asked, Path(tmp) / "a.npy")  # compiles what is not compiled yet, and warms the files
        for _ in range(asked.repeats):  # the ways take turns
            for way in WAYS:
                peers.forget()
                found[way].append(timed(way, peers.url, asked, Path(tmp) / "a.npy") | {"requests": len(peers.asked), "mb": sum(peers.sent.values()) / 1e6})
                images[way] = np.load(Path(tmp) / "a.npy")
    peers.stop()
    rows = [{"way": w, **{k: statistics.median(r[k] for r in runs) for k in runs[0]}} for w, runs in found.items()]
    best = min(r["call_s"] for r in rows if r["way"] != "isa_nb")
    for r in rows:
        r["same"] = float((images[r["way"]] == images["isa_nb"]).mean())
        print(f"{r['way']:18s} process {r['wall_s']:6.2f} s, call {r['call_s']:6.2f} s ({best / r['call_s']:.2f} x the better peer), {r['cpu_s']:6.2f} s cpu, {r['peak_gb']:.2f} GB, {r['requests']:.0f} requests, {r['mb']:.0f} MB, {r['same']:.4%} of values as ours")
    if asked.json:
        Path(asked.json).write_text(json.dumps({"side": asked.side, "scenes": asked.scenes, "ways": rows}, indent=1))


if __name__ == "__main__":
    main()
