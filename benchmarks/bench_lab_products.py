"""Seconds and peak memory of a whole process that makes all five simulated products, and the truth, of one area.

    python benchmarks/bench_lab_products.py [--zones W1,W4] [--size 16000] [--osm] [--json FILE]

Each case is a fresh process: import, compiled kernels from the cache, world, truth at 16 m, products on their native
grids; with --osm also the OSM extract. On a machine that others use too, the processor
seconds say more than the wall clock. There is no peer; the bound is that of the issue: 10 s, 2 GB. All data are simulated.
"""
import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

CASE = """
import resource
from isa_nb.core import square_geobox
from isa_nb.lab.land import STUDY
from isa_nb.lab.products import PRODUCTS, product
from isa_nb.lab.world import World
_, lon, lat = STUDY[{zone!r}]
grid = square_geobox(lon, lat, {size}, 16)
world = World({zone!r}, str(grid.crs))
world.truth(grid, 2020)
for name in PRODUCTS:
    product(name, grid, world=world)
if {osm}:
    from isa_nb.lab.osm import layers
    layers(grid, world=world)
use = resource.getrusage(resource.RUSAGE_SELF)
print(use.ru_maxrss / 1e6, use.ru_utime + use.ru_stime)
"""


def case(zone: str, size: int, osm: bool) -> dict:
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", CASE.format(zone=zone, size=size, osm=osm)], capture_output=True, text=True, check=True)
    seconds = time.perf_counter() - start
    peak, cpu = map(float, done.stdout.split())
    return {"zone": zone, "size_m": size, "osm": osm, "seconds": round(seconds, 2), "cpu_seconds": round(cpu, 2), "peak_gb": round(peak, 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--zones", default="W1,W2,W3,W4")
    parser.add_argument("--size", type=int, default=16_000, help="side of the area in metres")
    parser.add_argument("--osm", action="store_true", help="also the OSM extract")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    rows = []
    for zone in args.zones.split(","):
        rows.append(case(zone, args.size, args.osm))
        print("{zone}  {size_m} m  osm {osm}  {seconds:6.2f} s  cpu {cpu_seconds:6.2f} s  {peak_gb:.2f} GB (simulated)".format(**rows[-1]), flush=True)
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
