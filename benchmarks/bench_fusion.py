"Fusing five products in memory with label, votes, rule and confidence, against SimpleITK.LabelVoting's label alone.  python benchmarks/bench_fusion.py [--json FILE]"
import argparse
import json
import statistics
import time

import numpy as np
import SimpleITK as sitk

from isa_nb.core import raster, rng, square_geobox
from isa_nb.fusion import fuse
from isa_nb.latent import fit
from isa_nb.votes import histogram


def products(side: int, n: int = 5) -> dict:
    "Patchy maps that mostly agree."
    draw, box = rng(0, "bench"), square_geobox(116.4, 39.9, side * 16, 16)
    patches = lambda k, share: np.kron(draw.random((-(-side // k),) * 2) < share, np.ones((k, k), np.uint8))[:side, :side].astype(np.uint8)  # noqa: E731
    town = patches(64, 0.15) | patches(16, 0.05)
    return {f"p{i}": raster(town ^ patches(16, 0.03) ^ patches(4, 0.01), box, f"p{i}", nodata=255) for i in range(n)}


def middle(cases: dict, repeats: int) -> dict[str, float]:
    "Median time of each case; the cases take turns, so that other work on the machine meets all alike."
    times = {name: [] for name in cases}
    for _ in range(repeats):
        for name, work in cases.items():
            start = time.perf_counter()
            work()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(t) for name, t in times.items()}


def main() -> None:
    args = argparse.ArgumentParser()
    args.add_argument("--json")
    args.add_argument("--side", type=int, default=2048)
    args.add_argument("--repeats", type=int, default=31)
    asked = args.parse_args()
    maps = products(asked.side)
    k = -(-asked.side // 8)
    osm = np.kron(rng(0, "osm").choice(np.array([0, 1, 2], np.uint8), (k, k), p=[0.96, 0.02, 0.02]), np.ones((8, 8), np.uint8))[:asked.side, :asked.side]
    osm = raster(osm, maps["p0"].odc.geobox, "osm")
    images = [sitk.GetImageFromArray(m.values) for m in maps.values()]
    vote = sitk.LabelVotingImageFilter()
    vote.SetLabelForUndecidedPixels(2)
    fuse(maps, osm)  # compile
    model = fit(histogram(maps, osm))
    cases = {"SimpleITK.LabelVoting, label": lambda: vote.Execute(images), "fuse, label": lambda: fuse(maps, only=("label",)), "fuse, label votes rule confidence": lambda: fuse(maps), "the same with OSM": lambda: fuse(maps, osm),
             "with OSM, posterior of a given model": lambda: fuse(maps, osm, rule="posterior", model=model), "with OSM, model fitted here": lambda: fuse(maps, osm, rule="posterior")}
    rows, mpx = [], asked.side**2 / 1e6
    for name, seconds in middle(cases, asked.repeats).items():
        rows.append({"case": name, "seconds": seconds, "mpx_per_s": mpx / seconds, "ratio": rows[0]["seconds"] / seconds if rows else 1.0})
        print(f"{name:45s} {seconds:8.4f} s {mpx / seconds:8.1f} Mpx/s {rows[-1]['ratio']:6.1f} x")
    if asked.json:
        with open(asked.json, "w") as f:
            json.dump({"products": 5, "side": asked.side, "cases": rows}, f, indent=1)


if __name__ == "__main__":
    main()
