"""OSM: whole files, real extracts, faults, and properties that hold for any polygons."""
import shutil
import zipfile
from pathlib import Path

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import shapely
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox
from rasterio.features import rasterize

from isa_nb import osm
from isa_nb.core import DataError, RequestError, area_geobox, square_geobox

REAL = Path(__file__).parents[1] / "../shared/data"
real = pytest.mark.skipif(not REAL.exists(), reason="../shared/data, the folder of real test data, is absent")
GRID = GeoBox((24, 30), Affine(10, 0, 500_000, 0, -10, 3_400_240), "EPSG:32650")


def frame(shapes, fclass="building", crs=32650):
    return gpd.GeoDataFrame({"osm_id": [str(i) for i in range(len(shapes))], "code": 1500, "fclass": fclass}, index=range(len(shapes)), geometry=list(shapes), crs=crs)


# --- burning

@st.composite
def polygons(draw, step):
    "Valid polygons and multipolygons with holes, in and around the grid, with corners on multiples of `step` pixels."
    place = st.tuples(st.integers(-60, 360), st.integers(-60, 300))
    rings = draw(st.lists(st.lists(place, min_size=3, max_size=7, unique=True), min_size=1, max_size=6))
    shapes = [shapely.make_valid(shapely.Polygon(np.array(r) * step * 10 + (500_000, 3_400_000)), method="structure", keep_collapsed=False) for r in rings]
    hole = shapely.box(500_000 + 60, 3_400_000 + 60, 500_000 + 115, 3_400_000 + 125)
    return [s for s in (shapely.difference(s, hole) for s in shapes) if not s.is_empty and s.geom_type in ("Polygon", "MultiPolygon")]


@settings(max_examples=60)
@given(polygons(step=0.0837))
def test_pixels_are_those_of_rasterio(shapes):
    mine = np.zeros(GRID.shape.yx, np.uint8)
    osm.burn(mine, GRID, np.array(shapes, object), GRID.crs, bit=4)
    theirs = rasterize(shapes, GRID.shape.yx, transform=GRID.affine, default_value=4) if shapes else 0
    assert (mine == theirs).all()


@settings(max_examples=60)
@given(polygons(step=0.5))
def test_edges_through_pixel_centres_fall_as_in_rasterio(shapes):
    for shape in shapes:  # one by one: parts of a multipolygon are filled by themselves here, together there
        for part in shapely.get_parts(shape):
            mine = np.zeros(GRID.shape.yx, np.uint8)
            osm.burn(mine, GRID, np.array([part], object), GRID.crs)
            assert (mine == rasterize([part], GRID.shape.yx, transform=GRID.affine)).all()


@settings(max_examples=30)
@given(polygons(step=0.0837))
def test_all_touched_holds_every_pixel_that_meets_a_polygon(shapes):
    mine = np.zeros(GRID.shape.yx, np.uint8)
    osm.burn(mine, GRID, np.array(shapes, object), GRID.crs, all_touched=True)
    left, top = GRID.affine.c, GRID.affine.f
    cells = np.array([[shapely.box(left + 10 * c, top - 10 * (r + 1), left + 10 * (c + 1), top - 10 * r) for c in range(30)] for r in range(24)], object)
    both = shapely.union_all(shapes)
    assert (mine[shapely.area(shapely.intersection(cells, both)) > 1e-6] == 1).all()
    assert (mine[shapely.distance(cells, both) > 1e-6] == 0).all()


@settings(max_examples=40)
@given(polygons(step=0.0837), st.randoms(use_true_random=False))
def test_order_of_objects_and_layers_changes_nothing(shapes, random):
    names = ["buildings_a", "traffic_a", "water_a", "natural_a"]
    layers = {n: frame(shapes[i::4], "any") for i, n in enumerate(names)}
    mask = osm.rasterise(layers, GRID)
    for g in layers.values():
        order = list(range(len(g)))
        random.shuffle(order)
        layers = {**layers, next(n for n in names if layers[n] is g): g.iloc[order]}
    random.shuffle(names)
    assert osm.rasterise({n: layers[n] for n in names}, GRID).equals(mask)
    assert (mask & 1 == osm.rasterise({n: g for n, g in layers.items() if n in ("buildings_a", "traffic_a")}, GRID)).all()


def test_coordinates_far_outside_the_grid_are_harmless():
    mask = np.zeros(GRID.shape.yx, np.uint8)
    osm.burn(mask, GRID, np.array([shapely.box(-1e12, -1e12, 1e12, 1e12), shapely.box(1e12, 0, 2e12, 1), shapely.Polygon(), shapely.Point(0, 0), None], object), GRID.crs)
    assert mask.all()


def test_a_large_grid_bends_in_degrees_and_loses_no_object_at_its_edge():
    box = square_geobox(117, 45, 300_000, 1000, "EPSG:32650")
    edge = shapely.box(box.boundingbox.left + 149_000, box.boundingbox.top - 1400, box.boundingbox.left + 151_000, box.boundingbox.top + 500)
    assert int(osm.rasterise({"buildings_a": frame([edge]).to_crs(4326)}, box).sum()) == 2


# --- lines

@pytest.mark.parametrize("crs", ["EPSG:32650", "EPSG:3857", "EPSG:4326"])
def test_roads_are_as_wide_on_the_ground_in_every_crs(crs):
    line = shapely.LineString([(500_000, 4_400_000), (503_000, 4_401_000)])
    roads = frame([line, line.buffer(1).exterior], ["primary", "path"]).assign(tunnel="F")
    box = GeoBox.from_bbox(frame([line.buffer(100)]).to_crs(crs).total_bounds, crs=crs, resolution=2e-5 if crs == "EPSG:4326" else 2)
    pixels = float(osm.rasterise({"roads": roads}, box, "extended").sum())
    ground = shapely.transform(box.extent.geom, lambda xy: np.column_stack(__import__("pyproj").Transformer.from_crs(crs, 32650, always_xy=True).transform(*xy.T)))
    assert pixels / box.shape.y / box.shape.x * ground.area == pytest.approx(line.length * 12, rel=0.03)


def test_tunnels_are_not_burned():
    roads = frame([shapely.LineString([(500_000, 3_400_100), (500_300, 3_400_100)])] * 2, "motorway").assign(tunnel=["T", "F"])
    assert osm.counts({"roads": roads}, "extended").set_index("group").n.to_dict() == {"impervious": 1, "not used": 1}
    assert osm.rasterise({"roads": roads[:1]}, GRID, "extended").sum() == 0 < osm.rasterise({"roads": roads[1:]}, GRID, "extended").sum()


# --- tags

POINTS = {1: (30.0, 117.0), 2: (30.0, 117.002), 3: (30.002, 117.002), 4: (30.002, 117.0)}
WAYS = {
    "building=yes": ("buildings_a", "building", 1500), "amenity=parking parking=underground": ("traffic_a", "parking_underground", 5263),
    "amenity=parking parking=surface": ("traffic_a", "parking", 5260), "man_made=pier": ("traffic_a", "pier", 5303), "waterway=dam": ("traffic_a", "dam", 5311),
    "highway=services": ("traffic_a", "service", 5251), "railway=station": ("transport_a", "railway_station", 5601), "aeroway=apron": ("transport_a", "apron", 5656),
    "amenity=place_of_worship religion=muslim denomination=sunni": ("pofw_a", "muslim_sunni", 3301), "amenity=place_of_worship religion=buddhist": ("pofw_a", "buddhist", 3400),
    "natural=water": ("water_a", "water", 8200), "natural=water water=river": ("water_a", "riverbank", 8202), "waterway=riverbank": ("water_a", "riverbank", 8202),
    "landuse=reservoir": ("water_a", "reservoir", 8201), "natural=wetland": ("water_a", "wetland", 8221), "natural=beach": ("natural_a", "beach", 4141),
    "landuse=residential": ("landuse_a", "residential", 7203), "highway=path bicycle=designated": ("roads", "cycleway", 5152), "highway=track tracktype=grade1": ("roads", "track_grade1", 5143),
    "railway=rail": ("railways", "rail", 6101), "waterway=river": ("waterways", "river", 8101),
}


def test_tags_become_the_classes_of_geofabrik(tmp_path):
    lines = [f'<node id="{i}" lat="{y}" lon="{x}"/>' for i, (y, x) in POINTS.items()]
    lines += ['<node id="900" lat="30.001" lon="117.001"><tag k="public_transport" v="stop_position"/><tag k="tram" v="yes"/></node>']
    for i, tags in enumerate(WAYS, 1):
        pairs = "".join('<tag k="{}" v="{}"/>'.format(*t.split("=")) for t in tags.split())
        lines.append(f'<way id="{i}">' + "".join(f'<nd ref="{n}"/>' for n in (1, 2, 3, 4, 1)) + pairs + "</way>")
    (tmp_path / "a.osm").write_text('<?xml version="1.0"?><osm version="0.6">' + "".join(lines) + "</osm>")
    layers = osm.read(tmp_path / "a.osm")
    found = {g.osm_id.iloc[i]: (name, g.fclass.iloc[i], g.code.iloc[i]) for name, g in layers.items() for i in range(len(g))}
    assert found.pop("900") == ("transport", "tram_stop", 5603)
    assert found == {str(i): want for i, want in enumerate(WAYS.values(), 1)}
    assert layers["buildings_a"].geom_type.eq("MultiPolygon").all() and layers["roads"].geom_type.eq("LineString").all()
    assert sum(map(len, osm.read(tmp_path / "a.osm", layers=["water_a"]).values())) == 5


# --- files

@pytest.fixture
def folder(tmp_path):
    for name, shapes in {"buildings_a": [shapely.box(117, 30, 117.001, 30.001), shapely.box(117.1, 30, 117.101, 30.001)], "water_a": [shapely.box(117, 30, 117.01, 30.01)]}.items():
        frame(shapes, crs=4326).to_file(tmp_path / f"gis_osm_{name}_free_1.shp")
    return tmp_path


def test_a_zip_a_single_file_and_spilled_over_parts_read_alike(folder, tmp_path_factory):
    whole = osm.read(folder)
    packed = shutil.make_archive(str(tmp_path_factory.mktemp("zip") / "x-latest-free.shp"), "zip", folder)
    for name, g in osm.read(packed).items():
        assert g.equals(whole[name])
    assert list(osm.read(folder / "gis_osm_water_a_free_1.shp")) == ["water_a"]
    whole["buildings_a"].to_file(folder / "gis_osm_buildings_a_free_2.shp")
    assert len(osm.read(folder)["buildings_a"]) == 4
    assert len(osm.read(folder, bbox=(117.05, 29.9, 117.2, 30.1))["buildings_a"]) == 2


def test_geopackages_of_both_kinds(folder, tmp_path):
    layers, path = osm.read(folder), tmp_path / "x.gpkg"
    for name, g in layers.items():
        g.assign(layer=-1).to_file(path, layer=f"gis_osm_{name}_free")  # Geofabrik's numeric level
    pd.concat([g.assign(layer=n) for n, g in layers.items()]).to_file(tmp_path / "one.gpkg", layer="osm")
    for source in (path, tmp_path / "one.gpkg"):
        assert osm.counts(source).equals(osm.counts(layers))


def test_a_frame_of_the_catalogue_keeps_what_it_says_of_itself(folder):
    table = pd.concat([g.assign(layer=n) for n, g in osm.read(folder).items()])
    table.attrs = {"simulated": True, "source": "lab_osm", "problems": ["roads: passed over"]}
    mask = osm.rasterise(table, area_geobox((117, 30, 117.01, 30.01), 10))
    assert mask.attrs["simulated"] and mask.attrs["source"] == "lab_osm" and set(np.unique(mask)) <= {0, 2, 3}
    assert osm.as_layers(table).problems == ["roads: passed over"]


# --- faults

@pytest.mark.parametrize("suffix", [".shp", ".shx", ".dbf"])
def test_a_shapefile_without_one_part_is_passed_over(folder, suffix):
    (folder / f"gis_osm_water_a_free_1{suffix}").unlink()
    layers = osm.read(folder)
    assert list(layers) == ["buildings_a"] and len(layers["buildings_a"]) == 2
    line, = layers.problems
    assert line.startswith(f"water_a: passed over, gis_osm_water_a_free_1 {suffix} missing (only") and "download the extract again" in line


def test_a_truncated_shapefile_is_passed_over(folder):
    part = folder / "gis_osm_water_a_free_1.shp"
    part.write_bytes(part.read_bytes()[:60])
    layers = osm.read(folder)
    assert list(layers) == ["buildings_a"] or layers["water_a"].empty
    assert len(layers.problems) == 1 and layers.problems[0].startswith("water_a: ") and "\n" not in layers.problems[0]


def test_a_layer_without_crs_is_passed_over_unless_it_is_stated(folder):
    (folder / "gis_osm_water_a_free_1.prj").unlink()
    assert osm.read(folder).problems == ["water_a: passed over, gis_osm_water_a_free_1 carries no CRS (.prj missing?); state it, e.g. read(..., crs='EPSG:4326')"]
    assert set(osm.read(folder, crs="EPSG:4326")) == {"buildings_a", "water_a"}
    with pytest.raises(DataError, match="carries no CRS; set it with set_crs"):
        osm.rasterise({"buildings_a": gpd.GeoDataFrame({"fclass": ["building"]}, geometry=[shapely.box(0, 0, 1, 1)])}, GRID)


def test_nothing_readable_is_an_error_in_one_line(folder, tmp_path_factory):
    other = tmp_path_factory.mktemp("other")
    with pytest.raises(DataError, match="holds no readable OSM layer: no file named gis_osm_"):
        osm.read(other)
    for p in folder.glob("*.shp"):
        p.unlink()
    with pytest.raises(DataError, match="holds no readable OSM layer: buildings_a: passed over.*; water_a: passed over"):
        osm.read(folder)
    frame([shapely.box(0, 0, 1, 1)], crs=4326).drop(columns="fclass").to_file(other / "a.gpkg", layer="parcels")
    with pytest.raises(DataError, match="parcels has no column fclass"):
        osm.read(other / "a.gpkg")
    with pytest.raises(DataError, match="no OSM extract at"):
        osm.read(other / "none.osm.pbf")


@pytest.mark.parametrize("name", ["x.osm.pbf", "x.zip", "x.gpkg", "x.osm", "x.txt"])
def test_a_file_of_noise_is_an_error_in_one_line(tmp_path, name):
    (tmp_path / name).write_bytes(b"not what the name says" * 50)
    with pytest.raises(DataError, match="cannot be read as an OSM extract|holds no readable OSM layer") as e:
        osm.read(tmp_path / name)
    assert "\n" not in str(e.value) and name in str(e.value)


def test_wrong_requests(folder):
    with pytest.raises(RequestError, match="unknown OSM preset 'papr': did you mean 'paper'"):
        osm.counts(folder, "papr")
    with pytest.raises(RequestError, match="empty bounding box"):
        osm.read(folder, bbox=(118, 30, 117, 31))
    with pytest.raises(RequestError, match="widths must be metres greater than 0"):
        osm.preset_of({"widths": {"roads": {"primary": 0}}})
    with pytest.raises(RequestError, match="impervious must be a list"):
        osm.preset_of({"impervious": "buildings_a"})
    with pytest.raises(DataError, match="must hold layer names"):
        osm.counts(osm.read(folder)["water_a"].assign(layer=0))
    assert osm.read(folder, bbox=(10, 10, 11, 11)).problems == ["no OSM object lies within (10.0, 10.0, 11.0, 11.0); does the extract cover the place?"]


def test_empty_and_invalid_geometry_costs_only_itself(tmp_path):
    bow = shapely.Polygon([(117, 30), (117.01, 30.01), (117.01, 30), (117, 30.01)])
    shapes = [bow, None, shapely.Polygon(), shapely.box(117, 30, 117.001, 30.001)]
    given = osm.read({"gis_osm_buildings_a_free_1": frame(shapes, crs=4326)})
    assert given.problems == ["buildings_a: 1 of 4 geometries were invalid and have been repaired", "buildings_a: 2 of 4 geometries were empty or unreadable and have been dropped"]
    assert len(given["buildings_a"]) == 2 and given["buildings_a"].is_valid.all()
    box = area_geobox((117, 30, 117.01, 30.01), 10)
    assert osm.rasterise({"buildings_a": frame(shapes, crs=4326)}, box).sum() > 0  # unread frames too


def test_a_preset_survives_yaml():
    import yaml
    for name, preset in osm.PRESETS.items():
        assert yaml.safe_load(yaml.safe_dump(preset)) == osm.preset_of(name)


# --- real extracts

@real
def test_shaanxi_counts_and_the_layers_without_geometry():
    layers = osm.read(REAL / "geofabrik_shaanxi_shp")
    assert sorted(layers) == ["traffic", "traffic_a", "transport", "transport_a"]
    assert [p.split(",")[0] for p in layers.problems] == ["water_a: passed over", "waterways: passed over"]
    assert all(".shp and .shx missing (only .dbf there)" in p for p in layers.problems)
    paper, improved = (osm.counts(layers, p) for p in ("paper", "improved"))
    assert paper.groupby("layer").n.sum().to_dict() == {"traffic": 21017, "traffic_a": 1927, "transport": 4265, "transport_a": 113}
    areas = paper[paper.layer == "traffic_a"].set_index("fclass")
    assert areas.n.to_dict() == {"dam": 377, "fuel": 293, "marina": 1, "parking": 967, "parking_bicycle": 12, "parking_multistorey": 6, "parking_underground": 5, "pier": 30, "service": 236}
    assert set(areas.group) == {"impervious"} and set(paper[~paper.layer.str.endswith("_a")].group) == {"not used"}
    assert set(improved[(improved.group == "not used") & improved.layer.str.endswith("_a")].fclass) == {"dam", "marina", "parking_underground", "pier", "airfield", "airport"}
    known = {layer_code: f for layer_code, f in osm.FCLASS.items()}
    assert all(known[row.layer.removesuffix("_a"), row.code] == row.fclass for row in paper.itertuples())


@real
def test_equal_area_is_the_geodesic_area():
    from pyproj import Geod
    layer = osm.read(REAL / "geofabrik_shaanxi_shp", layers=["traffic_a"])["traffic_a"]
    geod = [abs(Geod(ellps="WGS84").geometry_area_perimeter(g)[0]) for g in layer.geometry[:200]]
    assert osm.ground_area(layer.geometry[:200]) == pytest.approx(geod, rel=1e-4)


@real
@pytest.mark.parametrize(("name", "buildings", "repaired", "dropped"), [("Helsinki", 482, 11, 12), ("test", 2193, 8, 26)])
def test_pbf_counts_and_repairs(name, buildings, repaired, dropped):
    layers = osm.read(REAL / f"osm_pbf/{name}.osm.pbf")
    assert len(layers["buildings_a"]) == buildings and all(g.is_valid.all() for g in layers.values())
    total = buildings + dropped
    assert f"buildings_a: {repaired} of {total} geometries were invalid and have been repaired" in layers.problems
    assert f"buildings_a: {dropped} of {total} geometries were empty or unreadable and have been dropped" in layers.problems


@real
def test_helsinki_under_the_three_presets():
    layers = osm.read(REAL / "osm_pbf/Helsinki.osm.pbf")
    groups = osm.counts(layers).query("group != 'not used'").groupby(["group", "fclass"]).n.sum().to_dict()
    assert groups == {("impervious", "building"): 482, ("impervious", "christian_lutheran"): 3, ("impervious", "christian_orthodox"): 1, ("impervious", "crossing"): 1,
                      ("impervious", "parking"): 28, ("impervious", "parking_bicycle"): 18, ("impervious", "pier"): 5, ("pervious", "water"): 7, ("pervious", "wetland"): 3}
    box = area_geobox((24.936, 60.165, 24.953, 60.178), 4)
    shares = {p: float((osm.rasterise(layers, box, p) & 1).mean()) for p in osm.PRESETS}
    assert 0.2 < shares["improved"] <= shares["paper"] < shares["extended"] < 0.6
    assert osm.rasterise(REAL / "osm_pbf/Helsinki.osm.pbf", box, "paper").equals(osm.rasterise(layers, box, "paper"))


@real
def test_a_truncated_pbf_is_an_error(tmp_path):
    whole = (REAL / "osm_pbf/Helsinki.osm.pbf").read_bytes()
    (tmp_path / "cut.osm.pbf").write_bytes(whole[:len(whole) // 3])
    with pytest.raises(DataError, match="cannot be read as an OSM extract"):
        osm.read(tmp_path / "cut.osm.pbf")


@real
def test_a_zip_that_stopped_downloading(tmp_path):
    path = tmp_path / "cut.zip"
    with zipfile.ZipFile(path, "w") as z:
        for p in (REAL / "geofabrik_shaanxi_shp").glob("gis_osm_traffic_a*"):
            z.write(p, p.name)
    assert len(osm.read(path)["traffic_a"]) == 1927
    path.write_bytes(path.read_bytes()[:200_000])
    with pytest.raises(DataError, match="cannot be read as an OSM extract"):
        osm.read(path)
