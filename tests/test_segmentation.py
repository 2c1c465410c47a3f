"""segmentation: weight for weight against segmentation_models_pytorch and timm, any size of image, bf16, ImageNet weights, bad requests."""
import warnings

import huggingface_hub.constants
import pytest
import segmentation_models_pytorch as smp
import timm
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from segmentation_models_pytorch.decoders.deeplabv3.decoder import ASPP as PeerASPP
from torch import nn

from isa_nb import segmentation as s
from isa_nb.core import DataError, RequestError

SMALL = {"encoder": "resnest14d-quarter", "rates": (1, 2, 3), "aspp": 32}


def shaken(net):
    "The same network with weights and batch norms that are nothing special: none is 0 or 1."
    torch.manual_seed(3)
    for p in net.parameters():
        p.data += 0.05 * torch.randn_like(p)
    for m in net.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.running_mean.uniform_(-0.2, 0.2)
            m.running_var.uniform_(0.8, 1.2)
    return net


@pytest.mark.parametrize("name, training", [("resnest14d", True), ("resnest14d", False), ("resnest101e", False)])
def test_encoder_is_that_of_segmentation_models_pytorch(name, training):
    peer = shaken(smp.encoders.get_encoder(f"tu-{name}", in_channels=4, depth=5, weights=None, output_stride=8))
    ours = s.make_encoder(name, 4, levels=(0, 1, 2, 3, 4))
    ours.load_state_dict(peer.model.state_dict())
    x = torch.randn(2, 4, 64, 96)
    with torch.no_grad():
        want, got = peer.train(training)(x)[1:], ours.train(training)(x)
    assert [f.shape[1:] for f in got] == [(c, 64 // r, 96 // r) for c, r in zip(peer.out_channels[1:], (2, 4, 8, 8, 8), strict=True)]
    for a, b in zip(got, want, strict=True):
        assert torch.equal(a, b) and a.std() > 0


@pytest.mark.parametrize("training", [False, True])
def test_pyramid_is_that_of_segmentation_models_pytorch(training):
    peer = shaken(PeerASPP(24, 16, (2, 3, 5), separable=False, dropout=0.0))
    ours = s.ASPP(24, 16, (2, 3, 5))
    ours.load_state_dict(dict(zip(ours.state_dict(), peer.state_dict().values(), strict=True)))
    x = torch.randn(3, 24, 9, 13)
    torch.testing.assert_close(ours.train(training)(x), peer.train(training)(x), rtol=1e-5, atol=1e-5)


@settings(max_examples=25)
@given(st.integers(1, 45), st.integers(1, 45), st.sampled_from((1, 2, 4)), st.sampled_from((8, 16, 32)))
def test_any_size_of_image(height, width, zoom, stride):
    net = s.ResNeStASPP(in_channels=2, n_classes=3, output_stride=stride, zoom=zoom, **SMALL).eval()
    with torch.no_grad():
        out = net(torch.randn(1, 2, height, width))
    assert out.shape == (1, 3, height, width) and out.isfinite().all()


@pytest.mark.parametrize("zoom", [1, 2, 4])
def test_a_cell_stays_where_it_is_whatever_the_size(zoom):
    "What the decoder gets from the pyramid in an image of 100 px is what it gets in one of 128 px, except at the edge."
    seen = []
    for side in (100, 128):
        net = s.ResNeStASPP(in_channels=1, zoom=zoom, **SMALL).eval()
        net.aspp.forward = lambda deep: torch.arange(float(deep.shape[3])).sin().expand(1, 32, *deep.shape[2:])
        net.fuse.register_forward_pre_hook(lambda m, i: seen.append(i[0][0, -1, 0]))
        net(torch.zeros(1, 1, side, side))
    n = 100 * zoom // 4 - 1
    assert torch.equal(seen[0][:n], seen[1][:n]) and seen[0].numel() == 100 * zoom // 4


def test_bf16_and_channels_last_change_little():
    torch.manual_seed(0)
    net = shaken(s.ResNeStASPP(in_channels=4, zoom=2, **SMALL)).eval()
    x = torch.randn(2, 4, 48, 40)
    with torch.no_grad():
        want = net(x)
        last = net.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last))
        with torch.autocast("cpu", torch.bfloat16):
            half = net(x)
    torch.testing.assert_close(last, want, rtol=1e-4, atol=1e-4)
    assert half.dtype == torch.bfloat16
    assert (half.float() - want).abs().max() < 0.05 * want.abs().max()


@pytest.mark.parametrize("more", [{}, {"separable": True}, {"low": None}, {"zoom": 2}])
def test_every_weight_learns_in_bf16(more):
    torch.manual_seed(0)
    net = s.ResNeStASPP(in_channels=4, **SMALL, **more).to(memory_format=torch.channels_last).train()
    optimiser = torch.optim.SGD(net.parameters(), 0.1)
    for _ in range(2):  # a residual branch starts at nought: what lies before its last batch norm learns from the second step on
        optimiser.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            logits = net(torch.randn(3, 4, 40, 40).to(memory_format=torch.channels_last))
        F.cross_entropy(logits.float(), torch.randint(2, (3, 40, 40))).backward()
        optimiser.step()
    for name, p in net.named_parameters():
        assert p.grad is not None and p.grad.isfinite().all() and p.grad.abs().sum() > 0, name


def test_same_seed_same_network():
    states = []
    for _ in range(2):
        torch.manual_seed(7)
        states.append(s.ResNeStASPP(**SMALL).state_dict())
    assert all(torch.equal(a, b) for a, b in zip(*(x.values() for x in states), strict=True))


def test_one_image_trains_only_with_frozen_batch_norms():
    net = s.ResNeStASPP(**SMALL).train()
    with pytest.raises(RequestError, match="a batch of one image cannot train batch normalisation: give two or more"):
        net(torch.zeros(1, 4, 32, 32))
    for m in net.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.eval()
    net(torch.zeros(1, 4, 32, 32)).sum().backward()
    assert net.eval()(torch.zeros(1, 4, 32, 32)).shape == (1, 2, 32, 32)


def test_rates_that_see_only_padding_are_named_once_while_training():
    net = s.ResNeStASPP("resnest14d-quarter", rates=(2, 4, 6), aspp=32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        net.eval()(torch.zeros(1, 4, 48, 48))
        net.train()(torch.zeros(2, 4, 56, 56))
    with pytest.warns(UserWarning, match=r"rates \(2, 4, 6\) reach beyond the feature map of 6 x 7 cells") as said:
        warnings.simplefilter("default")
        for _ in range(3):
            net(torch.zeros(2, 4, 48, 56))
    assert len(said) == 1


@given(st.integers(16, 4096), st.sampled_from((1, 2, 4)), st.sampled_from((8, 16, 32)))
def test_fitting_rates_fit(tile, zoom, stride):
    a, b, c = s.fitting_rates(tile, zoom, stride)
    cells = tile * zoom // stride
    assert (b, c) == (2 * a, 3 * a) and a >= 1
    assert c <= 9 / 16 * cells or a == 1


def test_shapes_leave_the_network_as_it_was():
    net = s.ResNeStASPP(**SMALL).train()
    net.aspp.eval()
    before, modes = {k: v.clone() for k, v in net.state_dict().items()}, [m.training for m in net.modules()]
    table = s.shapes(net, 40, 56)
    assert table.loc["pyramid"].tolist() == [32, 5, 7, 8] and table.loc["enlarged to the image"].tolist() == [2, 40, 56, 1]
    assert [m.training for m in net.modules()] == modes and not net.fuse._forward_hooks and not net.fuse._forward_pre_hooks
    assert all(v.device.type == "cpu" and torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert s.shapes(net.bfloat16(), 64).equals(s.shapes(net.float(), 64))


# ImageNet weights

@pytest.fixture(scope="module")
def imagenet(tmp_path_factory):
    "A file as the hub has it: a whole classifier for red, green, blue."
    source = shaken(timm.create_model("resnest14d")).eval()
    file = tmp_path_factory.mktemp("hub") / "model.safetensors"
    save_file(source.state_dict(), file)
    return source, file


def test_three_bands_in_any_order_see_what_the_source_sees(imagenet):
    source, file = imagenet
    rgb = torch.randn(1, 3, 64, 64)
    net = s.ResNeStASPP("resnest14d", 3, output_stride=32, rates=(1,), aspp=16, pretrained=file, rgb=(2, 1, 0)).eval()
    with torch.no_grad():
        torch.testing.assert_close(net.encoder(rgb.flip(1))[1], source.forward_features(rgb), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("bands", [1, 2, 4, 13])
def test_a_grey_image_excites_any_number_of_bands_alike(imagenet, bands):
    source, file = imagenet
    grey = torch.randn(1, 1, 32, 32)
    net = s.make_encoder("resnest14d", bands)
    s.load_encoder(net, file)
    with torch.no_grad():
        got, want = net.conv1[0](grey.expand(1, bands, 32, 32)), source.conv1[0](grey.expand(1, 3, 32, 32))
    if bands % 3 == 0 or bands == 1:
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
    assert 0.5 < got.std() / want.std() < 2


def test_hub_out_of_reach_is_one_clear_line(monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(RequestError, match=r"ImageNet weights of resnest101e cannot be fetched from huggingface.co/timm/resnest101e.in1k .*pretrained=False") as e:
        s.imagenet_weights("resnest101e")
    assert "\n" not in str(e.value) and "give the path" in str(e.value)


def test_files_that_are_not_the_weights(imagenet, tmp_path):
    _, file = imagenet
    net = s.make_encoder("resnest14d")
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(file.read_bytes()[:100_000])
    with pytest.raises(DataError, match="cut.safetensors cannot be read as the weights of this encoder"):
        s.load_encoder(net, cut)
    with pytest.raises(DataError, match="nowhere.safetensors cannot be read"):
        s.load_encoder(net, tmp_path / "nowhere.safetensors")
    other = tmp_path / "other.safetensors"
    save_file({"weight": torch.zeros(3)}, other)
    with pytest.raises(DataError, match="other.safetensors cannot be read as the weights of this encoder"):
        s.load_encoder(net, other)
    with pytest.raises(DataError, match="weights of another encoder: .* are missing, the first layer1.1"):
        s.load_encoder(s.make_encoder("resnest26d"), file)


@pytest.mark.parametrize("wrong, line", [
    ({"encoder": "resnet50"}, "encoder 'resnet50'"), ({"output_stride": 4}, "output_stride is 4"), ({"zoom": 3}, "zoom is 3"), ({"n_classes": 0}, "n_classes is 0"),
    ({"in_channels": 0}, "in_channels is 0"), ({"rates": ()}, r"rates \(\)"), ({"rates": (0, 2)}, r"rates \(0, 2\)"),
    ({"encoder": "resnest14d-half", "pretrained": True}, "resnest14d-half has no ImageNet weights: .* take resnest14d"),
])
def test_wrong_requests(wrong, line):
    with pytest.raises(RequestError, match=line):
        s.ResNeStASPP(**{**SMALL, **wrong})


def test_bands_that_do_not_match():
    with pytest.raises(DataError, match="the image has 3 bands where the network takes 4"):
        s.ResNeStASPP(**SMALL)(torch.zeros(2, 3, 32, 32))
