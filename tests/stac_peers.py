"""Peers on the loopback for what lies behind STAC APIs: a STAC API server that is not ours (rustac), and in front of it a server of files that counts, signs and fails on demand."""
import datetime as dt
import json
import re
import subprocess
import sys
import threading
from collections import Counter, deque
from pathlib import Path

import numpy as np
import pystac
import rasterio
import requests
import uvicorn
from servers import free_port, wait_for
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

SIGNATURE = "sig=a-secret&se=2099"


class Peers:
    "Files under /files (free) and /blob (signed), tokens under /token, and at the root a STAC API; counts and faults by path."

    def __init__(self, folder: Path):
        self.folder, self.port = folder, free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.asked: list[str] = []  # method, path and query of every request
        self.sent: Counter = Counter()  # bytes by path
        self.faults: dict[str, deque] = {}  # path or the end of one -> (status, headers) that are answered first
        self.stac: subprocess.Popen | None = None

    def fail(self, path: str, *answers: tuple[int, dict[str, str]]) -> None:
        self.faults.setdefault(path, deque()).extend(answers)

    def forget(self) -> None:
        self.asked.clear()
        self.sent.clear()
        self.faults.clear()

    def fault(self, path: str) -> Response | None:
        for end, answers in self.faults.items():
            if path.endswith(end) and answers:
                status, headers = answers.popleft()
                return Response("busy", status, headers)
        return None

    def file(self, request: Request) -> Response:
        path = self.folder / re.sub(r"~\w+", "", request.path_params["path"])  # a~b.tif is a.tif under another name: GDAL remembers what it has read
        if request.url.path.startswith("/blob/") and SIGNATURE not in request.url.query:
            return Response("not signed", 403)
        return self.fault(request.url.path) or (FileResponse(path) if path.is_file() else Response("no such file", 404))

    def token(self, request: Request) -> Response:
        return self.fault(request.url.path) or JSONResponse({"msft:expiry": (dt.datetime.now(dt.UTC) + dt.timedelta(hours=1)).isoformat(), "token": SIGNATURE})

    async def forward(self, request: Request) -> Response:
        if (wrong := self.fault(request.url.path)) is not None:
            return wrong
        body, to = await request.body(), f"http://127.0.0.1:{self.stac_port}/{request.path_params['path']}"
        got = await run_in_threadpool(requests.request, request.method, to, params=request.query_params, data=body, headers={"content-type": request.headers.get("content-type", "")}, timeout=20)
        return Response(got.content, got.status_code, media_type=got.headers.get("content-type"))

    async def __call__(self, scope, receive, send) -> None:
        if scope["type"] == "http":
            self.asked.append(f"{scope['method']} {scope['path']}?{scope['query_string'].decode()}")

            async def counted(message):
                self.sent[scope["path"]] += len(message.get("body", b""))
                await send(message)
            await self.app(scope, receive, counted)

    def start(self) -> "Peers":
        get = ["GET", "HEAD"]
        self.app = Starlette(routes=[Route("/files/{path:path}", self.file, methods=get), Route("/blob/{path:path}", self.file, methods=get), Route("/token/{path:path}", self.token),
                                     Route("/{path:path}", self.forward, methods=["GET", "POST"])])
        self.server = uvicorn.Server(uvicorn.Config(self, port=self.port, log_level="error", lifespan="off", limit_concurrency=None))
        threading.Thread(target=self.server.run, daemon=True).start()
        wait_for(self.port)
        return self

    def serve(self, items: list[pystac.Item]) -> None:
        "Start the STAC API over items."
        self.stac_port, listed = free_port(), self.folder / "items.json"
        everywhere = pystac.Extent(pystac.SpatialExtent([[-180, -90, 180, 90]]), pystac.TemporalExtent([[dt.datetime(2015, 1, 1, tzinfo=dt.UTC), None]]))
        paths = []
        for name in sorted({i.collection_id for i in items}):
            paths.append(self.folder / f"collection-{name}.json")
            paths[-1].write_text(json.dumps(pystac.Collection(name, name, everywhere, license="other").to_dict(include_self_link=False) | {"links": []}))
        listed.write_text(json.dumps({"type": "FeatureCollection", "features": [i.to_dict(include_self_link=False) | {"links": []} for i in items]}))
        program = Path(sys.executable).with_name("rustac")
        self.stac = subprocess.Popen([program, "serve", "--addr", self.url, "--bind", f"127.0.0.1:{self.stac_port}", *paths, listed], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_for(self.stac_port)

    def stop(self) -> None:
        self.server.should_exit = True
        if self.stac:
            self.stac.terminate()
            self.stac.wait(10)


def write_cog(path: Path, values: np.ndarray, grid, nodata: float | None = None, block: int = 256, crs: bool = True, overviews: str = "AUTO", compress: str = "zstd") -> Path:
    "A cloud-optimised GeoTIFF of (band, y, x) or (y, x)."
    path.parent.mkdir(parents=True, exist_ok=True)
    values = values.reshape(-1, *values.shape[-2:])
    about = {"height": grid.shape.y, "width": grid.shape.x, "count": len(values), "dtype": values.dtype.name, "nodata": nodata, "transform": grid.affine}
    with rasterio.open(path, "w", driver="COG", **about, crs=str(grid.crs) if crs else None, compress=compress, level=1, blocksize=block, overviews=overviews) as f:
        f.write(values)
    return path


def item(name: str, collection: str, grid, when, hrefs: dict[str, str], proj: bool = True, **properties) -> pystac.Item:
    "An item as providers write them; `when`: a moment, or the first and last of a span."
    outline = grid.geographic_extent
    span = dict(zip(("start_datetime", "end_datetime"), when, strict=True)) if isinstance(when, tuple) else {}
    made = pystac.Item(name, json.loads(json.dumps(outline.json)), list(outline.boundingbox), None if span else when, properties, collection=collection, **span)
    for key, href in hrefs.items():
        made.add_asset(key, pystac.Asset(href, key, media_type=pystac.MediaType.COG, roles=["data"]))
        if proj:
            made.assets[key].extra_fields |= {"proj:shape": list(grid.shape.yx), "proj:transform": list(grid.affine)[:6]}
    if proj:
        made.properties["proj:code"] = f"EPSG:{grid.crs.epsg}"
        made.stac_extensions.append("https://stac-extensions.github.io/projection/v2.0.0/schema.json")
    return made
