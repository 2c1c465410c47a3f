"""Sources behind STAC APIs, over real protocol: a STAC server that is not ours, files read by windows, faults. All rasters are of the simulated world.

The catalogue entries and the client are unchanged: ISA_ENDPOINTS leads their addresses to the loopback. `pytest -m live` asks the real services instead.
"""
import datetime as dt
import json
from pathlib import Path

import numpy as np
import pystac
import pytest
from affine import Affine
from odc.geo.geobox import GeoBox
from stac_peers import SIGNATURE, Peers, item, write_cog

from isa_nb.catalog import Catalog
from isa_nb.composite import sentinel2
from isa_nb.core import DataError, RequestError, square_geobox
from isa_nb.lab import sensors, world
from isa_nb.lab.fields import LC_LUT
from isa_nb.remote import PLANNERS
from isa_nb.stac_source import _client

PC, EARTH = "https://planetarycomputer.microsoft.com/api/stac/v1", "https://earth-search.aws.element84.com/v1"
PLACE = (114.30, 30.50)  # Wuhan, UTM zone 50
SIDE = 2560  # m of the world that is painted
ESRI = np.array([0, 2, 11, 5, 11, 7, 8, 1, 4, 9, 11, 7], np.uint8)  # the eleven classes in Esri's codes
UTC = dt.UTC


def year(y: int) -> tuple[dt.datetime, dt.datetime]:
    "The span of an annual map, as providers state it: to the first second of the next year."
    return dt.datetime(y, 1, 1, tzinfo=UTC), dt.datetime(y + 1, 1, 1, tzinfo=UTC)


def scenes(peers: Peers, image: np.ndarray, grid: GeoBox) -> list[pystac.Item]:
    "Eight Sentinel-2 scenes of one ground: noise, a cloud somewhere, two of them with the offset of baseline 04.00 (one of those already harmonised)."
    draw, made = np.random.default_rng(1), []
    rows, cols = np.mgrid[:grid.shape.y, :grid.shape.x]
    coarse = GeoBox((grid.shape.y // 2, grid.shape.x // 2), grid.affine * grid.affine.scale(2), grid.crs)
    for k in range(8):
        cloud = np.hypot(rows - 30 * k - 15, cols - 25 * k - 40) < 40
        seen = np.clip(np.where(cloud, 8000, image + draw.normal(0, 15, image.shape)), 1, 65535).round().astype(np.uint16)
        raw, flag = k in (5, 6), k == 6
        scl = np.where(cloud[::2, ::2] | cloud[1::2, 1::2] | cloud[1::2, ::2] | cloud[::2, 1::2], 9, 4).astype(np.uint8)
        scl[:, :3], seen[:, :, :6] = 0, 0  # the edge of the swath
        stored = np.where(seen > 0, seen + 1000, 0).astype(np.uint16) if raw and not flag else seen
        hrefs = {}
        for name, values, where in [*zip(sensors.BANDS, stored, [grid] * 4, strict=True), ("scl", scl, coarse)]:
            write_cog(peers.folder / f"s2/{k}/{name}.tif", values, where, 0)
            hrefs[name] = f"https://sentinel-cogs.s3.us-west-2.amazonaws.com/s2/{k}/{name}.tif"
        about = {"eo:cloud_cover": 10.0 + k, "grid:code": "MGRS-50RKU", "s2:processing_baseline": "05.00" if raw else "02.14", **({"earthsearch:boa_offset_applied": flag} if raw else {})}
        scene = item(f"S2A_50RKU_2021070{k}", "sentinel-2-l2a", grid, dt.datetime(2021, 7, 1 + 3 * k, 2, 55, tzinfo=UTC), hrefs, **about)
        scene.assets["scl"].extra_fields |= {"proj:shape": list(coarse.shape.yx), "proj:transform": list(coarse.affine)[:6]}
        made.append(scene)
    made[7].properties["eo:cloud_cover"] = 90.0  # too cloudy to be taken
    return made


@pytest.fixture(scope="module")
def peers(tmp_path_factory):
    p = Peers(tmp_path_factory.mktemp("stac")).start()
    p.grid = square_geobox(*PLACE, SIDE, 10)
    here = world.for_geobox(p.grid, 0)
    p.image = sensors.image("s2", p.grid, 2021, world=here).values
    p.classes = ESRI[np.where(LC_LUT == 255, 0, LC_LUT)[here.truth(p.grid, 2021).values]]
    blob = "https://isasimulated.blob.core.windows.net/lulc"

    # A tile of 100 km: the painted part, mirrored over and over.
    n = 10_000 // p.grid.shape.x + 1
    tile = np.tile(np.block([[p.classes, p.classes[:, ::-1]], [p.classes[::-1], p.classes[::-1, ::-1]]]), (n // 2 + 1, n // 2 + 1))[:10_000, :10_000]
    p.tile_grid = GeoBox((10_000, 10_000), p.grid.affine, p.grid.crs)
    p.tile = tile
    write_cog(p.folder / "lulc/2021.tif", tile, p.tile_grid, 0, block=512)
    items = [item(f"50R-{y}", "io-lulc-annual-v02", p.tile_grid, year(y), {"data": f"{blob}/{2021}.tif"}) for y in (2020, 2021)]
    items[1].assets["data"].extra_fields["file:size"] = (p.folder / "lulc/2021.tif").stat().st_size
    items[0].assets["data"].href = f"{blob}/lost.tif"
    items += scenes(p, p.image, p.grid)

    # Elsewhere: an item without a CRS, a file without one, both sides of the antimeridian, the pole.
    p.blank = square_geobox(20.3, 30.5, SIDE, 10)
    write_cog(p.folder / "lulc/nocrs.tif", p.classes, p.blank, 0)
    items.append(item("no-crs", "io-lulc-annual-v02", p.blank, year(2021), {"data": f"{blob}/nocrs.tif"}, proj=False))
    lost = square_geobox(40.3, 30.5, SIDE, 10)
    write_cog(p.folder / "lulc/none.tif", p.classes, lost, 0, crs=False)
    items.append(item("none-at-all", "io-lulc-annual-v02", lost, year(2021), {"data": f"{blob}/none.tif"}, proj=False))
    for side, west in (("west", 179.98), ("east", -180.0)):
        g = GeoBox((200, 200), Affine(1e-4, 0, west, 0, -1e-4, -16.5), "EPSG:4326")
        write_cog(p.folder / f"lulc/{side}.tif", p.classes[:200, :200] if side == "west" else p.classes[:200, :200][:, ::-1], g, 0)
        items.append(item(side, "io-lulc-annual-v02", g, year(2021), {"data": f"{blob}/{side}.tif"}))
    p.pole = GeoBox((256, 256), Affine(100, 0, -12_800, 0, -100, 12_800), "EPSG:3413")
    write_cog(p.folder / "lulc/pole.tif", p.classes, p.pole, 0)
    items.append(item("pole", "io-lulc-annual-v02", p.pole, year(2021), {"data": f"{blob}/pole.tif"}))
    items[-1].geometry, items[-1].bbox = {"type": "Polygon", "coordinates": [[[-180, 89.8], [180, 89.8], [180, 90], [-180, 90], [-180, 89.8]]]}, [-180, 89.8, 180, 90]

    # More than one page of things.
    items += [item(f"many-{k:03d}", "io-lulc", p.tile_grid, year(2020), {"data": f"{blob}/2021.tif"}) for k in range(120)]
    p.serve(items)
    yield p
    p.stop()


@pytest.fixture
def on_loopback(peers, tmp_path, monkeypatch):
    "The unchanged catalogue, led to the peers."
    peers.forget()
    _client.cache_clear()
    ends = {PC: peers.url, EARTH: peers.url, "https://planetarycomputer.microsoft.com/api/sas/v1/token": f"{peers.url}/token",
            "https://isasimulated.blob.core.windows.net": f"{peers.url}/blob", "https://sentinel-cogs.s3.us-west-2.amazonaws.com": f"{peers.url}/files"}
    monkeypatch.setenv("ISA_ENDPOINTS", json.dumps(ends))
    monkeypatch.setenv("ISA_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("ISA_OFFLINE", raising=False)
    return Catalog.load()


def test_a_window_of_a_tile_of_100_km_takes_few_bytes(on_loopback, peers):
    asked = peers.tile_grid[4321:4821, 2222:2722]  # 5 km
    got = on_loopback.open("esri_annual", asked, 2021)
    assert (got.values == peers.tile[4321:4821, 2222:2722]).all() and got.rio.nodata == 0 and got.attrs["year"] == 2021
    assert peers.sent["/blob/lulc/2021.tif"] < 0.05 * (peers.folder / "lulc/2021.tif").stat().st_size
    files = [a for a in peers.asked if "/blob/" in a]
    assert files and all(SIGNATURE in a for a in files), "every file was asked for with the signature"
    assert sum("/token/isasimulated/lulc" in a for a in peers.asked) == 1, "one signature for one container"
