"""A 512 x 512 window of a COG of 100 km on a server of this machine: isa_nb's catalogue beside plain rasterio, in the same run.

    python benchmarks/bench_remote.py [--repeat 15] [--json FILE]

Each call reads a file of a new name, so that nothing is in GDAL's cache. The server runs in a process of its own and answers at once, or as late as one far away.
`peer` is rasterio.open("/vsicurl/...").read(window=...) with GDAL's own settings, `tuned` the same with the settings of isa_nb.remote; `ratio` is ours / peer (at most 1.2 is wanted).
"Planned" also asks the server which tiles there are; "opened" is the opening alone, as `isa fetch` does it after its plan.
"""
import argparse
import asyncio
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import rasterio
from affine import Affine
from odc.geo.geobox import GeoBox
from rasterio.windows import Window

CRS, ORIGIN = "EPSG:32650", Affine(10, 0, 200_000, 0, -10, 3_420_000)


def serve(folder: str, port: int, latency: float) -> None:
    "The server: Starlette's files, each answer late by `latency` seconds."
    import uvicorn
    from starlette.staticfiles import StaticFiles
    files = StaticFiles(directory=folder, follow_symlink=True)

    async def app(scope: dict, receive: Callable, send: Callable) -> None:
        await asyncio.sleep(latency)
        await files(scope, receive, send)

    uvicorn.run(app, host="127.0.0.1", port=port, log_level="critical", lifespan="off")


def make(folder: Path, copies: int) -> None:
    "One COG of 10,000 x 10,000 class codes under many names."
    values = np.random.default_rng(0).integers(1, 9, (2500, 2500), np.uint8).repeat(4, 0).repeat(4, 1)
    with rasterio.open(folder / "cog.tif", "w", driver="COG", width=10_000, height=10_000, count=1, dtype="uint8", crs=CRS, transform=ORIGIN, nodata=250,
                       compress="deflate", level=1, blocksize=512, overview_resampling="nearest") as d:
        d.write(values, 1)
    for i in range(copies):
        (folder / f"{i}.tif").symlink_to("cog.tif")


def measure(url: str, first: int, repeat: int) -> tuple[dict[str, float], int]:
    "Median milliseconds of each way, called in turn, and the pixels that differ."
    from isa_nb import remote
    from isa_nb.drivers import Request
    column, row = 4100, 3300
    grid = GeoBox((512, 512), ORIGIN * Affine.translation(column, row), CRS)
    window, number = Window(column, row, 512, 512), iter(range(first, first + 10 * repeat))

    def address() -> str:
        return f"{url}/{next(number)}.tif"

    def opened() -> np.ndarray:
        a = address()
        return remote.open_assets(Request("bench", "classes", {}, grid), [remote.Asset(a, "bench", Path(a).name, windowed=True)]).values

    def planned() -> np.ndarray:
        a = address()
        size = remote.stat(a)
        return remote.open_assets(Request("bench", "classes", {}, grid), [remote.Asset(a, "bench", Path(a).name, size, windowed=True)]).values

    def peer() -> np.ndarray:
        with rasterio.open(f"/vsicurl/{address()}") as src:
            return src.read(1, window=window)

    def tuned() -> np.ndarray:
        with rasterio.Env(**remote.GDAL):
            return peer()

    ways, times = {"opened": opened, "planned": planned, "peer": peer, "tuned": tuned}, {}
    differs = int((opened() != peer()).sum())  # and all is imported and compiled
    for _ in range(repeat):
        for name, call in ways.items():
            start = time.perf_counter()
            call()
            times.setdefault(name, []).append(time.perf_counter() - start)
    return {k: round(1000 * statistics.median(v), 1) for k, v in times.items()}, differs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeat", type=int, default=15)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--serve", nargs=3, metavar=("FOLDER", "PORT", "SECONDS"), help="be the server (used by the benchmark itself)")
    args = parser.parse_args()
    if args.serve:
        serve(args.serve[0], int(args.serve[1]), float(args.serve[2]))
        return
    rows = []
    print(f"{'answers after':>13} {'opened ms':>10} {'planned ms':>11} {'peer ms':>8} {'tuned ms':>9} {'opened/peer':>12} {'opened/tuned':>13} {'planned/peer':>13} {'differs':>8}")
    with tempfile.TemporaryDirectory() as made:
        os.environ["ISA_CACHE"] = f"{made}/cache"
        (folder := Path(made) / "files").mkdir()
        make(folder, 30 * args.repeat)
        for i, latency in enumerate((0.0, 0.02, 0.1)):
            with socket.socket() as s:
                s.bind(("127.0.0.1", 0))
                port = s.getsockname()[1]
            server = subprocess.Popen([sys.executable, __file__, "--serve", str(folder), str(port), str(latency)])
            try:
                while True:
                    try:
                        socket.create_connection(("127.0.0.1", port), 1).close()
                        break
                    except OSError:
                        time.sleep(0.1)
                t, differs = measure(f"http://127.0.0.1:{port}", 10 * i * args.repeat, args.repeat)
            finally:
                server.terminate()
                server.wait()
            rows.append({"latency_ms": 1000 * latency, **t, "opened_ratio": round(t["opened"] / t["peer"], 2), "tuned_ratio": round(t["opened"] / t["tuned"], 2),
                         "planned_ratio": round(t["planned"] / t["peer"], 2), "differs": differs})
            r = rows[-1]
            print(f"{1000 * latency:10.0f} ms {r['opened']:10.1f} {r['planned']:11.1f} {r['peer']:8.1f} {r['tuned']:9.1f} {r['opened_ratio']:12.2f} {r['tuned_ratio']:13.2f} {r['planned_ratio']:13.2f} {differs:8}", flush=True)
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
