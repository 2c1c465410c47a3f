"""Super-resolution: faults of pairs, model folders, seams, and the two real pairs."""
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
from odc.geo.geobox import GeoBox
from scipy.ndimage import gaussian_filter

from isa_nb import faithfulness, mapping, models, pairs, sharpen, sr_arms
from isa_nb.core import DataError, IsaError, RequestError, geobox_of, raster
from isa_nb.superres import SuperResolutionLoss, block_mean

DATA = Path(__file__).parents[2] / "shared" / "data"
BOX = GeoBox.from_bbox((500000, 3400000, 500480, 3400480), "EPSG:32650", resolution=1)
SMALL = {"features": 6, "blocks": 1, "second": 0, "growth": 3}


@pytest.fixture(scope="module")
def pair() -> tuple[xr.DataArray, xr.DataArray]:
    "A coarse and a fine image of soft patches and sharp ones."
    gen = np.random.default_rng(3)
    soft = gaussian_filter(gen.normal(size=(3, 480, 480)), (0, 12, 12)) * 12_000
    sharp = np.kron(gen.random((60, 60)) < 0.15, np.ones((8, 8))) * 900
    fine = (2000 + soft + sharp).clip(1, 9000).astype(np.float32)
    coarse = fine.reshape(3, 48, 10, 48, 10).mean((2, 4)) + gen.normal(size=(3, 48, 48)) * 5
    return raster(coarse.astype(np.float32), BOX.zoom_out(10), "lr", 0), raster(fine, BOX, "hr", 0)


def spec_of(cut: list, **more) -> models.Spec:
    return sharpen.describe(cut, ["green", "red", "nir"], {**SMALL, **more.pop("arguments", {})}, nodata=0, **more)


def test_pairs_that_do_not_overlap_or_fit_are_named(pair):
    lr, hr = pair
    with pytest.raises(DataError, match=r"do not overlap: .* against .*check the CRS of both"):
        pairs.nest(lr, hr.assign_coords(x=hr.x + 9000).rio.write_crs(BOX.crs))
    with pytest.raises(DataError, match="do not overlap"):
        pairs.nest(lr, hr.rio.write_crs("EPSG:32651"))
    with pytest.raises(DataError, match="choose the bands that both have"):
        pairs.radiometry(lr, hr[:2])
    with pytest.raises(DataError, match="too few to compare their brightness"):
        pairs.radiometry(lr * 0, hr)
    with pytest.raises(IsaError, match="no whole multiple"):
        faithfulness.consistency(lr.values, hr.values[:, :-3])


@pytest.mark.parametrize(("east", "north"), [(0, 0), (23, -11), (-6, 17)])
def test_a_shift_is_measured_and_taken_back(pair, east, north):
    lr, hr = pair
    away = lr.assign_coords(x=lr.x + east, y=lr.y + north).rio.write_crs(BOX.crs)
    found = pairs.pair_shift(*pairs.nest(away, hr), reach=4)
    assert (found.east, found.north) == pytest.approx((east, north), abs=1.5)
    assert found.significant == bool(east or north)
    if found.significant:
        assert "move it back" in pairs.shift_text(found)
        assert not pairs.pair_shift(*pairs.nest(away, hr, shift=found), reach=4).significant


def test_nothing_is_cut_where_something_is_wrong(pair):
    lr, hr = (d.copy(deep=True) for d in pair)
    lr.values[:, 20:30, 20:34] += 3000  # a cloud in the coarse image
    hr.values[:, :100, :100] = 0  # nothing in the fine one
    flaw = pairs.flaws(lr, hr)
    assert (flaw.values[22:28, 22:32] == 3).all()
    assert (flaw.values[:10, :10] == 1).all()
    assert "disagree" in pairs.flaw_text(flaw)
    for p in pairs.cut(lr, hr, side=10, number=12, flaw=flaw):
        assert (p.fine > 0).all()
        assert abs(block_mean(torch.from_numpy(p.fine)[None], 10)[0].numpy() - p.image).max() < 500
    with pytest.raises(DataError, match="without a flaw"):
        pairs.cut(lr, hr, side=44, flaw=flaw)


def test_a_folder_is_whole_and_draws_the_same(pair, tmp_path):
    lr, hr = pair
    data = pairs.cut(lr, hr, side=8, number=8), pairs.cut(lr, hr, side=8, number=4, seed=1)
    spec = spec_of(data[0], seed=2, arguments={"consistent": True})
    how = {"epochs": 2, "steps": 6, "batch": 2, "threads": 1}
    done = sharpen.fit(models.build(spec), data, tmp_path / "g", **how)
    twice = sharpen.fit(models.build(spec), data, tmp_path / "again", **how)
    there, fine = models.load(tmp_path / "g"), sharpen.draw(done.model, lr, tile=16, margin=4)
    np.testing.assert_array_equal(sharpen.draw(there, lr, tile=16, margin=4), fine)
    np.testing.assert_allclose(sharpen.draw(twice.model, lr, tile=16, margin=4), fine, atol=1e-2)
    assert block_mean(torch.from_numpy(fine.values)[None], 10)[0].numpy() == pytest.approx(lr.values, abs=0.1)  # also where tiles meet
    assert geobox_of(fine) == BOX
    text = (tmp_path / "g" / "README.md").read_text()
    assert "likely, not observed" in text
    assert "PSNR of bilinear upsampling" in text
    with pytest.raises(RequestError, match="the model has no classes, it makes images"):
        mapping.map_array(there, lr, 32, 8)
    with pytest.raises(RequestError, match="holds another training"):
        sharpen.fit(models.build(spec), data, tmp_path / "g", **{**how, "lr": 0.1})


def test_a_training_that_is_cut_off_goes_on(pair, tmp_path, monkeypatch):
    "Weights, average, judge and both optimisers are those of a training that was never cut off."
    data = pairs.cut(*pair, side=8, number=8), pairs.cut(*pair, side=8, number=4, seed=1)
    spec, loss = spec_of(data[0], seed=2), SuperResolutionLoss(kind="filters")
    how = {"epochs": 3, "steps": 6, "batch": 2, "threads": 1, "loss": loss, "judge": 4, "begin": 0.3, "checkpoint": 0.0}
    whole = sharpen.fit(models.build(spec), data, tmp_path / "whole", **how)
    write, seen = sharpen.Diary.after_epoch, []

    def cut_off(self):
        write(self)
        seen.append(self.epoch)
        if self.epoch == 2:
            raise KeyboardInterrupt
    with monkeypatch.context() as m, pytest.raises(KeyboardInterrupt):
        m.setattr(sharpen.Diary, "after_epoch", cut_off)
        sharpen.fit(models.build(spec), data, tmp_path / "cut", **how)
    assert seen == [0, 1, 2]
    assert (tmp_path / "cut" / sharpen.CHECKPOINT).exists()
    with pytest.raises(RequestError, match="belongs to another training: name another folder, or delete it"):
        sharpen.fit(models.build(spec), data, tmp_path / "cut", **{**how, "lr": 0.1})
    done = sharpen.fit(models.build(spec), data, tmp_path / "cut", **how)
    assert done.history.epoch.tolist() == [1, 2, 3]
    pd.testing.assert_frame_equal(done.history.drop(columns="seconds"), whole.history.drop(columns="seconds"), rtol=1e-4)
    np.testing.assert_allclose(sharpen.draw(done.model, pair[0]), sharpen.draw(whole.model, pair[0]), rtol=1e-4, atol=1e-2)
    assert not (tmp_path / "cut" / sharpen.CHECKPOINT).exists()


def test_pixels_without_data_stay_without(pair):
    lr = pair[0].copy(deep=True)
    lr.values[:, 5:8, 30:] = 0
    net = models.build(spec_of(pairs.cut(*pair, side=8, number=2))).eval()
    for fine in (sharpen.draw(net, lr, tile=20), sharpen.upsampled(lr), sharpen.upsampled(lr, consistent=True)):
        np.testing.assert_array_equal(np.isnan(fine.values[0]), np.kron(lr.values[0] == 0, np.ones((10, 10))) > 0)


def test_a_training_that_fails_writes_no_folder(pair, tmp_path):
    lr, hr = pair
    data = pairs.cut(lr, hr, side=8, number=4)
    data[0].fine[:] = np.inf
    with pytest.raises(DataError, match="the loss is not a number from epoch 1 on: lower lr"):
        sharpen.fit(models.build(spec_of(data[1:])), (data, data[1:]), tmp_path / "g", epochs=1, steps=4, batch=4, threads=1)
    assert not (tmp_path / "g").exists()
    with pytest.raises(RequestError, match="give at least one of each"):
        sharpen.fit(models.build(spec_of(data[1:])), (data, []), tmp_path / "g")


def opened(name: str) -> xr.DataArray:
    import rioxarray
    if not (DATA / name).exists():
        pytest.skip(f"real data is not here: {DATA / name}")
    return rioxarray.open_rasterio(DATA / name)


def test_real_desert_lies_beside_its_fine_image():
    s2, hr = (opened(f"satellogic_s2_pair/20221109_094507_SN30_40N_227050_2482590_{n}.tif") for n in ("S2L2A", "TOA"))
    bands = ["aerosol", "blue", "green", "red", "rededge1", "rededge2", "rededge3", "nir", "nir08", "nir09", "swir16", "swir22"]
    lr, hr, names = pairs.same_bands(s2, bands, hr, ["red", "green", "blue", "nir"])
    before = pairs.nest(lr, hr)
    shift = pairs.pair_shift(*before, reach=9)
    assert shift.significant
    assert 50 < np.hypot(shift.east, shift.north) < 90
    low, high = pairs.nest(lr, hr, shift=shift)
    tone = pairs.radiometry(low, high)
    assert (tone.fit > pairs.radiometry(*before).fit).all()
    assert (tone.fit > 0.99).all()
    high = pairs.as_coarse(high, tone)
    table = faithfulness.scores(low.values / 1e4, sharpen.upsampled(low, consistent=True).values / 1e4, high.values / 1e4, block=6, border=10, n=100).set_index("score")
    assert table.estimate["block"] < 1e-5
    assert table.estimate["psnr"] > 25
    assert names == ["red", "green", "blue", "nir"]


def test_real_rotterdam_is_twice_as_fine(tmp_path):
    ms, pan = (opened(f"spacenet6_rotterdam_pan_ms/{n}.tif") for n in ("ms1", "pan1"))
    lr, hr, names = pairs.same_bands(ms, ["blue", "green", "red", "nir"], pan, ["pan"])
    low, high = pairs.nest(lr, hr, 2, shift=pairs.pair_shift(*pairs.nest(lr, hr, 2), reach=8))
    high = pairs.as_coarse(high, pairs.radiometry(low, high))
    some = pairs.cut(low, high, side=16, number=4)
    net = models.build(sharpen.describe(some, names, {**SMALL, "scales": [1, 2]}))
    sharpen.fit(models.build(net.spec), (some, some[:2]), tmp_path / "g", epochs=1, steps=2, batch=2, full=2000, threads=1)
    fine = sharpen.draw(net.eval(), low)
    np.testing.assert_allclose(fine, sharpen.upsampled(low, 2), atol=0.1)  # untrained
    label = raster((high.values[0] > np.nanmedian(high.values[0])).astype(np.uint8), geobox_of(high), "label", 255)  # bright ground stands in for a class: there is none
    some = pairs.cut(low, high, label, side=16, number=4)
    arm = sr_arms.arms({k: SMALL[k] for k in ("features", "blocks", "growth", "second")}, 8)[sr_arms.JOINT]
    arm = replace(arm, arguments={**arm.arguments, "scales": [1, 2]})
    joint = sr_arms.train(arm, sr_arms.describe(some, names, resolution=1), (some, some[:2]), tmp_path / "joint", epochs=1, steps=2, batch=2, precision="fp32", threads=1)
    assert mapping.map_array(joint.model, low, 64, 16).label.shape == high.shape[1:]
    made = faithfulness.correctness(np.nan_to_num(low.values) / 2000, np.nan_to_num(fine.values) / 2000, np.nan_to_num(high.values) / 2000)
    assert sum(made.means.values()) == pytest.approx(1, abs=1e-4)
    assert max(made.means, key=made.means.get) == "omission"  # bilinear upsampling invents nothing
