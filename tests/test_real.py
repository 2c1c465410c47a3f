"The real layers of ../shared/data through `isa run`, from files to report."
import ast
import json
import subprocess
import sys
from pathlib import Path

import geopandas as gpd
import nbformat
import numpy as np
import pandas as pd
import pytest
import rasterio
from rasterio.features import rasterize

HERE = Path(__file__).parent
DATA = HERE.parent / "../shared/data"
pytestmark = pytest.mark.skipif(not DATA.exists(), reason="the real files of ../shared/data are not here")


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    "A run of the experiments that have real input."
    out = tmp_path_factory.mktemp("real") / "run"
    command = [sys.executable, "-c", "from isa_nb.cli import app; app()", "run", "--profile", "smoke", "--experiments", "zoning,osm,labels,buildings,coarse_buildings,two_crs", "--catalog", str(HERE / "real/catalog.yaml"), "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, cwd=HERE.parent)
    assert done.returncode == 0, done.stderr[-2000:]
    return out


def table(results, step, name):
    return pd.read_csv(results / step / "tables" / f"{name}.csv")


def test_every_step_is_made(results):
    steps = json.loads((results / "manifest.json").read_text())["steps"]
    assert {"zoning", "labels/W3", "osm/shaanxi", "osm/helsinki", "buildings/massachusetts", "coarse_buildings/massachusetts", "two_crs/lataseno"} <= set(steps)
    assert not [s for s, v in steps.items() if v["state"] != "done"] and "simulated" not in (results / "buildings/massachusetts/outputs.json").read_text().replace('"simulated": false', "")


def test_the_five_places_of_the_readme_of_the_data(results):
    places = table(results, "zoning", "places").set_index("place")
    assert places.zone.loc[["urumqi", "ili", "beijing", "wuhan", "jiangxi"]].tolist() == ["W1", "W2", "W3", "W4", "W4"]
    assert places.mean_mm.loc[["urumqi", "ili", "beijing", "wuhan", "jiangxi"]].tolist() == pytest.approx([152, 372, 662, 1241, 1241], abs=5)
    assert places.loc["urumqi", ["pixel_zone", "pixel_mm"]].tolist() == ["W2", 232]
    assert (results / "zoning/figures/figure2_zones.png").stat().st_size > 20_000


def test_osm_is_counted_and_what_has_no_geometry_is_passed_over(results):
    shaanxi, helsinki = (table(results, f"osm/{place}", "osm_counts") for place in ("shaanxi", "helsinki"))
    assert set(shaanxi.layer) == {"traffic", "traffic_a", "transport", "transport_a"} and set(shaanxi[shaanxi.fclass == "parking"].group) == {"impervious", "not used"}
    assert shaanxi.n.sum() > 10_000 and (shaanxi.query("group == 'impervious'").area_m2 > 0).all()
    assert helsinki.query("fclass == 'building'")[["group", "n"]].to_numpy().tolist() == [["impervious", 482]]
    notes = json.loads((results / "osm/shaanxi/outputs.json").read_text())["notes"]
    assert [n.split(",")[0] for n in notes] == ["real_osm_shaanxi: water_a: passed over", "real_osm_shaanxi: waterways: passed over"]


def test_beijing_is_fused_and_its_products_judged(results):
    counts = table(results, "labels/W3", "table3_counts")
    assert (counts[["impervious", "pervious", "uncertain"]].sum(axis=1) > 1_000_000).all() and (counts.uncertain > 0).all()
    reliability = table(results, "labels/W3", "reliability")
    assert reliability.filter(like="se").gt(0).any().any()
    assert set(table(results, "labels/W3", "products").year) == {2013, 2015, 2017}


def test_buildings_of_massachusetts(results):
    scores = table(results, "buildings/massachusetts", "buildings_accuracy")
    f1 = scores[scores.score == "building_f1"].set_index("map")
    assert set(f1.index) == {"network", "random forest"} and (f1.blocks >= 10).all()
    known = f1[f1.estimate.notna()]
    assert len(known) and ((known.lo <= known.estimate) & (known.estimate <= known.hi) | known.lo.isna()).all()
    assert table(results, "buildings/massachusetts", "split").set_index("split").chips[["train", "test", "buffer"]].gt(0).all()


def test_buildings_from_coarse_labels(results):
    scores, gains = (table(results, "coarse_buildings/massachusetts", n) for n in ("scores", "gains"))
    f1 = scores[(scores.score == "building_f1") & (scores.judged == "both halves")].set_index("arm")
    assert {"L2HNet, full", "L2HNet, cross-entropy", "U-Net", "labels upsampled"} == set(f1.index) and (f1.blocks > 20).all()
    assert 0.5 < f1.estimate["labels upsampled"] < 0.8 and f1.lo["labels upsampled"] < f1.estimate["labels upsampled"] < f1.hi["labels upsampled"]
    assert set(gains.against) == set(f1.index) - {"L2HNet, full"}
    shift = table(results, "coarse_buildings/massachusetts", "registration").set_index("labels")
    assert shift.east_m["reference"] == pytest.approx(-2.4, abs=1) and shift.shifted["reference"] == "yes"


def test_labels_of_another_crs_with_nineteen_classes(results):
    notes = json.loads((results / "two_crs/lataseno/outputs.json").read_text())["notes"]
    assert "Image in EPSG:25835, 9 bands of 10.0 m; labels in EPSG:3067, 20 m; 19 classes." in notes
    with rasterio.open(results / "two_crs/lataseno/data/map.tif") as f:
        assert f.shape == (247, 442) and f.crs.to_epsg() in (25835, 3067) and set(np.unique(f.read(1))) <= {*range(1, 20), 255}


def test_jaca_four_dates_through_change(tmp_path):
    "A real stack without years and labels: harmonised, filtered, and said to be a count."
    command = [sys.executable, "-c", "from isa_nb.cli import app; app()", "run", "--profile", "smoke", "--experiments", "change", "--zones", "jaca", "--catalog", str(HERE / "real/catalog.yaml"), "--out", str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, cwd=HERE.parent)
    assert done.returncode == 0, done.stderr[-2000:]
    step = "change/jaca"
    offsets, light, moves = (table(tmp_path / "run", step, n) for n in ("offsets", "light", "transitions"))
    assert offsets.year.tolist() == [1, 2, 3, 4] and not offsets.offset.any()
    assert (light.groupby("year").rmse_after.mean() < light.groupby("year").rmse_before.mean()).all()
    assert moves[moves.maps == "single years"].lost.min() > 100 and not moves[moves.maps == "filtered"].lost.any()
    said = json.loads((tmp_path / "run" / step / "outputs.json").read_text())
    assert any("There is no label of Jaca" in n for n in said["notes"]) and any("without a standard error" in o["caption"] for o in said["outputs"])
    with rasterio.open(tmp_path / "run" / step / "data/series/first_year.tif") as f:
        assert f.shape == (72, 75) and set(np.unique(f.read(1))) <= {0, 1, 2, 3, 4, 255}


def test_what_the_fidelity_page_says_of_a_real_suburb():
    "The page quotes figures of Massachusetts, which it cannot measure itself; its own function gives them."
    cell = next(c.source for c in nbformat.read(HERE.parent / "nbs/explanations/lab_fidelity.ipynb", 4).cells if "def fineness" in c.source)
    page = {"np": np}
    exec("\n".join(ast.unparse(n) for n in ast.parse(cell).body[:2]), page)
    quoted, fineness = page["REAL"], page["fineness"]
    with rasterio.open(DATA / "mass_buildings_1m/22978945_15.tif") as src:
        transform, shape, crs, bounds = src.transform, src.shape, src.crs, src.bounds
    houses = gpd.read_file(DATA / "mass_buildings_1m/22978945_15.gpkg").to_crs(crs).cx[bounds.left:bounds.right, bounds.bottom:bounds.top]
    built = rasterize(houses.geometry, shape, transform=transform).astype(bool)
    assert len(houses) == 405 and built.mean() == pytest.approx(quoted["built share"], abs=5e-4)
    assert [houses.area.median(), houses.area.mean()] == pytest.approx([quoted["median m2"], quoted["mean m2"]], abs=0.5)
    measured = [houses.length.sum() / houses.area.sum(), *fineness(built, 10), fineness(built, 30)[1]]
    assert measured == pytest.approx([quoted[k] for k in ("wall, m per m2", "mixed, 10 m", "ceiling F1, 10 m", "ceiling F1, 30 m")], abs=5e-4)
