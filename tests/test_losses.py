"""losses: against torch and smp, ignored pixels, weights, extreme scores."""
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from segmentation_models_pytorch.losses import DiceLoss

from isa_nb.core import DataError, RequestError
from isa_nb.losses import SegmentationLoss, class_counts, class_weights, segmentation_loss


def scene(n=3, seed=0, size=16, b=2):
    gen = torch.Generator().manual_seed(seed)
    return (torch.randn(b, n, size, size, generator=gen) * 2, torch.randint(0, n, (b, size, size), generator=gen), torch.rand(b, size, size, generator=gen), torch.rand(b, size, size, generator=gen) < 0.5)


@pytest.mark.parametrize("n", [2, 3, 11])
def test_cross_entropy_is_torchs(n):
    logits, label, _, known = scene(n)
    weights = torch.linspace(0.5, 3, n)
    target = torch.where(known, label, 255)
    ours = segmentation_loss(logits, target.to(torch.uint8), dice=0, class_weights=weights, ignore=(255,))
    torch.testing.assert_close(ours, F.cross_entropy(logits, target, weights, ignore_index=255), atol=1e-6, rtol=0)


@pytest.mark.parametrize("n", [2, 5])
def test_dice_is_that_of_smp_where_every_class_is_there(n):
    logits, label, _, known = scene(n)
    target = torch.where(known, label, 255)
    assert set(label[known].tolist()) == set(range(n))
    smp = DiceLoss("multiclass", ignore_index=255)(logits, target)
    torch.testing.assert_close(segmentation_loss(logits, target, ce=0, ignore=(255,)), smp, atol=1e-5, rtol=0)


@pytest.mark.parametrize("codes", [(255,), (2, 255), (7, 2, 255)])
@pytest.mark.parametrize("parts", [{"dice": 0}, {"ce": 0}, {}])
def test_half_ignored_is_the_masked_computation(codes, parts):
    logits, label, sure, known = scene(2)
    target = torch.where(known, label, torch.tensor(codes)[torch.arange(label.numel()) % len(codes)].view(label.shape)).to(torch.uint8)
    whole = segmentation_loss(logits, target, sure, ignore=codes, **parts)
    alone = segmentation_loss(logits.movedim(1, 0)[:, known][None, :, None], label[known][None, None], sure[known][None, None], ignore=(), **parts)
    assert abs(whole - alone) < 1e-6


@settings(max_examples=30)
@given(st.integers(0, 10_000), st.sampled_from([2, 4]), st.sampled_from([0.0, 0.1, 0.9, 1.0]))
def test_ignored_pixels_change_nothing_and_get_no_gradient(seed, n, share):
    logits, label, sure, _ = scene(n, seed, 8)
    known = torch.rand(label.shape, generator=torch.Generator().manual_seed(seed)) < share
    target = torch.where(known, label, 255)
    found = []
    for fill in (0.0, 1e30, torch.nan, torch.inf):
        x = torch.where(known[:, None], logits, fill).requires_grad_()
        value = segmentation_loss(x, target, torch.where(known, sure, torch.nan), ignore=(255,))
        value.backward()
        assert torch.isfinite(x.grad).all() and (x.grad[(~known)[:, None].expand_as(x)] == 0).all()
        found.append(value.item())
    assert len(set(found)) == 1 and np.isfinite(found[0])
    if not known.any():
        assert found[0] == 0


def test_gradient_is_the_numerical_one():
    logits, label, sure, known = scene(3, size=4, b=1)
    target = torch.where(known, label, 255)
    target[0, 0, 0] = 1
    x = logits.double().requires_grad_()
    double = lambda z: segmentation_loss(z, target, sure, ignore=(255,), class_weights=torch.tensor([1.0, 2, 0.5]))  # noqa: E731
    assert torch.autograd.gradcheck(double, (x,), eps=1e-2, atol=2e-3)  # the loss works in float32


def test_extreme_scores_stay_finite():
    logits = torch.tensor([[[[1e4, -1e4]], [[-1e4, 1e4]]]], requires_grad=True)
    for label in ([[[0, 1]]], [[[1, 0]]]):
        value = segmentation_loss(logits, torch.tensor(label))
        value.backward()
        assert torch.isfinite(value) and torch.isfinite(logits.grad).all()


def test_one_score_is_two_classes():
    logits, label, sure, _ = scene(2)
    one = logits[:, 1:] - logits[:, :1]
    torch.testing.assert_close(segmentation_loss(one, label, sure), segmentation_loss(logits, label, sure))


def test_land_cover_ignores_zero():
    gen = torch.Generator().manual_seed(0)
    logits, label = torch.randn(2, 12, 8, 8, generator=gen), torch.randint(0, 12, (2, 8, 8), generator=gen)
    torch.testing.assert_close(segmentation_loss(logits, label, dice=0, ignore=(0,)), F.cross_entropy(logits, label, ignore_index=0))


@pytest.mark.parametrize("code", [-100, 256, 511])
def test_codes_that_no_byte_can_hold_ignore_nothing(code):
    logits, label, _, _ = scene(2)
    assert segmentation_loss(logits, label.to(torch.uint8), ignore=(code,)) == segmentation_loss(logits, label, ignore=())


def test_no_confidence_anywhere_is_no_loss():
    logits, label, _, _ = scene(2)
    logits.requires_grad_()
    value = SegmentationLoss()(logits, label, torch.zeros(label.shape))
    value.backward()
    assert value == 0 and (logits.grad == 0).all()


def test_half_precision_scores_are_taken():
    logits, label, sure, _ = scene(2)
    torch.testing.assert_close(SegmentationLoss()(logits.bfloat16(), label, sure), SegmentationLoss()(logits, label, sure), atol=2e-2, rtol=0)


def test_bad_requests_say_what_to_do():
    logits, label, _, _ = scene(2)
    with pytest.raises(DataError, match=r"label codes \[7\] are neither"):
        segmentation_loss(logits, torch.where(label == 1, 7, label))
    with pytest.raises(DataError, match="do not fit"):
        segmentation_loss(logits, label[:, :8])
    with pytest.raises(RequestError, match="3 class weights for 2 classes"):
        SegmentationLoss(class_weights=[1, 1, 1])(logits, label)


def test_weights_from_ledger_and_from_labels_agree(tmp_path):
    from isa_nb.core import raster, rng, square_geobox
    from isa_nb.samples import StoredChips, cut
    gen, g = rng(0, "weights"), square_geobox(114.3, 30.6, 160 * 16, 16)
    label = gen.choice([0, 0, 0, 1, 2, 255], size=(160, 160)).astype(np.uint8)
    ledger = cut(raster(gen.integers(1, 9, (2, 160, 160)).astype(np.uint16), g, "image"), raster(label, g, "label", nodata=255), tmp_path / "store", size=16, overlap=0)
    kept = ledger[ledger["split"] != "buffer"]
    assert np.allclose(class_counts(kept), class_counts(StoredChips(ledger)))
    inverse = class_weights(class_counts(ledger), "inverse")
    assert inverse[1] == pytest.approx(class_counts(ledger)[:, 0].sum() / class_counts(ledger)[:, 1].sum() * inverse[0].item(), rel=1e-5)
