"""boundary: against brute force, the authors' erosion, and what must not change the counts."""
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import binary_erosion

from isa_nb import boundary as b
from isa_nb import metrics as m
from isa_nb.core import DataError, RequestError, raster, rng, square_geobox


def scene(h, w, seed, codes=(0, 1), p=None):
    gen = rng(seed, "scene")
    truth = np.kron(gen.choice(codes, (-(-h // 3), -(-w // 3)), p=p), np.ones((3, 3), int))[:h, :w].astype(np.uint8)
    pred = np.where(gen.random((h, w)) < 0.85, truth == 1, gen.random((h, w)) < 0.5).astype(np.uint8)
    return pred, truth


def brute(pred, truth, distances, resolution, ignore=(2, 255)):
    """The definitions of the notebook, pixel by pixel with loops: nothing shared with the library."""
    h, w = truth.shape
    ry, rx = resolution
    pixels = [(y, x) for y in range(h) for x in range(w) if truth[y, x] not in ignore]
    known = set(pixels)
    far = lambda a, c: np.hypot((a[0] - c[0]) * ry, (a[1] - c[1]) * rx)  # noqa: E731
    near = lambda a, to, d: any(far(a, c) <= d * (1 + 1e-9) for c in to)  # noqa: E731
    out = []
    for d in distances:
        outlines, bands = [], []
        for code in (pred, truth):
            inside, rest = {a for a in pixels if code[a] == 1}, {a for a in pixels if code[a] != 1}
            outlines.append({(y, x) for y, x in inside if {(y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)} & rest & known})
            bands.append({a for a in inside if near(a, rest, d)})
        (p, t), (gp, gt) = outlines, bands
        out.append([len(p), sum(near(a, t, d) for a in p), len(t), sum(near(a, p, d) for a in t), len(gp & gt), len(gp | gt)])
    return np.array(out)


@settings(max_examples=25)
@given(st.integers(1, 14), st.integers(1, 14), st.integers(0, 999), st.sampled_from([(1, 1), (2, 3), (0.5, 0.5)]))
def test_counts_are_those_of_brute_force(h, w, seed, resolution):
    pred, truth = scene(h, w, seed, (0, 1, 2, 255), (0.45, 0.35, 0.1, 0.1))
    got = b.boundary_counts(pred, truth, (1, 2, 5), resolution)
    want = brute(pred, truth, (1, 2, 5), resolution)
    np.testing.assert_array_equal(got.sum(0), want)


def test_boundary_iou_is_that_of_the_authors_where_a_square_and_a_circle_agree():
    """bowenc0221/boundary-iou-api, mask_to_boundary: pad by 0, erode by 3 x 3 `d` times, subtract. One step of it reaches the diagonal neighbour, 1.4142 pixels away."""
    pred, truth = (np.pad(a, 2) for a in scene(60, 50, 3))
    bands = [a.astype(bool) & ~binary_erosion(a.astype(bool), np.ones((3, 3))) for a in (pred, truth)]
    want = (bands[0] & bands[1]).sum() / (bands[0] | bands[1]).sum()
    assert b.boundary_values(b.boundary_counts(pred, truth, 2 ** 0.5, 1)[0])["iou"][0] == pytest.approx(want, abs=1e-12)


@settings(max_examples=15)
@given(st.integers(5, 40), st.integers(5, 40), st.integers(6, 30), st.integers(0, 99))
def test_blocks_strips_and_windows_add_up_to_the_whole(h, w, block, seed):
    pred, truth = scene(h, w, seed, (0, 1, 2, 255), (0.5, 0.4, 0.05, 0.05))
    whole = b.boundary_counts(pred, truth, (1, 2, 5), 1)
    blocks = b.boundary_counts(pred, truth, (1, 2, 5), 1, block)
    np.testing.assert_array_equal(blocks.sum(0), whole.sum(0))
    assert len(blocks) == len(m.block_confusions(pred, truth, block))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(b, "STRIP", 7 * w)
        np.testing.assert_array_equal(b.boundary_counts(pred, truth, (1, 2, 5), 1, block), blocks)
    reach, sums = b.halo(5, 1), 0
    for y in range(0, h, block):
        for x in range(0, w, block):
            rows, columns = (slice(max(0, v - reach), v + block + reach) for v in (y, x))
            core = tuple(slice(v - s.start, min(v + block, k) - s.start) for v, s, k in ((y, rows, h), (x, columns, w)))
            sums = sums + b.boundary_counts(pred[rows, columns], truth[rows, columns], (1, 2, 5), 1, core=core).sum(0)
    np.testing.assert_array_equal(sums, whole.sum(0))


@settings(max_examples=10)
@given(st.integers(0, 99))
def test_ignored_halves_turned_maps_and_finer_units_change_nothing(seed):
    pred, truth = scene(40, 60, seed)
    half = np.where(np.arange(60) < 30, truth, 255).astype(np.uint8)
    left = b.boundary_counts(pred[:, :30], truth[:, :30], (1, 2, 5), 1)
    np.testing.assert_array_equal(b.boundary_counts(pred, half, (1, 2, 5), 1), left)
    np.testing.assert_array_equal(b.boundary_counts(np.where(half == 255, 1 - pred, pred), half, (1, 2, 5), 1), left)  # whatever the map says there
    for turn in (lambda a: a.T, lambda a: a[::-1], lambda a: np.rot90(a)):
        np.testing.assert_array_equal(b.boundary_counts(turn(pred), turn(truth), (1, 2, 5), 1), b.boundary_counts(pred, truth, (1, 2, 5), 1))
    np.testing.assert_array_equal(b.boundary_counts(pred, truth, (16, 32, 80), 16), b.boundary_counts(pred, truth, (1, 2, 5), 1))
    np.testing.assert_array_equal(b.boundary_counts(pred, truth, (0.3,), 0.3), b.boundary_counts(pred, truth, (1,), 1))  # 0.3 is no binary fraction
    swapped = b.boundary_values(b.boundary_counts(truth, pred, (1, 2, 5), 1).sum(0))
    values = b.boundary_values(b.boundary_counts(pred, truth, (1, 2, 5), 1).sum(0))
    np.testing.assert_allclose([swapped[k] for k in ("recall", "precision", "f1", "iou")], list(values.values()))


def test_scores_grow_with_the_tolerance_and_a_shift_is_found_at_its_length():
    truth = np.kron(rng(1, "shift").integers(0, 2, (12, 12)), np.ones((20, 20), int)).astype(np.uint8)
    for dy, dx in ((0, 3), (2, 0), (3, 4)):
        moved = np.roll(truth, (dy, dx), (0, 1))
        inner = truth.copy()
        inner[:6], inner[:, :6] = 255, 255  # what rolled in from the other side is not judged
        s = b.boundary_scores(moved, inner, (1, 2, 3, 4, 5), 1)
        assert (np.diff(s.f1) >= 0).all() and (np.diff(s.iou) >= 0).all()
        assert s.set_index("distance_m").precision[5] > 0.99 and s.precision[0] < 0.8


def test_empty_and_full_maps_are_undefined_or_zero_and_never_one():
    _, truth = scene(30, 30, 0)
    none, full = np.zeros_like(truth), np.ones_like(truth)
    for a, c in ((none, none), (full, full), (none, full), (full, none)):
        assert b.boundary_scores(a, c, 1, 1).drop(columns="distance_m").isna().all(axis=None)  # no outline anywhere
    for a, c, gone in ((none, truth, "precision"), (truth, none, "recall")):
        row = b.boundary_scores(a, c, 1, 1).iloc[0]
        assert np.isnan(row[gone]) and row.f1 == 0 and row.iou == 0
    rare = np.zeros((40, 400), np.uint8)
    rare[10:20, 10:20] = 1
    row = b.boundary_scores(rare, rare, 1, 1, block=40).iloc[0]
    assert row.f1 == 1 and np.isnan(row.f1_lo)  # the only object lies in one of ten blocks: many draws are without it


def test_intervals_and_pairs():
    pred, truth = scene(160, 160, 5)
    row = b.boundary_scores(pred, truth, 1, 1, block=20, n=300).iloc[0]
    for k in ("precision", "recall", "f1", "iou"):
        assert row[f"{k}_lo"] < row[k] < row[f"{k}_hi"]
    half = np.where(rng(0, "half").random(truth.shape) < 0.5, pred, truth)
    worse, better = (b.boundary_counts(a, truth, 1, 1, 20) for a in (pred, half))
    gap = b.boundary_bootstrap(better, 1, worse, n=300).set_index("score")
    assert gap.lo["iou"] > 0 and gap.lo["f1"] > 0
    assert gap.estimate["iou"] == pytest.approx(b.boundary_values(better.sum(0))["iou"][0] - row.iou)


def test_classes_codes_and_grids():
    gen = rng(0, "cover")
    pred, truth = gen.integers(1, 12, (2, 40, 40)).astype(np.uint8)
    merged = [np.isin(a, (5, 11)).astype(np.uint8) for a in (pred, truth)]
    np.testing.assert_array_equal(b.boundary_counts(pred, truth, 1, 1, isa=(5, 11), n_classes=12, ignore=255), b.boundary_counts(*merged, 1, 1))
    g = square_geobox(114.3, 30.6, 40 * 16, 16)
    on_grid = [raster(a, g, n) for a, n in zip(merged, ("map", "truth"), strict=True)]
    assert b.boundary_scores(*on_grid).distance_m.tolist() == [16]
    np.testing.assert_array_equal(b.boundary_counts(*on_grid), b.boundary_counts(*merged, 16, 16))
    with pytest.raises(DataError, match="different grids"):
        b.boundary_counts(on_grid[0], raster(merged[1], g.pad(1)[:40, :40], "truth"))
    with pytest.raises(DataError, match=r"truth holds 7 \(1 pixels\)"):
        b.boundary_counts(merged[0], np.where(np.arange(1600).reshape(40, 40) == 3, 7, merged[1]), 1, 1)
    with pytest.raises(DataError, match="differ in shape"):
        b.boundary_counts(merged[0][1:], merged[1], 1, 1)
    with pytest.raises(RequestError, match="resolution 0"):
        b.boundary_counts(*merged, 1, 0)
    with pytest.raises(RequestError, match="block 0"):
        b.boundary_counts(*merged, 1, 1, block=0)
    with pytest.raises(DataError, match="one raster of shape"):
        b.boundary_counts(np.stack(merged), np.stack(merged), 1, 1)
