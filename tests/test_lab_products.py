"""Simulated products and OSM: windows agree, codes obey the catalogue, errors come as stated, files are real shapefiles."""
import zipfile

import geopandas as gpd
import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from isa_nb.catalog import Catalog
from isa_nb.core import DataError, RequestError, square_geobox
from isa_nb.lab import osm, products
from isa_nb.lab.errors import error_field
from isa_nb.lab.fields import ISA_LUT, SURFACES, make_key
from isa_nb.lab.land import STUDY
from isa_nb.lab.products import ERRORS, GLC_CODES, PRODUCTS, native_geobox, native_window, product, truth_on
from isa_nb.lab.world import World
from isa_nb.osm import FCLASS

CITY = square_geobox(114.30, 30.60, 1600, 16)
WORLD = World("W4", "EPSG:32650")


@pytest.fixture(scope="module")
def extract():
    return osm.layers(CITY, world=WORLD)


@pytest.mark.parametrize("name", PRODUCTS)
def test_window_is_crop(name):
    "A window of a product is a crop of a larger window, byte for byte, also across the pieces of a large request."
    whole = product(name, CITY, world=WORLD)
    row, col, *_ = native_window(name, CITY, WORLD.crs)
    for part in (CITY[10:40, 20:70], CITY[60:, :30]):
        r, c, rows, cols = native_window(name, part, WORLD.crs)
        crop = whole.values[r - row:r - row + rows, c - col:c - col + cols]
        np.testing.assert_array_equal(product(name, part, world=World("W4", "EPSG:32650")).values, crop)


@pytest.mark.parametrize("name", ["gisa", "esri"])
def test_pieces_fit(name, monkeypatch):
    whole = product(name, CITY, world=WORLD).values
    monkeypatch.setattr(products, "_TILE", 700.0)
    np.testing.assert_array_equal(product(name, CITY, world=WORLD).values, whole)


@pytest.mark.parametrize("name", PRODUCTS)
def test_codes_obey_the_catalogue(name):
    "Every code a product can hold is in the legend of its catalogue entry, with the same verdict on impervious."
    p, source = PRODUCTS[name], Catalog.load().source(f"lab_{name}")
    lut, known = source.isa_lut(year=p.year) if name == "gisa" else source.isa_lut()
    if name == "gisa":
        codes = set(range(38))
        assert lut[0] == 0 and (lut[1:38] == 1).all()
    else:
        pervious = set(p.classes.values()) or {c for zones in GLC_CODES.values() for codes in zones.values() for c in codes}
        codes = pervious | {p.impervious} | ({p.cloud} if p.cloud else set())
        assert lut[p.impervious] == 1 and (lut[list(pervious)] == 0).all()
        if p.cloud:
            assert lut[p.cloud] == 255
    assert codes <= set(known)
    d = product(name, CITY, world=WORLD)
    assert set(np.unique(d.values).tolist()) <= codes
    assert (d.year, d.simulated, d.dtype) == (source.year, True, np.uint8)


def test_every_case_is_declared():
    assert set(ERRORS) == {(p, z) for p in PRODUCTS for z in ("W1", "W2", "W3", "W4")}
    pervious = {s[0] for s in SURFACES.values() if s[1] == 0}
    assert set(GLC_CODES) == pervious and all(set(z) == {"W1", "W2", "W3", "W4"} for z in GLC_CODES.values())


def test_native_grids():
    steps = {name: native_geobox(name, native_window(name, CITY, WORLD.crs), WORLD.crs) for name in PRODUCTS}
    assert str(steps["gisa"].crs) == "EPSG:4326" and steps["gisa"].resolution.x == pytest.approx(0.000269494585235856472, rel=1e-12)
    assert steps["esa"].resolution.x == pytest.approx(1 / 12000) and (steps["esa"].affine.c * 12000) % 1 == pytest.approx(0, abs=1e-5)
    assert str(steps["esri"].crs) == "EPSG:32650" and steps["esri"].affine.c % 10 == 0
    for g in steps.values():
        assert g.extent.to_crs(WORLD.crs).contains(CITY.extent)


def test_years():
    "GISA's code is a first year: with an earlier year asked for, later codes vanish and nothing earlier changes."
    d, early = product("gisa", CITY, world=WORLD).values, product("gisa", CITY, year=2015, world=WORLD)
    assert early.year == 2015 and early.values.max() <= 33
    assert (d > 33).any(), "no growth after 2015 in a growing city"


def test_better_than_nothing_worse_than_truth():
    for name, p in PRODUCTS.items():
        d, share = product(name, CITY, world=WORLD).values, truth_on(name, CITY, world=WORLD).values
        said, true = (d > 0) if name == "gisa" else d == p.impervious, share >= 0.5
        f1 = 2 * (said & true).sum() / (said.sum() + true.sum())
        assert 0.6 < f1 < 0.98, (name, f1)


def test_truth_on_is_the_world():
    "The share on a product's grid agrees with the world's own, in the mean and pixel for pixel where the grids match."
    share = truth_on("esri", CITY, world=WORLD)
    own = WORLD.isa_fraction(share.odc.geobox, 2020).values
    assert abs(share.values.mean() - own.mean()) < 0.005
    assert np.corrcoef(share.values.ravel(), own.ravel())[0, 1] > 0.95


@settings(max_examples=15)
@given(x=st.floats(2e5, 8e5), y=st.floats(0, 9e6), rho=st.floats(0, 1))
def test_error_field_is_normal_and_addressed(x, y, rho):
    key = make_key("property")
    xx, yy = np.meshgrid(x + np.arange(12) * 37.0, y + np.arange(9) * 41.0)
    z = error_field(xx, yy, key, "gisa", "omission", rho)
    assert np.isfinite(z).all() and abs(z).max() < 7
    np.testing.assert_array_equal(error_field(xx[3:6, 2:9], yy[3:6, 2:9], key, "gisa", "omission", rho), z[3:6, 2:9])


def test_errors_meet_their_chance():
    "A tenth of the places lies below the 10 % quantile; two products with half in common correlate at one half."
    xx, yy = np.meshgrid(np.arange(0, 60_000, 100.0), np.arange(0, 60_000, 100.0))
    a, b = (error_field(xx, yy, make_key("chance"), n, "commission", 0.5) for n in ("esa", "esri"))
    assert (a < -1.2816).mean() == pytest.approx(0.10, abs=0.01)
    assert np.corrcoef(a.ravel(), b.ravel())[0, 1] == pytest.approx(0.5, abs=0.03)


def test_same_seed_same_bytes_other_seed_other_errors():
    one, two, other = (product("esa", CITY[:40, :40], seed=s, world=World("W4", "EPSG:32650")).values for s in (0, 0, 1))
    np.testing.assert_array_equal(one, two)
    assert (one != other).any()


def test_unknown_product():
    with pytest.raises(RequestError, match="unknown simulated product 'worldcover'.*known are esa, esri"):
        product("worldcover", CITY)
    with pytest.raises(RequestError, match="unknown simulated product"):
        truth_on("worldcover", CITY)


def test_osm_schema(extract):
    "Layers, codes and classes are those that isa_nb.osm reads from real extracts."
    assert list(extract) == list(osm.LAYERS)
    for name, q in extract.items():
        assert str(q.crs) == "EPSG:4326" and not (q.geometry.is_empty | q.geometry.isna()).any()
        for code, fclass in {*zip(q.code, q.fclass, strict=True)}:
            if name != "places":
                assert FCLASS[name.removesuffix("_a"), code] == fclass
    assert {"city"} <= set(extract["places"].fclass)


def test_osm_is_the_state_of_its_year(extract):
    late = WORLD.objects(tuple(CITY.boundingbox)).query("kind == 'building' and built > 2020")
    assert len(late)
    assert not set((late.key.to_numpy(np.uint64) % np.uint64(10_000_000_000)).astype(str)) & set(extract["buildings_a"].osm_id)


def test_osm_faults(extract):
    "Most buildings lie on buildings; some ring is invalid; some stand where nothing stands; offsets are metres, not hundreds."
    b = extract["buildings_a"]
    invalid = ~b.geometry.is_valid
    assert 0 < invalid.mean() < 0.02
    drawn = b[~invalid].to_crs(WORLD.crs)
    there = WORLD.objects(tuple(CITY.boundingbox), 2020).query("kind == 'building'")
    there = there.assign(osm_id=(there.key.to_numpy(np.uint64) % np.uint64(10_000_000_000)).astype(str)).drop_duplicates("osm_id").set_index("osm_id")
    same = drawn[drawn.osm_id.isin(there.index)]
    moved = shapely.distance(shapely.centroid(same.geometry.to_numpy()), shapely.centroid(there.geometry.loc[same.osm_id].to_numpy()))
    assert 0.3 < np.median(moved) < 5 and moved.max() < 60
    assert 0 < (~drawn.osm_id.isin(there.index)).mean() < 0.1  # demolished, or reaching in from outside


def test_osm_fuller_in_centres_than_in_villages():
    share = np.linspace(0, 1, 50)
    for kind in ("building", "street", "landuse", "poi"):
        p = osm.chance(kind, share)
        assert (np.diff(p) >= 0).all() and p[-1] > 3 * p[0]
    assert 0.07 <= osm.chance("building", share)[-1] <= 0.17  # Herfort et al. 2023: mean of urban centres of the region


def test_osm_windows_agree(extract):
    part = osm.layers(CITY[20:50, 30:70], world=World("W4", "EPSG:32650"))
    for name in ("buildings_a", "roads", "traffic_a", "water_a", "landuse_a"):
        whole = extract[name].drop_duplicates("osm_id").set_index("osm_id").geometry
        q = part[name].drop_duplicates("osm_id")
        assert set(q.osm_id) <= set(whole.index)
        assert (shapely.hausdorff_distance(shapely.boundary(q.geometry.to_numpy()), shapely.boundary(whole.loc[q.osm_id].to_numpy())) < 1e-9).all() or name == "roads"


def test_osm_files(extract, tmp_path):
    files = osm.write(tmp_path / "folder", extract)
    assert [f.name for f in files] == sorted(f"gis_osm_{n}_free_1.shp" for n in osm.LAYERS)
    back = gpd.read_file(tmp_path / "folder" / "gis_osm_roads_free_1.shp")
    assert list(back.columns) == ["osm_id", "code", "fclass", "name", "ref", "oneway", "maxspeed", "layer", "bridge", "tunnel", "geometry"]
    assert len(back) == len(extract["roads"]) and back.crs == "EPSG:4326"
    one, two = (osm.write(tmp_path / d, extract, "lab-latest-free.shp.zip")[0] for d in "ab")
    names = zipfile.ZipFile(one).namelist()
    assert "gis_osm_buildings_a_free_1.dbf" in names and one.read_bytes() == two.read_bytes()


def test_osm_files_cannot_be_written(extract, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match="cannot write"):
        osm.write(tmp_path / "file" / "deeper", {"roads": extract["roads"]})
    with pytest.raises(DataError, match="no layer of Geofabrik's: rivers"):
        osm.write(tmp_path, {"rivers": extract["roads"]})


@pytest.mark.parametrize("zone", STUDY)
def test_open_country(zone):
    "Away from towns there is still a map and an extract, only little in them."
    world = World(zone, "EPSG:32650")
    grid = square_geobox(117.9, 42.0, 640, 16, "EPSG:32650")
    for name in PRODUCTS:
        assert product(name, grid, world=world).shape
    assert set(osm.layers(grid, world=world)) == set(osm.LAYERS)
    assert (ISA_LUT[world.truth(grid).values] != 255).all()
