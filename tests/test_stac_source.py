"""Sources behind STAC APIs, over real protocol: a STAC server that is not ours, files read by windows, faults. All rasters are of the simulated world.

The catalogue entries and the client are unchanged: ISA_ENDPOINTS leads their addresses to the loopback. `pytest -m live` asks the real services instead.
"""
import datetime as dt
import json
import struct
from pathlib import Path

import numpy as np
import pystac
import pytest
from affine import Affine
from odc.geo.geobox import GeoBox
from odc.loader._rio import RioReader
from pyproj import Transformer
from rasterio.errors import RasterioIOError
from servers import Answer, Scripted
from stac_peers import SIGNATURE, Peers, item, write_cog

from isa_nb.catalog import Catalog
from isa_nb.composite import compose, scenes_of, sentinel2
from isa_nb.core import DataError, RequestError, square_geobox
from isa_nb.lab import sensors, world
from isa_nb.lab.fields import LC_LUT
from isa_nb.rasters import open_raster
from isa_nb.remote import PLANNERS, download
from isa_nb.stac_source import SAS, _client

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
    write_cog(p.folder / "lulc/2021.tif", tile, p.tile_grid, 0, block=512, overviews="NONE")
    items = [item(f"50R-{y}", "io-lulc-annual-v02", p.tile_grid, year(y), {"data": f"{blob}/{2021}.tif"}) for y in (2020, 2021)]
    items[1].assets["data"].extra_fields["file:size"] = (p.folder / "lulc/2021.tif").stat().st_size
    items[0].assets["data"].href = f"{blob}/lost.tif"
    items += scenes(p, p.image, p.grid)

    # The same scenes as Planetary Computer offers them: other names, signed links, and a scene in two processings.
    for k, i in enumerate(items[2:]):
        links = {pc: f"https://isasimulated.blob.core.windows.net/s2/{k}/{name}.tif" for pc, name in zip(("B02", "B03", "B04", "B08", "SCL"), (*sensors.BANDS, "scl"), strict=True)}
        if k != 6:  # harmonised by the other provider
            items.append(item(f"pc{k}", "sentinel-2-pc", p.grid, i.datetime, links, proj=False, **{"eo:cloud_cover": 5.0, "s2:mgrs_tile": "50RKU", "s2:processing_baseline": "05.10" if k == 5 else "02.14"}))
    old = items[-2].clone()
    old.id, old.properties["s2:processing_baseline"] = "pc5-before", "04.00"
    items.append(old)

    hole = items[2].clone()
    hole.id, hole.collection_id = "hole", "hole"
    hole.assets["red"].href = hole.assets["red"].href.replace("red.tif", "lost.tif")
    items.append(hole)

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

    # More than one page of things, and files that fail.
    items += [item(f"many-{k:03d}", "many", p.tile_grid, year(2020), {"data": f"{blob}/2021.tif"}) for k in range(120)]
    items += [item(name, name, p.tile_grid, year(2020), {"data": f"{blob}/2021~{name}.tif"}) for name in ("flaky", "busy", "window", "kept")]
    items += [item(name, name, p.tile_grid, year(y), {"data": f"{blob}/2021.tif"}) for name, y in (("io-lulc", 2020), ("chesapeake-lc-13", 2013))]
    items.append(item("gone", "gone", p.tile_grid, year(2020), {"data": f"{blob}/gone.tif"}))

    # Items that lead where nobody should go: this machine's own files, archives, other services, and a VRT that says it is an image.
    write_cog(p.folder / "secret.tif", p.classes, p.grid, 0)
    t = ", ".join(map(str, p.grid.affine.to_gdal()))
    (p.folder / "lulc/evil.tif").write_text(f'<VRTDataset rasterXSize="256" rasterYSize="256"><SRS>{p.grid.crs}</SRS><GeoTransform>{t}</GeoTransform><VRTRasterBand dataType="Byte" band="1"><NoDataValue>0</NoDataValue>'
                                            f"<SimpleSource><SourceFilename>{p.folder}/secret.tif</SourceFilename></SimpleSource></VRTRasterBand></VRTDataset>")
    leads = {"path": f"{p.folder}/secret.tif", "file": f"file://{p.folder}/secret.tif", "vsi": f"/vsicurl/{p.url}/files/secret.tif", "zip": "zip+https://example.org/a.zip!a.tif", "s3": "s3://some-bucket/a.tif",
             "vrt": f"{blob}/evil.tif", "second": f"{blob}/evil~second.tif"}
    items += [item(f"hostile-{k}", f"hostile-{k}", p.grid, year(2020), {"data": href}, proj=k == "second") for k, href in leads.items()]
    items.append(item("newer", "hostile-second", p.grid, (dt.datetime(2020, 2, 1, tzinfo=UTC), dt.datetime(2020, 12, 1, tzinfo=UTC)), {"data": f"{blob}/2021.tif"}))
    absurd = [(256, 4, 1, 2_000_000_000), (257, 4, 1, 2_000_000_000), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1), (273, 4, 1, 8), (277, 3, 1, 1), (278, 4, 1, 1), (279, 4, 1, 8)]
    (p.folder / "lulc/absurd.tif").write_bytes(b"II*\0" + struct.pack("<I", 16) + bytes(8) + struct.pack("<H", len(absurd)) + b"".join(struct.pack("<HHII", *v) for v in absurd) + bytes(4))
    items.append(item("absurd", "absurd", p.grid, year(2020), {"data": f"{blob}/absurd.tif"}))
    aerial = np.concatenate([p.image[[2, 1, 0, 3]]]) // 40
    write_cog(p.folder / "lulc/naip.tif", aerial.clip(1, 255).astype(np.uint8), p.grid, None)
    items.append(item("m_1", "naip", p.grid, dt.datetime(2019, 8, 1, tzinfo=UTC), {"image": f"{blob}/naip.tif"}))
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


def entry(tmp_path: Path, collection: str) -> Catalog:
    "A catalogue with `mine`, the tile of 100 km under another name."
    path = tmp_path / "mine.yaml"
    path.write_text(f"""sources:
  mine: {{title: Mine, description: simulated tile, kind: classes, legend: io_lulc_9, citation: simulated, licence: CC0-1.0, year: 2020, nodata: 0,
    access: {{driver: stac, options: {{api: {PC}, collection: {collection}, sign: true}}}}}}
""")
    return Catalog.load(overlay=path)


def searches(peers: Peers) -> int:
    return sum(a.startswith("POST /search") for a in peers.asked)


def test_a_window_of_a_tile_of_100_km_takes_few_bytes(on_loopback, peers, tmp_path):
    asked = peers.tile_grid[4321:4821, 2222:2722]  # 5 km
    got = entry(tmp_path, "window").open("mine", asked)
    assert (got.values == peers.tile[4321:4821, 2222:2722]).all() and got.rio.nodata == 0 and got.attrs["year"] == 2020
    assert 0 < peers.sent["/blob/lulc/2021~window.tif"] < 0.05 * (peers.folder / "lulc/2021.tif").stat().st_size
    files = [a for a in peers.asked if "/blob/" in a]
    assert files and all(SIGNATURE in a for a in files), "every file was asked for with the signature"


def test_as_the_same_file_on_disk(on_loopback, peers):
    degrees = GeoBox.from_bbox((114.302, 30.49, 114.315, 30.50), resolution=2e-4)
    coarse = square_geobox(*PLACE, 1920, 16)
    for geobox in (degrees, coarse):
        got, local = on_loopback.open("esri_annual_pc", geobox, 2021), open_raster(peers.folder / "lulc/2021.tif", geobox, nodata=0)
        assert (got.values == local.values).mean() > 0.985, "two warps of one file may differ at borders of classes"
    got, local = on_loopback.open("naip", coarse, 2019), open_raster(peers.folder / "lulc/naip.tif", coarse, "average", band=[3, 2, 1, 4])
    assert list(got.band.values) == ["blue", "green", "red", "nir"] and np.abs(got.values.astype(int) - local.values).mean() < 0.5


@pytest.mark.parametrize("name,y", [("esri_2020", 2020), ("chesapeake_lc_13", 2013)])
def test_other_collections(on_loopback, peers, name, y):
    got = on_loopback.open(name, peers.grid[:64, :64], y)
    assert (got.values == peers.classes[:64, :64]).all() and got.attrs["licence"] == on_loopback.source(name).licence and got.attrs["year"] == y


def test_one_signature_serves_a_container(on_loopback, peers, monkeypatch):
    monkeypatch.setattr("planetary_computer.sas.TOKEN_CACHE", {})
    peers.fail("/token/isasimulated/lulc", (503, {}))
    assert len(PLANNERS["stac"](on_loopback.request("esri_annual_pc", peers.grid, 2021))) == 1
    assert sum("/token/isasimulated/lulc" in a for a in peers.asked) == 2, "asked, refused, asked again, and kept"


def test_years(on_loopback, peers):
    plan = lambda year: PLANNERS["stac"](on_loopback.request("esri_annual_pc", peers.grid, year))  # noqa: E731
    (now,), (before,) = plan(2021), plan(2020)
    assert now.url.split("?")[0].endswith("lulc/2021.tif") and before.url.split("?")[0].endswith("lulc/lost.tif"), "2020 ends in the first second of 2021"
    assert now.size == (peers.folder / "lulc/2021.tif").stat().st_size and before.size is None and now.windowed and now.licence == "CC-BY-4.0"
    with pytest.raises(DataError, match=r"io-lulc-annual-v02 has nothing of 2018 here \(it has 2020, 2021\); ask for another area or year"):
        plan(2018)
    with pytest.raises(DataError, match="has nothing of 2021 here; ask"):
        PLANNERS["stac"](on_loopback.request("esri_annual_pc", square_geobox(10, 50, 1000, 10), 2021))
    with pytest.raises(RequestError, match="ask for an area or a GeoBox"):
        on_loopback.open("esri_annual_pc")


def test_more_items_than_a_page_holds(on_loopback, peers, tmp_path):
    assert len(PLANNERS["stac"](entry(tmp_path, "many").request("mine", peers.grid))) == 120
    assert searches(peers) >= 2


def test_offline_with_what_was_asked_and_fetched_before(on_loopback, peers, tmp_path, monkeypatch):
    catalog, window = entry(tmp_path, "kept"), peers.grid[:64, :64]
    (one,) = PLANNERS["stac"](catalog.request("mine", window))
    monkeypatch.setenv("ISA_OFFLINE", "1")
    monkeypatch.setattr("planetary_computer.sas.TOKEN_CACHE", {})  # as in another run
    with pytest.raises(RequestError, match="2021~kept.tif.* is not in the cache, and ISA_OFFLINE forbids asking for it"):
        catalog.open("mine", window)
    monkeypatch.delenv("ISA_OFFLINE")
    download(one)
    monkeypatch.setenv("ISA_OFFLINE", "1")
    peers.forget()
    assert (catalog.open("mine", window).values == peers.classes[:64, :64]).all() and not peers.asked
    with pytest.raises(RequestError, match="ISA_OFFLINE forbids"):
        catalog.open("mine", peers.grid[64:128, :64])


def test_what_is_temporary_is_repeated(on_loopback, peers, tmp_path):
    peers.fail("/search", (429, {"retry-after": "1"}), (503, {}), (502, {}))
    peers.fail("2021~flaky.tif", (503, {}), (429, {"retry-after": "1"}))
    got = entry(tmp_path, "flaky").open("mine", peers.grid[:64, :64])
    assert (got.values == peers.classes[:64, :64]).all() and searches(peers) >= 4


@pytest.mark.parametrize("times", [2, 9])
def test_pixels_that_break_off(on_loopback, peers, tmp_path, monkeypatch, times):
    "GDAL asks a server again that refuses, but not for pixels that break off: the reader of odc-stac does."
    left, real = [None] * times, RioReader.read

    def read(self, *args, **options):
        if left:
            left.pop()
            raise RasterioIOError("Read failed.")
        return real(self, *args, **options)
    monkeypatch.setattr(RioReader, "read", read)
    if times == 2:
        assert (entry(tmp_path, "flaky").open("mine", peers.grid[:64, :64]).values == peers.classes[:64, :64]).all()
    else:
        with pytest.raises(DataError, match="cannot be read .*: try again later"):
            entry(tmp_path, "flaky").open("mine", peers.grid[:64, :64])


def test_what_stays_wrong_is_one_line(on_loopback, peers, tmp_path, monkeypatch):
    def line(of, match, **how):
        with pytest.raises(DataError, match=match) as e:
            of.open("mine" if of is not on_loopback else "esri_annual_pc", **how)
        assert "\n" not in str(e.value) and len(str(e.value)) < 500 and SIGNATURE not in str(e.value)

    monkeypatch.setattr("isa_nb.downloads.ATTEMPTS", 2)  # of the same patience, less
    monkeypatch.setattr("isa_nb.stac_source.ATTEMPTS", 2)
    line(entry(tmp_path, "gone"), r"^mine: .*lulc/gone.tif cannot be read \(.*404.*\): try again later; if it stays, tell its provider", area=peers.grid)
    peers.fail("/search", *[(503, {})] * 9)
    line(entry(tmp_path, "many"), f"^mine: the STAC API {PC} gives no answer that can be used .*: check the network, or try again later", area=peers.grid)
    peers.forget()
    peers.fail("/search", (429, {"retry-after": "100000"}))
    line(entry(tmp_path, "busy"), "asks to come back in .* s: it is busy", area=peers.grid)
    peers.forget()
    monkeypatch.setattr("planetary_computer.sas.TOKEN_CACHE", {})
    peers.fail("/token/isasimulated/lulc", *[(503, {})] * 9)
    line(entry(tmp_path, "busy"), f"^{SAS} gives no signature for https://isasimulated.blob.core.windows.net/lulc/2021~busy.tif .*: try again later", area=peers.grid)
    peers.forget()
    peers.fail("/", (200, {"content-type": "text/html"}))
    _client.cache_clear()
    line(entry(tmp_path, "busy"), "gives no answer that can be used", area=peers.grid)
    monkeypatch.setenv("ISA_ENDPOINTS", json.dumps({PC: "http://127.0.0.1:9"}))
    _client.cache_clear()
    line(entry(tmp_path, "busy"), "gives no answer that can be used", area=peers.grid)


def test_a_list_in_circles(on_loopback, peers, tmp_path, monkeypatch):
    "A service whose every page leads to the next, for ever."
    server, one = Scripted(), pystac.Item("one", json.loads(json.dumps(peers.grid.geographic_extent.json)), list(peers.grid.geographic_extent.boundingbox), dt.datetime(2020, 5, 1, tzinfo=UTC), {}, collection="many").to_dict()
    root = {"type": "Catalog", "id": "x", "stac_version": "1.0.0", "description": "x", "conformsTo": ["https://api.stacspec.org/v1.0.0/core", "https://api.stacspec.org/v1.0.0/item-search"],
            "links": [{"rel": "search", "href": f"{server.url}/search", "method": "POST", "type": "application/geo+json"}, {"rel": "root", "href": f"{server.url}/"}, {"rel": "self", "href": f"{server.url}/"}]}
    page = {"type": "FeatureCollection", "features": [one] * 10, "links": [{"rel": "next", "href": f"{server.url}/search", "method": "POST", "body": {"token": "again"}, "merge": True}]}
    server.given = lambda h, path: Answer(json.dumps(page if path == "/search" else root).encode(), Content_Type="application/json")
    monkeypatch.setenv("ISA_ENDPOINTS", json.dumps({PC: server.url}))
    monkeypatch.setattr("isa_nb.stac_source.MOST", 45)
    _client.cache_clear()
    with pytest.raises(DataError, match="lists 45 items and more of many here: ask for a smaller area") as e:
        entry(tmp_path, "many").open("mine", peers.grid)
    assert "\n" not in str(e.value) and len([p for _, p, _ in server.asked if p == "/search"]) == 5
    server.close()


def test_an_item_without_crs(on_loopback, peers):
    assert (on_loopback.open("esri_annual_pc", peers.blank[10:200, 5:100], 2021).values == peers.classes[10:200, 5:100]).all()
    with pytest.raises(DataError, match="^esri_annual_pc: neither the STAC item nor the file none-at-all_data.tif says a CRS: it cannot be used"):
        on_loopback.open("esri_annual_pc", square_geobox(40.3, 30.5, 500, 10), 2021)


@pytest.mark.parametrize("lead", ["path", "file", "vsi", "zip", "s3", "vrt", "second"])
def test_an_item_may_not_lead_elsewhere(on_loopback, peers, tmp_path, lead):
    "Only addresses of the web, and only GeoTIFFs there: nothing of this machine, no archive, no other service, no VRT that leads on."
    said = {"vrt": "cannot be read .it is no GeoTIFF.: try again later", "second": "cannot be read .it is no GeoTIFF.: try again later",
            "path": f"^mine: {peers.url}/.*secret.tif cannot be read .HTTP response code: 404.: try again later"}.get(lead, "which is no address on the web: it is not opened")  # a path is one of the service's own
    with pytest.raises(DataError, match=said) as e:
        entry(tmp_path, f"hostile-{lead}").open("mine", peers.grid[:64, :64])
    assert "\n" not in str(e.value) and len(str(e.value)) < 500 and not list((tmp_path / "cache").rglob("*.tif"))


def test_an_item_with_an_absurd_file(on_loopback, peers, tmp_path):
    with pytest.raises(DataError, match="^mine: ") as e:
        entry(tmp_path, "absurd").open("mine", peers.grid[:64, :64])
    assert "\n" not in str(e.value) and len(str(e.value)) < 500


def test_at_the_antimeridian(on_loopback, peers):
    asked = square_geobox(180, -16.51, 1800, 10, "EPSG:32760")
    got = on_loopback.open("esri_annual_pc", asked, 2021)
    assert searches(peers) == 2
    lon, lat = Transformer.from_crs("EPSG:32760", "EPSG:4326", always_xy=True).transform(*np.meshgrid(got.x, got.y))
    east = lon < 0
    cols, rows = np.floor((np.where(east, lon + 180, lon - 179.98)) / 1e-4).astype(int), np.floor((-16.5 - lat) / 1e-4).astype(int)
    inside = (cols >= 0) & (cols < 200) & (rows >= 0) & (rows < 200)
    cols, rows = cols.clip(0, 199), rows.clip(0, 199)
    part = peers.classes[:200, :200]
    want = np.where(inside, np.where(east, part[:, ::-1][rows, cols], part[rows, cols]), 0)
    assert (east & inside).mean() > 0.2 and (~east & inside).mean() > 0.2, "both sides are in the picture"
    assert (got.values == want).mean() > 0.97, "up to pixels at borders"


def test_at_the_pole(on_loopback, peers):
    assert (on_loopback.open("esri_annual_pc", peers.pole[28:228, 28:228], 2021).values == peers.classes[28:228, 28:228]).all()


# ---- composites ----

def test_a_composite_sees_through_clouds(on_loopback, peers):
    made = sentinel2(peers.grid, 2021, catalog=on_loopback)
    assert made.image.attrs["scenes"] == 7 and not any("/files/s2/7" in a for a in peers.asked), "the scene with 90 % clouds is not read"
    assert made.image.chunks and not any(a.startswith("GET /files/s2/3") for a in peers.asked), "nothing is read before it is needed"
    done = made.compute()
    seen = done.observations.values > 0
    assert seen[:, 6:].mean() > 0.99 and not seen[:, :6].any() and done.observations.values.max() == 7
    off = np.abs(done.image.values.astype(int) - peers.image)[:, seen]
    assert off.mean() < 12 and np.percentile(off, 99.9) < 60, "noise of 15 at most; a cloud or an offset would leave hundreds"
    assert done.image.dtype == np.uint16 and done.image.rio.nodata == 0 and (done.image.values[:, ~seen] == 0).all()
    nearest = sentinel2(peers.grid, 2021, method="medoid", catalog=on_loopback).image.compute()
    assert np.percentile(np.abs(nearest.values.astype(int) - peers.image)[:, seen], 99.9) < 90
    few = sentinel2(peers.grid, 2021, scenes=3, season=(7, 7), catalog=on_loopback)
    assert few.image.attrs["days"] == 3 and few.image.attrs["season"] == "2021-07-01 to 2021-07-07"


def test_without_mask_or_harmonisation_it_would_not(on_loopback, peers, monkeypatch):
    blind = sentinel2(peers.grid, 2021, clear=(4, 9), scenes=1, catalog=on_loopback).image.compute().values
    assert (blind[0] > 7000).any(), "a cloud"
    request = on_loopback.request("sentinel2_l2a", peers.grid, 2021)
    offset, already = [[i for i in scenes_of(request) if i.id.endswith(k)] for k in "56"]
    differs = lambda scene: np.median((lambda v: v[v > 0] - peers.image[v > 0].astype(int))(compose(request, scene).image.compute().values))  # noqa: E731
    assert abs(differs(offset)) < 5 and abs(differs(already)) < 5, "the offset is taken off, once"
    monkeypatch.setattr("isa_nb.composite.S2_OFFSET", 0)
    assert abs(differs(offset) - 1000) < 5 and abs(differs(already)) < 5


def test_another_provider_gives_the_same(on_loopback, peers, tmp_path):
    (tmp_path / "pc.yaml").write_text("sources: {sentinel2_l2a_pc: {access: {driver: stac, options: {collection: sentinel-2-pc}}}}")
    catalog = Catalog.load(overlay=tmp_path / "pc.yaml")
    plan = PLANNERS["stac"](catalog.request("sentinel2_l2a_pc", peers.grid, 2021))
    assert len(plan) == 7 * 5 and all(SIGNATURE in a.url for a in plan) and not any("before" in a.file for a in plan), "of two processings the later"
    made = sentinel2(peers.grid, 2021, source="sentinel2_l2a_pc", catalog=catalog).compute()
    seen = made.observations.values > 2
    assert seen.mean() > 0.9 and np.percentile(np.abs(made.image.values.astype(int) - peers.image)[:, seen], 99.9) < 60
    assert list(catalog.open("sentinel2_l2a_pc", peers.grid[:64, 64:128], 2021).band.values) == ["blue", "green", "red", "nir"]


def test_a_composite_on_another_grid_is_resampled_once(on_loopback, peers):
    coarse = square_geobox(*PLACE, 1920, 16)
    got = on_loopback.open("sentinel2_l2a", coarse, 2021)
    local = sensors.image("s2", coarse, 2021, world=world.for_geobox(peers.grid, 0))
    assert got.dtype == local.dtype == np.uint16 and list(got.band.values) == list(local.band.values) and got.shape == local.shape
    assert np.abs(got.values.astype(int) - local.values).mean() < 40 and got.attrs["licence"] == "copernicus"


def test_what_a_composite_refuses(on_loopback, peers, tmp_path):
    (tmp_path / "hole.yaml").write_text("sources: {sentinel2_l2a: {access: {driver: stac, options: {collection: hole}}}}")
    hole = Catalog.load(overlay=tmp_path / "hole.yaml")
    with pytest.raises(DataError, match=r"^sentinel2_l2a: http://127.0.0.1:\d+/files/s2/0/lost.tif cannot be read \(.*404.*\): try again later"):
        hole.open("sentinel2_l2a", peers.grid, 2021)
    with pytest.raises(RequestError, match="sentinel2_l2a is composed from the scenes of a season: say of which year"):
        on_loopback.open("sentinel2_l2a", peers.grid)
    with pytest.raises(DataError, match="sentinel-2-l2a has no scene with at most 60 % clouds of April to October 2019 here"):
        on_loopback.open("sentinel2_l2a", peers.grid, 2019)
    with pytest.raises(RequestError, match="unknown method 'mean'"):
        sentinel2(peers.grid, 2021, method="mean", catalog=on_loopback)


# ---- the real services: pytest -m live ----

@pytest.mark.live
@pytest.mark.parametrize("name,year", [("esri_annual_pc", 2021), ("sentinel2_l2a", 2021), ("sentinel2_l2a_pc", 2023), ("esri_2020", 2020)])
def test_live(name, year, tmp_path, monkeypatch):
    monkeypatch.setenv("ISA_CACHE", str(tmp_path))
    got = Catalog.load().open(name, square_geobox(*PLACE, 5000, 10), year)
    assert (got.values != 0).mean() > 0.95


@pytest.mark.live
@pytest.mark.parametrize("name,year", [("naip", 2021), ("chesapeake_lc_13", 2013)])
def test_live_plans(name, year, tmp_path, monkeypatch):
    monkeypatch.setenv("ISA_CACHE", str(tmp_path))
    plan = PLANNERS["stac"](Catalog.load().request(name, square_geobox(-76.5, 39.0, 1000, 1), year))
    assert plan and all(a.windowed for a in plan)
