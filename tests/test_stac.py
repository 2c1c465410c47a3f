"""STAC items: maps of other origin and other grids, licences, links, and what cannot be described."""
import json
import shutil

import geopandas as gpd
import numpy as np
import pystac
import pytest
import rasterio
import torch
from affine import Affine
from odc.geo.geobox import GeoBox
from shapely.geometry import Point, box

from isa_nb import stac
from isa_nb.core import DataError, RequestError, raster, square_geobox
from isa_nb.mapping import map_raster


def as_map(folder, grid, name="map", **attrs):
    "A map of two classes of an image that says this of itself."
    image = raster(np.random.default_rng(0).integers(1, 999, (1, *grid.shape.yx)).astype(np.uint16), grid, "image", nodata=0, **attrs)
    return map_raster(lambda x: torch.cat([x, 500 - x], 1), image, folder / f"{name}.tif", tile=64, overlap=16)


GRID = square_geobox(114.3, 30.6, 960, 10)


def test_times_and_licences(tmp_path):
    path = as_map(tmp_path, GRID)
    with pytest.raises(RequestError, match="map.tif does not say of which year its imagery is: give `when`"):
        stac.map_item(path)
    item = stac.map_item(path, "2021-02")
    assert (item.properties["license"], item.properties["isa_nb:simulated"]) == ("other", False)
    assert item.properties["start_datetime"] == "2021-02-01T00:00:00Z" and item.properties["end_datetime"] == "2021-02-28T23:59:59Z" and item.datetime is None
    assert stac.map_item(path, 2021, licence="CC-BY-4.0").properties["license"] == "CC-BY-4.0"
    secret = as_map(tmp_path, GRID, "secret", source="x", year=2019, licence="restricted", simulated="yes")
    item = stac.map_item(secret)
    assert item.properties["license"] == "other" and item.properties["isa_nb:licences"] == ["restricted"] and "(simulated)" in item.properties["title"]
    assert item.properties["start_datetime"].startswith("2019")
    stac.write_item(item, stac.item_path(secret))
    with pytest.raises(DataError, match="is no valid STAC item"):
        stac.map_item(path, 2021, licence="our own, ask us") and stac.write_item(stac.map_item(path, 2021, licence="our own, ask us"), tmp_path / "x.json")
    assert not (tmp_path / "x.json").exists()


def test_other_grids(tmp_path):
    "A grid in degrees, and a CRS without a code."
    item = stac.map_item(as_map(tmp_path, GeoBox((80, 90), Affine(0.001, 0, 110, 0, -0.001, 60), "EPSG:4326"), "degrees"), 2020)
    assert item.properties["proj:code"] == "EPSG:4326" and item.bbox == pytest.approx([110, 59.92, 110.09, 60])
    assert "spatial_resolution" not in item.assets["map"].extra_fields["raster:bands"][0]
    own = GeoBox((80, 90), Affine(10, 0, 0, 0, -10, 0), "+proj=laea +lat_0=30 +lon_0=110 +datum=WGS84 +units=m")
    item = stac.map_item(as_map(tmp_path, own, "own"), 2020)
    assert item.properties.get("proj:code") is None and "Lambert" in item.properties["proj:wkt2"]
    stac.check_item(item)


def test_moves_as_a_whole(tmp_path):
    path = as_map(tmp_path / "here", GRID, source="x", year=2020)
    stac.write_item(stac.map_item(path, model=tmp_path / "model"), stac.item_path(path))
    shutil.move(tmp_path / "here", tmp_path / "there")
    item = pystac.Item.from_file(tmp_path / "there" / "map.json")
    assert rasterio.open(item.assets["map"].get_absolute_href()).shape == (96, 96) and rasterio.open(item.assets["probability"].get_absolute_href()).shape == (96, 96)
    assert [link["href"] for link in item.to_dict(transform_hrefs=False)["links"] if link["rel"] == "derived_from"] == ["../model/item.json"]
    assert str(tmp_path) not in (tmp_path / "there" / "map.json").read_text()


def test_no_map(tmp_path):
    with rasterio.open(tmp_path / "plain.tif", "w", driver="GTiff", width=4, height=4, count=1, dtype="uint8", crs="EPSG:32650", transform=Affine(1, 0, 0, 0, -1, 0)) as f:
        f.write(np.zeros((1, 4, 4), np.uint8))
    (tmp_path / "text.tif").write_text("no raster")
    for name in ("plain.tif", "text.tif", "none.tif"):
        with pytest.raises(DataError, match="is no map with the meaning of its codes in it: give a file that `isa map` has made"):
            stac.map_item(tmp_path / name, 2020)
    with pytest.raises(DataError, match="is no model folder"):
        stac.model_item(tmp_path, 2020)


def test_tiles_share_no_pixel(tmp_path):
    "Neighbours in another CRS: each pixel in one tile, none lost; a tile that only touches the map is not made."
    path, b = as_map(tmp_path, GRID, source="x", year=2020), GRID.boundingbox
    parts = gpd.GeoDataFrame({"name": ["a", "b", "b", "beside"]}, crs=str(GRID.crs), geometry=[
        box(b.left, b.bottom, b.left + 333, b.top), box(b.left + 333, b.bottom, b.right, b.bottom + 500), Point(b.right, b.top).buffer(200), box(b.right, b.bottom, b.right + 50, b.top)])
    tiles = stac.cut_tiles(path, parts.to_crs("EPSG:3857"), "name", tmp_path / "tiles")
    assert [t.stem for t in tiles] == ["a", "b"]
    count = np.zeros((96, 96), int)
    for t in tiles:
        with rasterio.open(t) as f, rasterio.open(path) as whole:
            col, row = (round(v) for v in ~whole.transform * (f.bounds.left, f.bounds.top))
            values, here = f.read(1), (slice(row, row + f.height), slice(col, col + f.width))
            count[here] += values != 255
            np.testing.assert_array_equal(values[values != 255], whole.read(1)[here][values != 255])
            assert f.tags()["tile"] == t.stem
    assert count.max() == 1 and count[:, :33].all() and count[46:, 33:].all() and count[0, -1] and not count[:20, 40:60].any()
    listed = json.loads((tmp_path / "tiles" / "catalog.json").read_text())
    assert sorted(link["href"] for link in listed["links"] if link["rel"] == "item") == ["a.json", "b.json"]
    with pytest.raises(RequestError, match="the polygons have no column 'city'"):
        stac.cut_tiles(path, parts, "city", tmp_path)
