"""Model folders and graphs: what may go wrong with them, and that nothing already made is lost."""
import errno
import json
import sys

import numpy as np
import pytest
import torch
from torch import nn

from isa_nb import models
from isa_nb.core import DataError, RequestError
from isa_nb.models import FILES, Model, Spec, build, export_onnx, load, save

BANDS = {"bands": ["blue", "green", "red", "nir"], "mean": [900.0, 1000, 1100, 2200], "std": [300.0, 300, 400, 700], "nodata": 0}


class Small(nn.Sequential):
    asked = []

    def __init__(self, in_channels, n_classes, width=6, pretrained=False):
        super().__init__(nn.Conv2d(in_channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, n_classes, 1))
        self.asked.append(pretrained)


class OtherSmall(nn.Sequential):
    def __init__(self, in_channels, n_classes):
        super().__init__(nn.Conv2d(in_channels, n_classes, 3, padding=1))


class OneWidth(nn.Module):
    "A network that is bound to images of 64 px."
    def __init__(self, in_channels, n_classes):
        super().__init__()
        self.along, self.classify = nn.Linear(64, 64), nn.Conv2d(in_channels, n_classes, 1)

    def forward(self, x):
        return self.classify(self.along(x))


@pytest.fixture(autouse=True)
def architectures(monkeypatch):
    monkeypatch.setattr(models, "ARCHITECTURES", {**models.ARCHITECTURES, "Small": Small, "OtherSmall": OtherSmall, "OneWidth": OneWidth})


def imagery(*shape, seed=0):
    x = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 3000
    x[:, :, :2], x[:, 1, 4, 4] = 0, float("nan")
    return x


def small(seed=0, **more):
    return build(Spec(architecture="Small", seed=seed, **{**BANDS, **more})).eval()


@pytest.mark.parametrize("arguments", [{"encoder": "resnest14d-quarter", "rates": [3, 6, 9], "zoom": 2}])
def test_the_network_of_the_zones_system_travels_as_folder_and_as_graph(tmp_path, arguments):
    import onnxruntime
    model = build(Spec(architecture="ResNeStASPP", arguments=arguments, **BANDS)).eval()
    for m in model.modules():  # as after training: statistics of batch norm are no longer 0 and 1, logits no longer near 0
        if isinstance(m, nn.BatchNorm2d):
            m.running_mean.uniform_(-0.2, 0.2)
            m.running_var.uniform_(0.5, 2)
    model.net.classify[1].weight.data *= 100
    again = load(save(model.to(memory_format=torch.channels_last), tmp_path / "w2"))
    graph = onnxruntime.InferenceSession(export_onnx(again, tmp_path / "w2.onnx"))
    for shape in ((1, 4, 64, 64), (3, 4, 45, 83)):
        x = imagery(*shape)
        with torch.inference_mode():
            before, ours = model(x), again(x)
        assert ours.isfinite().all() and ours.std() > 1
        assert torch.allclose(before, ours, atol=1e-4)  # channels_last adds up in another order
        assert np.abs(graph.run(None, {"image": x.numpy()})[0] - ours.numpy()).max() < 1e-4
    assert json.loads(graph.get_modelmeta().custom_metadata_map["isa_nb"])["bands"] == BANDS["bands"]


def test_a_network_for_one_size_says_so_and_can_be_exported_for_it(tmp_path):
    model = build(Spec(architecture="OneWidth", **BANDS))
    with pytest.raises(DataError, match="OneWidth cannot be exported for images of any size .*give size, e.g. size=512"):
        export_onnx(model, tmp_path / "a.onnx")
    assert not list(tmp_path.iterdir())
    assert export_onnx(model, tmp_path / "a.onnx", size=64).exists() and model.training, "the model stays in its mode"


def test_a_graph_that_differs_is_not_written(tmp_path, monkeypatch):
    model = small()
    true = models._graph
    monkeypatch.setattr(models, "_graph", lambda m, size: true(small(seed=1), size))
    with pytest.raises(DataError, match="differs from torch by .*nothing was written"):
        export_onnx(model, tmp_path / "a.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("failing", ["save_file", "write_json", "write_text", "_swap"])
def test_a_failed_save_leaves_the_older_model(tmp_path, monkeypatch, failing):
    x, old = imagery(1, 4, 16, 16), small()
    folder = save(old, tmp_path / "m", metrics={"loss": 1.0})
    (folder / "history.csv").write_text("epoch\n")

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr(models, failing, full)
    with pytest.raises(DataError, match="cannot write the model .*No space left on device; what was there before is unchanged"):
        save(small(seed=1), folder)
    assert torch.equal(load(folder)(x), old(x))
    assert sorted(p.name for p in tmp_path.rglob("*")) == sorted(["m", "history.csv", *FILES])


def test_a_swap_that_fails_halfway_brings_the_older_folder_back(tmp_path, monkeypatch):
    x, old = imagery(1, 4, 16, 16), small()
    folder, true, calls = save(old, tmp_path / "m"), models.os.replace, []

    def replace(a, b):
        calls.append(a)
        if len(calls) == 5:  # three files of the new folder, the older folder, then the new one
            raise OSError(errno.EIO, "Input/output error")
        true(a, b)
    monkeypatch.setattr(models.os, "replace", replace)
    with pytest.raises(DataError, match="Input/output error"):
        save(small(seed=1), folder)
    assert torch.equal(load(folder)(x), old(x)) and sorted(p.name for p in tmp_path.iterdir()) == ["m"]


def test_weights_cut_short_at_any_place_are_refused(tmp_path):
    folder = save(small(), tmp_path / "m")
    whole = (folder / FILES[0]).read_bytes()
    for length in (0, 4, 8, 100, len(whole) // 2, len(whole) - 1):
        (folder / FILES[0]).write_bytes(whole[:length])
        with pytest.raises(DataError, match="cannot be read .*damaged or cut short; copy the model folder again") as e:
            load(folder)
        assert "\n" not in str(e.value)
    flipped = bytearray(whole)
    flipped[-1] ^= 1
    (folder / FILES[0]).write_bytes(flipped)
    with pytest.raises(DataError, match="SHA-256 differs"):
        load(folder)


@pytest.mark.parametrize(("text", "said"), [
    ("{", "cannot be read"), ("[1]", "does not state the format"), ("{}", "does not state the format"), ("\udcff", "cannot be read"),
    ('{"format": 7, "isa_nb": "9.0"}', r"format 7 \(isa_nb 9.0\), and this version reads format 1"), ('{"format": 1}', "architecture: field required"),
    ('{"format": 1, "architecture": "Small", "bands": ["a"], "mean": [NaN], "std": [1]}', "mean.0: input should be a finite number"),
    ('{"format": 1, "architecture": "Small", "bands": ["a"], "mean": [0], "std": [1], "bans": 1}', "unknown entry of a description 'bans': did you mean 'bands'"),
    ('{"format": 1, "architecture": "Small", "arguments": {"in_channels": 3}, "bands": ["a"], "mean": [0], "std": [1]}', "arguments say in_channels 3, but the description has 1"),
    ('{"format": 1, "architecture": "Small", "bands": ["a"], "mean": [0], "std": [1]}', r"another network than Small.*net.0.weight is \(6, 4, 3, 3\) where \(6, 1, 3, 3\) is due"),
])
def test_a_malformed_description_is_one_line(tmp_path, text, said):
    folder = save(small(), tmp_path / "m")
    (folder / "config.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(DataError, match=said) as e:
        load(folder)
    assert "\n" not in str(e.value)


def test_weights_of_another_architecture_are_named(tmp_path):
    a, b = save(small(), tmp_path / "a"), save(build(Spec(architecture="OtherSmall", **BANDS)), tmp_path / "b")
    (a / FILES[0]).write_bytes((b / FILES[0]).read_bytes())
    with pytest.raises(DataError, match="weights of another network than Small.*weights are missing, the first is net.1.bias.*net.0.weight is"):
        load(a)


@pytest.mark.parametrize("missing", FILES[:2])
def test_a_missing_file_is_named(tmp_path, missing):
    folder = save(small(), tmp_path / "m")
    (folder / missing).unlink()
    with pytest.raises(DataError, match=f"is no model folder: {missing} is missing"):
        load(folder)


@pytest.mark.parametrize("name", ["this:Zen", "isa_nb.models:load", "antigravity", "os:system"])
def test_a_description_cannot_make_the_program_import(tmp_path, name):
    folder = save(small(), tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "architecture": name}))
    before = set(sys.modules)
    with pytest.raises(DataError, match="unknown architecture .*models.register"):
        load(folder)
    assert set(sys.modules) == before


def test_loading_never_asks_for_pretrained_weights(tmp_path):
    Small.asked.clear()
    model = build(Spec(architecture="Small", arguments={"pretrained": True}, **BANDS))
    assert load(save(model, tmp_path / "m")).spec.arguments == {"pretrained": True}
    assert Small.asked == [True, False]


def test_names_of_the_suite_cannot_be_taken():
    with pytest.raises(RequestError, match="'ResNeStASPP' is already the name of the architecture isa_nb.segmentation:ResNeStASPP"):
        models.register("ResNeStASPP", Small)


def test_scaling_of_whole_numbers_and_of_holes():
    model = small()
    whole = torch.randint(1, 4000, (2, 4, 8, 8), dtype=torch.int32)
    assert torch.equal(model(whole), model(whole.float()))
    holes = whole.float()
    holes[0, :, 2:5] = 0
    filled = holes.clone()
    filled[0, :, 2:5] = torch.tensor(BANDS["mean"])[:, None, None]
    assert torch.equal(model(holes), model(filled)), "nodata is an average pixel"
    assert not torch.equal(Model(model.net, model.spec.model_copy(update={"nodata": None}))(holes), model(filled))
    with pytest.raises(DataError, match="the bands of this model are blue, green, red, nir"):
        model(whole[:, :3])


def test_statistics_see_only_the_chips_asked_for():
    from isa_nb.chips import Chip
    chips = [Chip(np.full((2, 4, 4), i, np.uint16), np.zeros((4, 4), np.uint8), np.ones((4, 4))) for i in range(50)]
    mean, std = models.statistics(chips)
    assert np.allclose(mean, 24.5) and np.allclose(std, np.arange(50).std())
    assert models.statistics(chips, n=10) == models.statistics(chips, n=10) != models.statistics(chips, n=10, seed=1)
