"""Servers on the loopback, started by the tests: two that are not ours and serve files by ranges, one of ours that answers as it is told, and one in the shape of Earth Engine."""
import contextlib
import email.utils
import hashlib
import io
import json
import os
import shutil
import socket
import struct
import subprocess
import threading
import time
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import numpy as np
import rasterio
import rasterio.warp
from affine import Affine
from rasterio.io import MemoryFile
from rasterio.transform import from_bounds
from shapely.geometry import shape


# ---- one that answers as it is told

class Answer:
    "A status with headers and a body; `cut` bytes of it are sent before the connection ends, `stall` bytes before it falls silent."

    def __init__(self, body: bytes = b"", status: int = 200, cut: int | None = None, stall: int | None = None, **headers: str):
        self.body, self.status, self.cut, self.stall = body, status, cut, stall
        self.headers = {k.replace("_", "-"): v for k, v in headers.items()}


class Scripted:
    "Serves `files` (path -> bytes) by ranges with an ETag; `script` (path -> list of Answers) comes first, answer by answer."

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.script: dict[str, list[Answer]] = {}
        self.asked: list[tuple[str, str, dict[str, str]]] = []  # method, path, headers
        self.over = threading.Event()
        me = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *args: Any) -> None:
                pass

            def do_GET(self) -> None:
                me.answer(self, body=True)

            def do_HEAD(self) -> None:
                me.answer(self, body=False)

            def do_POST(self) -> None:
                self.posted = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                me.answer(self, body=True)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def answer(self, h: BaseHTTPRequestHandler, body: bool) -> None:
        path = h.path.split("?")[0]
        self.asked.append((h.command, path, {k.lower(): v for k, v in h.headers.items()}))
        told = self.script.get(path, [])
        a = told.pop(0) if told else self.given(h, path)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            h.send_response(a.status)
            for k, v in {"Content-Length": str(len(a.body)), "Content-Type": "application/octet-stream", "Connection": "close", **a.headers}.items():
                h.send_header(k, v)
            h.end_headers()
            h.close_connection = True
            if not body:
                return
            stop = min(v for v in (a.cut, a.stall, len(a.body)) if v is not None)
            h.wfile.write(a.body[:stop])
            h.wfile.flush()
            if a.stall is not None:
                self.over.wait(30)

    def given(self, h: BaseHTTPRequestHandler, path: str) -> Answer:
        return self.stored(path, h.headers)

    def stored(self, path: str, headers: Any) -> Answer:
        if path not in self.files:
            return Answer(b"not here", 404)
        data = self.files[path]
        tag = f'"{hashlib.md5(data).hexdigest()}"'
        wanted = headers.get("Range", "")
        if wanted and headers.get("If-Range", tag) == tag:
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            if int(first) >= len(data):
                return Answer(b"", 416, Content_Range=f"bytes */{len(data)}")
            part = data[int(first):int(last) + 1 if last else None]
            return Answer(part, 206, ETag=tag, Accept_Ranges="bytes", Content_Range=f"bytes {first}-{int(first) + len(part) - 1}/{len(data)}")
        return Answer(data, ETag=tag, Accept_Ranges="bytes")

    def gets(self, path: str) -> list[dict[str, str]]:
        return [headers for method, p, headers in self.asked if (method, p) == ("GET", path)]

    def close(self) -> None:
        self.over.set()
        self.server.shutdown()
        self.server.server_close()


# ---- one in the shape of Earth Engine

class EarthEngine(Scripted):
    "Lists images by place and time, page by page, and gives windows of their bands on any grid, masked pixels as zero, to whoever shows the token; GDAL's EEDAI reads it, too."
    PARENT = "projects/earthengine-public/assets"

    def __init__(self, token: str = "a-token") -> None:
        self.token, self.page, self.images = token, 3, {}
        super().__init__()

    def put(self, asset: str, moment: str, grid: Any, **bands: np.ndarray) -> None:
        "Add an image: bands (y, x) on one grid, zero where masked."
        a, outline = grid.affine, json.loads(json.dumps(grid.geographic_extent.json))
        place = {"crsCode": f"EPSG:{grid.crs.epsg}", "dimensions": {"width": grid.shape.x, "height": grid.shape.y}, "affineTransform": {"scaleX": a.a, "shearX": a.b, "translateX": a.c, "shearY": a.d, "scaleY": a.e, "translateY": a.f}}
        kind = {"uint8": {"precision": "INT", "range": {"max": 255}}, "float32": {"precision": "FLOAT"}}
        said = {"type": "IMAGE", "name": f"{self.PARENT}/{asset}", "id": asset, "startTime": moment, "endTime": moment, "geometry": outline, "sizeBytes": "1000",
                "bands": [{"id": b, "dataType": kind[v.dtype.name], "grid": place} for b, v in bands.items()]}
        self.images[said["name"]] = (said, grid, bands)

    def given(self, h: BaseHTTPRequestHandler, path: str) -> Answer:
        if h.headers.get("Authorization") != f"Bearer {self.token}":
            return self.refusal(401, "Request had invalid authentication credentials.")
        name, _, verb = path.removeprefix("/v1/").partition(":")
        if verb == "listImages":
            return self.listed(name, dict(parse_qsl(urlsplit(h.path).query)))
        if name not in self.images:
            return self.refusal(404, f"Image asset '{name}' not found.")
        return self.pixels(*self.images[name][1:], json.loads(h.posted)) if verb == "getPixels" else self.json(self.images[name][0])

    def listed(self, parent: str, asked: dict[str, str]) -> Answer:
        where = shape(json.loads(asked["region"]))
        found = [said for name, (said, *_) in self.images.items() if name.startswith(f"{parent}/") and asked["startTime"] <= said["startTime"] < asked["endTime"] and shape(said["geometry"]).intersects(where)]
        first = int(asked.get("pageToken", 0))
        return self.json({"images": found[first:first + self.page], **({"nextPageToken": str(first + self.page)} if first + self.page < len(found) else {})})

    def pixels(self, grid: Any, bands: dict[str, np.ndarray], asked: dict[str, Any]) -> Answer:
        g, size = asked["grid"], asked["grid"]["dimensions"]
        t = Affine(*(g["affineTransform"].get(k, 0) for k in ("scaleX", "shearX", "translateX", "shearY", "scaleY", "translateY")))
        values = {b: np.zeros((size["height"], size["width"]), bands[b].dtype) for b in asked["bandIds"]}
        if sum(v.nbytes for v in values.values()) > 48 * 2**20:
            return self.refusal(400, "Total request size must be less than or equal to 50331648 bytes.")
        for b, v in values.items():
            rasterio.warp.reproject(bands[b], v, src_transform=grid.affine, src_crs=str(grid.crs), dst_transform=t, dst_crs=g.get("crsCode") or g.get("crsWkt") or str(grid.crs), resampling=rasterio.warp.Resampling.nearest)
        if asked["fileFormat"] == "NPY":
            out, made = io.BytesIO(), np.zeros((size["height"], size["width"]), [(b, v.dtype) for b, v in values.items()])
            for b, v in values.items():
                made[b] = v
            np.save(out, made)
            return Answer(out.getvalue())
        with MemoryFile() as memory:
            stack = np.stack([*values.values()])
            with memory.open(driver={"PNG": "PNG", "GEO_TIFF": "GTiff"}[asked["fileFormat"]], width=size["width"], height=size["height"], count=len(stack), dtype=stack.dtype, transform=t) as d:
                d.write(stack)
            return Answer(memory.read())

    @staticmethod
    def json(value: Any, status: int = 200) -> Answer:
        return Answer(json.dumps(value).encode(), status, Content_Type="application/json")

    @classmethod
    def refusal(cls, status: int, message: str) -> Answer:
        return cls.json({"error": {"code": status, "message": message}}, status)


# ---- two that are not ours

def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def wait_for(port: int) -> None:
    for _ in range(200):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.05)
    raise TimeoutError(f"nothing listens on port {port}")


class Peer:
    "A running server of a folder: its address, and the bytes that it has sent since the last look."

    def __init__(self, url: str, counter: Any):
        self.url, self.sent = url, counter


@contextlib.contextmanager
def nginx(folder: Path, work: Path) -> Iterator[Peer]:
    port, log = free_port(), work / "access.log"
    user = "user root;" if os.geteuid() == 0 else ""  # or its workers could not read the folder
    (work / "nginx.conf").write_text(f"""
        {user} daemon off; pid {work}/pid; error_log {work}/error.log; worker_processes 1;
        events {{ worker_connections 64; }}
        http {{
            log_format sent '$bytes_sent $request_method $uri'; access_log {log} sent;
            client_body_temp_path {work}/b; proxy_temp_path {work}/p; fastcgi_temp_path {work}/f; uwsgi_temp_path {work}/u; scgi_temp_path {work}/s;
            server {{ listen 127.0.0.1:{port}; root {folder}; }}
        }}""")
    process = subprocess.Popen([shutil.which("nginx"), "-p", str(work), "-c", str(work / "nginx.conf")], stderr=subprocess.DEVNULL)
    try:
        wait_for(port)

        def sent() -> int:
            time.sleep(0.2)
            lines = log.read_text().splitlines() if log.exists() else []
            log.write_text("")
            return sum(int(line.split(" ")[0]) for line in lines)
        yield Peer(f"http://127.0.0.1:{port}", sent)
    finally:
        process.terminate()
        process.wait(10)


@contextlib.contextmanager
def starlette(folder: Path, work: Path) -> Iterator[Peer]:
    import uvicorn
    from starlette.applications import Starlette
    from starlette.routing import Mount
    from starlette.staticfiles import StaticFiles
    files, count = Starlette(routes=[Mount("/", StaticFiles(directory=folder))]), Counter()

    async def app(scope: dict, receive: Any, send: Any) -> None:
        async def counted(message: dict) -> None:
            count["sent"] += len(message.get("body", b""))
            await send(message)
        await files(scope, receive, counted)

    port = free_port()
    server = uvicorn.Server(uvicorn.Config(app, "127.0.0.1", port, log_level="critical", lifespan="off"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        wait_for(port)
        yield Peer(f"http://127.0.0.1:{port}", lambda: count.pop("sent", 0))
    finally:
        server.should_exit = True
        thread.join(10)


PEERS = {"starlette": starlette, "nginx": nginx}


# ---- what lies on them

def tiff(value: Any, bounds: tuple[float, float, float, float] = (113, 29, 117, 33), crs: str = "EPSG:4326", dtype: str = "uint8", nodata: float | None = None) -> bytes:
    "A small GeoTIFF: one value, or one for each band."
    values = np.stack([np.full((64, 64), v, dtype) for v in np.atleast_1d(value)])
    with MemoryFile() as memory:
        with memory.open(driver="GTiff", width=64, height=64, count=len(values), dtype=dtype, crs=crs, nodata=nodata, transform=from_bounds(*bounds, 64, 64), compress="deflate") as d:
            d.write(values)
        return memory.read()


def vint(n: int) -> bytes:
    "A number as RAR 5 writes it: seven bits a byte, the lowest first."
    return bytes([n & 127 | 128]) + vint(n >> 7) if n > 127 else bytes([n])


def rar_block(kind: int, fields: bytes, extra: bytes = b"", data: bytes = b"", flags: int = 0) -> bytes:
    "A header of RAR 5 with its checksum and what follows it (https://www.rarlab.com/technote.htm)."
    flags |= (1 if extra else 0) | (2 if data else 0)
    body = vint(kind) + vint(flags) + (vint(len(extra)) if extra else b"") + (vint(len(data)) if data else b"") + fields + extra
    body = vint(len(body)) + body
    return struct.pack("<I", zlib.crc32(body)) + body + data


def rar_file(name: str, data: bytes = b"", size: int | None = None, extra: bytes = b"", dictionary: int = 0, flags: int = 0, about: int = 4) -> bytes:
    "A file stored in a RAR 5 archive; `size` is what it claims to be, `dictionary` its memory as a power of two over 128 KiB, `flags` and `about` the bits of its header and of the file."
    told = name.encode()
    fields = vint(about) + vint(len(data) if size is None else size) + vint(0o100644) + struct.pack("<I", zlib.crc32(data)) + vint(dictionary << 10) + vint(1) + vint(len(told)) + told
    return rar_block(2, fields, extra, data, flags)


def rar_link(name: str, target: str) -> bytes:
    "A symbolic link in a RAR 5 archive."
    record = vint(5) + vint(1) + vint(0) + vint(len(target)) + target.encode()
    return rar_file(name, extra=vint(len(record)) + record)


def rarred(*entries: bytes, **members: bytes) -> bytes:
    "A RAR 5 archive, stored: of entries, or of members with names as in `unspelt`."
    entries += tuple(rar_file(unspelt(k), v) for k, v in members.items())
    return b"Rar!\x1a\x07\x01\x00" + rar_block(1, vint(0)) + b"".join(entries) + rar_block(5, vint(0))


def unspelt(name: str) -> str:
    "A name as an argument, where __ stands for / and _DOT_ for a point."
    return name.replace("_DOT_", ".").replace("__", "/")


def zipped(**members: bytes) -> bytes:
    "A zip of files with names as in `unspelt`."
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as z:
        for name, data in members.items():
            z.writestr(unspelt(name), data)
    return out.getvalue()


def cog(path: Path, values: np.ndarray, transform: Any, crs: str = "EPSG:32650") -> Path:
    "A cloud-optimised GeoTIFF of classes."
    with rasterio.open(path, "w", driver="COG", width=values.shape[1], height=values.shape[0], count=1, dtype=values.dtype, crs=crs, transform=transform, nodata=250,
                       compress="deflate", level=1, blocksize=512, overview_resampling="nearest") as d:
        d.write(values, 1)
    return path


def http_date(seconds: float) -> str:
    "A moment from now, as HTTP writes it."
    return email.utils.formatdate(time.time() + seconds, usegmt=True)
