"""The simulated world: wall time and memory of whole processes, each case in a fresh one.

python benchmarks/bench_lab.py [--json FILE] [--zones W1,W2,W3,W4]

Budget (issue 2): a 16 km area at 16 m with all products, and a 2 km area at 1 m with its image, each in <= 10 s and <= 2 GB.
The compiled kernels are in the cache when the measurement starts (the first case is run once before).
"""
import argparse
import json
import subprocess
import sys
import time

CASES = {
    "truth 16 km, 16 m": "w.truth(square_geobox(lon, lat, 16000, 16))",
    "share 16 km, 16 m, 2015 and 2023": "g = square_geobox(lon, lat, 16000, 16); w.isa_fraction(g, 2015); w.isa_fraction(g, 2023)",
    "GF-1-like image 16 km, 16 m": "image('gf1', square_geobox(lon, lat, 16000, 16), world=w)",
    "all products and OSM 16 km": "g = square_geobox(lon, lat, 16000, 16)\nfrom isa_nb.lab.products import PRODUCTS, product\nfrom isa_nb.lab.osm import layers\n"
                                  "w.truth(g)\nfor n in PRODUCTS: product(n, g, world=w)\nlayers(g, world=w)",
    "truth and image 2 km, 1 m": "g = square_geobox(lon, lat, 2000, 1); w.truth(g); image('hr', g, world=w)",
    "truth 110 km, 16 m, by windows": "w.truth(square_geobox(lon, lat, 110352, 16))",
}
SETUP = ("import resource, sys, time\nfrom isa_nb.core import square_geobox\nfrom isa_nb.lab.land import STUDY\nfrom isa_nb.lab.world import World\nfrom isa_nb.lab.sensors import image\n"
         "_, lon, lat = STUDY[{zone!r}]\nw = World({zone!r}, str(square_geobox(lon, lat, 100, 10).crs))\nstart, cpu = time.perf_counter(), time.process_time()\n{case}\n"
         "print(time.perf_counter() - start, time.process_time() - cpu, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6)")


def measure(zone: str, case: str) -> tuple[float, float, float, float]:
    "Whole process wall s, s of the call, CPU s of the call, peak memory GB."
    t = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", SETUP.format(zone=zone, case=case)], capture_output=True, text=True, check=True)
    return time.perf_counter() - t, *map(float, done.stdout.split()[-3:])


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--json")
    p.add_argument("--zones", default="W1,W2,W3,W4")
    p.add_argument("--cases", default="", help="only cases whose name holds this text")
    p.add_argument("--large", action="store_true", help="also the 110 km case, minutes")
    a = p.parse_args()
    rows = []
    print(f"{'case':36} {'zone':4} {'process s':>9} {'call s':>7} {'cpu s':>7} {'peak GB':>8}")
    for name, case in CASES.items():
        if a.cases not in name or ("110 km" in name and not a.large):
            continue
        measure(a.zones.split(",")[0], case.replace("110352", "1600"))
        for zone in a.zones.split(","):
            row = dict(zip(("process_s", "call_s", "cpu_s", "peak_gb"), measure(zone, case), strict=True)) | {"case": name, "zone": zone}
            rows.append(row)
            print(f"{name:36} {zone:4} {row['process_s']:9.2f} {row['call_s']:7.2f} {row['cpu_s']:7.2f} {row['peak_gb']:8.2f}", flush=True)
    if a.json:
        with open(a.json, "w", encoding="utf-8") as f:
            json.dump(rows, f, indent=1)


if __name__ == "__main__":
    main()
