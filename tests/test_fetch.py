"""`isa fetch` and `isa run` on what it has brought: the catalogue's own entries and client code, led to servers on the loopback that hold files of the simulated world."""
import datetime as dt
import json
import os
import subprocess
import sys
import time
import uuid
import zipfile
from pathlib import Path

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import rasterio
import yaml
from affine import Affine
from odc.geo.geobox import GeoBox
from stac_peers import Peers, item, write_cog
from typer.testing import CliRunner

from isa_nb import cli
from isa_nb.catalog import Catalog
from isa_nb.core import area_geobox, square_geobox
from isa_nb.drivers import open_raster
from isa_nb.lab import sensors
from isa_nb.stac_source import _client
from isa_nb.years import at

PLACE = (114.30, 30.60)  # Wuhan, UTM zone 50
BOX = "114.276,30.579,114.324,30.621"  # some 4.6 km
YEAR = 2020


def stored(folder: Path, path: str, da, nodata=None) -> Path:
    "A layer of the simulated world as a file of the server."
    return write_cog(folder / path, da.values, da.odc.geobox, da.rio.nodata if nodata is None else nodata)


def geofabrik(folder: Path, objects: gpd.GeoDataFrame) -> None:
    "An extract in Geofabrik's layout, and the index that names it."
    place = folder / "geofabrik"
    place.mkdir()
    for layer, part in objects.to_crs(4326).groupby("layer"):
        part.drop(columns="layer").to_file(place / f"gis_osm_{layer}_free_1.shp")
    with zipfile.ZipFile(folder / "hubei-210101-free.shp.zip", "w") as z:
        for f in sorted(place.iterdir()):
            z.write(f, f.name)
    outline = {"type": "Polygon", "coordinates": [[[108, 29], [117, 29], [117, 33], [108, 33], [108, 29]]]}
    urls = {"shp": "https://download.geofabrik.de/asia/china/hubei-latest-free.shp.zip"}
    (folder / "index-v1.json").write_text(json.dumps({"type": "FeatureCollection", "features": [{"type": "Feature", "properties": {"id": "hubei", "name": "Hubei", "urls": urls}, "geometry": outline}]}))


def scenes(folder: Path, image) -> list:
    "Three Sentinel-2 scenes of one ground."
    grid, made = image.odc.geobox, []
    coarse = GeoBox((grid.shape.y // 2, grid.shape.x // 2), grid.affine * Affine.scale(2), grid.crs)
    for k in range(3):
        hrefs = {}
        for name, values, where in [*zip(sensors.BANDS, image.values + np.uint16(k), [grid] * 4, strict=True), ("scl", np.full(coarse.shape.yx, 4, np.uint8), coarse)]:
            write_cog(folder / f"s2/{k}/{name}.tif", values, where, 0)
            hrefs[name] = f"https://sentinel-cogs.s3.us-west-2.amazonaws.com/s2/{k}/{name}.tif"
        scene = item(f"S2A_50RKU_2020070{k}", "sentinel-2-l2a", grid, dt.datetime(2020, 7, 1 + 3 * k, 2, 55, tzinfo=dt.UTC), hrefs,
                     **{"eo:cloud_cover": 5.0, "grid:code": "MGRS-50RKU", "s2:processing_baseline": "02.14"})
        scene.assets["scl"].extra_fields |= {"proj:shape": list(coarse.shape.yx), "proj:transform": list(coarse.affine)[:6]}
        made.append(scene)
    return made


@pytest.fixture(scope="module")
def peers(tmp_path_factory):
    "Servers that hold the simulated Wuhan as the real services would."
    folder = tmp_path_factory.mktemp("served")
    server, cat = Peers(folder).start(), Catalog.load()
    near = area_geobox((114.26, 30.56, 114.34, 30.64), 0.00026949458523585647, "EPSG:4326")
    metres = square_geobox(*PLACE, 6400, 10)
    degrees = area_geobox((114.26, 30.56, 114.34, 30.64), 1 / 12000, "EPSG:4326")
    for name, path in (("lab_gisa", "zenodo/GISA_v01_1972_2019_N35_E110.tif/content"), ("lab_glc_fcs30", "zenodo/GLC_FCS30_2020_E110N35.tif/content")):
        stored(folder, f"{path}.tif", cat.open(name, near)).rename(folder / path)
    records = {"5136330": "GISA_v01_1972_2019_N35_E110.tif", "4280923": "GLC_FCS30_2020_E110N35.tif"}
    for record, name in records.items():
        (folder / f"{record}.json").write_text(json.dumps({"files": [{"key": name, "size": (folder / "zenodo" / name / "content").stat().st_size}]}))
    stored(folder, "worldcover/ESA_WorldCover_10m_2020_v100_N30E114_Map.tif", cat.open("lab_esa", degrees))
    esri = cat.open("lab_esri", metres)
    stored(folder, "esri/lc2020/50R_20200101-20210101.tif", esri.copy(data=np.where(np.isin(esri.values, (3, 6)), 11, esri.values).astype(np.uint8)))  # grass and scrub are rangeland in the annual maps
    geofabrik(folder, cat.open("lab_osm", metres))
    globe = GeoBox.from_bbox((100, 20, 125, 40), "EPSG:4326", resolution=1 / 6)
    rain = cat.open("lab_precipitation", globe)
    write_cog(folder / "chelsa.tif", (rain.fillna(0).values * 10).round().astype(np.uint16), globe, 0)
    regions = cat.open("lab_ecoregions", globe)
    regions.cx[105:120, 25:36].to_file(folder / "Ecoregions2017.shp")
    with zipfile.ZipFile(folder / "Ecoregions2017.zip", "w") as z:
        for f in folder.glob("Ecoregions2017.*"):
            if f.suffix != ".zip":
                z.write(f, f.name)
    image = at(cat, YEAR).open("lab_s2", metres)
    server.serve(scenes(folder, image))
    answer = [{"lon": str(PLACE[0]), "lat": str(PLACE[1]), "display_name": "Wuhan, Hubei, China"}]
    (folder / "places.json").write_text(json.dumps(answer))
    (folder / "nowhere.json").write_text("[]")
    yield server
    server.stop()


@pytest.fixture
def here(peers, tmp_path, monkeypatch):
    "A fresh cache, and the addresses of the services led to the loopback."
    files = f"{peers.url}/files"
    addresses = {"https://zenodo.org/api/records/5136330/files/": f"{files}/zenodo/", "https://zenodo.org/api/records/4280923/files/": f"{files}/zenodo/",
                 "https://zenodo.org/api/records/5136330": f"{files}/5136330.json", "https://zenodo.org/api/records/4280923": f"{files}/4280923.json",
                 "https://esa-worldcover.s3.eu-central-1.amazonaws.com/v100/2020/map": f"{files}/worldcover", "https://lulctimeseries.blob.core.windows.net/lulctimeseriesv003": f"{files}/esri",
                 "https://download.geofabrik.de/asia/china": files, "https://download.geofabrik.de": files, "https://os.unil.cloud.switch.ch/chelsa02/chelsa/global/bioclim/bio12/1981-2010/CHELSA_bio12_1981-2010_V.2.1.tif": f"{files}/chelsa.tif",
                 "https://storage.googleapis.com/teow2016": files, "https://earth-search.aws.element84.com/v1": peers.url, "https://sentinel-cogs.s3.us-west-2.amazonaws.com": files,
                 "https://nominatim.openstreetmap.org/search?format=jsonv2&limit=1&accept-language=en&q=Wuhan": f"{files}/places.json?q=Wuhan",
                 "https://nominatim.openstreetmap.org/search?format=jsonv2&limit=1&accept-language=en&q=Nowhere": f"{files}/nowhere.json?q=Nowhere"}
    monkeypatch.setenv("ISA_ENDPOINTS", json.dumps(addresses))
    monkeypatch.setenv("ISA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("ISA_TIMEOUT", "5")
    monkeypatch.delenv("ISA_OFFLINE", raising=False)
    mine = tmp_path / "simulated.yaml"  # what these servers hold is simulated, and results must say so
    names = ["gisa_2019", "glc_fcs30_2020", "esa_worldcover_2020", "esri_annual", "geofabrik", "sentinel2_l2a", "chelsa_bio12", "ecoregions_resolve_2017"]
    mine.write_text(yaml.safe_dump({"sources": {n: {"simulated": True} for n in names}}))
    peers.forget()
    _client.cache_clear()
    return tmp_path


ALL = "gisa_2019,glc_fcs30_2020,esa_worldcover,esri_annual,geofabrik,sentinel2_l2a,chelsa_bio12,ecoregions_resolve_2017"


def isa(*words: str) -> tuple[int, str, str]:
    "Exit code, output and errors."
    done = CliRunner().invoke(cli.app, list(words), env={"COLUMNS": "200", "TERM": "dumb"})
    return done.exit_code, done.stdout, done.stderr


def fetch(here: Path, *words: str, products: str = ALL) -> tuple[int, str, str]:
    return isa("fetch", "--bbox", BOX, "--name", "wuhan_now", "--products", products, "--catalog", str(here / "simulated.yaml"), "--out", str(here / "out"), *words)


def test_from_a_box_to_zone_labels_model_and_map(here, peers):
    code, out, err = fetch(here)
    assert code == 0, err
    assert "zone W4" in out and "(simulated)" in out and "isa run --catalog" in out and "CC-BY-4.0: name the authors" in out
    made = Catalog.load(overlay=here / "out/catalog.yaml")
    area = made.area("wuhan_now")
    assert (area.zone, area.resolution, area.experiments) == ("W4", 10, ["zoning", "osm", "labels", "samples", "model"]) and not made.zones
    assert area.sources.products == ["gisa_2019", "glc_fcs30_2020", "esa_worldcover_2020", "esri_annual"]
    page = (here / "out/LICENCES.md").read_text()
    assert all(made.source(n).citation in page for n in ("gisa_2019", "geofabrik", "sentinel2_l2a")) and "ODbL-1.0" in page
    with rasterio.open(here / "out/data/esri_annual_2020.tif") as f:
        assert f.tags()["licence"] == "CC-BY-4.0" and f.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
    grid = area.geobox(10)
    for name, served in (("esri_annual", "esri/lc2020/50R_20200101-20210101.tif"), ("gisa_2019", "zenodo/GISA_v01_1972_2019_N35_E110.tif/content")):
        assert (made.open(name, grid).values == open_raster(peers.folder / served, grid, fill=255).values).all(), "cut pixel for pixel"
    run = isa("run", "--profile", "smoke", "--experiments", "zoning,labels,samples,model", "--catalog", str(here / "out/catalog.yaml"), "--out", str(here / "run"))
    assert run[0] == 0, run[2]
    places = pd.read_csv(here / "run/zoning/tables/places.csv")
    assert places.zone.tolist() == ["W4"] and places.place.tolist() == ["wuhan_now"]
    scores = pd.read_csv(here / "run/labels/wuhan_now/tables/products.csv").set_index("product")
    assert scores.year.to_dict() == {"gisa_2019": 2019, "glc_fcs30_2020": 2020, "esa_worldcover_2020": 2020, "esri_annual": 2020} and (scores.valid_share > 0.9).all()
    with rasterio.open(here / "run/model/wuhan_now/data/map_network_seed_0.tif") as f:
        assert f.crs == area.geobox().crs and set(np.unique(f.read(1))) <= {0, 1, 255}
    manifest, report = json.loads((here / "run/manifest.json").read_text()), (here / "run/index.html").read_text()
    said = {s["source"]: s for s in manifest["sources"]}
    assert said["gisa_2019"]["licence"] == "CC-BY-4.0" and said["gisa_2019"]["year"] == 2019 and said["geofabrik"]["roles"] == ["osm"]
    assert "Data, licences and citations" in report and "ODbL-1.0: say © OpenStreetMap contributors" in report and "Huang X., Li J., Yang J. et al. 2021" in report
    ledger = json.loads(pd.read_parquet(here / "run/samples/wuhan_now/data/chips/samples.parquet").sources.iloc[0])
    assert {(r["name"], r["year"], r["licence"]) for r in ledger} >= {("gisa_2019", 2019, "CC-BY-4.0"), ("sentinel2_l2a", 2020, "copernicus"), ("geofabrik", 2020, "ODbL-1.0")}
    asked = len(peers.asked)
    code, out, err = fetch(here, "--offline")
    assert code == 0 and "0 fetched, 8 kept, 0 failed" in out and len(peers.asked) == asked, "what is in the folder needs no network"


FEW = "gisa_2019,esri_annual"


def assert_one_line(result: tuple[int, str, str], code: int, *words: str) -> None:
    assert result[0] == code, result
    assert len(result[2].strip().splitlines()) == 1 and "Traceback" not in result[2], result[2]
    for word in words:
        assert word in result[2], result[2]


def test_a_dry_run_plans_and_fetches_nothing(here, peers):
    code, out, err = fetch(here, "--dry-run", "--years", "2010,2020", products="gisa_2019,esa_worldcover")
    assert code == 0, err
    lines = {line.split()[0]: line.split() for line in out.splitlines() if line.split()}
    assert "to come over the network" in out and "what to cite" in out and not (here / "out").exists() and not list((here / "cache").glob("g*"))
    rows = [line.split()[:5] for line in out.splitlines() if line.split()[:1] == ["gisa_2019"]]
    assert rows == [["gisa_2019", "products", "2010", "2010", "0"]], "a map of first years serves all"
    assert lines["esa_worldcover_2020"][2:5] == ["2010", "2020", "10"], "one file for both years"
    assert not any("content" in a and a.startswith("GET") for a in peers.asked)


def test_never_more_than_a_stated_size(here, peers):
    assert_one_line(fetch(here, "--max-size", "0.000001", products=FEW), 2, "more than the 1e-06 GB allowed", "--max-size")
    assert_one_line(fetch(here, "--max-size", "0", products=FEW), 2, "--max-size 0: give a size in GB above 0")
    name = "GISA_v01_1972_2019_N35_E110.tif"
    record = peers.folder / "5136330.json"
    kept = record.read_text()
    record.write_text(json.dumps({"files": [{"key": name}]}))  # a service that does not say how large its files are
    try:
        code, out, err = fetch(here, "--max-size", "0.000001", products="gisa_2019")
    finally:
        record.write_text(kept)
    assert code == 1 and "unknown" in out and "because a service does not say how large its files are" in err and not (here / "out/catalog.yaml").exists()


def renamed(monkeypatch, peers, address, folder):
    "Files under another address: GDAL remembers what it has read of the first."
    monkeypatch.setenv("ISA_ENDPOINTS", json.dumps(json.loads(os.environ["ISA_ENDPOINTS"]) | {address: f"{peers.url}/files/{folder}~{uuid.uuid4().hex}"}))


def test_windows_never_bring_more_than_a_stated_size(here, peers, monkeypatch):
    "The plan's estimate is within the limit, the blocks of the file are not: one line, the rest is made, and with more the same command goes on from there."
    renamed(monkeypatch, peers, "https://esa-worldcover.s3.eu-central-1.amazonaws.com/v100/2020/map", "worldcover")
    code, out, err = fetch(here, "--max-size", "0.0015", products="gisa_2019,esa_worldcover")
    assert (code, len(err.splitlines())) == (1, 1) and "1 fetched, 0 kept, 1 failed" in out
    assert "isa fetch: esa_worldcover_2020: the next window of a remote file may bring " in err and "of the 0.0015 GB allowed have come in: allow more with --max-size; what is here is kept" in err
    assert 0 < sum(v for k, v in peers.sent.items() if "/files/" in k) <= 1.5e6
    code, out, err = fetch(here, products="gisa_2019,esa_worldcover")
    assert (code, err) == (0, "") and "1 fetched, 1 kept, 0 failed" in out


def test_windows_wait_for_each_other_where_little_is_allowed(here, peers, monkeypatch):
    "Fifteen windows of three scenes, each of which may bring 3.7 MB, where 11.5 are allowed: three at a time, and less than that comes in."
    renamed(monkeypatch, peers, "https://sentinel-cogs.s3.us-west-2.amazonaws.com/s2", "s2")
    code, out, err = fetch(here, "--max-size", "0.0115", products="sentinel2_l2a")
    assert (code, err) == (0, "") and "1 fetched" in out
    assert 1e5 < sum(v for k, v in peers.sent.items() if "/s2~" in k) <= 11.5e6


@pytest.mark.parametrize(("words", "code", "message"), [
    (["--bbox", "1,2,3"], 2, "write it as W,S,E,N in degrees"),
    (["--bbox=-190,0,10,10"], 2, "leaves the Earth"),
    (["--bbox", "179,-17,-179,-16"], 2, "crosses the antimeridian"),
    (["--bbox", "10,88,12,89"], 2, "reaches beyond what UTM covers (80 S to 84 N): ask for a box between them"),
    (["--bbox", "0,80,10,89"], 2, "beyond what UTM covers"),
    (["--bbox", "10,20,5,30"], 2, "is empty"),
    (["Wuhan", "--bbox", "1,2,3,4"], 2, "only one of them"),
    ([], 2, "say which place is meant"),
    (["Nowhere"], 2, "no place is called 'Nowhere': correct it, add the country, or give --bbox"),
    (["none.geojson"], 2, "no such file: none.geojson"),
    (["Atlantis", "--offline"], 2, "ISA_OFFLINE"),
    (["wuhan", "--products", "esa_worldcove"], 2, "did you mean 'esa_worldcover_20"),
    (["wuhan", "--products", ","], 2, "--products names no source"),
    (["wuhan", "--years", "now"], 2, "--years 'now': write years with commas"),
    (["wuhan", "--years", "20"], 2, "give years from 1950 to 2100"),
    (["wuhan", "--size", "-3"], 2, "--size -3"),
    (["wuhan", "--name", "My Town"], 2, "--name 'My Town': write small letters, digits and _"),
    (["wuhan", "--catalog", "none.yaml"], 2, "no such catalogue: none.yaml"),
    (["wuhan", "--products", "gisa_2019", "--workers", "0"], 2, "--workers 0: 0 workers can do nothing: give 1 or more"),
    (["wuhan", "--products", "gisa_2019", "--max-size", "nan"], 2, "--max-size nan: give a size in GB above 0"),
    (["wuhan", "--products", "gisa_2019", "--out", "../simulated.yaml"], 2, "simulated.yaml is a file: choose a folder as --out"),
    (["wuhan", "--products", "gisa_2019", "--out", ".."], 2, ".. is not empty and was not made by isa fetch: choose another --out"),
])
def test_a_wrong_request_is_one_line_and_leaves_nothing(here, peers, monkeypatch, words, code, message):
    work = here / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    said = isa("fetch", *words)
    assert_one_line(said, code, "isa fetch: ", message)
    assert not list(work.iterdir()) and not said[1] and not [a for a in peers.asked if "5136330" in a], "told before anything is planned"


def test_what_cannot_be_fetched_is_told_and_the_rest_is_made(here, peers):
    peers.fail("/content", *[(404, {})] * 20)
    code, out, err = fetch(here, products="gisa_2019,esri_annual,globeland30_2020,lab_esa")
    assert code == 1 and "1 fetched, 0 kept, 3 failed" in out
    lines = {line.split(": ")[1]: line for line in err.strip().splitlines()}
    assert "does not exist on the server (404)" in lines["gisa_2019"] and "registered users only" in lines["globeland30_2020_2020"] and "simulated already" in lines["lab_esa"]
    peers.forget()
    code, out, err = fetch(here, products=FEW)
    assert (code, err) == (0, "") and "1 fetched, 1 kept, 0 failed" in out


def test_places_by_name_and_by_file(here):
    shape = here / "district.geojson"
    gpd.GeoDataFrame(geometry=[area_geobox((114.28, 30.58, 114.31, 30.61), 10).extent.geom], crs=32650).to_crs(4326).to_file(shape)
    for place, key in ((str(shape), "district"), ("Wuhan", "wuhan")):
        code, out, err = isa("fetch", place, "--products", "esri_annual", "--size", "2", "--out", str(here / key))
        assert code == 0, err
        area = Catalog.load(overlay=here / key / "catalog.yaml").area(key)
        assert abs(area.centre[0] - 114.3) < 0.01 and area.zone is None and "no zone" in out and area.experiments == ["zoning", "osm"]
    assert "© OpenStreetMap contributors" in (here / "wuhan/LICENCES.md").read_text()
    assert isa("fetch", "Wuhan", "--products", "esri_annual", "--size", "2", "--out", str(here / "wuhan"), "--offline")[0] == 0, "the answer of the geocoder is kept"


CODE = "from isa_nb.cli import app; app()"


def test_a_killed_fetch_goes_on_and_two_share_a_cache(here, peers):
    words = [sys.executable, "-c", CODE, "fetch", "--bbox", BOX, "--products", "gisa_2019", "--catalog", str(here / "simulated.yaml"), "--out"]
    peers.fail("/content", *[(503, {"retry-after": "30"})])  # the first waits
    first = subprocess.Popen([*words, str(here / "a")], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    until = time.monotonic() + 40
    while not any(a.startswith("GET /files/zenodo") for a in peers.asked) and time.monotonic() < until:
        time.sleep(0.05)
    first.kill()
    first.communicate()
    assert not (here / "a/catalog.yaml").exists()
    peers.forget()
    second = subprocess.Popen([*words, str(here / "b")], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    code, _, err = isa(*words[3:], str(here / "a"))
    assert (code, err) == (0, "") and (second.communicate()[1], second.returncode) == ("", 0)
    assert len([a for a in peers.asked if a.startswith("GET /files/zenodo")]) == 1, "the second takes what the first has brought"
    one, two = (json.loads((here / n / "fetch.json").read_text())["files"]["gisa_2019"]["sha256"] for n in ("a", "b"))
    assert one == two


def test_a_folder_that_cannot_be_used(here):
    (here / "mine").mkdir()
    (here / "mine/thesis.txt").write_text("keep me")
    assert_one_line(isa("fetch", "--bbox", BOX, "--products", "esri_annual", "--out", str(here / "mine")), 2, "is not empty and was not made by isa fetch")
    assert_one_line(isa("fetch", "--bbox", BOX, "--products", "esri_annual", "--out", str(here / "mine/thesis.txt")), 2, "is a file: choose a folder as --out")
    assert_one_line(isa("fetch", "--bbox", BOX, "--products", "esri_annual", "--out", "/proc/none"), 2, "cannot write to /proc/none")


def test_a_full_disk_is_one_line(here, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")
    monkeypatch.setattr("isa_nb.cut.rasterio.open", full)
    code, out, err = fetch(here, products="esri_annual")
    assert code == 1 and len(err.strip().splitlines()) == 1 and "No space left on device" in err


def test_more_years_and_a_map_of_first_years(here):
    code, out, err = fetch(here, "--years", "2010,1995,2020", products="gisa_2019,geofabrik,esri_annual")
    assert code == 1 and [line.split(": ")[1] for line in err.splitlines()] == ["geofabrik_2017", "esri_annual_2017"], "there are no files of these years"
    cat = Catalog.load(overlay=here / "out/catalog.yaml")
    grid = cat.area("wuhan_now").geobox(30)
    shares = [float((at(cat, y).source("gisa_2019").to_isa(at(cat, y).open("gisa_2019", grid)) == 1).mean()) for y in (1995, 2010)]
    assert 0 < shares[0] < shares[1] and sorted(p.name for p in (here / "out/data").iterdir()) == ["esri_annual_2020.tif", "geofabrik_2020.gpkg", "gisa_2019.tif"]


@pytest.mark.live
def test_live_plan_of_a_city(tmp_path, monkeypatch):
    monkeypatch.setenv("ISA_CACHE", str(tmp_path))
    code, out, err = isa("fetch", "Lyon, France", "--dry-run")
    assert (code, err) == (0, "") and out.startswith("Lyon (lyon), 4.7")


def test_interrupted_ends_with_130(here, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt
    monkeypatch.setattr("isa_nb.fetched.remote.download", interrupted)
    assert_one_line(fetch(here, products="gisa_2019"), 130, "isa fetch: interrupted; what is finished stays")
