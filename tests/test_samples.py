"""samples, chips, splits: properties, broken and repeated runs, files, and bad input."""
import json
import pickle
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import rasterio
import xarray as xr
from filelock import FileLock
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter
from shapely.geometry import box

from isa_nb import chips, samples, splits
from isa_nb.core import NODATA, DataError, RequestError, raster, rng, sha256, square_geobox

SIZE = 32


def made_up(side=320, seed=0, zone=(114.3, 30.6)):
    gen, g = rng(seed, "area"), square_geobox(*zone, side * 16, 16)
    field = lambda s: gaussian_filter(gen.normal(size=(side, side)), s) * s * 3.5  # noqa: E731
    label = (field(8) > 1).astype(np.uint8)
    label[(field(3) > 1.8)] = 2
    bands = (1500 + 800.0 * (label == 1) + 100 * gen.normal(size=(4, side, side))).clip(1, 10_000).astype(np.uint16)
    bands[:, :40, :40], label[-10:] = 0, NODATA
    sure = np.where(label == NODATA, np.nan, 0.6 + 0.4 * gen.random(label.shape)).astype(np.float32)
    return raster(bands, g, "image", nodata=0), xr.Dataset({"label": raster(label, g, "label", nodata=NODATA), "confidence": raster(sure, g, "confidence", nodata=np.nan)})


@pytest.fixture(scope="module")
def area():
    return made_up()


@pytest.fixture(scope="module")
def files(area, tmp_path_factory):
    folder = tmp_path_factory.mktemp("rasters")
    paths = {"image": folder / "image.tif", "label": folder / "label.tif", "confidence": folder / "confidence.tif"}
    area[0].rio.to_raster(paths["image"], tiled=True, blockxsize=64, blockysize=64, compress="deflate")
    area[1]["label"].rio.to_raster(paths["label"])
    area[1]["confidence"].rio.to_raster(paths["confidence"])
    return {k: str(v) for k, v in paths.items()}


def contents(store):
    return {str(p.relative_to(store)): sha256(p) for p in sorted(Path(store).rglob("*")) if p.is_file()}


def says(error, text, f, *args, **kwargs):
    with pytest.raises(error, match=text) as e:
        f(*args, **kwargs)
    assert "\n" not in str(e.value)


# splits

def grid(rows, cols, size, stride, seed=0):
    t = pd.DataFrame([(r * stride, c * stride) for r in range(rows) for c in range(cols)], columns=["row", "col"])
    return t.assign(size=size, isa_share=rng(seed, "isa").random(len(t)) ** 3)


def gap(a, b):
    return np.maximum(np.abs(a.row.values[:, None] - b.row.values), np.abs(a.col.values[:, None] - b.col.values)) - a["size"].iloc[0]


@settings(max_examples=25)
@given(st.integers(8, 20), st.integers(8, 20), st.integers(0, 5), st.sampled_from([100, 150]))
def test_parts_never_come_closer_than_the_buffer(rows, cols, seed, buffer):
    chips_ = splits.split_blocks(grid(rows, cols, 100, 90, seed), seed=seed, buffer=buffer, tries=40)
    parts = [chips_[chips_.split == s] for s in ("train", "val", "test")]
    assert all(len(p) for p in parts)
    assert min(gap(a, b).min() for i, a in enumerate(parts) for b in parts[:i]) >= buffer
    assert splits.leak(chips_)["seen"] == 0
    assert chips_.drop(columns=["block", "split"]).equals(grid(rows, cols, 100, 90, seed))


def test_shares_are_honoured_on_a_large_area_and_parts_are_alike():
    chips_ = splits.split_blocks(grid(40, 40, 100, 90), tries=128)
    summary = splits.split_summary(chips_).set_index("split")
    np.testing.assert_allclose(summary.loc[["train", "val", "test"], "share"], [0.7, 0.15, 0.15], atol=0.06)
    np.testing.assert_allclose(summary.loc[["train", "val", "test"], "isa_share"], chips_.isa_share.mean(), rtol=0.25)
    assert set(splits.split_blocks(grid(12, 12, 100, 90), shares=(1, 0, 0)).split) == {"train"}
    assert set(splits.split_blocks(grid(12, 12, 100, 90), shares=(0.8, 0, 0.2)).split) == {"train", "test", "buffer"}


def test_folds_test_every_chip_once_and_stay_apart():
    folds = splits.split_folds(grid(16, 16, 100, 90), k=4, block=360)
    for i in range(4):
        s = splits.fold_split(folds, i, val=(i + 1) % 4)
        parts = [s[s.split == p] for p in ("train", "val", "test")]
        assert gap(parts[0], parts[2]).min() >= 100 and gap(parts[1], parts[2]).min() >= 100 and set(parts[2].index) == set(folds.index[folds.fold == i])


@settings(max_examples=100)
@given(st.integers(1, 600), st.integers(1, 200), st.floats(0, 0.95))
def test_chips_cover_the_raster_and_stay_inside(length, size, overlap):
    if size > length:
        return
    s = samples.starts(length, size, overlap)
    assert s[0] == 0 and s[-1] == length - size and (np.diff(s) > 0).all() and (np.diff(s) <= max(1, round(size * (1 - overlap)))).all()


# cutting

def test_a_store_holds_what_was_cut(area, tmp_path):
    image, labels = area
    ledger = samples.cut(image, labels, tmp_path / "s", size=SIZE, zone="W4", area="wuhan", seed=3)
    places = len(samples.starts(320, SIZE)) ** 2
    assert len(ledger) + ledger.attrs["left_out"] == places and ledger.attrs["left_out"] > 0
    back = samples.read_ledger(tmp_path / "s")
    pd.testing.assert_frame_equal(pd.DataFrame(back.drop(columns="geometry")), pd.DataFrame(ledger.drop(columns="geometry")))
    row = back.iloc[40]
    with rasterio.open(tmp_path / "s" / row.label) as f:
        assert f.colormap(1)[1] == (255, 255, 255, 255) and f.nodata == 255 and f.crs == rasterio.crs.CRS.from_string(row.crs) and f.profile["compress"] == "deflate"
        foot = gpd.GeoSeries([box(*f.bounds)], crs=f.crs).to_crs(4326).iloc[0]
        inside = f.read(1)
    assert foot.symmetric_difference(row.geometry).area < 1e-9 * foot.area + 1e-15
    want = labels.label.values[row.row:row.row + SIZE, row.col:row.col + SIZE]
    np.testing.assert_array_equal(inside, want)
    assert row.isa_share == pytest.approx((want == 1).sum() / np.isin(want, (0, 1)).sum())
    assert row.uncertain_share == pytest.approx((want == 2).mean())
    with rasterio.open(tmp_path / "s" / row.confidence) as f:
        assert f.scales[0] == pytest.approx(1 / 254) and f.nodata == 255
    assert (back.valid_share >= 0.5).all() and list(back.columns) == list(samples.LEDGER)


def test_files_and_arrays_give_the_same_chips(area, files, tmp_path):
    a = samples.cut(*area, tmp_path / "a", size=SIZE)
    b = samples.cut(files["image"], {k: files[k] for k in ("label", "confidence")}, tmp_path / "b", size=SIZE, workers=3)
    pd.testing.assert_frame_equal(pd.DataFrame(a.drop(columns=["geometry", "sources"])), pd.DataFrame(b.drop(columns=["geometry", "sources"])))
    for x, y in zip(samples.StoredChips(a), samples.StoredChips(b), strict=True):
        for p, q in zip(x, y, strict=True):
            np.testing.assert_array_equal(p, q)
    assert [s["sha256"] for s in json.loads(b.sources[0])] == [sha256(files["image"]), sha256(files["label"])]


def test_same_seed_same_bytes_whatever_the_number_of_threads(area, tmp_path):
    for name, workers in (("a", 1), ("b", 4)):
        samples.cut(*area, tmp_path / name, size=SIZE, workers=workers)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    samples.cut(*area, tmp_path / "c", size=SIZE, seed=1)
    changed = {k for k, v in contents(tmp_path / "c").items() if contents(tmp_path / "a")[k] != v}
    assert changed == {"samples.parquet", "store.json"}  # another seed deals out the same chips differently


def test_a_killed_run_goes_on_and_makes_the_same_bytes(files, tmp_path):
    script = tmp_path / "run.py"
    script.write_text(textwrap.dedent(f"""
        import os, signal, sys
        from isa_nb import samples
        write, left = samples._write, [int(sys.argv[2])]
        def dying(*args):
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            write(*args)
        samples._write = dying
        samples.cut({files["image"]!r}, {{"label": {files["label"]!r}, "confidence": {files["confidence"]!r}}}, sys.argv[1], size={SIZE})
    """))
    run = lambda out, chips_left: subprocess.run([sys.executable, str(script), str(tmp_path / out), str(chips_left)], capture_output=True, text=True)  # noqa: E731
    assert run("whole", 10 ** 6).returncode == 0
    assert run("broken", 40).returncode == -signal.SIGKILL
    work = tmp_path / ".broken.unfinished"
    assert not (tmp_path / "broken").exists() and len((work / "journal.jsonl").read_text().splitlines()) > 20
    with open(work / "journal.jsonl", "a") as f:
        f.write('{"id": "chip_r0000')  # a line cut short
    (work / "images" / ".half.tif").write_bytes(b"II*")
    before = {p.name: p.stat().st_mtime_ns for p in (work / "images").glob("chip*")}
    done = run("broken", 10 ** 6)
    assert done.returncode == 0, done.stderr
    after = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "broken" / "images").iterdir()}
    assert sum(after[k] == v for k, v in before.items()) >= len(before) - 2  # what was done was not done again
    assert contents(tmp_path / "whole") == contents(tmp_path / "broken")
    assert sorted(p.name for p in tmp_path.iterdir() if p.suffix != ".py") == ["broken", "whole"]


def test_a_store_is_never_overwritten(area, tmp_path):
    image, labels = area
    samples.cut(image, labels, tmp_path / "s", size=SIZE)
    before = contents(tmp_path / "s")
    for change in ({"size": 64}, {"seed": 9}, {"overlap": 0.5}, {"zone": "W1"}, {"min_valid": 0.9}):
        says(RequestError, "holds another chip store .it differs in .*nothing was changed", samples.cut, image, labels, tmp_path / "s", **{"size": SIZE, **change})
    says(RequestError, "it differs in inputs", samples.cut, image + np.uint16(1), labels, tmp_path / "s", size=SIZE)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    says(RequestError, "holds other files and no chip store", samples.cut, image, labels, tmp_path / "mine", size=SIZE)
    assert contents(tmp_path / "s") == before and (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"
    (tmp_path / "empty").mkdir()
    assert len(samples.cut(image, labels, tmp_path / "empty", size=SIZE)) == len(samples.read_ledger(tmp_path / "s"))


def test_two_runs_in_one_folder_at_once(area, tmp_path):
    with FileLock(tmp_path / ".s.unfinished.lock"):
        says(RequestError, "another run is cutting chips into", samples.cut, *area, tmp_path / "s", size=SIZE)
    samples.cut(*area, tmp_path / "s", size=SIZE)


def test_without_room_for_the_split_the_chips_are_kept_for_another_try(area, tmp_path):
    image, labels = (x.isel(x=slice(40, 200), y=slice(40, 200)) for x in area)
    says(RequestError, "leave no room for train, val, test with a gap of 64 px", samples.cut, image, labels, tmp_path / "s", size=64)
    made = {p.name: p.stat().st_mtime_ns for p in (tmp_path / ".s.unfinished" / "images").iterdir()}
    ledger = samples.cut(image, labels, tmp_path / "s", size=64, shares=(1, 0, 0))
    assert set(ledger.split) == {"train"} and made == {p.name: p.stat().st_mtime_ns for p in (tmp_path / "s" / "images").iterdir()}


def test_land_cover_labels(area, tmp_path):
    image, labels = area
    cover = labels["label"].copy(data=np.where(labels["label"] == 255, 0, np.where(labels["label"] == 1, 11, 3)).astype(np.uint8)).rio.write_nodata(0)
    ledger = samples.cut(image, cover, tmp_path / "s", size=SIZE, legend="land_cover")
    chip = samples.StoredChips(ledger)[0]
    assert set(np.unique(chip.label)) <= {0, 3, 11} and (chip.confidence == 1).all() and ledger.confidence.isna().all()


# reading

def test_damaged_stores_are_named(area, tmp_path):
    store = tmp_path / "s"
    ledger = samples.cut(*area, store, size=SIZE)
    says(DataError, "is no chip store: samples.parquet is missing", samples.read_ledger, tmp_path)
    chip = store / ledger.image[0]
    whole = chip.read_bytes()
    chip.write_bytes(whole[:200])
    says(DataError, "cannot be read", lambda: samples.StoredChips(store, ledger.split[0])[0])
    chip.unlink()
    says(DataError, "1 chip file.s. named in .* are missing, the first is images/", samples.read_ledger, store)
    chip.write_bytes(whole)
    table = (store / "samples.parquet").read_bytes()
    (store / "samples.parquet").write_bytes(table[:1000])
    says(DataError, "the ledger of .* cannot be read", samples.read_ledger, store)
    gpd.GeoDataFrame({"id": ["a"]}, geometry=[box(0, 0, 1, 1)], crs=4326).to_parquet(store / "samples.parquet")
    says(DataError, "lacks the column 'zone'", samples.read_ledger, store)
    (store / "samples.parquet").write_bytes(table)
    says(DataError, "holds no chip of split 'val'", samples.StoredChips, samples.read_ledger(store).query("split == 'train'"), "val")


def test_ledgers_of_several_areas_stand_in_one_table(area, tmp_path):
    parts = [samples.cut(*area, tmp_path / "a", size=SIZE, zone="W4", area="a"), samples.cut(*made_up(seed=1, zone=(87.6, 43.8)), tmp_path / "b", size=SIZE, zone="W1", area="b")]
    both = pd.concat(parts, ignore_index=True)
    assert both.crs.to_epsg() == 4326 and both.id.is_unique and set(both["crs"]) == {"EPSG:32650", "EPSG:32645"}


def test_random_chips_inside_training_blocks_avoid_the_test(area, files, tmp_path):
    ledger = samples.cut(*area, tmp_path / "s", size=SIZE)
    train, test = (ledger[ledger.split == s] for s in ("train", "test"))
    reader = chips.random_chips({"image": files["image"], "label": files["label"]}, size=24, n=50, within=train)
    at = gpd.GeoSeries(chips.footprints(reader.scenes[0].box, reader.places.row.to_numpy(), reader.places.col.to_numpy(), 24), crs=ledger["crs"][0])
    assert at.to_crs(4326).distance(test.geometry.union_all()).min() > 0
    assert not at.intersects(test.geometry.to_crs(at.crs).buffer(24 * 16 * 0.9).union_all()).any()


def test_valid_shares_are_exact(area):
    image, labels = area
    holes = labels["label"].where(rng(0, "holes").random(labels["label"].shape) < 0.55, 255).astype(np.uint8).rio.write_nodata(255)
    for need in (0.3, 0.54, 0.56):
        reader = chips.random_chips({"image": image, "label": holes}, size=40, n=60, min_valid=need)
        assert min((c.label != 255).mean() for c in reader) >= need
    whole = chips.random_chips({"image": image, "label": holes}, size=320, n=3, min_valid=0.2)
    assert whole.places[["row", "col"]].to_numpy().max() == 0


def test_places_are_uniform_where_all_are_allowed(area):
    p = chips.random_chips({"image": area[0], "label": area[1]["label"]}, size=120, n=4000, min_valid=0).places
    counts = np.histogram2d(p.row, p.col, bins=3)[0]
    assert abs(counts - 4000 / 9).max() < 5 * np.sqrt(4000 / 9) and p.row.max() == 200


def test_a_reader_works_from_threads_and_can_be_sent_to_other_processes(files):
    reader = chips.random_chips({"image": files["image"], "label": files["label"], "confidence": files["confidence"]}, size=48, n=40)
    want = [reader[i].image.copy() for i in range(40)]
    got = {}
    workers = [threading.Thread(target=lambda k: got.update({i: reader[i].image for i in range(k, 40, 4)}), args=(k,)) for k in range(4)]
    [w.start() for w in workers], [w.join() for w in workers]
    assert all(np.array_equal(got[i], want[i]) for i in range(40))
    again = pickle.loads(pickle.dumps(reader))
    assert np.array_equal(again[7].image, want[7]) and np.array_equal(again[7].confidence, reader[7].confidence)
    assert [c.image.shape for c in reader] == [(4, 48, 48)] * 40


# bad input

def test_bad_input_is_one_clear_line(area, files, tmp_path):
    image, labels = area
    label, out = labels["label"], tmp_path / "new"
    cut = lambda *a, **k: samples.cut(*a, out, **{"size": SIZE, **k})  # noqa: E731
    says(RequestError, "a chip of 999 px is larger than the raster", cut, image, label, size=999)
    says(RequestError, "give a size of at least 1 px", cut, image, label, overlap=1)
    says(RequestError, "unknown legend 'esa'", cut, image, label, legend="esa")
    says(RequestError, "less than one chip", cut, image, label, buffer=3)
    says(RequestError, "train above 0", cut, image, label, shares=(0, 0.5, 0.5))
    says(DataError, "image and label are on different grids", cut, image, label[1:])
    says(DataError, "float64 where one band of whole-number codes is due", cut, image, label.astype(float))
    says(DataError, r"label codes outside the legend at row 0, column 29: 7 \(\d+ pixels\)", cut, image, label.where(label != 0, 7).astype(np.uint8).rio.write_nodata(255))
    says(DataError, "declares nodata 0, which the legend 'isa' uses for 'pervious'", cut, image, label.rio.write_nodata(0))
    says(DataError, "none of .* chips has 50% of its pixels", cut, image, label * 0 + np.uint8(255))
    says(DataError, "carries no CRS", cut, xr.DataArray(image.values, dims=image.dims), label)
    says(DataError, "no 'label' among votes", cut, image, {"votes": label})
    says(DataError, "cannot read .*none.tif as a raster", cut, tmp_path / "none.tif", label)
    (tmp_path / "short.tif").write_bytes(Path(files["image"]).read_bytes()[:60_000])
    says(DataError, "short.tif: the file is damaged or cut short|cannot read .*short.tif", cut, tmp_path / "short.tif", label)
    assert not out.exists()
    (tmp_path / "file").write_text("x")
    says(RequestError, "is a file: name a folder", samples.cut, image, label, tmp_path / "file", size=SIZE)
    says(DataError, "cannot write .*choose a folder", samples.cut, image, label, tmp_path / "file" / "s", size=SIZE)
    says(RequestError, "no label among the rasters image", chips.random_chips, {"image": image})
    says(DataError, "carries no CRS: set one", chips.random_chips, {"image": image, "label": label}, 32, 5, within=gpd.GeoSeries([box(0, 0, 1, 1)]))


def test_a_full_disk_leaves_no_store(area, tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")
    monkeypatch.setattr(samples, "_geotiff", full)
    says(DataError, "cannot write .*No space left on device", samples.cut, *area, tmp_path / "s", size=SIZE)
    assert not (tmp_path / "s").exists()
    monkeypatch.undo()
    samples.cut(*area, tmp_path / "s", size=SIZE)
