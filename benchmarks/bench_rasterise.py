"""Burn 70,000 building-like polygons into 4096 x 4096: isa_nb.osm.rasterise beside rasterio.features.rasterize, on the same polygons in the same run.

    python benchmarks/bench_rasterise.py [--polygons 70000] [--size 4096] [--repeat 5] [--json FILE]

`ratio` is peer / ours (above 1: ours is faster); `differs` counts pixels that the two set differently. Both sides are warm: the compiled loop has been called once.
"""
import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import geopandas as gpd
import numpy as np
import shapely
from affine import Affine
from odc.geo.geobox import GeoBox
from rasterio.features import rasterize

from isa_nb.osm import rasterise

PRESET = {"impervious": ["buildings_a"], "pervious": ["water_a"]}


def polygons(n: int, side: float, corners: int, radius: float, seed: int = 0) -> np.ndarray:
    "Star-shaped polygons with a log-normal size, spread over a square of `side` metres in UTM 50N."
    r = np.random.default_rng(seed)
    angle = np.sort(r.uniform(0, 2 * np.pi, (n, corners)), axis=1)
    reach = r.lognormal(np.log(radius), 0.6, (n, 1)) * r.uniform(0.6, 1.2, (n, corners))
    centre = r.uniform(0, side, (n, 2, 1)) + [[400_000], [3_400_000]]
    xy = np.stack([centre[:, 0] + reach * np.cos(angle), centre[:, 1] + reach * np.sin(angle)], axis=-1)
    return shapely.polygons(np.concatenate([xy, xy[:, :1]], axis=1))


def seconds(ours: Callable, peer: Callable, repeat: int) -> tuple[float, float]:
    "Median seconds of both, called in turn."
    times = [[], []]
    for _ in range(repeat):
        for spent, call in zip(times, (ours, peer), strict=True):
            start = time.perf_counter()
            call()
            spent.append(time.perf_counter() - start)
    return statistics.median(times[0]), statistics.median(times[1])


def case(name: str, layers: dict[str, gpd.GeoDataFrame], box: GeoBox, all_touched: bool, repeat: int) -> dict:
    "One line of the table."
    def ours() -> np.ndarray:
        return rasterise(layers, box, PRESET, all_touched).values

    def peer() -> np.ndarray:
        out = np.zeros(box.shape.yx, np.uint8)
        for bit, layer in ((1, "buildings_a"), (2, "water_a")):
            if layer in layers:
                shapes = layers[layer].to_crs(str(box.crs)).geometry.to_numpy()
                out |= rasterize(shapes, box.shape.yx, transform=box.affine, default_value=bit, all_touched=all_touched, dtype="uint8")
        return out

    differs = int((ours() != peer()).sum())
    mine, theirs = seconds(ours, peer, repeat)
    return {"case": name, "ours_s": round(mine, 3), "rasterio_s": round(theirs, 3), "ratio": round(theirs / mine, 2), "differs": differs}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--polygons", type=int, default=70_000)
    parser.add_argument("--size", type=int, default=4096)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    side = args.size * 10
    box = GeoBox((args.size, args.size), Affine(10, 0, 400_000, 0, -10, 3_400_000 + side), "EPSG:32650")
    frame = lambda shapes: gpd.GeoDataFrame({"fclass": "any"}, index=range(len(shapes)), geometry=shapes, crs=32650)  # noqa: E731
    houses, lakes = frame(polygons(args.polygons, side, 8, 25)), frame(polygons(args.polygons // 100, side, 400, 300, seed=1))
    cases = [(f"{args.polygons} polygons", {"buildings_a": houses}, False), ("the same, all touched", {"buildings_a": houses}, True),
             (f"and {len(lakes)} lakes of 400 corners", {"buildings_a": houses, "water_a": lakes}, False),
             ("the same, in EPSG:4326", {"buildings_a": houses.to_crs(4326), "water_a": lakes.to_crs(4326)}, False)]
    print(f"{'case':34} {'ours s':>8} {'rasterio s':>11} {'ratio':>7} {'differs':>8}")
    rows = []
    for name, layers, touched in cases:
        rows.append(case(name, layers, box, touched, args.repeat))
        print(f"{name:34} {rows[-1]['ours_s']:8.3f} {rows[-1]['rasterio_s']:11.3f} {rows[-1]['ratio']:7.2f} {rows[-1]['differs']:8}", flush=True)
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
