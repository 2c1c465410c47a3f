"""The isa command as a user meets it: help, exit codes, one line for a mistake; and the checks of `isa test`."""
import json
import re
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import geopandas as gpd
import nbformat
import numpy as np
import pytest
import rasterio
from rasterio.transform import from_origin
from shapely import Point
from typer.testing import CliRunner

from isa_nb import cli, house
from isa_nb.plan import load_suite

ROOT = Path(__file__).parents[1]


def isa(*words: str) -> tuple[int, str, str]:
    "Exit code, output and errors."
    done = CliRunner().invoke(cli.app, list(words), env={"COLUMNS": "200", "TERM": "dumb"})
    return done.exit_code, done.stdout, done.stderr


def assert_one_line(result: tuple[int, str, str], code: int, *words: str) -> None:
    assert result[0] == code, result
    assert len(result[2].strip().splitlines()) == 1 and "Traceback" not in result[2], result[2]
    for word in words:
        assert word in result[2], result[2]


def test_help_says_what_and_gives_an_example():
    code, out, _ = isa("--help")
    assert code == 0 and all(f" {name} " in out for name in ("run", "fetch", "fuse", "map", "assess", "docs", "test"))
    for name in ("run", "fetch", "fuse", "map", "assess", "docs", "test"):
        code, out, _ = isa(name, "--help")
        assert code == 0 and "Example:" in out, name
    assert isa("run", "-h") == isa("run", "--help") and isa("--version") == (0, f"isa_nb {metadata.version('isa_nb')}\n", "")


def test_help_names_every_experiment():
    _, out, _ = isa("run", "--help")
    assert set(load_suite().experiments) <= set(re.findall(r"\w+", out))


def test_help_needs_no_heavy_library():
    code = "import sys; from isa_nb.cli import app\ntry: app(['--help'])\nexcept SystemExit: pass\nprint([m for m in ('numpy', 'pandas', 'rasterio', 'isa_nb.core', 'distributed') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("[]")


@pytest.mark.parametrize(("words", "message"), [
    (["fusee"], "isa: No such command 'fusee': there are run, fetch, fuse, map, assess, docs, test; see `isa --help`"),
    (["run", "--seed", "x"], "isa run: Invalid value for '--seed'"),
    (["run", "--zone", "W1"], "isa run: No such option: --zone (Possible options: --zones)"),
    (["run", "W1"], "isa run: Got unexpected extra argument(s) (W1); see `isa run --help`"),
    (["map"], "isa map: Missing argument 'MODEL'; see `isa map --help`"),
    (["fuse", "--out", "x"], "isa fuse: Missing option '--product'; see `isa fuse --help`"),
])
def test_a_wrong_word_is_one_line(words, message):
    assert_one_line(isa(*words), 2, message)


@pytest.mark.parametrize(("words", "message"), [
    (["--profile", "smok"], "did you mean 'smoke'?"),
    (["--zones", "W1,W9"], "unknown zone 'W9'"),
    (["--zones", ""], "no zone is asked for: name some, or leave them out for all"),
    (["--experiments", "label"], "unknown experiment 'label'"),
    (["--experiments", ","], "no experiment is asked for"),
    (["--catalog", "none.yaml"], "no such catalogue: none.yaml"),
    (["--workers", "0"], "0 workers"),
    (["--year", "20"], "the year is 20: give one from 1950 to 2100"),
    (["--suite", "none.yaml"], "no such file of experiments: none.yaml"),
])
def test_a_wrong_run_is_one_line_and_makes_nothing(tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    assert_one_line(isa("run", *words), 2, "isa run: ", message)
    assert not list(tmp_path.iterdir())


def test_debug_shows_where(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(cli.app, ["--debug", "run", "--profile", "smok"])
    assert done.exit_code == 1 and type(done.exception).__name__ == "RequestError"


def test_an_unexpected_error_is_one_line_too(monkeypatch):
    monkeypatch.setattr("isa_nb.batch.run", lambda request: 1 / 0)
    assert_one_line(isa("run"), 1, "isa run: unexpected ZeroDivisionError: division by zero; `isa --debug run ...` shows where")


def test_interrupted_ends_with_130(monkeypatch):
    def interrupted(request):
        raise KeyboardInterrupt
    monkeypatch.setattr("isa_nb.batch.run", interrupted)
    assert_one_line(isa("run"), 130, "isa run: interrupted")


# ---- isa fuse


@pytest.fixture
def products(tmp_path) -> Path:
    "Two products of 64 x 64 pixels that disagree in one column; the second in codes of its own, with a nodata corner."
    a, b = np.zeros((64, 64), np.uint8), np.full((64, 64), 10, np.uint8)
    a[:, :20], b[:, :21] = 1, 190
    b[0, 0] = 250
    for name, values, nodata in (("a", a, 255), ("b", b, 250), ("void", np.full_like(a, 255), 255)):
        with rasterio.open(tmp_path / f"{name}.tif", "w", driver="GTiff", width=64, height=64, count=1, dtype="uint8", crs="EPSG:32650", nodata=nodata,
                           transform=from_origin(500_000, 4_000_000, 30, 30)) as f:
            f.write(values, 1)
    (tmp_path / "cut.tif").write_bytes((tmp_path / "b.tif").read_bytes()[:2000])
    return tmp_path


def test_fuse_on_files(products):
    out = products / "fused"
    code, text, err = isa("fuse", "--product", f"a={products}/a.tif", "--product", f"b={products}/b.tif", "--legend", "b=190", "--year", "b=2020", "--out", str(out))
    assert code == 0, err
    with rasterio.open(out / "label.tif") as f:
        label = f.read(1)
    assert (label[1:, :20] == 1).all() and (label[:, 20] == 2).all() and (label[:, 21:] == 0).all()
    assert json.loads((out / "fusion.json").read_text())["years"] == ["unknown", "2020"]
    assert "4,096 pixels" in text and "agreement" in text and str(out / "label.tif") in text
    assert_one_line(isa("fuse", "--product", f"a={products}/a.tif", "--product", f"b={products}/b.tif", "--legend", "b=190", "--out", str(out)), 2, "holds an earlier fusion")
    code, text, err = isa("fuse", "--product", f"a={products}/a.tif", "--product", f"void={products}/void.tif", "--out", str(products / "none"))
    three = [w for n, f in (("a", "a"), ("b", "b"), ("c", "a")) for w in ("--product", f"{n}={products}/{f}.tif")]
    told = isa("fuse", *three, "--legend", "b=190", "--rule", "posterior", "--out", str(products / "posterior"))[1]
    assert "latent classes from 3 witnesses: a, b, c" in told and all(f"\n{n}: sensitivity " in told for n in "abc"), told
    assert isa("fuse", "--product", f"a={products}/a.tif", "--product", f"void={products}/void.tif", "--min-valid", "1", "--out", str(products / "one"))[1].startswith("4,096 pixels: agreement 100.00%")
    assert code == 0 and "4,096 pixels: nodata 100.00%" in text and err.startswith("isa fuse: no pixel has a label: nowhere on the grid of the first product do enough products hold data (--min-valid)")


@pytest.mark.parametrize(("words", "code", "message"), [
    (["--product", "a.tif", "--product", "b={}/b.tif"], 2, "--product 'a.tif': write it as NAME=VALUE"),
    (["--product", "a={}/a.tif", "--product", "a={}/b.tif"], 2, "--product a is given twice"),
    (["--product", "a={}/a.tif", "--product", "b={}/b.tif", "--legend", "c=190"], 2, "unknown product 'c'"),
    (["--product", "a={}/a.tif", "--product", "b={}/b.tif", "--legend", "b=300"], 2, "from 0 to 255"),
    (["--product", "a={}/a.tif", "--product", "b={}/b.tif", "--legend", "b=-5"], 2, "--legend '-5': write the impervious codes as 190 or 51-62,190"),
    (["--product", "a={}/a.tif", "--product", "b={}/b.tif", "--legend", "b=gisaa"], 2, "unknown source 'gisaa'"),
    (["--product", "a={}/a.tif", "--product", "b={}/b.tif", "--legend", "b=190", "--preset", "papr"], 2, "unknown OSM preset 'papr': did you mean 'paper'?"),
    (["--product", "a={}/a.tif", "--product", "b={}/b.tif", "--legend", "b=190", "--catalog", "none.yaml"], 2, "no such catalogue: none.yaml"),
    (["--product", "a={}/a.tif", "--product", "b={}/cut.tif", "--legend", "b=190"], 1, "cut.tif"),
    (["--product", "a={}/a.tif", "--product", "b={}/b.tif", "--year", "last"], 2, "--year: write it as 2020"),
    (["--product", "a={}/a.tif", "--product", "b={}/none.tif"], 1, "none.tif"),
    (["--product", "a={}/a.tif", "--product", "b={}/none.tif", "--legend", "b=190"], 1, "none.tif"),
    (["--product", "a={}/a.tif", "--product", "b={}/b.tif"], 1, "b"),
    (["--product", "a={}/a.tif", "--product", "b={}/b.tif", "--legend", "b=190", "--rule", "mine"], 2, "unknown rule 'mine'"),
    (["--product", "a={}/a.tif", "--product", "b={}/b.tif", "--legend", "b=190", "--order", "osm"], 2, "unknown order 'osm'"),
    (["--product", "a={}/a.tif", "--product", "b={}/b.tif", "--legend", "b=190", "--threshold", "0.3"], 2, "threshold 0.3 is outside (0.5, 1]"),
    (["--product", "a={}/a.tif", "--product", "b={}/b.tif", "--legend", "b=190", "--min-valid", "3"], 2, "min_valid 3 asks for more valid products than the 2 there are"),
    (["--product", "a={}/a.tif", "--product", "b={}/b.tif", "--legend", "b=190", "--osm", "{}/none.zip"], 1, "none.zip"),
])
def test_a_wrong_fuse_is_one_line(products, words, code, message):
    out = products / "fused"
    assert_one_line(isa("fuse", *(w.format(products) for w in words), "--out", str(out)), code, "isa fuse: ", message)
    assert not list(out.glob("*.tif"))


# ---- isa map, isa assess


class Brighter:
    "A network of one layer: impervious where the first band is bright."

    def __new__(cls, in_channels: int, n_classes: int):
        import torch
        net = torch.nn.Conv2d(in_channels, n_classes, 1)
        with torch.no_grad():
            net.weight[:], net.bias[:] = 0, 0
            net.weight[0, 0], net.weight[1, 0] = -3, 3
        return net


@pytest.fixture
def town(tmp_path, monkeypatch) -> Path:
    "A model folder, an image of 200 x 150 pixels with named bands and a nodata corner, and its truth, of which a strip is unknown."
    from isa_nb import models
    monkeypatch.setitem(models.ARCHITECTURES, "Brighter", Brighter)
    spec = models.Spec(architecture="Brighter", bands=["red", "nir"], mean=[1000.0, 1000.0], std=[500.0, 500.0], simulated=True)
    models.save(models.build(spec), tmp_path / "model")
    truth = np.kron(np.random.default_rng(0).random((20, 15)) < 0.3, np.ones((10, 10))).astype(np.uint8)
    image = np.where(truth, 2000, 500).astype(np.uint16)[None].repeat(2, 0)
    image[:, 60:64] = 2500 - image[:, 60:64]  # four rows in which the map errs
    image[:, :10, :10], truth[:, 140:] = 0, 255
    for name, values, nodata in (("image", image, 0), ("truth", truth[None], 255)):
        with rasterio.open(tmp_path / f"{name}.tif", "w", driver="GTiff", width=150, height=200, count=len(values), dtype=values.dtype, crs="EPSG:32650", nodata=nodata,
                           transform=from_origin(500_000, 4_000_000, 10, 10)) as f:
            f.write(values)
            f.descriptions = ("red", "nir")[:len(values)] if name == "image" else ("truth",)
    (tmp_path / "cut.tif").write_bytes((tmp_path / "truth.tif").read_bytes()[:2000])
    (tmp_path / "empty.geojson").write_text('{"type": "FeatureCollection", "features": []}')
    gpd.GeoDataFrame(geometry=[Point(500_100, 3_999_900)], crs="EPSG:32650").to_file(tmp_path / "points.gpkg")
    return tmp_path


def test_map_and_assess(town):
    import pandas as pd

    from isa_nb import models
    out = town / "maps" / "map.tif"
    code, text, err = isa("map", str(town / "model"), str(town / "image.tif"), str(out), "--tile", "64", "--overlap", "16")
    assert code == 0 and not err, err
    assert text.startswith("200 x 150 pixels (simulated): pervious ") and "nodata 0.33%" in text and str(out) in text and str(out.with_name("map_probability.tif")) in text
    with rasterio.open(out) as f, rasterio.open(town / "truth.tif") as t:
        got, truth = f.read(1), t.read(1)
    want = truth.copy()
    want[60:64] = 1 - truth[60:64]
    want[:10, :10] = 255
    assert (got[:, :140] == want[:, :140]).all()
    assert isa("map", str(town / "model"), str(town / "image.tif"), str(out), "--tile", "64", "--overlap", "16")[:2] == (0, text)  # nothing to do
    assert isa("map", str(town / "model"), str(town / "image.tif"), str(out), "--tile", "64", "--overlap", "16", "--stac", "2021-06")[1] == text + f"{out.with_suffix('.json')}\n"
    assert json.loads(out.with_suffix(".json").read_text())["properties"]["end_datetime"] == "2021-06-30T23:59:59Z"
    spec = models.load(town / "model").spec.model_copy(update={"resolution": 16.0})
    models.save(models.build(spec), town / "coarse")
    code, _, err = isa("map", str(town / "coarse"), str(town / "image.tif"), str(town / "maps/coarse.tif"))
    assert code == 0 and err.startswith("isa map: the model learnt from pixels of 16 m and") and "has 10 m: at another size it sees other things" in err and err.count("\n") == 1
    assert_one_line(isa("map", str(town / "model"), str(town / "image.tif"), str(out), "--tile", "32", "--overlap", "0"), 2, "is there already, made by another request")
    assert isa("map", str(town / "model"), str(town / "image.tif"), str(out), "--tile", "32", "--overlap", "0", "--overwrite")[0] == 0

    code, text, err = isa("assess", str(out), str(town / "truth.tif"), "--zone", "W2")
    assert code == 0 and not err and "simulated" in text and "aAcc 0.980 (" in text, (text, err)
    assert "35 blocks of 32 px" in text and "one block of 500 px: no interval; give a smaller --block" in isa("assess", str(out), str(town / "truth.tif"), "--block", "500", "--out", str(town / "one.csv"))[1]
    table = pd.read_csv(town / "maps" / "map_accuracy.csv")
    right = (got == truth)[:, :140].sum() / (200 * 140 - 100)
    assert (table.zone[0], table.reference[0], bool(table.simulated[0])) == ("W2", "truth", True) and abs(table.aAcc[0] - right) < 1e-5
    assert abs(table.unmapped[0] - 100 / (200 * 140)) < 1e-5 and table.isa_f1_lo[0] <= table.isa_f1[0] <= table.isa_f1_hi[0]
    assert (town / "maps" / "map_accuracy.parquet").exists()


def test_assess_with_points(town):
    import pandas as pd
    gen = np.random.default_rng(1)
    row, col = gen.integers(0, 200, 1000), gen.integers(0, 140, 1000)
    with rasterio.open(town / "truth.tif") as f:
        truth = f.read(1)
    points = gpd.GeoDataFrame({"seen": truth[row, col]}, geometry=gpd.points_from_xy(500_000 + 10 * col + 5, 4_000_000 - 10 * row - 5), crs="EPSG:32650")
    points.to_crs(4326).to_file(town / "points.gpkg")
    code, text, err = isa("assess", str(town / "truth.tif"), str(town / "points.gpkg"), "--column", "seen", "--out", str(town / "table.csv"))
    assert code == 0 and "overall all 1.000 (" in text and not err, (text, err)
    table = pd.read_csv(town / "table.csv")
    assert {"measure", "class", "estimate", "se", "lo", "hi", "points"} <= set(table) and table.lo[0] < 1
    share = table[(table.measure == "area") & (table["class"] == "1")]
    assert abs(share.estimate.item() - (truth == 1).sum() * 1e-4) < 4 * share.se.item() < 0.2
    assert_one_line(isa("assess", str(town / "truth.tif"), str(town / "points.gpkg")), 2, "the points have no column 'reference': they have seen")


@pytest.mark.parametrize(("words", "code", "message"), [
    (["map", "{}/none", "{}/image.tif", "{}/map.tif"], 1, "isa map: "),
    (["map", "{}/model", "{}/none.tif", "{}/map.tif"], 1, "cannot read"),
    (["map", "{}/model", "{}/truth.tif", "{}/map.tif"], 1, "the model wants 2 bands (red, nir)"),
    (["map", "{}/model", "{}/image.tif", "{}/map.tif", "--bands", "nir,red"], 1, "say bands=['red', 'nir']"),
    (["map", "{}/model", "{}/image.tif", "{}/map.tif", "--bands", "red,swir"], 2, "has no band 'swir': it has 1 red, 2 nir"),
    (["map", "{}/model", "{}/image.tif", "{}/map.tif", "--tile", "64", "--overlap", "64"], 2, "give a tile of at least 1 px"),
    (["map", "{}/model", "{}/image.tif", "{}/map.tif", "--nodata", "zero"], 2, "--nodata 'zero': write a number, or none"),
    (["map", "{}/model", "{}/image.tif", "{}"], 2, "is no name of a GeoTIFF"),
    (["map", "{}/model", "{}/image.tif", "{}/map.png"], 2, "map.png is no name of a GeoTIFF"),
    (["map", "{}/model", "{}/image.tif", "{}/image.tif", "--overwrite"], 2, "image.tif is the imagery itself: choose another name for the map"),
    (["map", "{}/model", "{}/image.tif", "{}/map.tif", "--tile", "0"], 2, "give a tile of at least 1 px"),
    (["map", "{}/model", "{}/image.tif", "{}/map.tif", "--batch", "0"], 2, "batch 0"),
    (["map", "{}/model", "{}/image.tif", "{}/map.tif", "--device", "gpu"], 2, "unknown device 'gpu': give auto, cpu, cuda"),
    (["map", "{}/model", "{}/image.tif", "{}/map.tif", "--within", "{}/points.gpkg"], 1, "the boundary to map within holds Point where polygons are due"),
    (["map", "{}/model", "{}/image.tif", "{}/map.tif", "--within", "{}/empty.geojson"], 1, "the boundary to map within holds nothing where polygons are due"),
    (["map", "{}/model", "{}/image.tif", "{}/map.tif", "--stac", "summer"], 2, "time 'summer': give a year, a month or a day"),
    (["assess", "{}/none.tif", "{}/truth.tif"], 1, "none.tif"),
    (["assess", "{}/truth.tif", "{}/none.gpkg"], 1, "cannot read points from"),
    (["assess", "{}/truth.tif", "{}/image.tif"], 1, "one band of class codes is due"),
    (["assess", "{}/truth.tif", "{}/truth.tif", "--kind", "mine"], 2, "unknown reference 'mine'"),
    (["assess", "{}/truth.tif", "{}/truth.tif", "--block", "0"], 2, "a block of 0 px"),
    (["assess", "{}/truth.tif", "{}/truth.tif", "--seed", "-1"], 2, "the seed is -1"),
    (["assess", "{}/truth.tif", "{}/empty.geojson"], 1, "empty.geojson holds no point"),
    (["assess", "{}/cut.tif", "{}/truth.tif"], 1, "cut.tif"),
])
def test_a_wrong_map_or_assess_is_one_line(town, words, code, message):
    before = sorted(p.name for p in town.iterdir())
    assert_one_line(isa(*(w.format(town) for w in words)), code, f"isa {words[0]}: ", message)
    assert sorted(p.name for p in town.iterdir()) == before


# ---- isa docs, isa test


@pytest.mark.parametrize("name", ["docs", "test"])
def test_only_in_a_checkout(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    assert_one_line(isa(name), 2, "is not in a checkout of isa_nb: go to the folder that holds settings.ini")


@pytest.fixture
def checkout(tmp_path) -> Path:
    "A checkout of one module, exported and clean."
    settings = (ROOT / "settings.ini")
    if not settings.exists():
        pytest.skip("the checks are tested in a checkout")
    (tmp_path / "settings.ini").write_bytes(settings.read_bytes())
    (tmp_path / "nbs/reference").mkdir(parents=True)
    cells = [nbformat.v4.new_code_cell("#| default_exp one"), nbformat.v4.new_code_cell("#| export\ndef one() -> int:\n    return 1"), nbformat.v4.new_code_cell("assert one() == 1")]
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": {"name": "python3", "language": "python", "display_name": "python3"}}), tmp_path / "nbs/reference/00_one.ipynb")
    copy = tmp_path / "copy"
    copy.mkdir()
    house._again(tmp_path, copy)
    for name in ("nbs/reference/00_one.ipynb", "isa_nb/one.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (copy / name).replace(tmp_path / name)
    shutil.rmtree(copy)
    return tmp_path


def test_the_checks_see_what_is_wrong_and_change_nothing(checkout):
    notebook, module = checkout / "nbs/reference/00_one.ipynb", checkout / "isa_nb/one.py"
    assert [(c.passed, c.failed) for c in house.check_sync(checkout)] == [(1, 0), (1, 0)]
    module.write_text(module.read_text().replace("return 1", "return 2"))
    node = nbformat.read(notebook, 4)
    node.cells[1].execution_count = 7
    nbformat.write(node, notebook)
    (checkout / "isa_nb/stray.py").write_text("x = 1\n")
    before = {p: p.read_bytes() for p in checkout.rglob("*") if p.is_file()}
    clean, step = house.check_sync(checkout)
    assert (clean.passed, clean.failed, step.passed, step.failed) == (0, 1, 0, 2)
    assert "00_one.ipynb is not clean" in clean.lines[0] and "isa_nb/one.py is not what its notebook exports" in step.lines[0] and "stray" in step.lines[1]
    assert {p: p.read_bytes() for p in checkout.rglob("*") if p.is_file()} == before


def test_a_notebook_that_does_not_run_is_named(checkout, capfd):
    good = checkout / "nbs/reference/00_one.ipynb"
    assert house.check_notebooks(checkout, workers=1).line() == "notebooks run: 1 passed, 0 failed"
    bad = good.with_name("01_bad.ipynb")
    bad.write_text(good.read_text().replace("assert one() == 1", "assert one() == 3"))
    check = house.check_notebooks(checkout, workers=1)
    assert check.line() == "notebooks run: 1 passed, 1 failed" and check.lines == ["nbs/reference/01_bad.ipynb does not run"]
    assert "AssertionError" in capfd.readouterr().err
