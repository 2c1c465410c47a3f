"Low-to-high: model folders, mapping, bad input, and what a whole training does with the loss."
import json
import warnings

import numpy as np
import pytest
import torch
from fastai.learner import Callback
import xarray as xr
from odc.geo.geobox import GeoBox
from rasterio.crs import CRS

from isa_nb import arms, mapping, models, samples, training
from isa_nb.cards import Spec
from isa_nb.chips import Chip
from isa_nb.core import LAND_COVER, DataError, RequestError, raster, rng
from isa_nb.l2hnet import L2HNet, LowToHighLoss, confident_area
from isa_nb.learning import Confusion

HOW = {"epochs": 2, "steps": 6, "batch": 4, "lr": 0.01, "precision": "fp32", "threads": 1}
BANDS = ["blue", "green", "red", "nir"]


def scene(bands=4, side=64, seed=0):
    "Image (bands, side, side) and codes: bright tree and dark water, in labels of 8 px, the first column of labels missing."
    gen = rng(seed, "scene")
    code = np.kron(gen.integers(0, 2, (side // 8, side // 8)), np.ones((8, 8), int))
    label = np.where(code, 7, 1).astype(np.uint8)
    label[:, :8] = 0
    return (500 + 1000.0 * code + gen.normal(0, 50, (bands, side, side))).astype(np.float32), label


def chips_of(image, label, side=32):
    at = [(r, c) for r in range(0, label.shape[0], side) for c in range(0, label.shape[1], side)]
    return [Chip(image[:, r:r + side, c:c + side], label[r:r + side, c:c + side], (label[r:r + side, c:c + side] > 0).astype(np.float32)) for r, c in at]


def small(**settings):
    return arms.arms(width=8, unet="resnet18", resnest={"encoder": "resnest14d-quarter", "aspp": 16}, chip=32, **settings)


def test_three_bands_are_learnt_mapped_and_told_from_four(tmp_path):
    image, label = scene(bands=3)
    chips = chips_of(image, label)
    fitted = arms.train(small()[arms.FULL], arms.describe(chips, BANDS[:3], resolution=1), (chips, chips), tmp_path / "model", **HOW)
    box = GeoBox((64, 64), GeoBox.from_bbox((0, 0, 64, 64), "EPSG:32650", resolution=1).affine, "EPSG:32650")
    made = mapping.map_array(models.load(tmp_path / "model"), raster(image, box, "image", None), tile=64, overlap=32)
    assert set(np.unique(made.label)) <= set(LAND_COVER)
    assert fitted.model.spec.training["loss"]["inferred"] == ["tau", "gamma", "vague", "warmup"]
    with pytest.raises(DataError, match="the chips have 3 bands and 4 are named"):
        arms.describe(chips, BANDS)
    with pytest.raises(DataError, match=r"where \(batch, 3, height, width\) is due"):
        fitted.model(torch.zeros(1, 4, 8, 8))


def test_map_of_a_model_is_a_cog_with_the_land_cover_colours(tmp_path):
    import rasterio
    spec = Spec(architecture="L2HNet", arguments={"width": 8}, bands=BANDS, classes=list(LAND_COVER.values()), ignore=[0], mean=[1000] * 4, std=[500] * 4)
    image = raster(scene()[0], GeoBox.from_bbox((0, 0, 64, 64), "EPSG:32650", resolution=1), "image", None)
    with rasterio.open(mapping.map_raster(models.build(spec), image, tmp_path / "map.tif", 64, 32)) as f:
        assert f.crs == CRS.from_epsg(32650)
        assert f.colormap(1)[11][:3] == (0x55, 0x55, 0x55)
        assert f.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        assert set(np.unique(f.read(1))) <= set(LAND_COVER)


@pytest.mark.parametrize("name", ["L2HNet", "UNet"])
def test_onnx(name, tmp_path):
    arguments = {"width": 8} if name == "L2HNet" else {"encoder": "resnet18"}
    spec = Spec(architecture=name, arguments=arguments, bands=BANDS, classes=["a", "b", "c"], ignore=[255], mean=[1000] * 4, std=[500] * 4)
    assert models.export_onnx(models.build(spec), tmp_path / "m.onnx", size=None if name == "L2HNet" else 64).exists()


def test_no_confident_pixel_is_said_once_and_training_goes_on(tmp_path):
    chips = chips_of(*scene())
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        fitted = arms.train(small(tau=1.0, warmup=0)[arms.FULL], arms.describe(chips, BANDS), (chips, chips), tmp_path / "m", **HOW)
    said = [str(w.message) for w in told if "confident" in str(w.message)]
    assert said == ["no labelled pixel of a batch is confident at tau=1: cross-entropy counts on all of its labelled pixels; lower tau, or lengthen the warm-up"]
    assert fitted.history.train_loss.iloc[-1] < fitted.history.train_loss.iloc[0]


@pytest.mark.parametrize("name", [arms.FULL, "L2HNet, cross-entropy"])
def test_chips_without_any_label_teach_nothing_and_break_nothing(name, tmp_path):
    image, label = scene()
    chips, empty = chips_of(image, label), chips_of(image, label * 0)
    spec = arms.describe(chips, BANDS)
    fitted = arms.train(small()[name], spec, (empty, chips), tmp_path / "m", **HOW)
    assert (fitted.history.train_loss == 0).all()
    assert all(v.isfinite().all() for v in fitted.model.state_dict().values())
    with pytest.raises(DataError, match="none of the 4 chips has a pixel with image and label"):
        arms.describe(empty, BANDS)


def test_a_class_that_is_missing_is_undefined_and_not_perfect():
    truth = np.where(np.indices((40, 40))[0] < 20, 5, 1).astype(np.uint8)
    cms = arms.count({arms.FULL: [truth], "none": [np.ones_like(truth)]}, [truth], 10)
    table = arms.class_table(cms).set_index("class")
    assert list(table.index) == ["tree", "building"]  # the nine others have no value at all
    assert table.loc["building", arms.FULL] == 1
    assert table.loc["building", "none"] == 0
    scores, gains = arms.judge({k: v[:8] * 0 + np.eye(11, dtype=int)[0][:, None] * np.eye(11, dtype=int)[0] for k, v in cms.items()})
    assert scores.set_index(["arm", "score"]).estimate[arms.FULL, "isa_f1"] != 1
    assert gains[gains.score == "isa_f1"].estimate.isna().all()


def test_gradients_of_a_network():
    torch.manual_seed(0)
    net, x, label = L2HNet(width=8, n_classes=3), torch.randn(2, 4, 16, 16), torch.randint(1, 4, (2, 16, 16))
    logits, features = net(x).detach(), net.features(x)
    features.retain_grad()
    loss = LowToHighLoss(tau=float(logits.softmax(1).max(1).values.median()), warmup=0)
    ca, va, said = confident_area(logits, label, loss.tau)
    value = loss.similarity(features, said, ca, va, 3)
    value.backward()
    moved = features.grad.abs().sum(1) > 0
    assert value > 0
    assert not moved[ca].any()
    assert moved[va & torch.isin(said, said[ca])].any()
    assert net.classifier.weight.grad is None


def test_both_variants_differ_only_where_a_confident_pixel_contradicts_its_label():
    torch.manual_seed(1)
    logits, label = 3 * torch.randn(2, 3, 16, 16), torch.randint(0, 4, (2, 16, 16))
    (ca, va, said), (kept, same, _) = confident_area(logits, label), confident_area(logits, label, agree=True)
    assert (same == va).all()
    assert (kept == (ca & (said == label - 1))).all()
    assert not (ca | va)[label == 0].any()


def test_labels_that_ignore_0_count_from_1(tmp_path):
    image, label = scene()
    box = GeoBox.from_bbox((0, 0, 64, 64), "EPSG:32650", resolution=1)
    codes = xr.DataArray(raster(label, box, "label", 0))
    samples.cut(raster(image, box, "image", None), codes, tmp_path / "chips", size=16, legend="land_cover", shares=(0.5, 0.25, 0.25), min_valid=0.1)
    spec = training.describe(tmp_path / "chips", "L2HNet", {"width": 8})
    assert (spec.first, spec.ignore, spec.classes) == (1, [0], list(LAND_COVER.values()))
    assert training.fit(models.build(spec), tmp_path / "chips", tmp_path / "model", isa=(5, 11), **HOW).history.aAcc.iloc[-1] > 0
    assert Confusion(11, [0], (5, 11)).isa == [4, 10]


def test_wrong_requests():
    for wrong, line in ((lambda: LowToHighLoss(tau=1.5), "give tau and warmup from 0 to 1"), (lambda: LowToHighLoss(vague="cosine"), "prototype"),
                        (lambda: L2HNet(in_channels=0), "at least 1 band")):
        with pytest.raises(RequestError, match=line):
            wrong()
    with pytest.raises(DataError, match="features are due at the resolution of the labels"):
        LowToHighLoss(tau=0, warmup=0)(torch.zeros(1, 2, 8, 8), torch.ones(1, 8, 8, dtype=torch.long), None, torch.zeros(1, 4, 4, 4))
    with pytest.raises(DataError, match="no label at all to fill"):
        arms.filled(np.zeros((4, 4), np.uint8))


def test_watched_areas_and_budget(tmp_path):
    image, label = scene()
    chips = chips_of(image, label)
    watch = arms.Watch(image, label, tmp_path / "areas.npz")
    fitted = arms.train(small()[arms.FULL], arms.describe(chips, BANDS), (chips, chips), tmp_path / "m", cbs=[watch], **HOW)
    areas = np.load(tmp_path / "areas.npz")["areas"]
    assert areas.shape == (2, 64, 64)
    assert ((areas == 0) == (label == 0)).all()
    row = arms.budget({arms.FULL: fitted}, chips).iloc[0]
    assert (row.steps, row.chips, row.px) == (6, 4, 32)
    assert fitted.best_epoch == 2  # the last one
    assert json.loads((tmp_path / "m" / "training.json").read_text())["request"]["loss"]["loss"] == "low-to-high"


def test_watched_areas_of_a_training_that_goes_on(tmp_path):
    "Stopped after its second round, and after its last: the file holds the areas of every round, as if nothing had happened."
    class Stop(Callback):
        order = 90  # after the checkpoint is written

        def after_epoch(self):
            if self.epoch == 1:
                raise KeyboardInterrupt

    image, label = scene()
    chips = chips_of(image, label)

    def go(folder, *more):
        watch = arms.Watch(image, label, tmp_path / folder / "areas.npz")
        arms.train(small()[arms.FULL], arms.describe(chips, BANDS), (chips, chips), tmp_path / folder, cbs=[watch, *more], checkpoint=0.0, **HOW | {"epochs": 3})
        return np.load(watch.file)["areas"]

    whole = go("whole")
    with pytest.raises(KeyboardInterrupt):
        go("stopped", Stop())
    assert len(whole) == 3
    for _ in range(2):  # goes on; then finds itself finished
        assert (go("stopped") == whole).all()


def test_support_of_labels_where_the_image_has_gaps_and_where_there_are_none():
    gen = np.random.default_rng(0)
    truth = np.repeat([1, 5], 16)[None].repeat(32, 0).astype(np.uint8)
    label, image = truth.copy(), (100.0 * truth + gen.normal(0, 10, (2, 32, 32))).astype(np.float32)
    label[4:8, 20:28] = 1
    image[:, 12, 3], label[12, 3] = np.nan, 0
    found = arms.supported([Chip(image, label, (label > 0).astype(np.float32))] * 2, sample=100)[1].confidence
    assert np.isfinite(found).all() and found[12, 3] == 0
    assert found[5:7, 21:27].mean() < 0.3 < 0.9 < found[label == truth].mean()
    empty = [Chip(image, np.zeros_like(label), np.zeros(label.shape, np.float32))]
    assert arms.supported(empty) == empty
    alone = [Chip(image, np.full_like(label, 5), np.ones(label.shape, np.float32))]  # one class: nothing to compare with
    assert arms.supported(alone) == alone


def test_a_class_too_rare_for_the_cross_entropy_takes_no_support_from_a_common_one():
    label = np.ones((64, 64), np.uint8)
    label[32:], label[:2, :10] = 5, 3  # 20 pixels that look like class 1
    image = np.where(label == 5, 500.0, 100.0)[None].repeat(2, 0).astype(np.float32) + np.random.default_rng(0).normal(0, 10, (2, 64, 64)).astype(np.float32)
    chips = [Chip(image, label, np.ones(label.shape, np.float32))]
    found = {limit: arms.supported(chips, weight_limit=limit)[0].confidence for limit in (float("inf"), 10.0, 1.0)}
    worst = {limit: c[label == 1].min() / c[label == 1].max() for limit, c in found.items()}
    assert worst[float("inf")] < 0.1 < 0.5 < worst[10.0] <= worst[1.0] <= 1
    for c in found.values():  # a class is neither more nor less than before
        assert np.ptp([c[label == code].mean() for code in (1, 3, 5)]) < 1e-3 and 0 < c.min() and c.max() == 1


def test_support_tells_colours_apart_that_brightness_does_not():
    gen = np.random.default_rng(0)
    label = np.array([1, 5]).repeat(32)[None].repeat(64, 0).astype(np.uint8)
    light, wrong = (gen.random((8, 8)).repeat(8, 0).repeat(8, 1) for _ in range(2))
    light, truth = 100 + 900 * light, np.where(wrong < 0.1, 6 - label, label)  # one square in ten has the wrong label; both classes are as bright
    image = np.stack([light, light * np.where(truth == 1, 1.0, 1.1)]) + gen.normal(0, 2, (2, 64, 64))
    assert np.corrcoef(*image.reshape(2, -1))[0, 1] > 0.98
    found = arms.supported([Chip(image.astype(np.float32), label, np.ones(label.shape, np.float32))])[0].confidence
    assert found[label != truth].mean() < 0.5 < 0.9 < found[label == truth].mean()


@pytest.mark.parametrize(("most", "support"), [(True, True), (True, False), (False, True), (False, False)])
def test_every_arm_names_labels_that_its_experiment_has_and_one_leaves_the_weights_out(most, support):
    every = small(most=most, support=support)
    kinds = {a.labels for a in every.values()}
    assert kinds <= {"agreed", "agreed, supported", *(("most", "most, supported") if most else ())}
    assert every[arms.FULL].labels == ("most" if most else "agreed") + (", supported" if support else "")
    assert every[arms.FULL].low_to_high["confidence"] == (most or support)
    plain = every["L2HNet, labels not weighed" if most or support else "L2HNet, labels weighed"]
    assert plain.low_to_high["confidence"] != every[arms.FULL].low_to_high["confidence"] and plain.labels.startswith(every[arms.FULL].labels[:4])
    assert all(every[n].labels == "agreed" for n in ("L2HNet, cross-entropy", "U-Net", "ResNeSt + ASPP"))


def test_classes_that_no_product_confirms_are_not_learnt_from():
    image, label = scene()
    loose = label.copy()
    loose[:, :8] = 2
    most, agreed = chips_of(image, loose), chips_of(image, label)
    found = arms.confirmed(most, agreed)
    assert all((a.label == b.label).all() and (a.confidence == b.confidence).all() for a, b in zip(found, agreed, strict=True))
    assert all((a.image == b.image).all() and a.label.dtype == np.uint8 and a.confidence.dtype == np.float32 for a, b in zip(found, most, strict=True))
    assert all((a.label == b.label).all() for a, b in zip(arms.confirmed(most, most), most, strict=True))
