"Fusing files: the same as in memory, faults, a full disk, kill -9, bad input."
import json
import os
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest
import rasterio
from odc.geo.geobox import GeoBox

from isa_nb.catalog import Catalog
from isa_nb.core import DataError, RequestError, raster, rng, square_geobox
from isa_nb.fuse_files import FileProduct, fuse_files, opened
from isa_nb.fusion import fuse, table3

GRID = square_geobox(116.4, 39.9, 1300 * 16, 16)  # 1300 pixels: windows and blocks that do not fit


def save(path, values, box=GRID, nodata=255, **options):
    raster(values, box, path.stem, nodata=nodata).rio.to_raster(path, **options)
    return path


def bare(path, crs):
    "The grid in metres, under another CRS or none."
    with rasterio.open(path, "w", driver="GTiff", height=GRID.shape.y, width=GRID.shape.x, count=1, dtype="uint8", nodata=255, crs=crs, transform=GRID.affine) as f:
        f.write(np.zeros(GRID.shape.yx, np.uint8), 1)
    return path


@pytest.fixture(scope="module")
def town(tmp_path_factory):
    "Three products as arrays and files: one tiled, one in strips, one shifted and larger."
    folder, draw = tmp_path_factory.mktemp("town"), rng(0, "town")
    base = np.kron(draw.random((65, 65)) < 0.3, np.ones((20, 20))).astype(np.uint8)
    maps = [np.where(np.kron(draw.random((260, 260)) < 0.1, np.ones((5, 5))) > 0, 1 - base, base).astype(np.uint8) for _ in range(3)]
    maps[1][:40] = 255
    wide = GRID.pad(7)
    larger = np.full(wide.shape.yx, 255, np.uint8)
    larger[7:-7, 7:-7] = maps[2]
    files = {"a": save(folder / "a.tif", maps[0], tiled=True, blockxsize=512, blockysize=512, compress="deflate"), "b": save(folder / "b.tif", maps[1]), "c": save(folder / "c.tif", larger, wide)}
    osm = (draw.random(base.shape) < 0.02) + 2 * (draw.random(base.shape) < 0.02)
    return {k: raster(m, GRID, k, nodata=255) for k, m in zip("abc", maps, strict=True)}, files, raster(osm.astype(np.uint8), GRID, "osm"), save(folder / "osm.tif", osm.astype(np.uint8), nodata=None)


def test_sources_in_degrees_tell_metres(tmp_path):
    "The catalogue gives the pixels of some products in degrees; the posterior needs metres."
    source = Catalog.load().source("lab_gisa")
    file = save(tmp_path / "a.tif", np.zeros((64, 64), np.uint8), GeoBox.from_bbox((116, 39, 116.02, 39.02), "EPSG:4326", shape=(64, 64)), nodata=None)
    assert opened("a", FileProduct(file, source, year=2019), None).facts["resolution"] == source.metres > 9


def read(path):
    with rasterio.open(path) as src:
        return src.read(1)


@pytest.mark.parametrize("rule", ["paper", "posterior"])
def test_files_give_what_memory_gives(town, tmp_path, rule):
    products, files, osm, osm_file = town
    ds = fuse(products, osm, rule=rule, threshold=0.8)
    made = fuse_files(files, tmp_path / "out", osm=osm_file, rule=rule, threshold=0.8, threads=3)
    for name in ("label", "votes", "rule"):
        assert (read(made[name]) == ds[name].values).all()
    percent = read(made["confidence"])
    assert ((percent == 255) == np.isnan(ds.confidence.values)).all()
    assert np.abs(percent / 100 - ds.confidence.values)[percent != 255].max() < 0.0051
    facts = json.loads(made["json"].read_text())
    assert facts["pixels"] == 1300**2 and sum(facts["rules"].values()) == facts["pixels"]
    if rule == "posterior":  # estimated from the votes alone, with a standard error
        known = {r["product"]: r for r in facts["reliability"]}
        assert list(known) == ["a", "b", "c"] and facts["model"].startswith("latent classes from 3 witnesses")
        assert all(0.8 < r[k] < 1 and 0 < r[f"{k}_se"] < 0.1 for r in known.values() for k in ("sensitivity", "specificity"))
    stages = table3({"x": ds}).set_index("stage")
    assert {s: [c[k] for k in ("impervious", "pervious", "uncertain")] for s, c in facts["stages"].items()} == {s: stages.loc[s, ["impervious", "pervious", "uncertain"]].tolist() for s in stages.index}
    with rasterio.open(made["label"]) as src:
        assert src.nodata == 255 and src.block_shapes == [(512, 512)] and src.colormap(1)[1][:3] == (255, 255, 255) and src.compression.name == "zstd"


@pytest.mark.parametrize("n", [1, 2, 5])
def test_any_number_of_products(town, tmp_path, n):
    "Up to three products are looked up bytewise, more of them by the compiled kernel, as all are in memory."
    products, files, osm, osm_file = town
    of = {f"p{i}": "abc"[i % 3] for i in range(n)}
    ds = fuse({k: products[v] for k, v in of.items()}, osm)
    made = fuse_files({k: files[v] for k, v in of.items()}, tmp_path, osm=osm_file)
    for name in ("label", "votes", "rule"):
        assert (read(made[name]) == ds[name].values).all()
    assert json.loads(made["json"].read_text())["pixels"] == 1300**2


def test_three_products_do_not_wait_for_numba(town, tmp_path):
    code = f"import sys; from isa_nb.fuse_files import fuse_files; fuse_files({ {k: str(v) for k, v in town[1].items()} }, {str(tmp_path)!r}, osm={str(town[3])!r}); print('numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "False"


def test_mixed_pixels_are_the_same_as_in_memory(town, tmp_path):
    products, files, *_ = town
    coarse = GRID.zoom_out(4)
    ds = fuse(products, geobox=coarse, rule="posterior", threshold=0.8)
    made = fuse_files(files, tmp_path / "out", geobox=coarse, parts=4, rule="posterior", threshold=0.8)
    for name in ("label", "votes", "rule"):
        assert (read(made[name]) == ds[name].values).all()


def test_windows_of_a_warped_product_join_without_seams(town, tmp_path):
    from isa_nb.drivers import open_raster
    products, files, *_ = town
    degrees = GeoBox.from_bbox(GRID.extent.to_crs("EPSG:4326").boundingbox, crs="EPSG:4326", resolution=0.00018)
    save(tmp_path / "d.tif", open_raster(files["a"], degrees).values, degrees)
    made = fuse_files({"b": files["b"], "d": tmp_path / "d.tif"}, tmp_path / "out", only=("votes",), min_valid=1)
    whole = open_raster(tmp_path / "d.tif", GRID).values
    got = np.where(read(made["votes"]) >> 3 & 1, read(made["votes"]) >> 1 & 1, 255)
    assert (got != whole).mean() < 1e-3


def test_cog_and_choice_of_outputs(town, tmp_path):
    products, files, *_ = town
    made = fuse_files(files, tmp_path, only=("label",), cog=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["fusion.json", "label.tif"]
    with rasterio.open(made["label"]) as src:
        assert src.overviews(1) and src.tags(ns="IMAGE_STRUCTURE").get("LAYOUT") == "COG"
    assert (read(made["label"]) == fuse(products).label.values).all()


def test_osm_layers_are_rasterised_window_by_window(town, tmp_path):
    import geopandas as gpd
    from shapely.geometry import box
    products, files, *_ = town
    left, bottom, right, top = GRID.extent.boundingbox
    shapes = gpd.GeoDataFrame({"osm_id": ["1", "2"], "code": [1500, 1500], "fclass": ["building"] * 2, "name": [None] * 2},
                              geometry=[box(left + 16_000, bottom + 4000, left + 17_000, bottom + 6000), box(left + 100, top - 900, left + 500, top - 300)], crs=GRID.crs.to_wkt()).to_crs("EPSG:4326")
    layers = {"buildings_a": shapes}
    made = fuse_files(files, tmp_path / "out", osm=layers)
    assert (read(made["rule"]) == fuse(products, layers).rule.values).all() and (read(made["rule"]) == 2).any()


@pytest.mark.parametrize("make, message", [
    (lambda d, f: {"a": d / "gone.tif"}, "no such file"),
    (lambda d, f: {"a": (d / "text.tif").write_text("not a raster") and d / "text.tif"}, "cannot be read as a raster"),
    (lambda d, f: {"a": f["a"], "b": save(d / "float.tif", np.zeros(GRID.shape.yx, np.float32), nodata=None)}, "float32 values where class codes are due"),
    (lambda d, f: {"a": f["a"], "b": save(d / "far.tif", np.zeros((100, 100), np.uint8), square_geobox(2, 48, 1600, 16))}, "does not overlap"),
    (lambda d, f: {"a": f["a"], "b": bare(d / "lost.tif", None)}, "lost.tif has no CRS"),
    (lambda d, f: {"a": f["a"], "b": bare(d / "degrees.tif", "EPSG:4326")}, "its CRS is wrong"),
    (lambda d, f: {"a": save(d / "seven.tif", np.full(GRID.shape.yx, 7, np.uint8))}, "product a holds 7"),
    (lambda d, f: {"a": FileProduct(f["a"], {0: 0})}, "product a holds 1"),
    (lambda d, f: {"a": FileProduct(f["a"], {0: 0, 1: 1, 255: 1})}, "a declares nodata 255, which its legend says is impervious"),
    (lambda d, f: {"a": FileProduct(f["a"], {0: 3})}, "legend of a: 0 -> 3 cannot be used"),
    (lambda d, f: {"a": FileProduct(f["a"], "lab_gsia")}, "did you mean 'lab_gisa'"),
    (lambda d, f: {}, "no product to fuse"),
    (lambda d, f: [("a", f["a"]), ("a", f["b"])], "'a' is named more than once"),
])
def test_bad_input_says_so_and_leaves_nothing(town, tmp_path, make, message):
    out = tmp_path / "out"
    with pytest.raises((DataError, RequestError)) as e:
        fuse_files(make(tmp_path, town[1]), out)
    assert message in str(e.value) and "\n" not in str(e.value)
    assert not out.exists() or list(out.iterdir()) == []


def test_a_truncated_file_is_noticed_where_it_breaks(town, tmp_path):
    whole = town[1]["a"].read_bytes()
    (tmp_path / "cut.tif").write_bytes(whole[:len(whole) // 2])
    with pytest.raises(DataError, match="damaged|truncated|cannot be read"):
        fuse_files({"a": tmp_path / "cut.tif", "b": town[1]["b"]}, tmp_path / "out")
    assert not (tmp_path / "out").exists() or list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("options, message", [(dict(only=("labels",)), "unknown output 'labels': did you mean 'label'"), (dict(rule="x"), "unknown rule"), (dict(threshold=0.4), "outside (0.5, 1]"),
                                              (dict(parts=0), "read 1 to 16 samples"), (dict(resampling="cubic"), "resampling 'cubic' does not fit")])
def test_bad_requests(town, tmp_path, options, message):
    with pytest.raises((RequestError, DataError)) as e:
        fuse_files(town[1], tmp_path / "out", **options)
    assert message in str(e.value)


def test_an_earlier_fusion_is_kept_unless_asked(town, tmp_path):
    fuse_files(town[1], tmp_path)
    before = (tmp_path / "label.tif").read_bytes()
    with pytest.raises(RequestError, match="holds an earlier fusion"):
        fuse_files(town[1], tmp_path, min_valid=1)
    assert (tmp_path / "label.tif").read_bytes() == before
    fuse_files(town[1], tmp_path, min_valid=1, only=("label",), overwrite=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["fusion.json", "label.tif"]


def test_a_failed_fusion_takes_nothing_away(town, tmp_path):
    "Neither an earlier fusion that was to be replaced, nor a file of the user's that happens to have the name of ours."
    fuse_files(town[1], tmp_path / "old")
    before = {p.name: p.read_bytes() for p in (tmp_path / "old").iterdir()}
    wrong = {"a": town[1]["a"], "b": save(tmp_path / "seven.tif", np.full(GRID.shape.yx, 7, np.uint8))}
    with pytest.raises(DataError, match="product b holds 7"):
        fuse_files(wrong, tmp_path / "old", overwrite=True)
    assert {p.name: p.read_bytes() for p in (tmp_path / "old").iterdir()} == before
    (tmp_path / "label.tif").write_bytes(town[1]["a"].read_bytes())
    with pytest.raises(RequestError, match="holds label.tif, which is of no finished fusion: choose another folder"):
        fuse_files({"a": tmp_path / "label.tif", "b": town[1]["b"]}, tmp_path)
    assert (tmp_path / "label.tif").read_bytes() == town[1]["a"].read_bytes()


def test_an_output_folder_that_cannot_be_made(town, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match="cannot write to"):
        fuse_files(town[1], tmp_path / "file" / "out")


def test_two_fusions_in_one_folder(town, tmp_path):
    from filelock import FileLock
    with FileLock(tmp_path / ".fusion.lock"), pytest.raises(RequestError, match="another fusion is writing"):
        fuse_files(town[1], tmp_path)


def child(town, out, before="", **kwargs):
    code = f"""
        import resource, signal
        {before}
        from isa_nb.fuse_files import fuse_files
        from isa_nb.core import IsaError
        try:
            fuse_files({ {k: str(v) for k, v in town[1].items()} }, {str(out)!r})
        except IsaError as e:
            print(e)
            raise SystemExit(1)
    """
    return subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, text=True, **kwargs)


def test_a_full_disk_is_one_clear_line(town, tmp_path):
    limit = "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))"
    run = child(town, tmp_path / "out", limit)
    said, _ = run.communicate(timeout=120)
    assert run.returncode == 1 and "cannot write" in said and said.count("\n") == 1, said
    assert [p.name for p in (tmp_path / "out").iterdir() if not p.name.startswith(".fusion")] == []


def test_a_disk_that_is_nearly_full_is_one_clear_line_and_nothing_else(town, tmp_path):
    few = "import shutil; from collections import namedtuple; shutil.disk_usage = lambda folder: namedtuple('usage', 'total used free')(10**9, 10**9 - 1000, 1000)"
    run = child(town, tmp_path / "out", few, stderr=subprocess.PIPE)
    said, noise = run.communicate(timeout=120)
    assert run.returncode == 1 and "cannot write to" in said and "0 MB are free where up to" in said and said.count("\n") == 1, said
    assert noise == "" and list((tmp_path / "out").iterdir()) == []


def test_what_the_products_allow_goes_with_the_result(town, tmp_path):
    files = town[1]
    made = fuse_files({"a": FileProduct(files["a"], citation="Someone 2020", licence="CC-BY-4.0"), "b": files["b"]}, tmp_path, only=())
    facts = json.loads(made["json"].read_text())
    assert (facts["licence"], facts["citation"], facts["years"]) == (["CC-BY-4.0", "unknown"], ["Someone 2020", "unknown"], ["unknown", "unknown"])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["fusion.json"] and facts["pixels"] == 1300**2


def test_killed_and_started_again(town, tmp_path):
    fuse_files(town[1], tmp_path / "whole")
    out = tmp_path / "out"
    run = child(town, out)
    for _ in range(1500):
        if list(out.glob(".label-*")) or run.poll() is not None:
            break
        time.sleep(0.02)
    run.send_signal(signal.SIGKILL)
    run.wait()
    if not (out / "fusion.json").exists():  # killed in time
        assert not (out / "label.tif").exists()
    fuse_files(town[1], out, overwrite=True)
    for name in ("label", "votes", "rule", "confidence"):
        assert (out / f"{name}.tif").read_bytes() == (tmp_path / "whole" / f"{name}.tif").read_bytes()
    assert sorted(p.name for p in out.iterdir()) == ["confidence.tif", "fusion.json", "label.tif", "rule.tif", "votes.tif"]


def test_memory_is_flat(tmp_path):
    "Four times the pixels, hardly more memory."
    peaks = []
    for side in (2048, 4096):
        box = square_geobox(116.4, 39.9, side * 16, 16)
        files = {k: str(save(tmp_path / f"{k}{side}.tif", np.zeros((side, side), np.uint8), box, tiled=True, compress="deflate")) for k in "abc"}
        code = f"from isa_nb.fuse_files import fuse_files; fuse_files({files}, {str(tmp_path / str(side))!r}); import resource; print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
        peaks.append(int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ).stdout))
    assert peaks[1] < peaks[0] + 100_000, peaks  # kB
