"""Zones: the real layers, faults, and properties that hold for any climate."""
import warnings
from pathlib import Path

import geopandas as gpd
import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox

from isa_nb import zones
from isa_nb.core import DataError, RequestError, raster

REAL = Path(__file__).parents[1] / "../shared/data"
real = pytest.mark.skipif(not REAL.exists(), reason="../shared/data, the folder of real test data, is absent")
BOX = GeoBox.from_bbox((100, 20, 112, 32), resolution=1)


def climate(seed, columns, rows):
    "A made-up climate: rain at random, ecoregions that tile the box."
    r = np.random.default_rng(seed)
    rain = zones.read_precipitation(raster(r.uniform(0, 1500, (12, 12)).astype(np.float32) * r.uniform(0.1, 1, (1, 12)).astype(np.float32), BOX, "rain", nodata=-1))
    x, y = (np.concatenate([[a], np.sort(r.uniform(a, b, n - 1)), [b]]) for a, b, n in ((100, 112, columns), (20, 32, rows)))
    cells = [(i * rows + j, shapely.box(x[i], y[j], x[i + 1], y[j + 1])) for i in range(columns) for j in range(rows)]
    names, shapes = zip(*cells, strict=True)
    return rain, gpd.GeoDataFrame({"ECO_ID": names, "ECO_NAME": [f"eco {n}" for n in names], "BIOME_NUM": 4.0, "REALM": "Palearctic"}, geometry=list(shapes), crs=4326)


@settings(max_examples=10)
@given(st.integers(0, 1000), st.integers(1, 4), st.integers(1, 4))
def test_zone_polygons_partition_and_zone_of_agrees_everywhere(seed, columns, rows):
    rain, eco = climate(seed, columns, rows)
    zoned = zones.zone_map(eco, rain)
    parts = zones.zone_polygons(zoned)
    assert shapely.union_all(parts.geometry).area == pytest.approx(144) and parts.geometry.area.sum() == pytest.approx(144)
    assert parts.ecoregions.sum() == len(eco) and parts.area_km2.sum() == pytest.approx(zoned.area_km2.sum())
    assert zones.table1(zoned).ecoregions.sum() == len(eco)
    maps = zones.disagreement(zoned, rain)
    points = np.random.default_rng(seed).integers(0, 12, (3, 2))
    for row, col in points:
        lon, lat = float(rain.x[col]) + 0.013, float(rain.y[row]) + 0.017  # off the edges of the boxes
        inside = zoned[zoned.covers(shapely.Point(lon, lat))].zone.item()
        assert zones.zone_of(lon, lat, eco, rain) == zones.zone_of(lon, lat, zoned, rain) == inside
        assert zones.zone_of(lon, lat, eco, rain, mode="pixel") == f"W{int(maps.pixel[row, col])}"
    assert zones.disagreement_table(maps).share.sum() == pytest.approx(1)
    assert (maps.differs == (maps.ecoregion != maps.pixel)).all()


@settings(max_examples=30)
@given(st.lists(st.floats(0, 12_000), min_size=1, max_size=20))
def test_classes_grow_with_rain_and_hold_their_bounds(amounts):
    found = zones.classify(np.array(sorted(amounts)))
    assert found.tolist() == sorted(found) == [zones.classify(a) for a in sorted(amounts)]
    for mm, zone in zip(sorted(amounts), found, strict=True):
        assert zones.ZONES[zone]["lo"] <= mm < zones.ZONES[zone]["hi"]


def test_the_mean_is_weighted_by_covered_ground():
    rain, _ = climate(3, 1, 1)
    shape = shapely.Polygon([(100.3, 20.4), (111.2, 22.7), (105.5, 31.4)])
    fine = BOX.zoom_to((2400, 2400))
    lon, lat = np.meshgrid(fine.coords["longitude"].values, fine.coords["latitude"].values)
    inside = shapely.contains_xy(shape, lon, lat)
    weight = np.where(inside, np.cos(np.radians(lat)), 0)
    brute = (np.repeat(np.repeat(rain.values, 200, 0), 200, 1) * weight).sum() / weight.sum()
    assert zones.ecoregion_means(gpd.GeoDataFrame(geometry=[shape], crs=4326), rain)[0] == pytest.approx(brute, rel=1e-3)


def test_other_thresholds_are_a_table():
    mine = {"dry": {"title": "dry", "lo": 0, "hi": 500, "place": "A"}, "wet": {"title": "wet", "lo": 500, "hi": float("inf"), "place": "B"}}
    rain, eco = climate(5, 3, 3)
    zoned = zones.zone_map(eco, rain, mine)
    assert set(zoned.zone) <= {"dry", "wet"} and zones.table1(zoned, mine).zone.tolist() == ["dry", "wet"]
    assert set(np.unique(zones.zone_pixels(rain, mine))) <= {1, 2}


def test_a_projected_raster_gives_the_same_zones():
    rain, eco = climate(8, 3, 2)
    fine = GeoBox.from_bbox((100, 20, 112, 32), crs="EPSG:4326", resolution=1).to_crs("EPSG:6933", resolution=5000)
    other = rain.odc.reproject(fine, resampling="nearest")
    assert np.abs(zones.zone_map(eco, rain).mean_mm - zones.zone_map(eco, other).mean_mm).max() < 12
    assert zones.zone_of(105.5, 25.5, eco, other, mode="pixel") == zones.zone_of(105.5, 25.5, eco, rain, mode="pixel")


# --- files of both schemas

@pytest.mark.parametrize("name", ["eco.shp", "eco.gpkg", "eco.geojson"])
def test_both_schemas_from_files_and_the_realm_na_stays_a_text(tmp_path, name):
    shapes = [shapely.box(100 + i, 20, 101 + i, 24) for i in range(4)]
    olson = gpd.GeoDataFrame({"OBJECTID": range(4), "ECO_NAME": ["Prairie", "Prairie", "Lake", "Rock and Ice"], "ECO_ID": [50801, 50801, -9998, -9999], "BIOME": [8, 8, 98, 99],
                              "REALM": ["NA", "NA", "PA", None], "G200_NUM": 0}, geometry=shapes, crs=4326)
    olson.to_file(tmp_path / name)
    found = zones.read_ecoregions(tmp_path / name)
    assert list(found.columns) == ["eco_id", "eco_name", "biome", "realm", "geometry"]
    assert found.realm.tolist() == ["NA", "PA", ""] and found.biome.tolist() == [8, 98, 99]
    assert found.geometry[0].area == pytest.approx(8)
    resolve = olson.rename(columns={"BIOME": "BIOME_NUM"}).assign(BIOME_NAME="Grass")
    assert zones.read_ecoregions(resolve).eco_id.tolist() == [50801, -9998, -9999]


def test_lakes_and_ice_are_zoned_one_by_one():
    rain, eco = climate(2, 1, 1)
    ice = shapely.MultiPolygon([shapely.box(100, 20, 101, 21), shapely.box(110, 30, 111, 31)])
    eco = eco.assign(geometry=[ice], ECO_NAME="Rock and Ice")
    zoned = zones.zone_map(eco, rain)
    assert zoned.mean_mm.tolist() == pytest.approx([rain.values[11, 0], rain.values[1, 10]], rel=1e-4)
    assert zones.zone_polygons(zoned).ecoregions.sum() == 0


# --- faults

def test_wrong_columns_name_the_schemas_that_are_read(tmp_path):
    frame = gpd.GeoDataFrame({"NAME": ["a"]}, geometry=[shapely.box(0, 0, 1, 1)], crs=4326)
    frame.to_file(tmp_path / "a.gpkg")
    with pytest.raises(DataError, match=r"RESOLVE 2017: ECO_ID, ECO_NAME, BIOME_NUM, REALM; Olson 2001: ECO_ID, ECO_NAME, BIOME, REALM\); found NAME"):
        zones.read_ecoregions(tmp_path / "a.gpkg")
    _, eco = climate(0, 1, 1)
    with pytest.raises(DataError, match="eco_id holds 'x1' where a number is due"):
        zones.read_ecoregions(eco.assign(ECO_ID="x1"))
    with pytest.raises(DataError, match="ecoregions carry no CRS"):
        zones.read_ecoregions(gpd.GeoDataFrame(eco.drop(columns="geometry"), geometry=list(eco.geometry)))


def test_precipitation_that_cannot_be_used():
    values = np.full((12, 12), 500, np.float32)
    with pytest.raises(DataError, match="holds nothing but nodata"):
        zones.read_precipitation(raster(values, BOX, "rain", nodata=500))
    with pytest.raises(DataError, match=r"-32768 mm is impossible; declare the nodata value"):
        zones.read_precipitation(raster(np.where(np.arange(12) < 3, -32768, values), BOX, "rain"))
    with pytest.raises(DataError, match="carries no CRS"):
        zones.read_precipitation(raster(values, BOX, "rain").drop_vars("spatial_ref").drop_attrs())
    with pytest.raises(DataError, match="3 dimensions"):
        zones.read_precipitation(raster(np.stack([values] * 12), BOX, "rain"))


@pytest.mark.parametrize(("factor", "text"), [(10, "is it stored in tenths"), (1 / 12, "is it monthly"), (1, None)])
def test_a_wrong_unit_is_told_in_one_line(factor, text):
    world = GeoBox.from_bbox((-180, -60, 180, 80), resolution=5)
    rain = raster(np.linspace(100, 2000, world.shape.x)[None].repeat(world.shape.y, 0).astype(np.float32) * factor, world, "rain", nodata=-1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        zones.read_precipitation(rain)
    assert [text in str(w.message) and "\n" not in str(w.message) for w in caught if w.category is UserWarning] == ([True] if text else [])


def test_places_without_a_zone():
    rain, eco = climate(0, 2, 2)
    assert zones.zone_of(112.2, 25, eco, rain) == zones.zone_of(111.99, 25, eco, rain)  # 20 km off
    with pytest.raises(DataError, match="lies in no ecoregion, and none is within 10 km"):
        zones.zone_of(112.2, 25, eco, rain, tolerance_km=10)
    assert zones.zone_of(112.2, 25.5, eco, rain, mode="pixel") == zones.zone_of(111.9, 25.5, eco, rain, mode="pixel")
    with pytest.raises(DataError, match="no precipitation within 50 km of longitude 140"):
        zones.zone_of(140, 25, eco, rain, mode="pixel")
    with pytest.raises(DataError, match="no precipitation within 50 km"):
        zones.zone_of(-100, -80, eco, rain, mode="pixel")
    with pytest.raises(RequestError, match="unknown zoning mode 'pixels': did you mean 'pixel'"):
        zones.zone_of(105, 25, eco, rain, mode="pixels")
    with pytest.raises(RequestError, match="no place at longitude 25, latitude 105"):
        zones.zone_of(25, 105, eco, rain)
    with pytest.raises(DataError, match="no ecoregion is met by precipitation: ecoregions within 0.0 E 0.0 N to 1.0 E 1.0 N"):
        zones.zone_map(eco[:1].assign(geometry=[shapely.box(0, 0, 1, 1)]), rain)


def test_an_ecoregion_without_rain_is_reported_and_the_rest_goes_on():
    rain, eco = climate(0, 2, 1)
    rain = rain.where(rain.x < 103)
    eco = eco.assign(geometry=[shapely.box(100, 20, 103, 32), shapely.box(104, 20, 112, 32)])
    zoned = zones.zone_map(eco, rain)
    assert zoned.attrs["problems"] == ["1 ecoregions are met by no cell with precipitation and have no zone: eco 1"]
    assert zoned.zone.isna().tolist() == [False, True]
    with pytest.raises(DataError, match="no precipitation in the ecoregion eco 1 of longitude 108, latitude 25"):
        zones.zone_of(108, 25, eco, rain)


# --- real layers

@pytest.fixture(scope="module")
def layers():
    rain = zones.read_precipitation(REAL / "worldclim_10m_bio12/bio12.bil", crs="EPSG:4326")
    return zones.read_ecoregions(REAL / "ecoregions2017_simplified/Ecoregions2017.shp"), rain


@pytest.fixture(scope="module")
def zoned(layers):
    return zones.zone_map(*layers)


@real
@pytest.mark.parametrize(("place", "lon", "lat", "zone", "mm"), [("Urumqi", 87.62, 43.82, "W1", 152), ("Yining", 81.32, 43.92, "W2", 372), ("Beijing", 116.40, 39.90, "W3", 662),
                                                                ("Wuhan", 114.30, 30.60, "W4", 1241), ("Nanchang", 115.86, 28.68, "W4", 1241)])
def test_the_five_places(layers, place, lon, lat, zone, mm):
    found = zones.place_of(lon, lat, *layers)
    assert found["zone"] == zone and found["mm"] == pytest.approx(mm, abs=4)  # the README's figures leave the shrinking of cells aside
    if place == "Urumqi":
        assert found["eco_name"] == "Junggar Basin semi-desert"
        assert zones.place_of(lon, lat, *layers, mode="pixel") == {"zone": "W2", "mm": 232.0, "eco_name": None}


@real
def test_the_zone_map_of_the_earth(layers, zoned):
    assert zoned.area_km2.sum() == pytest.approx(148e6, rel=0.02)  # the land of the Earth
    assert zoned.attrs["problems"][0].startswith("23 ecoregions are met by no cell") and zoned.loc[zoned.zone.isna(), "eco_name"].str.contains("tundra|island|Island|Rocks|Rock|Cayos").all()
    table = zones.table1(zoned).set_index("zone")
    assert table.ecoregions.sum() == 847 - 1 - 22  # all but rock and ice, and those without rain
    assert (table.mean_mm.to_numpy() > [0, 200, 400, 800]).all() and (table.mean_mm.to_numpy() < [200, 400, 800, 2500]).all()
    pairs = zones.disagreement_table(zones.disagreement(zoned, layers[1]))
    assert 0.1 < pairs.query("ecoregion != pixel").share.sum() < 0.3


@real
def test_every_cell_of_china_has_a_zone(layers, zoned):
    eco, rain = layers
    china = shapely.union_all(gpd.read_file(REAL / "china_admin/chn_admin_level0.geojson").geometry)
    lon, lat = np.meshgrid(rain[rain.dims[1]], rain[rain.dims[0]])
    inside = shapely.contains_xy(china, lon, lat) & rain.notnull().values
    bare = [(x, y) for x, y in zip(lon[inside], lat[inside], strict=True) if not len(eco.sindex.query(shapely.Point(x, y), predicate="intersects"))]
    assert 0 < len(bare) < 60  # gaps between the simplified outlines
    assert {zones.zone_of(x, y, zoned, rain) for x, y in bare} <= set(zones.ZONES)
