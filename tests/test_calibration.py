"""calibration: against scikit-learn and a direct reading of Guo et al., synthetic models whose calibration is known, and bad input."""
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit, logit
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss, log_loss

from isa_nb import calibration as c
from isa_nb import metrics as m
from isa_nb.core import DataError, RequestError, raster, rng, square_geobox


def model(n=20_000, seed=0, share=-1.0, too_sure=1.0, dtype=np.float64):
    gen = rng(seed, "model")
    z = gen.normal(share, 2, n)
    return expit(too_sure * z).astype(dtype), (gen.random(n) < expit(z)).astype(np.uint8)


@pytest.mark.parametrize("bins", [4, 10, 20])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_curve_and_brier_are_those_of_scikit_learn(bins, dtype):
    p, y = model(dtype=dtype)
    p[:bins + 1] = np.linspace(0, 1, bins + 1)  # on the edges too
    observed, mean = calibration_curve(y, p.astype(float), n_bins=bins)
    table = c.reliability_table(c.reliability_counts(p, y, bins))
    full = table.pixels > 0
    np.testing.assert_allclose(table.observed[full], observed)
    np.testing.assert_allclose(table.probability[full], mean)
    assert c.calibration_values(c.reliability_counts(p, y, bins)[0])["brier"] == pytest.approx(brier_score_loss(y, p.astype(float)), abs=1e-9)


def guo(confidence, right, bins):
    """Guo et al. (2017), section 2: bins ((m - 1) / M, m / M] of the confidence."""
    out = 0.0
    for k in range(bins):
        here = (confidence > k / bins) & (confidence <= (k + 1) / bins)
        if here.any():
            out += here.mean() * abs(right[here].mean() - confidence[here].mean())
    return out


@settings(max_examples=30)
@given(st.integers(0, 999), st.sampled_from([2, 10, 20]), st.floats(0.3, 3))
def test_confidence_error_is_that_of_guo_et_al(seed, bins, too_sure):
    p, y = model(400, seed, too_sure=too_sure)
    values = c.calibration_values(c.reliability_counts(p, y, bins)[0])
    assert values["ece_confidence"] == pytest.approx(guo(np.maximum(p, 1 - p), (p > 0.5) == y, bins))
    assert values["ece"] == pytest.approx(guo(p, y, bins))
    assert values["ece_confidence"] <= values["ece"] + 1e-12


def test_murphys_parts_add_up_where_bins_hold_one_probability_and_nearly_so_elsewhere():
    p, y = model(50_000, 1, too_sure=1.7)
    middle = np.clip(np.ceil(p * 20) - 0.5, 0.5, 19.5) / 20
    for q, tolerance in ((middle, 1e-12), (p, 1e-3)):
        v = c.calibration_values(c.reliability_counts(q, y)[0])
        assert v["brier"] == pytest.approx(v["reliability"] - v["resolution"] + v["uncertainty"], abs=tolerance)
        assert v["brier_skill"] == pytest.approx(1 - v["brier"] / (y.mean() * (1 - y.mean())))


def test_a_calibrated_model_has_an_error_that_vanishes_and_one_that_is_off_does_not():
    errors = [c.calibration_values(c.reliability_counts(*model(n, 2))[0])["ece"] for n in (1_000, 100_000, 1_000_000)]
    assert errors[0] > errors[1] > errors[2] and errors[2] < 0.002
    for n in (1_000, 100_000):
        assert c.calibration_values(c.reliability_counts(*model(n, 2, too_sure=2))[0])["ece"] > 0.05
    p, y = model(1_000_000, 2)
    assert c.calibration_values(c.reliability_counts(p ** 2, y)[0])["ece"] == pytest.approx((p - p ** 2).mean(), abs=0.002)


@settings(max_examples=20)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 45), st.integers(0, 99))
def test_blocks_add_up_and_ignored_pixels_do_not_count(h, w, block, seed):
    gen = rng(seed, "blocks")
    p, truth = gen.random((h, w)), gen.choice([0, 1, 2, 255], (h, w)).astype(np.uint8)
    p[truth > 1] = np.nan  # whatever stands there
    blocks, keep = c.reliability_counts(p, truth, block=block), truth < 2
    if not keep.any():
        assert not len(blocks)
        return
    np.testing.assert_allclose(blocks.sum(0), c.reliability_counts(p[keep], truth[keep])[0], atol=1e-9)
    assert len(blocks) == len(m.block_confusions(np.zeros_like(truth), truth, block))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(c, "STRIP", 3 * w)
        np.testing.assert_allclose(c.reliability_counts(p, truth, block=block), blocks, atol=1e-9)


def test_half_the_pixels_ignored_equals_the_masked_computation():
    p, y = model(40_000, 3, dtype=np.float32)
    half = np.where(np.arange(p.size) % 2, y, 255).astype(np.uint8)
    a, b = (c.calibration_values(c.reliability_counts(*args).sum(0)) for args in ((p, half), (p[1::2], y[1::2])))
    np.testing.assert_allclose(list(a.values()), list(b.values()), rtol=0, atol=1e-6)
    assert c.temperature(p, half) == pytest.approx(c.temperature(p[1::2], y[1::2]), abs=1e-6)
    pred = (p > 0.5).astype(np.uint8)
    a, b = (m.scores(m.confusion(*args, 2)) for args in ((pred, half), (pred[1::2], y[1::2])))
    assert all(abs(a[k] - b[k]) < 1e-6 for k in a if k != "per_class")


@pytest.mark.parametrize("true", [0.5, 1.0, 2.0, 4.0])
def test_temperature_is_found_and_is_the_best(true):
    p, y = model(200_000, 4, too_sure=true)
    t = c.temperature(p, y)
    assert t == pytest.approx(true, rel=0.03)
    loss = lambda s: log_loss(y, c.tempered(p, s))  # noqa: E731
    assert loss(t) <= min(loss(t * 1.02), loss(t / 1.02))
    assert c.temperature(logit(p), y, logits=True) == pytest.approx(t, rel=1e-3)


def test_temperature_where_the_pixels_cannot_tell():
    p, y = model(1000)
    assert np.isnan(c.temperature(p, np.zeros_like(y))) and np.isnan(c.temperature(p, np.full_like(y, 255)))
    assert np.isnan(c.temperature(np.where(y == 1, 0.8, 0.3), y)) and np.isnan(c.temperature(np.where(y == 1, 0.3, 0.8), y))
    sure = np.where(y == 1, 1.0, 0.0)
    sure[:10] = 1 - sure[:10]  # absolutely sure, and sometimes wrong: no infinite loss
    assert 1 < c.temperature(sure, y) < 50
    for t in (0, -1, np.inf, np.nan):
        with pytest.raises(RequestError, match="give a positive number"):
            c.tempered(p, t)


def test_intervals_pairs_and_empty_bins():
    gen = rng(5, "pairs")
    z = np.kron(gen.normal(-2, 2, (16, 16)), np.ones((8, 8)))
    truth = (gen.random(z.shape) < expit(z)).astype(np.uint8)
    good, bad = (c.reliability_counts(expit(k * z), truth, block=16) for k in (1, 3))
    gap = c.calibration_scores(bad, good, n=300).set_index("score")
    assert gap.lo["ece"] > 0 and gap.lo["brier"] > 0 and gap.hi["brier_skill"] < 0
    alone = c.calibration_scores(good, n=300)
    assert (alone.lo <= alone.hi).all() and (alone.lo[alone.score.isin(c.DISTANCES)] >= 0).all()
    one = c.calibration_scores(good[:1]).set_index("score")
    assert one[["lo", "hi", "se"]].isna().all(axis=None) and one.estimate.notna().all()
    desert = c.calibration_scores(c.reliability_counts(np.full((32, 32), 0.01), np.zeros((32, 32), int), block=8)).set_index("score")
    assert np.isnan(desert.estimate["brier_skill"]) and desert.estimate["ece"] == pytest.approx(0.01)
    table = c.reliability_table(c.reliability_counts(np.full((32, 32), 0.01), np.zeros((32, 32), int), block=8))
    assert table.observed.notna().sum() == 1 and table.pixels.sum() == 1024
    figure = c.plot_reliability({"good": good, "desert": c.reliability_counts(np.full((32, 32), 0.01), np.zeros((32, 32), int), block=8)}, n=50)
    assert len(figure.axes) == 2


def test_bad_input_is_one_clear_line():
    g = square_geobox(114.3, 30.6, 20 * 16, 16)
    p, y = rng(0, "bad").random((20, 20)), np.zeros((20, 20), np.uint8)
    with pytest.raises(DataError, match="probability and truth are on different grids"):
        c.reliability_counts(raster(p, g, "p"), raster(y, g.pad(1)[:20, :20], "t"))
    with pytest.raises(DataError, match="1 pixels have nan for a probability"):
        c.reliability_counts(np.where(np.arange(400).reshape(20, 20) == 7, np.nan, p), y)
    with pytest.raises(DataError, match="1 pixels have nan for a log-odds"):
        c.temperature(np.where(np.arange(400).reshape(20, 20) == 7, np.nan, p), y, logits=True)
    with pytest.raises(DataError, match="one raster of shape"):
        c.reliability_counts(p[None], y[None], block=5)
    with pytest.raises(RequestError, match="block 0"):
        c.reliability_counts(p, y, block=0)
    with pytest.raises(DataError, match="no block to draw from"):
        c.calibration_scores(c.reliability_counts(p, np.full_like(y, 255)))
