"Land-cover labels: what users do wrong, any number of products, files and memory alike, known shifts."
import json

import numpy as np
import pytest
import rasterio
from hypothesis import given, settings
from hypothesis import strategies as st

from isa_nb import landcover
from isa_nb.core import DataError, RequestError, raster, square_geobox
from isa_nb.fuse_files import FileProduct
from isa_nb.landcover_files import intersect_files
from isa_nb.registration import coregistration, moved

BOX = square_geobox(114.3, 30.6, 400, 10)
LEGEND = {c: c for c in range(1, 12)} | {200: 0, 255: 255}


def product(values, box=BOX, year=2020, **attrs):
    return raster(np.asarray(values, np.uint8), box, "product", nodata=255, year=year, **attrs)


def draws(n, seed=0, codes=(1, 3, 5, 7, 200, 255)):
    gen = np.random.default_rng(seed)
    return {f"p{i}": product(gen.choice(codes, BOX.shape.yx, p=[0.2, 0.3, 0.2, 0.1, 0.1, 0.1])) for i in range(n)}


def legends(products, **other):
    return dict.fromkeys(products, LEGEND) | other


def by_hand(said, has, strict, agreement, least):
    "The rule once more, pixel by pixel; said: class or 0 other or 255 nothing, per product."
    n, votes = len(said), {}
    for c in range(1, 12):
        able = n if strict else sum(1 for s, h in zip(said, has, strict=True) if s != 255 and c in h)
        names = sum(s == c for s in said)
        if names and names >= (1 if strict else agreement) * able - 1e-9 and names >= min(least, n):
            votes[c] = names
    best = [c for c, v in votes.items() if v == max(votes.values())]
    return (best[0], votes[best[0]] / n) if len(best) == 1 else (0, 0.0)


@settings(max_examples=30)
@given(st.integers(1, 4), st.integers(0, 99), st.booleans(), st.sampled_from([0.5, 0.6, 1.0]), st.integers(1, 3))
def test_the_rule_is_the_one_by_hand(n, seed, strict, agreement, least):
    gen = np.random.default_rng(seed)
    has = [set(gen.choice(np.arange(1, 12), 6, replace=False).tolist()) for _ in range(n)]
    said = [gen.choice([*sorted(h), 0, 255], 12) for h in has]
    box = square_geobox(114, 30, 120, 10)[:1, :12]
    products = {f"p{i}": product(np.where(s == 0, 200, s)[None], box) for i, s in enumerate(said)}
    found = landcover.intersect(products, {f"p{i}": {c: c for c in h} | {200: 0, 255: 255} for i, h in enumerate(has)}, strict, agreement, least)
    for j in range(12):
        label, sure = by_hand([int(s[j]) for s in said], has, strict, agreement, least)
        assert (int(found.label[0, j]), pytest.approx(float(found.confidence[0, j]))) == (label, sure)


def test_a_class_that_a_product_lacks_is_asked_of_the_others_and_said_where_it_cannot_be():
    tundra = {"a": product(np.full(BOX.shape.yx, 10)), "b": product(np.full(BOX.shape.yx, 4)), "c": product(np.full(BOX.shape.yx, 10))}
    lacks = {k: v for k, v in LEGEND.items() if k != 10}
    some = landcover.intersect(tundra, legends(tundra, b=lacks))
    assert (some.label == 10).all() and (some.confidence == np.float32(2 / 3)).all() and some.attrs["notices"] == []
    none = landcover.intersect(tundra, legends(tundra, b=lacks), strict=True)
    assert (none.label == 0).all() and "no label can be tundra: a, c have the class, and 3 products must name it" in none.attrs["notices"]


def test_years_are_told_apart():
    two = {"old": product(np.full(BOX.shape.yx, 5), year=2017), "new": product(np.full(BOX.shape.yx, 5), year=2020)}
    labels = landcover.intersect(two, legends(two))
    assert labels.attrs["years"] == ["2017", "2020"] and labels.attrs["notices"][0].startswith("the products are of different years (old 2017, new 2020)")


@pytest.mark.parametrize(("change", "line"), [
    (lambda p: p | {"p1": p["p1"].isel(x=slice(1, None))}, "p0 and p1 are on different grids"),
    (lambda p: p | {"p1": p["p1"].astype(float)}, "product p1 is float64"),
    (lambda p: p | {"p1": p["p1"].copy(data=np.where(p["p1"].values == 5, 50, p["p1"].values).astype(np.uint8))}, "product p1 holds 50"),
    (lambda p: {}, "no product to fuse"),
    (lambda p: {f"q{i}": p["p0"] for i in range(6)}, "6 products cannot be intersected together"),
])
def test_products_that_do_not_fit_are_named(change, line):
    products = change(draws(3))
    with pytest.raises((DataError, RequestError), match=line):
        landcover.intersect(products, legends(products))


def test_nodata_that_is_a_class_is_refused():
    wrong = product(np.full(BOX.shape.yx, 5)).rio.write_nodata(5)
    with pytest.raises(DataError, match="product a: nodata 5 is also a class of its legend"):
        landcover.intersect({"a": wrong}, {"a": LEGEND})


@pytest.mark.parametrize(("image", "line"), [
    (BOX.zoom_to(resolution=3), "labels of 10 m do not fit an image of 3 m: 3.333 is no whole number"),
    (BOX.zoom_to(resolution=20), "labels of 10 m do not fit an image of 20 m: 0.5 is no whole number"),
    (BOX.zoom_to(resolution=1).translate_pix(0.5, 0.25), r"labels and image do not line up: the edges of the labels lie -0.5 m and -0.25 m"),
    (square_geobox(114.3, 30.6, 400, 1, "EPSG:32649"), "the labels are in EPSG:32650 and the image in EPSG:32649"),
])
def test_labels_that_do_not_fit_the_image_say_how(image, line):
    labels = landcover.intersect(p := draws(3), legends(p))
    with pytest.raises(DataError, match=line) as told:
        landcover.on_grid(labels, image)
    assert "say resample=True" in str(told.value)
    assert landcover.on_grid(labels, image, resample=True).label.shape == image.shape.yx


def test_osm_without_roads_is_said():
    import geopandas as gpd
    labels = landcover.intersect(p := draws(3), legends(p))
    empty = {"buildings_a": gpd.GeoDataFrame({"fclass": []}, geometry=[], crs="EPSG:4326")}
    assert "OSM holds no layer of roads: nothing was drawn" in landcover.with_roads(labels, empty).attrs["notices"]


@pytest.mark.parametrize("options", [{}, {"strict": True}, {"agreement": 0.6}])
def test_files_and_memory_give_the_same(tmp_path, options):
    products = draws(3)
    for k, da in products.items():
        da.rio.to_raster(tmp_path / f"{k}.tif")
    made = intersect_files({k: FileProduct(tmp_path / f"{k}.tif", LEGEND, year=2020) for k in products}, tmp_path / "out", threads=2, **options)
    memory = landcover.intersect(products, legends(products), **options)
    for name, want in (("label", memory.label.values), ("rule", memory.rule.values), ("confidence", np.rint(memory.confidence.values * 100))):
        with rasterio.open(made[name]) as f:
            assert (f.read(1) == want).all()
    told = json.loads(made["json"].read_text())
    assert told["pixels"] == BOX.shape.y * BOX.shape.x and sum(told["rules"].values()) == told["pixels"]


def test_a_failed_run_leaves_no_files(tmp_path):
    products = draws(2)
    for k, da in products.items():
        da.rio.to_raster(tmp_path / f"{k}.tif")
    with pytest.raises(DataError, match="not in its legend"):
        intersect_files({"p0": FileProduct(tmp_path / "p0.tif", LEGEND), "p1": FileProduct(tmp_path / "p1.tif", {1: 1, 255: 255})}, tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.tif"))
    with pytest.raises(RequestError, match="unknown output 'votes'"):
        intersect_files({"p0": FileProduct(tmp_path / "p0.tif", LEGEND)}, tmp_path / "out", only=["votes"])


def test_misregistered_labels_are_reported_in_metres_and_direction():
    gen = np.random.default_rng(3)
    box = square_geobox(114.3, 30.6, 800, 2)
    label = raster(np.kron(gen.integers(1, 5, (20, 20)), np.ones((20, 20))).astype(np.uint8), box, "label", nodata=0)
    image = raster((label.values[None] * np.array([[[40]], [[-25]]]) + gen.normal(0, 30, (2, 400, 400))).astype(np.float32), box, "image")
    fits, off = coregistration(label, image), coregistration(moved(label, -8, 6), image)
    assert not fits.significant and str(fits).startswith("labels and image fit")
    assert off.significant and (abs(off.east + 8), abs(off.north - 6)) < (0.5, 0.5)
    assert str(off).startswith("the labels are misregistered: they lie 8.0 m west") and "6.0 m north" in str(off)
    lost = coregistration(label, image.copy(data=gen.normal(size=(2, 400, 400)).astype(np.float32)))
    assert not lost.significant
