"""batches, learning, training: repeated, interrupted and broken trainings, bad input."""
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch import nn

from isa_nb import models, results, sharpen, training
from isa_nb.batches import ChipLoader, in_memory
from isa_nb.chips import Chip
from isa_nb.core import NODATA, UNCERTAIN, DataError, RequestError, raster, rng, square_geobox
from isa_nb.learning import Confusion
from isa_nb.losses import SegmentationLoss
from isa_nb.metrics import confusion
from isa_nb.samples import StoredChips, cut, read_ledger

ONE = {"device": "cpu", "precision": "fp32", "threads": 1}


class TinyNet(nn.Sequential):
    def __init__(self, in_channels, n_classes, width=6):
        super().__init__(nn.Conv2d(in_channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(), nn.Dropout2d(0.3), nn.Conv2d(width, n_classes, 1))


models.register("TinyNet", TinyNet)


def chip(gen, size=16, isa=True):
    label = (gaussian_filter(gen.normal(size=(size, size)), 2) * 7 > 0.6).astype(np.uint8) * isa
    image = (1000 + 600.0 * label + 200 * gen.normal(size=(3, size, size))).clip(1).astype(np.uint16)
    label[0], label[:, 0] = NODATA, UNCERTAIN
    return Chip(image, label, np.where(label < 2, gen.random((size, size)), 0).astype(np.float32))


def some(n, name="train", **kwargs):
    gen = rng(0, name)
    return [chip(gen, **kwargs) for _ in range(n)]


SETS = some(12), some(5, "valid")
SPEC = models.Spec(architecture="TinyNet", bands=["green", "red", "nir"], mean=[1200.0] * 3, std=[400.0] * 3)


def fit(out, sets=SETS, spec=SPEC, **kwargs):
    return training.fit(models.build(spec), sets, out, **{"epochs": 4, "batch": 4, "lr": 1e-2, **ONE, **kwargs})


def same(a, b):
    return all(torch.equal(v, b.model.state_dict()[k]) for k, v in a.model.state_dict().items())


def plain(history):
    return history.drop(columns="seconds")


class Broken(SegmentationLoss):
    "Raises in the given training step."
    def __init__(self, step, error):
        super().__init__()
        self.left, self.error = step, error

    def forward(self, logits, *args):
        self.left -= logits.requires_grad
        if self.left < 0:
            raise self.error
        return super().forward(logits, *args)


# ---- repeated and interrupted


def test_same_seed_same_weights_and_workers_do_not_matter(tmp_path):
    first, again = fit(tmp_path / "a"), fit(tmp_path / "b", workers=3)
    assert same(first, again) and plain(first.history).equals(plain(again.history))
    assert not same(first, fit(tmp_path / "c", seed=1))


def test_the_callers_random_numbers_and_threads_are_left_alone(tmp_path):
    torch.set_num_threads(2)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    fit(tmp_path / "a")
    assert torch.equal(torch.rand(3), expected) and torch.get_num_threads() == 2
    torch.set_num_threads(1)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("step", [4, 7, 11])  # of 12: in the second, third and last epoch
def test_interrupted_training_ends_with_the_same_weights(tmp_path, precision, step):
    straight = fit(tmp_path / "straight", precision=precision)
    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path / "broken", loss=Broken(step, KeyboardInterrupt()), checkpoint=0, precision=precision)
    assert len(pd.read_csv(tmp_path / "broken" / "history.csv")) == step // 3
    resumed = fit(tmp_path / "broken", checkpoint=0, precision=precision)
    assert same(straight, resumed) and plain(straight.history).equals(plain(resumed.history))
    assert resumed.best_epoch == straight.best_epoch and (resumed.confusion == straight.confusion).all()
    assert not (tmp_path / "broken" / "checkpoint.safetensors").exists()


def test_interrupted_training_stops_early_where_it_would_have(tmp_path):
    how = {"epochs": 12, "patience": 2, "lr": 0.3, "checkpoint": 0}
    straight = fit(tmp_path / "straight", **how)
    assert len(straight.history) < 12
    last = len(straight.history)
    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path / "broken", loss=Broken(3 * (last - 1) + 1, KeyboardInterrupt()), **how)
    assert same(straight, fit(tmp_path / "broken", **how))


def test_killed_in_the_middle(tmp_path):
    code = textwrap.dedent(f"""
        import sys; sys.path.insert(0, {str(os.path.dirname(__file__))!r})
        import time, test_training as t
        class Slow(t.SegmentationLoss):
            def forward(self, *args):
                time.sleep(0.1)
                return super().forward(*args)
        t.fit({str(tmp_path / 'killed')!r}, epochs=30, loss=Slow(), checkpoint=0)
    """)
    child = subprocess.Popen([sys.executable, "-W", "ignore", "-c", code], env={**os.environ, "OMP_NUM_THREADS": "1"})
    deadline = time.time() + 120
    while not (tmp_path / "killed" / "checkpoint.safetensors").exists():
        assert child.poll() is None and time.time() < deadline
        time.sleep(0.05)
    time.sleep(0.4)
    child.send_signal(signal.SIGKILL)
    child.wait()
    _, state = training.read_checkpoint(tmp_path / "killed" / "checkpoint.safetensors")
    assert 1 <= len(state["rows"]) < 30
    assert same(fit(tmp_path / "straight", epochs=30), fit(tmp_path / "killed", epochs=30))


def test_a_finished_training_is_returned_and_another_request_told_apart(tmp_path):
    first = fit(tmp_path / "m")
    again = fit(tmp_path / "m", loss=Broken(0, AssertionError("trained again")))
    assert same(first, again) and again.history.equals(first.history)
    assert again.plan == first.plan and again.model.spec == first.model.spec
    for change, name in (({"lr": 1e-3}, "lr"), ({"loss": SegmentationLoss(confidence=False)}, "loss"), ({"sets": (SETS[0][1:], SETS[1])}, "train"),
                         ({"spec": SPEC.model_copy(update={"seed": 1})}, "seed, weights")):
        with pytest.raises(RequestError, match=rf"holds another training \(it differs in {name}\)"):
            fit(tmp_path / "m", **change)
    anew = fit(tmp_path / "m", lr=1e-3, resume=False)
    assert not same(first, anew) and anew.model.spec.training["lr"] == 1e-3


def broken_checkpoint(out):
    with pytest.raises(KeyboardInterrupt):
        fit(out, loss=Broken(5, KeyboardInterrupt()), checkpoint=0)
    return out / "checkpoint.safetensors"


def test_checkpoint_of_another_architecture_or_request(tmp_path):
    broken_checkpoint(tmp_path / "m")
    wide = SPEC.model_copy(update={"arguments": {"width": 8}})
    with pytest.raises(DataError, match=r"holds the weights of another network: net.0.weight is \(6, 3, 3, 3\) where \(8, 3, 3, 3\) is due; name another folder, or start anew with resume=False"):
        fit(tmp_path / "m", spec=wide)
    with pytest.raises(RequestError, match=r"belongs to another training \(it differs in epochs\)"):
        fit(tmp_path / "m", epochs=5)
    assert len(fit(tmp_path / "m", spec=wide, resume=False).history) == 4


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", None])
def test_damaged_checkpoint(tmp_path, content):
    path = broken_checkpoint(tmp_path / "m")
    path.write_bytes(path.read_bytes()[:2000] if content is None else content)
    with pytest.raises(DataError, match="is no checkpoint of a training, or is damaged .*: delete it, or start anew with resume=False"):
        fit(tmp_path / "m")


def test_nothing_is_pickled(tmp_path):
    path = broken_checkpoint(tmp_path / "m")
    parts, state = training.read_checkpoint(path)
    assert set(parts) == {"model", "best", "optimiser"} and {k.split("/")[1] for k in parts["optimiser"]} == {"step", "exp_avg", "exp_avg_sq"}
    assert state["request"]["lr"] == 1e-2 and len(state["rows"]) == 1
    fit(tmp_path / "m")
    assert sorted(f.name for f in (tmp_path / "m").iterdir()) == ["README.md", "config.json", "history.csv", "metrics.json", "model.safetensors", "training.json"]


# ---- what is reported


def test_best_weights_and_history(tmp_path):
    result = fit(tmp_path / "m", epochs=6)
    assert result.history["isa_f1"].idxmax() + 1 == result.best_epoch and result.monitor == "isa_f1"
    x, y = torch.from_numpy(np.stack([c.image for c in SETS[1]]).astype(np.float32)), np.stack([c.label for c in SETS[1]])
    with torch.no_grad():
        said = result.model(x).max(1).indices.numpy().astype(np.uint8)
    assert (confusion(said, y, 2, ignore=(2, 255)) == result.confusion).all()
    saved = pd.read_csv(tmp_path / "m" / "history.csv")
    assert list(saved) == ["epoch", "train_loss", "valid_loss", "isa_f1", "isa_iou", "mIoU", "aAcc", "lr", "seconds"] and saved.equals(result.history)
    record = json.loads((tmp_path / "m" / "training.json").read_text())
    assert record["plan"]["precision"] == "fp32" and record["plan"]["device"] == "cpu" and record["request"]["loss"]["confidence"] is True
    assert "computed on" in (tmp_path / "m" / "README.md").read_text()


def test_confidence_is_a_switch(tmp_path):
    assert not same(fit(tmp_path / "a"), fit(tmp_path / "b", loss=SegmentationLoss(confidence=False)))
    sure = tuple([Chip(c.image, c.label, np.float32(c.label < 2)) for c in part] for part in SETS)
    assert same(fit(tmp_path / "c", sure), fit(tmp_path / "d", sure, loss=SegmentationLoss(confidence=False)))


def test_metric_leaves_ignored_pixels_out():
    metric, gen = Confusion(3, (7, 255)), rng(0, "metric")
    total = np.zeros((3, 3), np.int64)
    for b in (4, 2):
        logits, label = torch.from_numpy(gen.normal(size=(b, 3, 8, 8))), gen.choice([0, 1, 2, 7, 255], size=(b, 8, 8)).astype(np.uint8)
        class Learn:
            pred, yb = logits, (torch.from_numpy(label),)
            to_detach = staticmethod(lambda x: x)
        metric.accumulate(Learn)
        total += confusion(logits.argmax(1).numpy()[label < 3], label[label < 3], 3)
    assert (metric.counts == total).all()


def test_steps_are_a_budget(tmp_path):
    counted = Broken(10**9, AssertionError())
    result = fit(tmp_path / "m", steps=10, epochs=3, loss=counted)
    assert 10**9 - counted.left == 9 and len(result.history) == 3 and result.history["lr"].iloc[-1] < 1e-3


def test_early_stop_and_monitor(tmp_path):
    result = fit(tmp_path / "m", epochs=12, lr=0.3, patience=2)
    assert len(result.history) == result.best_epoch + 2 < 12
    assert fit(tmp_path / "n", monitor="valid_loss").monitor == "valid_loss"
    with pytest.raises(RequestError, match="unknown monitor 'accuracy'"):
        fit(tmp_path / "o", monitor="accuracy")


# ---- bad input


def test_zone_without_isa(tmp_path):
    result = fit(tmp_path / "m", (some(6, isa=False), some(3, "valid", isa=False)))
    assert result.monitor == "valid_loss" and np.isfinite(result.history["train_loss"]).all()
    assert result.history["isa_f1"].iloc[-1] in (0,) or np.isnan(result.history["isa_f1"].iloc[-1])
    assert np.isnan(result.history["isa_f1"]).any()
    assert not (result.history["isa_f1"] == 1).any()
    assert json.loads((tmp_path / "m" / "metrics.json").read_text())["validation chips (their own labels)"]["isa_f1"] is None


def test_labels_with_nothing_known(tmp_path):
    blank = [Chip(c.image, np.full_like(c.label, NODATA), np.zeros_like(c.confidence)) for c in SETS[0]]
    result = fit(tmp_path / "m", (blank, SETS[1]))
    assert (result.history["train_loss"] == 0).all()


def test_one_chip_and_an_odd_one_out(tmp_path):
    resnest = models.Spec(architecture="ResNeStASPP", arguments={"encoder": "resnest14d-quarter", "rates": [1, 2, 3], "aspp": 16}, bands=SPEC.bands, mean=SPEC.mean, std=SPEC.std)
    big = some(5, size=32)
    assert len(fit(tmp_path / "one", (big[:1], big[:1]), resnest, epochs=1).history) == 1
    assert len(fit(tmp_path / "five", (big, big[:1]), resnest, epochs=1).history) == 1  # 4 + 1


@pytest.mark.parametrize("sets, line", [
    (([], SETS[1]), "there are no training chips"),
    ((SETS[0], []), "there are no validation chips"),
    (([Chip(c.image[:2], c.label, c.confidence) for c in SETS[0]], SETS[1]), "the training chips have 2 bands where the model takes green, red, nir, in this order"),
    ((SETS[0][:3] + some(1, size=24), SETS[1]), "among chips of"),
    (([Chip(c.image, c.label + (c.label == 1) * 4, c.confidence) for c in SETS[0]], SETS[1]), r"label codes \[5\] are neither one of the classes 0..1 nor ignored"),
])
def test_unusable_chips(tmp_path, sets, line):
    with pytest.raises(DataError, match=line):
        fit(tmp_path / "m", sets)


def test_band_order_and_empty_split_of_a_store(tmp_path):
    g, gen = square_geobox(114.3, 30.6, 96 * 16, 16), rng(0, "store")
    image = raster(gen.integers(1, 3000, (3, 96, 96)).astype(np.uint16), g, "image", nodata=0, long_name=("green", "red", "nir"))
    ledger = cut(image, raster(gen.integers(0, 2, (96, 96)).astype(np.uint8), g, "label", nodata=255), tmp_path / "store", size=8, overlap=0, zone="W4")
    spec = training.describe(tmp_path / "store", "TinyNet")
    assert (spec.bands, spec.zone, spec.nodata, spec.resolution) == (["green", "red", "nir"], "W4", 0, 16)
    images = np.stack([c.image for c in StoredChips(ledger, "train")]).astype(float)
    assert np.allclose(spec.mean, images.mean((0, 2, 3))) and np.allclose(spec.std, images.std((0, 2, 3)))
    with pytest.raises(DataError, match="the training chips have green, red, nir where the model takes nir, red, green, in this order"):
        fit(tmp_path / "m", tmp_path / "store", spec.model_copy(update={"bands": ["nir", "red", "green"]}))
    only = read_ledger(tmp_path / "store")
    with pytest.raises(DataError, match="holds no chip of split 'val'"):
        fit(tmp_path / "m", only[only["split"] == "train"], spec)
    assert len(fit(tmp_path / "m", only, spec, epochs=1).history) == 1


def test_nan_in_imagery(tmp_path):
    holes = [Chip(np.where(rng(i, "holes").random(c.image.shape[1:]) < 0.2, np.nan, c.image).astype(np.float32), c.label, c.confidence) for i, c in enumerate(SETS[0])]
    result = fit(tmp_path / "m", (holes, holes[:3]))
    assert np.isfinite(result.history[["train_loss", "valid_loss"]].to_numpy()).all()
    assert all(torch.isfinite(v).all() for v in result.model.state_dict().values() if v.is_floating_point())


def test_a_loss_that_explodes(tmp_path):
    class Exploding(SegmentationLoss):
        def forward(self, *args):
            return super().forward(*args) * torch.nan
    with pytest.raises(DataError, match=r"^the loss is not a number in epoch 1: lower lr \(it was 0.01 at most\)"):
        fit(tmp_path / "m", loss=Exploding())


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")])
def test_out_of_memory_suggests_a_smaller_batch(tmp_path, error):
    with pytest.raises(RequestError, match=r"^cpu ran out of memory with batches of 8 chips of 16 x 16 px: give batch=4, smaller chips or a smaller network$"):
        fit(tmp_path / "m", batch=8, loss=Broken(1, error))
    with pytest.raises(RuntimeError, match="something else"):
        fit(tmp_path / "n", loss=Broken(1, RuntimeError("something else")))


def test_a_folder_that_cannot_be_written(tmp_path, monkeypatch):
    def full(*_):
        raise DataError("cannot write: no space left")
    monkeypatch.setattr(training, "write_text", full)
    with pytest.raises(DataError, match="^cannot write: no space left$"):
        fit(tmp_path / "m")


@pytest.mark.parametrize("asked", [{"epochs": 0}, {"batch": 1}, {"lr": 0}, {"steps": 0}, {"device": "cuda:9"}, {"device": "gpu"}, {"precision": "fp8"}])
def test_impossible_requests(tmp_path, asked):
    with pytest.raises(RequestError):
        fit(tmp_path / "m", **asked)
    assert not (tmp_path / "m").exists()


# ---- batches


class OnDisk:
    def __init__(self, chips):
        self.chips, self.threads = chips, set()

    def __len__(self):
        return len(self.chips)

    def __getitem__(self, i):
        self.threads.add(threading.get_ident())
        time.sleep(0.002)
        return self.chips[i]


def test_chips_that_do_not_fit_are_read_when_needed(tmp_path):
    disk = OnDisk(SETS[0])
    assert in_memory(disk, share=0) is disk and isinstance(in_memory(disk), list)
    kept, read = fit(tmp_path / "a"), fit(tmp_path / "b", (disk, SETS[1]), memory=0, workers=4)
    assert same(kept, read) and len(disk.threads) > 2


def test_every_chip_is_seen_equally_often():
    loader = ChipLoader(SETS[0], bs=5, shuffle=True, steps=2)
    seen = []
    for e in range(6):
        loader.epoch = e
        seen += loader.get_idxs()
    assert (np.bincount(seen) == 5).all()


def test_a_broken_chip_is_told_as_it_is():
    class Bad(OnDisk):
        def __getitem__(self, i):
            if i == 3:
                raise DataError("chip 3 cannot be read")
            return super().__getitem__(i)
    for workers in (0, 2):
        with pytest.raises(DataError, match="chip 3 cannot be read"):
            list(ChipLoader(Bad(SETS[0]), bs=4, workers=workers))


def test_the_runner_knows_what_can_go_on():
    "`isa run` sets aside the folders of stopped trainings by the names of their files, without importing torch."
    assert results.RESUMABLE == (training.CHECKPOINT, training.RECORD) == (sharpen.CHECKPOINT, sharpen.RECORD)
