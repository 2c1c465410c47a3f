"""metrics: against an independent reading of mmsegmentation's rules, scikit-learn, and the promise of the intervals."""
import warnings

import numpy as np
import pytest
import sklearn.metrics as sk
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.ndimage import gaussian_filter

from isa_nb import metrics as m
from isa_nb.core import DataError, RequestError, raster, rng, square_geobox


def mmseg(pairs, c, ignore=255):
    """iou_metric.py of mmsegmentation 1.2.2 as described in words: histograms over 0..C-1 per image, summed, then ratios, nanmean."""
    hit, said, true = (np.zeros(c) for _ in range(3))
    for pred, label in pairs:
        keep = label != ignore
        pred, label = pred[keep], label[keep]
        for total, values in ((hit, pred[pred == label]), (said, pred), (true, label)):
            total += [(values == k).sum() for k in range(c)]
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        precision, recall = hit / said, hit / true
        f = 2 * precision * recall / (precision + recall)
        per = {"mIoU": hit / (said + true - hit), "mAcc": recall, "mDice": 2 * hit / (said + true), "mFscore": f, "mPrecision": precision, "mRecall": recall}
        return {"aAcc": hit.sum() / true.sum(), **{k: np.nanmean(v) for k, v in per.items()}}


codes = arrays(np.uint8, 40, elements=st.sampled_from([0, 1, 2, 255]))
stray = arrays(np.uint8, 40, elements=st.sampled_from([0, 1, 2, 7, 254, 255]))


@settings(max_examples=100)
@given(arrays(np.uint8, 40, elements=st.integers(0, 2)), codes)
def test_scores_are_those_of_mmsegmentation(pred, truth):
    got, want = m.scores(m.confusion(pred, truth, 3)), mmseg([(pred, truth)], 3)
    np.testing.assert_allclose([got[k] for k in want], list(want.values()), rtol=1e-12)


@settings(max_examples=100)
@given(stray, stray)
def test_stray_codes_are_treated_as_mmsegmentation_does(pred, truth):
    cm = m.confusion(pred, truth, 3, outside="keep")
    got, want = m.scores(cm, n_classes=3), mmseg([(pred, truth)], 3)
    np.testing.assert_allclose([got[k] for k in want], list(want.values()), rtol=1e-12)


def test_a_predicted_255_is_a_miss_and_a_stray_label_lowers_precision():
    truth, pred = np.array([1, 1, 0, 7], np.uint8), np.array([255, 1, 0, 1], np.uint8)
    s = m.scores(m.confusion(pred, truth, 2, outside="keep"), n_classes=2)
    assert s["per_class"]["Recall"][1] == 0.5 and s["per_class"]["Precision"][1] == 0.5
    with pytest.raises(DataError, match=r"truth holds 7 \(1 pixels\); prediction holds 255 \(1 pixels\)"):
        m.confusion(pred, truth, 2)


def test_matrix_and_kappa_agree_with_scikit_learn():
    gen = rng(0, "sk")
    truth, pred = gen.integers(0, 9, (2, 300, 200), dtype=np.uint8)
    pred = np.where(gen.random(truth.shape) < 0.5, truth, pred)
    cm = m.confusion(pred, truth, 9)
    np.testing.assert_array_equal(cm, sk.confusion_matrix(truth.ravel(), pred.ravel(), labels=range(9)))
    assert cm.dtype == np.int64
    assert m.scores(cm)["kappa"] == pytest.approx(sk.cohen_kappa_score(truth.ravel(), pred.ravel()))
    assert m.scores(cm)["mIoU"] == pytest.approx(sk.jaccard_score(truth.ravel(), pred.ravel(), average="macro"))
    assert m.scores(cm)["aAcc"] == pytest.approx(sk.accuracy_score(truth.ravel(), pred.ravel()))


@pytest.mark.parametrize("dtype", [bool, np.int8, np.uint16, np.int32, np.int64])
def test_any_whole_number_type_counts_alike(dtype):
    gen = rng(0, "types")
    truth, pred = gen.integers(0, 2, (2, 50, 60)).astype(dtype)
    np.testing.assert_array_equal(m.confusion(pred, truth, 2), sk.confusion_matrix(truth.ravel(), pred.ravel()))
    np.testing.assert_array_equal(m.confusion(pred[:, ::2], truth[:, ::2], 2), sk.confusion_matrix(truth[:, ::2].ravel(), pred[:, ::2].ravel()))


def test_means_equal_as_in_table_4_and_part_where_a_class_is_missed():
    cm = np.array([[50, 5, 0], [4, 30, 0], [3, 2, 0]])
    s = m.scores(cm)
    assert s["mAcc"] == s["mRecall"]
    assert s["mFscore"] > s["mDice"]  # the missed class has Dice 0 and no Fscore
    two = m.scores(cm[:2, :2])
    assert two["mFscore"] == pytest.approx(two["mDice"])
    d = s["per_class"]["Dice"]
    np.testing.assert_allclose(s["per_class"]["IoU"], d / (2 - d))


def test_grids_and_empty_arrays():
    g = square_geobox(114.3, 30.6, 320, 16)
    a = raster(np.zeros((20, 20), np.uint8), g, "map")
    with pytest.raises(DataError, match="prediction and truth are on different grids"):
        m.confusion(a, raster(np.zeros((20, 20), np.uint8), g.pad(1)[:20, :20], "other"), 2)
    assert m.confusion(np.empty((0,), np.uint8), np.empty((0,), np.uint8), 2).sum() == 0
    assert all(np.isnan(v) for k, v in m.scores(np.zeros((2, 2))).items() if k != "per_class")
    with pytest.raises(RequestError, match="n_classes is 0"):
        m.confusion(a, a, 0)


@settings(max_examples=30)
@given(st.integers(1, 50), st.integers(1, 50), st.integers(1, 60), st.integers(0, 99))
def test_blocks_add_up_to_the_whole(h, w, block, seed):
    gen = rng(seed, "blocks")
    truth, pred = gen.choice([0, 1, 2, 255], (h, w)).astype(np.uint8), gen.integers(0, 2, (h, w), dtype=np.uint8)
    blocks = m.block_confusions(pred, truth, block)
    np.testing.assert_array_equal(blocks.sum(0), m.confusion(pred, truth, 2, ignore=(2, 255)))
    assert len(blocks) <= -(-h // block) * -(-w // block) and (len(blocks) == 0 or blocks.any((1, 2)).all())


def test_block_intervals_hold_what_they_promise_and_pixel_intervals_do_not():
    """Maps whose errors come in patches: the F1 of one map of a large area must lie in the interval about 95 times of 100."""
    def one(seed):
        gen = rng(seed, "coverage")
        truth, wrong = (gaussian_filter(gen.normal(size=(256, 256)), 4, mode="wrap") * 14 > t for t in (1.0, 1.6))
        pred = (truth ^ wrong).astype(np.uint8)
        return m.block_confusions(pred, truth.astype(np.uint8), 32), m.block_confusions(pred, truth.astype(np.uint8), 1)
    runs = [one(s) for s in range(60)]
    exact = m.isa_scores(np.sum([b.sum(0) for b, _ in runs], 0))["isa_f1"]
    covered = []
    for blocks, pixels in runs:
        a, p = m.block_bootstrap(blocks, "isa_f1", n=300).iloc[0], pixels.sum(0)
        f1, n = m.isa_scores(p)["isa_f1"], p.sum() - p[0, 0]
        covered.append((a.lo <= exact <= a.hi, abs(f1 - exact) <= 1.96 * np.sqrt(f1 * (1 - f1) / n)))
    blocks, pixels = np.mean(covered, 0)
    assert blocks >= 0.85 and pixels < blocks - 0.2


def test_bootstrap_is_seeded_and_says_when_it_cannot_say():
    cms = rng(0, "cms").integers(0, 50, (30, 2, 2))
    assert m.block_bootstrap(cms, seed=1).equals(m.block_bootstrap(cms, seed=1))
    assert not m.block_bootstrap(cms, seed=1).equals(m.block_bootstrap(cms, seed=2))
    rare = np.zeros((30, 2, 2), int)
    rare[:, 0, 0], rare[0, 1] = 100, (1, 1)  # impervious surface in one block of thirty: a third of the draws have none
    row = m.block_bootstrap(rare, "isa_f1").iloc[0]
    assert row.estimate > 0 and np.isnan(row.lo) and 0.3 < row.undefined < 0.42
    with pytest.raises(DataError, match="different blocks"):
        m.bootstrap_difference(cms, cms[1:])


def test_half_the_pixels_ignored_equals_the_masked_computation():
    gen = rng(0, "half")
    truth, pred = gen.integers(0, 9, (2, 200, 300)).astype(np.uint8)
    pred = np.where(gen.random(truth.shape) < 0.5, truth, pred)
    keep = gen.random(truth.shape) < 0.5
    a, b = m.scores(m.confusion(pred, np.where(keep, truth, 255), 9)), m.scores(m.confusion(pred[keep], truth[keep], 9))
    assert all(abs(a[k] - b[k]) < 1e-6 for k in a if k != "per_class")


@settings(max_examples=60)
@given(st.integers(1, 10 ** 6), st.integers(0, 10 ** 6), st.integers(0, 10 ** 6), st.sampled_from(["absent", "never present", "never predicted"]), st.sampled_from(m.POLICIES))
def test_no_score_of_a_table_is_a_bare_one_where_a_class_is_missing(right, wrong, more, state, policy):
    cm = {"absent": [[right, 0], [0, 0]], "never present": [[right, wrong], [0, 0]], "never predicted": [[right, 0], [wrong, 0]]}[state]
    blocks = np.array([cm, [[more, 0], [0, 0]]])
    row = m.table4_row(blocks, "W1", "truth", policy, n=20)
    assert not any(row[k] == 1 for k in row if k not in ("zone", "reference") and not k.startswith("aAcc"))
    if state == "absent" or wrong == 0:
        assert all(np.isnan(row[k]) for k in ("mIoU", "mDice", "mFscore", "kappa", "isa_iou", "isa_f1"))


def test_every_score_has_an_interval():
    cms = rng(0, "every").integers(1, 50, (40, 2, 2))
    table = m.block_bootstrap(cms, m.SCORES, n=200)
    assert ((table.lo < table.estimate) & (table.estimate < table.hi)).all() and table.score.tolist() == list(m.SCORES)
    gap = m.bootstrap_difference(cms, cms[::-1], m.SCORES, n=50)
    assert (gap.estimate.abs() < 1e-12).all() and (gap.hi > gap.lo).all()
    row = m.table4_row(cms, "W2", "truth", n=50)
    assert {f"{k}{e}" for k in (*m.TABLE4_COLUMNS, "kappa", "isa_iou", "isa_f1") for e in ("", "_lo", "_hi")} == set(row) - {"zone", "reference"}


def test_a_legend_whose_classes_do_not_all_occur():
    gen = rng(0, "legend")
    truth, pred = gen.integers(0, 4, (2, 60, 60)).astype(np.uint8)
    cms = m.block_confusions(pred, truth, 10, n_classes=9, ignore=255)
    assert np.isnan(m.block_bootstrap(cms, "mIoU", n=10).estimate[0])
    skipped = m.block_bootstrap(cms, "mIoU", n=10, absent="skip").estimate[0]
    assert skipped == m.scores(cms.sum(0))["mIoU"] == pytest.approx(m.scores(cms.sum(0)[:4, :4])["mIoU"])


def test_kept_stray_codes_count_as_errors_in_every_interval():
    gen = rng(0, "kept")
    truth, pred = gen.integers(0, 2, (2, 40, 40)).astype(np.uint8)
    pred[:, :10] = 255
    cms = m.block_confusions(pred, truth, 10, outside="keep")
    got = m.block_bootstrap(cms, ("mIoU", "isa_f1", "isa_share"), n=10, n_classes=2).set_index("score").estimate
    want = mmseg([(pred, truth)], 2)
    assert got["mIoU"] == pytest.approx(want["mIoU"]) and got["isa_share"] == pytest.approx(truth.mean())
    hit, said, true = ((pred == 1) & (truth == 1)).sum(), (pred == 1).sum(), (truth == 1).sum()
    assert got["isa_f1"] == pytest.approx(2 * hit / (said + true))
    assert m.scores(cms.sum(0), "paper_eq", n_classes=2)["aAcc"] == pytest.approx((pred == truth).mean())


def test_a_matrix_that_is_not_square():
    with pytest.raises(DataError, match=r"a confusion matrix of shape \(2, 3\)"):
        m.scores(np.zeros((2, 3)))
