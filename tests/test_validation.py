"""Validation over regions, side by side, and of areas: bad input, files, and values computed by hand."""
import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import rasterio
from odc.geo.geobox import GeoBox
from shapely.geometry import Point, box

from isa_nb import misestimation as mis
from isa_nb import validation as v
from isa_nb.catalog import Catalog
from isa_nb.core import LAND_COVER, DataError, RequestError, raster, square_geobox

GRID = square_geobox(114.3, 30.6, 400, 10)
LEFT, BOTTOM = GRID.boundingbox.left, GRID.boundingbox.bottom


def by_hand() -> pd.DataFrame:
    "Two regions of 600 and 200 pixels with 6 and 4 points."
    rows = [("a", 600, m, r) for m, r in ((1, 1), (1, 1), (1, 3), (3, 3), (3, 3), (3, 1))] + [("b", 200, m, r) for m, r in ((5, 5), (5, 11), (1, 1), (1, 1))]
    return pd.DataFrame(rows, columns=["region", "pixels", "map", "reference"]).assign(stratum=lambda t: t.region)


def one(table: pd.DataFrame, region: str, measure: str, cls: str = "all") -> pd.Series:
    return table[(table.region == region) & (table.measure == measure) & (table["class"] == cls)].iloc[0]


def test_scores_by_hand():
    t = v.accuracy_table(by_hand())
    assert one(t, "a", "overall").estimate == pytest.approx(4 / 6) and one(t, "b", "overall").estimate == pytest.approx(3 / 4)
    overall = one(t, "all", "overall")
    assert overall.estimate == pytest.approx((600 * 4 / 6 + 200 * 3 / 4) / 800)
    variance = (600 / 800) ** 2 * (1 - 6 / 600) * (4 / 6 * 2 / 6) / 5 + (200 / 800) ** 2 * (1 - 4 / 200) * (3 / 4 * 1 / 4) / 3
    assert overall.se == pytest.approx(variance ** 0.5)
    users = one(t, "all", "users", "tree")  # mapped as tree: 300 and 100 pixels, right: 200 and 100
    assert users.estimate == pytest.approx(300 / 400) and one(t, "all", "producers", "tree").estimate == pytest.approx(300 / 400)
    assert one(t, "b", "producers", "road").estimate == 0 and np.isnan(one(t, "b", "users", "road").estimate)


def test_kappa_by_hand():
    t = v.accuracy_table(by_hand())
    assert one(t, "a", "kappa").estimate == pytest.approx((4 / 6 - 0.5) / 0.5)
    share = lambda **c: np.array([c.get(k, 0) for k in ("tree", "crop", "building", "road")]) / 800  # noqa: E731
    chance = share(tree=400, crop=300, building=100) @ share(tree=400, crop=300, building=50, road=50)
    assert one(t, "all", "kappa").estimate == pytest.approx((0.6875 - chance) / (1 - chance))
    assert one(t, "all", "kappa").lo < one(t, "all", "kappa").estimate < one(t, "all", "kappa").hi


def test_absent_class_is_undefined():
    t = v.accuracy_table(by_hand())
    for measure in ("users", "producers", "f1", "iou"):
        assert one(t, "all", measure, "wetland")[["estimate", "se", "lo", "hi"]].isna().all()
        assert one(t, "a", measure, "building")[["estimate", "se", "lo", "hi"]].isna().all()  # there, but in the other region
    same = by_hand().assign(map=1, reference=1)
    assert v.accuracy_table(same).query("measure == 'kappa'")[["estimate", "se", "lo", "hi"]].isna().all(axis=None)
    assert one(v.accuracy_table(same), "all", "overall").lo < 1  # all right, but ten points are ten points


def test_silent_map():
    "Where the map says nothing it is neither right nor wrong; where it never says anything, nothing is defined."
    some = by_hand()
    some.loc[[2, 5], "map"] = 0  # the two wrong ones
    assert one(v.accuracy_table(some), "a", "overall").estimate == 1
    assert v.accuracy_table(some.assign(map=0)).query("measure in ('overall', 'kappa')").estimate.isna().all()
    shares = v.confusion_shares(some)
    assert shares.query("other == 'not mapped'").estimate.gt(0).all() and not shares.query("other == 'not mapped'").empty
    compared = v.compare(some, {"map": set(LAND_COVER)}).set_index("question")
    assert compared.unmapped["all"] == pytest.approx(200 / 800) and compared.estimate["all"] == pytest.approx((400 + 150) / 800)


def test_confusion_by_hand():
    t = v.confusion_shares(by_hand(), "map", regions=True)
    got = t[(t.region == "all") & (t["class"] == "building")].set_index("other").estimate
    assert got.to_dict() == pytest.approx({"building": 0.5, "road": 0.5})
    assert set(t.region) == {"all", "a", "b"} and "cropland" not in set(t[t.region == "b"]["class"])
    with pytest.raises(RequestError, match="unknown region 'c'"):
        v.plot_confusion(t, "c")


def test_legends_are_told_from_errors():
    "A product without roads is not blamed for roads where classes are compared that both have."
    points = by_hand().assign(other=lambda t: t["map"].where(t.reference != 11, 5))
    points.loc[2, "other"] = 3
    t = v.compare(points, {"map": set(LAND_COVER), "other": set(LAND_COVER) - {11}}).set_index(["product", "question"])
    assert t.lacking["other", "all"] == pytest.approx(50 / 800) and t.lacking["map", "all"] == 0
    assert t.estimate["other", "own classes"] == pytest.approx(650 / 750) and t.estimate["other", "all"] == pytest.approx(650 / 800)
    assert t.difference["other", "own classes"] == pytest.approx((550 - 650) / 750) and t.difference["other", "all"] == pytest.approx(-100 / 800)
    assert t.difference["other", "impervious"] == 0 and t.estimate["other", "impervious"] == 1  # building for road is impervious all the same
    cat = Catalog.load()
    lacks = {n: set(LAND_COVER) - v.legend_classes(cat.source(n).legend) for n in ("lab_esa", "lab_esri", "lab_from_glc10", "sinolc_1")}
    assert all(11 in lacks[n] for n in ("lab_esa", "lab_esri", "lab_from_glc10")) and 10 in lacks["lab_esri"] and not lacks["sinolc_1"]


def test_bad_points():
    p = by_hand()
    with pytest.raises(DataError, match="stratum 'c' covers pixels but has no points"):
        v.accuracy_table(p, pixels={"a": 600, "b": 200, "c": 100})
    with pytest.raises(DataError, match="strata must lie within regions"):
        v.accuracy_table(p.assign(stratum="x"))
    with pytest.raises(DataError, match="lacks the column 'region'"):
        v.accuracy_table(p.drop(columns="region"))
    with pytest.raises(DataError, match="1 of 10 points have no value"):
        v.accuracy_table(p.assign(reference=p.reference.where(p.index > 0)))
    with pytest.raises(DataError, match="reference class 0 is not among the classes"):
        v.accuracy_table(p.assign(reference=0))
    with pytest.raises(DataError, match="reference class 0 is not among the classes"):
        v.compare(p.assign(reference=0), {"map": set(LAND_COVER)})
    with pytest.raises(RequestError, match="unknown product 'ours'"):
        v.compare(p, {"map": set(LAND_COVER)}, base="ours")


def test_regions_in_another_crs(tmp_path):
    halves = gpd.GeoDataFrame({"region": ["west", "east"]}, geometry=[box(LEFT, BOTTOM, LEFT + 200, BOTTOM + 400), box(LEFT + 200, BOTTOM, LEFT + 400, BOTTOM + 400)], crs=str(GRID.crs))
    codes, names = v.regions_on(GRID, halves.to_crs("EPSG:4326"))
    np.testing.assert_array_equal(codes.values, np.repeat([[{n: c for c, n in names.items()}[n] for n in ("west", "east")]], 40, 0).repeat(20, 1))
    with pytest.raises(DataError, match="carry no CRS"):
        v.regions_on(GRID, halves.set_crs(None, allow_override=True))
    said = raster(np.full((40, 40), 3, np.uint8), GRID, "map", nodata=0)
    said.rio.to_raster(tmp_path / "map.tif")
    a, b = (v.region_points(codes, names, m, 40, said, seed=1) for m in (said, tmp_path / "map.tif"))
    pd.testing.assert_frame_equal(pd.DataFrame(a), pd.DataFrame(b))
    assert a.region.value_counts().to_dict() == {"west": 20, "east": 20} and a.crs == GRID.crs
    with pytest.raises(DataError, match="are on different grids"):
        v.region_points(codes, names, said[:20], 40)
    with pytest.raises(RequestError, match="cannot give each of 2 strata at least 2"):
        v.region_points(codes, names, said, 3)
    with pytest.raises(RequestError, match="unknown strata 'classes': did you mean 'class'"):
        v.region_points(codes, names, said, 40, by="classes")


def test_points_by_class_in_regions():
    "Rare classes get points, and the estimates stay the same on average."
    gen = np.random.default_rng(0)
    true = np.where(gen.random((40, 40)) < 0.02, 11, 3).astype(np.uint8)
    said = np.where(gen.random((40, 40)) < 0.1, 3, true).astype(np.uint8)
    said[0] = 0
    regions, names = v.partition(GRID, 4)
    p = v.region_points(regions, names, raster(said, GRID, "map", nodata=0), 200, raster(true, GRID, "truth", nodata=0, simulated="yes"), by="class", least=4)
    assert p.groupby("region").stratum.nunique().max() == 3 and (p["map"] == 11).sum() >= 12 and (p["map"] == 0).any()
    t = v.accuracy_table(p)
    exact = (said == true)[1:].mean()
    assert one(t, "all", "overall").lo < exact < one(t, "all", "overall").hi and t.simulated.all()
    assert one(t, "all", "users", "road").estimate == 1 and one(t, "all", "users", "road").lo < 1


def test_points_of_others():
    parts = gpd.GeoDataFrame({"region": ["west", "east"]}, geometry=[box(110, 30, 111, 31), box(111, 30, 112, 31)], crs="EPSG:4326")
    points = gpd.GeoDataFrame({"map": [1, 3, 5]}, geometry=[Point(110.5, 30.5), Point(111.5, 30.5), Point(111, 30.5)], crs="EPSG:4326")
    got = v.located(points.to_crs("EPSG:3857"), parts, pixel=10)
    assert len(got) == 3 and got.region.isin(["west", "east"]).all()  # a point on the border is counted once
    assert got.pixels.iloc[0] == pytest.approx(111.3 * np.cos(np.radians(30.5)) * 110.9 * 1e4, rel=0.01)
    outside = gpd.GeoDataFrame({"map": [1]}, geometry=[Point(113, 30.5)], crs="EPSG:4326")
    with pytest.raises(DataError, match="1 of 4 points lie in no region"):
        v.located(pd.concat([points, outside], ignore_index=True), parts)
    with pytest.raises(DataError, match="region 'east' has no points"):
        v.located(points[:1], parts)
    with pytest.raises(DataError, match="the points carry no CRS"):
        v.located(points.set_crs(None, allow_override=True), parts)


def test_areas_of_files(tmp_path):
    "Whole files in strips, a map with nodata, and a grid in degrees."
    said = np.full((40, 40), 3, np.uint8)
    said[:, :10], said[0] = 7, 255
    units, names = v.partition(GRID, 2)
    for name, a in (("map", said), ("units", units.values)):
        with rasterio.open(tmp_path / f"{name}.tif", "w", driver="GTiff", width=40, height=40, count=1, dtype="uint8", crs=str(GRID.crs), transform=GRID.affine) as f:
            f.write(a, 1)
    t = mis.unit_areas(tmp_path / "map.tif", tmp_path / "units.tif", names)
    assert t["water"].sum() == pytest.approx(39 * 10 * 1e-4) and t.sum(axis=None) == pytest.approx(39 * 40 * 1e-4)
    flat = GeoBox((40, 40), rasterio.Affine(0.001, 0, 110, 0, -0.001, 60), "EPSG:4326")
    t = mis.unit_areas(raster(said, flat, "map"), raster(units.values, flat, "units"), names)
    assert t.sum(axis=None) == pytest.approx(0.039 * 111.4 * 0.04 * 111.32 * np.cos(np.radians(59.98)), rel=0.01)


def test_misestimation_knows_no_direction():
    "Halving and doubling each class's area gives the signed errors; units in another order change nothing."
    gen = np.random.default_rng(0)
    truth = pd.DataFrame(gen.uniform(1, 9, (12, 3)), index=list("abcdefghijkl"), columns=["x", "y", "z"])
    t = mis.misestimation(truth * [0.5, 1, 2], truth.iloc[::-1, ::-1]).set_index("formula")
    assert [t.estimate[f"relative: {c}"] for c in "xyz"] == pytest.approx([-0.5, 0, 1]) and t.estimate["mean of classes"] == pytest.approx(0.5)
    assert t.estimate["weighted"] == pytest.approx((0.5 * truth.x.sum() + truth.z.sum()) / truth.sum(axis=None)) and (t.units == 12).all() and t.inferred.all()
    with pytest.raises(DataError, match="a unit stands twice"):
        mis.misestimation(pd.concat([truth, truth[:1]]), pd.concat([truth, truth[:1]]))
