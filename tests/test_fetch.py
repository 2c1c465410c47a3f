"""`isa fetch` and `isa run` on what it has brought: the catalogue's own entries and client code, led to servers on the loopback that hold files of the simulated world."""
import datetime as dt
import json
import os
import shutil
import subprocess
import sys
import time
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
from isa_nb.lab import sensors
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
    stored(folder, "esri/lc2020/50R_20200101-20210101.tif", cat.open("lab_esri", metres))
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
                 "https://storage.googleapis.com/teow2016": files, "https://earth-search.aws.element84.com/v1": f"{peers.url}/stac", "https://sentinel-cogs.s3.us-west-2.amazonaws.com": files,
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
    return tmp_path


ALL = "gisa_2019,glc_fcs30_2020,esa_worldcover,esri_annual,geofabrik,sentinel2_l2a,chelsa_bio12,ecoregions_resolve_2017"


def isa(*words: str) -> tuple[int, str, str]:
    "Exit code, output and errors."
    done = CliRunner().invoke(cli.app, list(words), env={"COLUMNS": "200", "TERM": "dumb"})
    return done.exit_code, done.stdout, done.stderr


def fetch(here: Path, *words: str, products: str = ALL) -> tuple[int, str, str]:
    return isa("fetch", "--bbox", BOX, "--name", "wuhan_now", "--products", products, "--catalog", str(here / "simulated.yaml"), "--out", str(here / "out"), *words)


def test_from_a_box_to_zone_and_labels(here):
    code, out, err = fetch(here)
    assert code == 0, err
    assert "zone W4" in out and "(simulated)" in out and "isa run --catalog" in out and "CC-BY-4.0: name the authors" in out
    made = Catalog.load(overlay=here / "out/catalog.yaml")
    area = made.area("wuhan_now")
    assert (area.zone, area.resolution, area.experiments) == ("W4", 10, ["osm", "labels", "samples", "model"]) and not made.zones
    assert area.sources.products == ["gisa_2019", "glc_fcs30_2020", "esa_worldcover_2020", "esri_annual"]
    page = (here / "out/LICENCES.md").read_text()
    assert all(made.source(n).citation in page for n in ("gisa_2019", "geofabrik", "sentinel2_l2a")) and "ODbL-1.0" in page
    with rasterio.open(here / "out/data/esri_annual_2020.tif") as f:
        assert f.tags()["licence"] == "CC-BY-4.0" and f.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
    world, grid = Catalog.load(), area.geobox(10)
    assert (made.open("esri_annual", grid).values == world.open("lab_esri", square_geobox(*PLACE, 6400, 10)).sel(x=made.open("esri_annual", grid).x, y=made.open("esri_annual", grid).y, method="nearest").values).all()
    run = isa("run", "--profile", "smoke", "--experiments", "zoning,labels", "--catalog", str(here / "out/catalog.yaml"), "--out", str(here / "run"))
    assert run[0] == 0, run[2]
    places = pd.read_csv(here / "run/zoning/tables/places.csv")
    assert places.zone.tolist() == ["W4"] and places.place.tolist() == ["wuhan_now"]
    scores = pd.read_csv(here / "run/labels/wuhan_now/tables/products.csv").set_index("product")
    assert scores.year.to_dict() == {"gisa_2019": 2019, "glc_fcs30_2020": 2020, "esa_worldcover_2020": 2020, "esri_annual": 2020} and (scores.valid_share > 0.9).all()
    manifest, report = json.loads((here / "run/manifest.json").read_text()), (here / "run/index.html").read_text()
    said = {s["source"]: s for s in manifest["sources"]}
    assert said["gisa_2019"]["licence"] == "CC-BY-4.0" and said["gisa_2019"]["year"] == 2019 and said["geofabrik"]["roles"] == ["osm"]
    assert "Data, licences and citations" in report and "ODbL-1.0: say © OpenStreetMap contributors" in report and "Huang X., Li J., Yang J. et al. 2021" in report
