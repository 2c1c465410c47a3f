"Reading files onto a grid: every format, every fault, real files."
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import geopandas as gpd
import numpy as np
import pytest
import rasterio
from affine import Affine
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox
from shapely.geometry import LineString, MultiPolygon, Point, Polygon, box

from isa_nb.core import DataError, RequestError, area_geobox, raster, same_grid, square_geobox
from isa_nb.drivers import (DRIVERS, Request, align, check_resampling, files, is_osm, open_raster, open_vector, osm_table, to_grid)

DATA = Path(__file__).parents[1] / "../shared/data"
real = pytest.mark.skipif(not DATA.exists(), reason="the real files of ../shared/data are not here")
GRID = square_geobox(116.4, 39.9, 6000, 30)  # 200 x 200 at 30 m, UTM 50
STEP = 0.0005


def tiff(path, values, transform=None, crs="EPSG:4326", nodata=None, **kw):
    values = values if values.ndim == 3 else values[None]
    transform = transform or Affine(STEP, 0, 116.3, 0, -STEP, 40.0)
    with rasterio.open(path, "w", driver=kw.pop("driver", "GTiff"), width=values.shape[2], height=values.shape[1], count=values.shape[0],
                       dtype=values.dtype, crs=crs, transform=transform, nodata=nodata, **kw) as d:
        d.write(values)
    return path


def codes(shape=(400, 400), seed=0, high=5):
    return np.random.default_rng(seed).integers(0, high, shape).astype(np.uint8)


def line(e):
    "The message, which must be one line."
    text = str(e.value)
    assert "\n" not in text and len(text) < 600
    return text


# ---- formats

def test_geotiff_vrt_and_bil_agree(tmp_path):
    values = codes()
    a = open_raster(tiff(tmp_path / "a.tif", values, nodata=255), GRID)
    with rasterio.open(tmp_path / "a.tif") as src:
        rasterio.shutil.copy(src, tmp_path / "a.vrt", driver="VRT")
    b = open_raster(tmp_path / "a.vrt", GRID)
    tiff(tmp_path / "a.bil", values, driver="EHdr", nodata=255)
    for extra in ("a.prj", "a.bil.aux.xml"):
        (tmp_path / extra).unlink(missing_ok=True)
    with pytest.raises(DataError, match="has no CRS: state `crs` in the catalogue entry"):
        open_raster(tmp_path / "a.bil", GRID)
    c = open_raster(tmp_path / "a.bil", GRID, crs="EPSG:4326", nodata=255)
    assert (a.values == b.values).all() and (a.values == c.values).all()
    same_grid(a, GRID)


def test_bands(tmp_path):
    values = np.stack([codes(seed=i) for i in range(3)])
    path = tiff(tmp_path / "a.tif", values, nodata=255)
    assert open_raster(path, GRID).dims == ("band", "y", "x")
    one = open_raster(path, GRID, band=2)
    assert one.dims == ("y", "x") and (one.values == open_raster(path, GRID).values[1]).all()
    assert (open_raster(path, GRID, band=[3, 1]).values == open_raster(path, GRID).values[[2, 0]]).all()
    with pytest.raises(RequestError, match="has no band 4: it has bands 1 to 3"):
        open_raster(path, GRID, band=4)
    with pytest.raises(DataError, match="3 bands where one layer of classes is due"):
        open_raster(path, GRID, classes=True)


def test_own_grid_is_the_file(tmp_path):
    values = codes((40, 30))
    got = open_raster(tiff(tmp_path / "a.tif", values), None)
    assert (got.values == values).all() and got.rio.nodata is None and got.odc.geobox.crs == "EPSG:4326"


@pytest.mark.parametrize("transform", [Affine(30, 0, 440000, 0, 30, 4410000), Affine(30, 4, 440000, 4, -30, 4422000)], ids=["south up", "rotated"])
def test_odd_orientation(tmp_path, transform):
    values = codes((300, 300))
    got = open_raster(tiff(tmp_path / "a.tif", values, transform, "EPSG:32650", nodata=255), GRID)
    y, x = np.indices((200, 200)) + 0.5
    col, row = (np.floor(v).astype(int) for v in ~transform * (GRID.affine * (x, y)))
    inside = (col >= 0) & (row >= 0) & (col < 300) & (row < 300)
    want = np.where(inside, values[row.clip(0, 299), col.clip(0, 299)], 255)
    assert (got.values == want).mean() > 0.998  # pixel centres that fall on an edge may go either way


# ---- mosaics

def test_tiles_equal_the_whole(tmp_path):
    values = codes((400, 600))
    whole = tiff(tmp_path / "whole.tif", values, nodata=255)
    t = Affine(STEP, 0, 116.3, 0, -STEP, 40.0)
    paths = [tiff(tmp_path / f"t_{r}_{c}.tif", values[r:r + 200, c:c + 150].copy(), t * Affine.translation(c, r), nodata=255) for r in (0, 200) for c in range(0, 600, 150)]
    for how in ("nearest", "bilinear", "average"):
        grid = GRID if how != "average" else square_geobox(116.4, 39.9, 12_000, 200)
        assert (open_raster(paths, grid, how).values == open_raster(whole, grid, how).values).all()
    assert (open_raster(str(tmp_path / "t_*.tif"), GRID).values == open_raster(whole, GRID).values).all()
    assert (open_raster(paths, None).values == values).all()


def test_overlapping_tiles_first_wins_and_gaps_are_filled(tmp_path):
    a, b = np.full((50, 50), 1, np.uint8), np.full((50, 50), 2, np.uint8)
    a[:, 40:] = 255
    t = Affine(30, 0, GRID.affine.c, 0, -30, GRID.affine.f)
    paths = [tiff(tmp_path / "a.tif", a, t, "EPSG:32650", 255), tiff(tmp_path / "b.tif", b, t * Affine.translation(20, 0), "EPSG:32650", 255)]
    got = open_raster(paths, GRID).values
    assert got[0, [0, 25, 39, 40, 69, 70]].tolist() == [1, 1, 1, 2, 2, 255]
    assert open_raster(paths[::-1], GRID).values[0, 25] == 2


def test_tiles_of_two_utm_zones(tmp_path):
    grid = square_geobox(114.0, 30.6, 6000, 30, "EPSG:32650")
    paths = []
    for zone, value in ((49, 1), (50, 2)):
        b = grid.extent.to_crs(f"EPSG:326{zone}").boundingbox
        mid = (b.left + b.right) / 2
        left, right = (b.left - 500, mid) if zone == 49 else (mid, b.right + 500)
        n = int((right - left) // 30) + 1, int((b.top - b.bottom + 1000) // 30)
        paths.append(tiff(tmp_path / f"{zone}.tif", np.full(n[::-1], value, np.uint8), Affine(30, 0, left, 0, -30, b.top + 500), f"EPSG:326{zone}", 255))
    got = open_raster(paths, grid)
    assert {1, 2} <= set(np.unique(got)) <= {1, 2, 255} and got.values[100, 2] == 1 and got.values[100, -2] == 2
    with pytest.raises(RequestError, match="2 different grids: ask for an area or a GeoBox"):
        open_raster(paths, None)


def test_tiles_of_two_products_are_refused(tmp_path):
    paths = [tiff(tmp_path / "a.tif", codes()), tiff(tmp_path / "b.tif", codes().astype("int16"))]
    with pytest.raises(DataError, match="are not tiles of one product"):
        open_raster(paths, GRID)


@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(r=st.integers(0, 150), c=st.integers(0, 150), h=st.integers(1, 50), w=st.integers(1, 50))
def test_a_window_is_a_part_of_the_whole(tmp_path, r, c, h, w):
    path = tmp_path / "a.tif"
    if not path.exists():
        tiff(path, codes((500, 500)), nodata=255)
    differ = open_raster(path, GRID[r:r + h, c:c + w]).values != open_raster(path, GRID).values[r:r + h, c:c + w]
    assert differ.sum() <= 2 + 0.002 * h * w  # pixels whose centre lies within a thousandth of an edge


def test_memory_is_that_of_the_window(tmp_path):
    path = tmp_path / "big.tif"
    with rasterio.open(path, "w", driver="GTiff", width=16_000, height=16_000, count=1, dtype="uint8", crs="EPSG:32650", nodata=255,
                       transform=Affine(30, 0, 200_000, 0, -30, 4_600_000), tiled=True, blockxsize=512, blockysize=512, compress="zstd", zstd_level=1) as d:
        row = np.tile(np.arange(16_000) // 64 % 3, (512, 1)).astype(np.uint8)
        for r in range(0, 16_000, 512):
            d.write(row[:min(512, 16_000 - r)], 1, window=((r, min(r + 512, 16_000)), (0, 16_000)))
    code = f"""
import resource
from isa_nb.core import square_geobox
from isa_nb.drivers import open_raster
grid = square_geobox(116.4, 39.9, 9000, 30)
open_raster({str(path)!r}, grid[:20, :20])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
open_raster({str(path)!r}, grid)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    env = {**os.environ, "GDAL_CACHEMAX": "32"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env)
    assert int(done.stdout.split()[-1]) < 100_000  # kB; the whole file is 256 MB


# ---- nodata and fill

def test_nodata_override(tmp_path):
    values = codes(high=4)
    values[100:300, 100:300] = 255
    path = tiff(tmp_path / "a.tif", values, nodata=255)
    t = Affine(STEP, 0, 116.3, 0, -STEP, 40.0)
    own = GeoBox((400, 400), t, "EPSG:4326")
    assert open_raster(path, own).rio.nodata == 255
    assert open_raster(path, own, nodata="none").rio.nodata is None
    assert (open_raster(path, own, nodata="none").values == values).all()
    assert open_raster(path, own, nodata=3).rio.nodata == 3
    mean = open_raster(path, GeoBox((40, 40), t * Affine.scale(10), "EPSG:4326"), "average", nodata="none").values
    assert mean[20, 20] == 255  # 255 is a value here
    with pytest.raises(DataError, match="nodata -9999 cannot occur in uint8 data"):
        open_raster(path, own, nodata=-9999)


def test_undeclared_nodata(tmp_path):
    path = tiff(tmp_path / "a.tif", codes())
    assert open_raster(path, GRID).rio.nodata is None  # the grid lies inside: none is needed
    beyond = square_geobox(116.3, 40.0, 6000, 30)
    with pytest.raises(DataError, match="declares no nodata and the asked grid reaches beyond it: state `nodata`"):
        open_raster(path, beyond)
    got = open_raster(path, beyond, fill=254)
    assert got.rio.nodata == 254 and (got.values == 254).any() and (got.values < 5).any()


def test_source_values_equal_to_fill_zero(tmp_path):
    path = tiff(tmp_path / "a.tif", np.zeros((400, 400), np.uint8))
    assert (open_raster(path, GRID).values == 0).all()


# ---- resampling

def test_auto_averages_down_and_interpolates_up(tmp_path):
    values = np.tile([0, 1000], (400, 200)).astype(np.uint16)
    path = tiff(tmp_path / "a.tif", values)
    t = Affine(STEP, 0, 116.3, 0, -STEP, 40.0)
    down = open_raster(path, GeoBox((40, 40), t * Affine.scale(10), "EPSG:4326"), "auto")
    assert (down.values == 500).all()
    up = open_raster(path, GeoBox((800, 800), t * Affine.scale(0.5), "EPSG:4326"), "auto")
    assert len(np.unique(up)) > 2
    assert set(np.unique(open_raster(path, GRID))) == {0, 1000}


def test_align_is_open(tmp_path):
    path = tiff(tmp_path / "a.tif", codes(), nodata=255)
    whole = open_raster(path, None)
    for how in ("nearest", "mode", "bilinear"):
        assert (align(whole, GRID, how).values == open_raster(path, GRID, how).values).mean() > 0.999
    assert align(whole, GRID).dtype == np.uint8 and align(whole.assign_attrs(title="x"), GRID).attrs["title"] == "x"
    image = raster(np.stack([whole.values] * 3), whole.odc.geobox, "image", nodata=255)
    assert align(image, GRID).shape == (3, 200, 200)
    with pytest.raises(DataError, match="does not overlap"):
        align(whole, square_geobox(10, 50, 1000, 10))
    with pytest.raises(DataError, match="declares no nodata"):
        align(raster(whole.values, whole.odc.geobox, "bare"), square_geobox(116.3, 40.0, 6000, 30))


def test_check_resampling():
    assert check_resampling("first_year", "mode") == "mode" and check_resampling("continuous", "cubic") == "cubic"
    with pytest.raises(RequestError, match="is continuous: use auto, nearest"):
        check_resampling("continuous", "mode", "rain")


# ---- faults of rasters

def test_missing_and_not_a_raster(tmp_path):
    with pytest.raises(DataError) as e:
        open_raster(tmp_path / "none.tif", GRID)
    assert "no such file" in line(e)
    with pytest.raises(DataError, match="no such file"):
        open_raster(tmp_path / "tile_*.tif", GRID)
    for name, content in (("text.tif", b"hello"), ("empty.tif", b""), ("page.tif", b"<html>404</html>")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError) as e:
            open_raster(tmp_path / name, GRID)
        assert "cannot be read as a raster" in line(e) and "give a GeoTIFF" in line(e)


def test_truncated_geotiff(tmp_path):
    path = tiff(tmp_path / "a.tif", np.random.default_rng(0).integers(0, 200, (400, 400)).astype(np.uint8), tiled=True, blockxsize=128, blockysize=128, compress="lzw")
    path.write_bytes(path.read_bytes()[:60_000])
    with pytest.raises(DataError) as e:
        open_raster(path, GRID)
    assert "truncated" in line(e) or "cannot be read as a raster" in line(e)


def test_half_written_geotiff(tmp_path):
    code = f"""
import os, numpy as np, rasterio
from affine import Affine
d = rasterio.open({str(tmp_path / 'a.tif')!r}, "w", driver="GTiff", width=2000, height=2000, count=1, dtype="uint8", crs="EPSG:4326", nodata=0,
                  transform=Affine({STEP}, 0, 116.3, 0, -{STEP}, 40.0), tiled=True)
for r in range(0, 1024, 256):
    d.write(np.ones((256, 2000), np.uint8), 1, window=((r, r + 256), (0, 2000)))
os._exit(9)
"""
    subprocess.run([sys.executable, "-c", code], check=False)
    with pytest.raises(DataError) as e:
        open_raster(tmp_path / "a.tif", GRID)
    assert "holds no data at all" in line(e) or "cannot be read" in line(e)


def test_truncated_bil(tmp_path):
    tiff(tmp_path / "a.bil", codes(), driver="EHdr")
    path = tmp_path / "a.bil"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(DataError, match="cannot be read|is truncated: 1000 bytes where its header promises 160000"):
        open_raster(path, GRID)


def test_vrt_without_its_file(tmp_path):
    with rasterio.open(tiff(tmp_path / "a.tif", codes(), nodata=255)) as src:
        rasterio.shutil.copy(src, tmp_path / "a.vrt", driver="VRT")
    (tmp_path / "a.tif").unlink()
    with pytest.raises(DataError) as e:
        open_raster(tmp_path / "a.vrt", GRID)
    line(e)


def test_crs_faults(tmp_path):
    bare = tiff(tmp_path / "bare.tif", codes(), crs=None)
    with pytest.raises(DataError, match="has no CRS: state `crs`"):
        open_raster(bare, GRID)
    assert open_raster(bare, GRID, crs="EPSG:4326").shape == (200, 200)
    utm = Affine(30, 0, 440_000, 0, -30, 4_430_000)
    wrong = tiff(tmp_path / "wrong.tif", codes(), utm, "EPSG:4326")
    with pytest.raises(DataError, match=r"says EPSG:4326 \(degrees\), but its coordinates reach from \(440000.*its CRS is wrong"):
        open_raster(wrong, GRID)
    assert open_raster(wrong, GRID, override_crs="EPSG:32650", fill=255).shape == (200, 200)
    degrees = tiff(tmp_path / "degrees.tif", codes(), crs="EPSG:32650")
    with pytest.raises(DataError, match="its coordinates look like degrees, so its CRS is probably wrong"):
        open_raster(degrees, GRID)
    with pytest.raises(DataError, match="has the CRS EPSG:32650 and the catalogue entry says EPSG:4326"):
        open_raster(degrees, GRID, crs="EPSG:4326")
    cgcs = tiff(tmp_path / "cgcs.tif", codes(), crs="EPSG:4490")  # CGCS2000 and WGS 84 differ by centimetres
    assert open_raster(cgcs, GRID, crs="EPSG:4326").shape == (200, 200)
    with rasterio.open(tmp_path / "plain.tif", "w", driver="GTiff", width=9, height=9, count=1, dtype="uint8", crs="EPSG:4326") as d:
        d.write(codes((1, 9, 9)))
    with pytest.raises(DataError, match="has no place on Earth"):
        open_raster(tmp_path / "plain.tif", GRID)


def test_outside_and_floats(tmp_path):
    path = tiff(tmp_path / "a.tif", codes(), nodata=255)
    with pytest.raises(DataError) as e:
        open_raster(path, square_geobox(-3.7, 40.4, 6000, 30))
    assert "does not overlap the asked grid" in line(e) and "choose an area inside it" in line(e)
    with pytest.raises(DataError, match="holds float32 values where class codes are due"):
        open_raster(tiff(tmp_path / "f.tif", codes().astype("float32")), GRID, classes=True)


def test_year_in_the_path(tmp_path):
    for y in (2019, 2020):
        tiff(tmp_path / f"isa_{y}.tif", np.full((400, 400), y - 2000, np.uint8))
    request = Request("isa", "classes", {"path": str(tmp_path / "isa_{year}.tif")}, GRID, 2020)
    assert (DRIVERS["file"](request).values == 20).all()
    with pytest.raises(RequestError, match="one file per year: say which year"):
        files(tmp_path / "isa_{year}.tif")
    stack = tiff(tmp_path / "stack.tif", np.stack([codes(), np.full((400, 400), 7, np.uint8)]))
    assert (DRIVERS["file"](Request("isa", "classes", {"path": str(stack), "bands": {2019: 1, 2020: 2}}, GRID, 2020)).values == 7).all()
    with pytest.raises(RequestError, match="has no band for the year 2018: it has 2019, 2020"):
        DRIVERS["file"](Request("isa", "classes", {"path": str(stack), "bands": {2019: 1, 2020: 2}}, GRID, 2018))


# ---- vectors

BLOCKS = gpd.GeoDataFrame({"kind": ["inside", "edge", "far"]}, crs="EPSG:4326", geometry=[
    box(116.39, 39.89, 116.40, 39.90), box(116.30, 39.89, 116.40, 39.895), box(10, 50, 11, 51)])


@pytest.mark.parametrize("name", ["a.shp", "a.gpkg", "a.geojson"])
def test_vector_formats(tmp_path, name):
    BLOCKS.to_file(tmp_path / name)
    got = open_vector(tmp_path / name, GRID)
    assert got.kind.tolist() == ["inside", "edge"] and got.crs == GRID.crs
    b = GRID.boundingbox
    assert got.total_bounds[0] >= b.left - 1e-6 and got.geometry.is_valid.all()
    assert len(open_vector(tmp_path / name)) == 3 and open_vector(tmp_path / name).crs.to_epsg() == 4326


def test_zipped_shapefile(tmp_path):
    BLOCKS.to_file(tmp_path / "a.shp")
    BLOCKS.iloc[:1].to_file(tmp_path / "b.shp")

    def pack(name, parts):
        with zipfile.ZipFile(tmp_path / name, "w") as z:
            for p in parts:
                z.write(tmp_path / p, f"in/{p}")
        return tmp_path / name

    four = [".shp", ".shx", ".dbf", ".prj"]
    assert len(open_vector(pack("a.zip", ["a" + e for e in four]), GRID)) == 2
    both = pack("both.zip", ["a" + e for e in four] + ["b" + e for e in four])
    with pytest.raises(RequestError, match=r"holds 2 layers: name one in access.options.layer \(a, b\)"):
        open_vector(both)
    assert len(open_vector(both, layer="b")) == 1
    with pytest.raises(DataError, match="is incomplete: in/a.shx is missing in it"):
        open_vector(pack("lost.zip", ["a.shp", "a.dbf", "a.prj"]))
    whole = both.read_bytes()
    (tmp_path / "cut.zip").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="is not a whole zip file"):
        open_vector(tmp_path / "cut.zip")
    (tmp_path / "readme.txt").write_text("x")
    with pytest.raises(DataError, match="holds no shapefile"):
        open_vector(pack("none.zip", ["readme.txt"]))


@pytest.mark.parametrize("part", [".shx", ".dbf"])
def test_shapefile_part_missing(tmp_path, part):
    BLOCKS.to_file(tmp_path / "a.shp")
    (tmp_path / f"a{part}").unlink()
    with pytest.raises(DataError) as e:
        open_vector(tmp_path / "a.shp", GRID)
    assert f"is incomplete: a{part} is missing; a shapefile needs .shp, .shx and .dbf together" in line(e)


def test_vector_crs(tmp_path):
    BLOCKS.to_file(tmp_path / "a.shp")
    (tmp_path / "a.prj").unlink()
    with pytest.raises(DataError, match="has no CRS"):
        open_vector(tmp_path / "a.shp", GRID)
    assert len(open_vector(tmp_path / "a.shp", GRID, crs="EPSG:4326")) == 2
    BLOCKS.to_crs(3857).set_crs(4326, allow_override=True).to_file(tmp_path / "w.gpkg")
    with pytest.raises(DataError, match="its CRS is wrong"):
        open_vector(tmp_path / "w.gpkg", GRID)
    with pytest.raises(DataError, match="the catalogue entry says EPSG:3857"):
        open_vector(tmp_path / "w.gpkg", GRID, crs="EPSG:3857")


def test_vector_faults(tmp_path):
    (tmp_path / "a.gpkg").write_text("no")
    (tmp_path / "a.geojson").write_text('{"type": "FeatureCollection", "features": [')
    for name in ("a.gpkg", "a.geojson"):
        with pytest.raises(DataError) as e:
            open_vector(tmp_path / name, GRID)
        assert "cannot be read as a vector file" in line(e)
    with pytest.raises(DataError, match="no such file"):
        open_vector(tmp_path / "none.gpkg")
    BLOCKS.iloc[2:].to_file(tmp_path / "far.gpkg")
    with pytest.raises(DataError, match="does not overlap the asked grid"):
        open_vector(tmp_path / "far.gpkg", GRID)
    with pytest.raises(RequestError, match="unknown column in far.gpkg 'name'"):
        open_vector(tmp_path / "far.gpkg", columns=["name"])
    (tmp_path / "t.csv").write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match="is a table without geometry"):
        open_vector(tmp_path / "t.csv")


def test_broken_geometry_is_repaired_or_dropped():
    bow = Polygon([(116.39, 39.89), (116.41, 39.91), (116.41, 39.89), (116.39, 39.91)])
    frame = gpd.GeoDataFrame({"k": range(4)}, crs="EPSG:4326", geometry=[bow, None, Polygon(), Point(116.4, 39.9)])
    got = to_grid(frame, GRID)
    assert got.k.tolist() == [0, 3] and got.geometry.is_valid.all() and (got.attrs["repaired"], got.attrs["dropped"]) == (1, 2)
    assert to_grid(frame.iloc[:0], GRID).crs == GRID.crs


def test_cutting_keeps_the_dimension():
    b = GRID.boundingbox
    touching = box(b.right, b.bottom, b.right + 100, b.top)  # shares an edge only
    across = LineString([(b.left - 50, b.top - 50), (b.left + 50, b.top - 50)])
    comb = MultiPolygon([box(b.left - 10, b.bottom + 10, b.left + 10, b.bottom + 20), box(b.left - 10, b.bottom + 30, b.left, b.bottom + 40)])
    got = to_grid(gpd.GeoDataFrame({"k": ["touching", "across", "comb", "point"]}, geometry=[touching, across, comb, Point(b.left + 1, b.top - 1)], crs=GRID.crs), GRID)
    assert got.k.tolist() == ["across", "comb", "point"]
    assert got.geometry.iloc[0].length == pytest.approx(50) and got.geometry.iloc[1].area == pytest.approx(100)


def test_world_wide_polygon_in_a_utm_grid(tmp_path):
    gpd.GeoDataFrame({"k": [1]}, geometry=[box(-180, -89, 180, 89)], crs="EPSG:4326").to_file(tmp_path / "w.gpkg")
    got = open_vector(tmp_path / "w.gpkg", GRID)
    assert got.area.sum() == pytest.approx(6000 * 6000, rel=1e-6)


# ---- OpenStreetMap

def test_osm_table():
    layers = {"buildings_a": BLOCKS.assign(fclass="building", code=1500, osm_id="1"), "roads": BLOCKS.iloc[:0]}
    got = osm_table(layers, GRID, ["water: passed over"])
    assert got.columns.tolist() == ["layer", "fclass", "code", "osm_id", "geometry"] and len(got) == 2 and got.attrs["problems"] == ["water: passed over"]
    empty = osm_table({"roads": BLOCKS.iloc[:0]}, GRID)
    assert len(empty) == 0 and empty.crs == GRID.crs and empty.attrs["problems"] == ["no object lies inside the asked area"]


def test_is_osm(tmp_path):
    (tmp_path / "gis_osm_roads_free_1.shp").touch()
    assert is_osm(tmp_path) and is_osm(Path("x.osm.pbf")) and not is_osm(Path("x.shp"))


# ---- real files

@real
def test_real_bil_without_prj():
    path = DATA / "worldclim_10m_bio12/bio12.bil"
    whole = open_raster(path, None, crs="EPSG:4326")
    assert whole.shape == (900, 2160) and whole.rio.nodata == -9999 and whole.dtype == np.int16
    x, y = 87.62, 43.82
    assert int(whole.sel(x=x, y=y, method="nearest")) == 232  # Urumqi's own pixel, README
    assert abs(float(open_raster(path, GRID, "auto", crs="EPSG:4326").mean()) - 607) < 20


@real
def test_real_ecoregions_and_admin():
    grid = area_geobox((115.75, 39.4, 117.05, 40.4), 100)
    got = open_vector(DATA / "ecoregions2017_simplified/Ecoregions2017.shp", grid, columns=["ECO_NAME"])
    assert "Huang He Plain mixed forests" in got.ECO_NAME.tolist() and got.crs == grid.crs
    china = open_vector(DATA / "china_admin/chn_admin_level1.geojson")
    assert len(china) == 34 and china.geometry.is_valid.all()
    assert len(open_vector(DATA / "china_admin/chn_admin_level2.shp", grid)) >= 3


@real
def test_real_beijing_on_one_grid():
    grid = area_geobox((116.14, 39.72, 116.66, 40.12), 30)
    for name in ("from-glc2013_bj", "from-glc2015_bj", "from-glc2017_bj", "urban_beijing"):
        got = open_raster(DATA / f"beijing_30m_builtup_4products/{name}.tif", grid, crs="EPSG:3857", classes=True, fill=255)
        assert got.odc.geobox.crs.epsg == 32650 and set(np.unique(got)) == {0, 1}


@real
def test_real_lataseno_two_crs():
    s2 = open_raster(DATA / "s2_clc_lataseno/s2_lataseno_ex.tif", None)
    assert s2.dims == ("band", "y", "x") and s2.sizes["band"] == 9 and s2.odc.geobox.crs.epsg == 25835
    clc = open_raster(DATA / "s2_clc_lataseno/clc_2018_lataseno.tif", s2.odc.geobox, classes=True)
    same_grid(clc, s2)
    assert clc.rio.nodata == 255 and {23, 32, 43} <= set(np.unique(clc).tolist())


@real
def test_real_mass_buildings():
    path = DATA / "mass_buildings_1m/22978945_15.tif"
    with rasterio.open(path) as src:
        assert src.nodata == 255  # wrong, README
    image = open_raster(path, None, nodata="none")
    assert image.rio.nodata is None and image.shape == (3, 901, 1182)
    buildings = open_vector(DATA / "mass_buildings_1m/22978945_15.gpkg", image.odc.geobox)
    assert len(buildings) > 400 and buildings.crs.to_epsg() == 26986


@real
def test_real_pair_and_series():
    ms = open_raster(DATA / "spacenet6_rotterdam_pan_ms/ms1.tif", None)
    pan = open_raster(DATA / "spacenet6_rotterdam_pan_ms/pan1.tif", ms.odc.geobox, "auto", nodata="none", fill=0)
    same_grid(ms, pan)
    assert np.corrcoef(pan.values.ravel(), ms.values.mean(0).ravel())[0, 1] > 0.6
    dates = [open_raster(DATA / f"s2_jaca_town/Jaca_{i}.tif", None) for i in (1, 2, 3, 4)]
    same_grid(*dates)
    town = square_geobox(-0.5523, 42.5725, 500, 10)
    assert open_raster(DATA / "s2_jaca_town/Jaca_1.tif", town, "auto").shape == (12, 50, 50)


@real
def test_real_osm():
    grid = area_geobox((24.935, 60.164, 24.954, 60.18), 5)
    got = DRIVERS["file"](Request("helsinki", "vector", {"path": str(DATA / "osm_pbf/Helsinki.osm.pbf")}, grid))
    assert {"buildings_a", "roads"} <= set(got.layer) and got.crs == grid.crs
    grid = area_geobox((108.7, 34.1, 109.2, 34.45), 16)
    got = DRIVERS["file"](Request("shaanxi", "vector", {"path": str(DATA / "geofabrik_shaanxi_shp")}, grid))
    assert {"traffic", "traffic_a", "transport", "transport_a"} == set(got.layer)
    assert any("water_a" in p for p in got.attrs["problems"])
