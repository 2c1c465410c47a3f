"""accuracy: the published formulas written out again, coverage, and bad input."""
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isa_nb import accuracy as a
from isa_nb.core import NODATA, RULE_AGREEMENT, RULE_POSTERIOR, DataError, RequestError, raster, rng, square_geobox


def made_up(n=400, seed=0, strata="ABC", classes=(0, 1)):
    gen = rng(seed, "points")
    t = pd.DataFrame({"stratum": gen.choice(list(strata), n), "reference": gen.choice(classes, n, p=(0.7, 0.3))})
    t["map"] = np.where(gen.random(n) < 0.85, t.reference, 1 - t.reference)
    return t, {s: float(20_000 * (i + 1)) for i, s in enumerate(strata)}


def equation_28(t, pixels, y, x):
    """Stehman (2014), equations 27 and 28, term by term."""
    groups = [(pixels[s], y[t.stratum == s].astype(float), x[t.stratum == s].astype(float)) for s in pixels]
    big_x = sum(n * gx.mean() for n, _, gx in groups)
    r = sum(n * gy.mean() for n, gy, _ in groups) / big_x
    v = sum(n ** 2 * (1 - len(gy) / n) * (gy.var(ddof=1) + r ** 2 * gx.var(ddof=1) - 2 * r * np.cov(gy, gx)[0, 1]) / len(gy) for n, gy, gx in groups) / big_x ** 2
    return r, np.sqrt(v)


@pytest.mark.parametrize("cls", [0, 1])
def test_users_and_producers_follow_equation_28(cls):
    t, pixels = made_up()
    table = a.estimate(t, pixels)
    hit = ((t["map"] == cls) & (t.reference == cls)).to_numpy()
    for measure, x in (("users", t["map"] == cls), ("producers", t.reference == cls)):
        want = equation_28(t, pixels, hit, x.to_numpy())
        assert (a.pick(table, measure, cls), a.pick(table, measure, cls, "se")) == pytest.approx(want)


@settings(max_examples=40)
@given(st.lists(st.integers(2, 60), min_size=9, max_size=9), st.lists(st.integers(1_000, 10 ** 7), min_size=3, max_size=3), st.booleans())
def test_the_two_ways_agree_where_strata_are_the_classes(counts, pixels, fpc):
    n = np.array(counts).reshape(3, 3)
    table = a.olofsson(n, pixels, fpc=fpc)
    points = pd.DataFrame([(i, i, j) for i in range(3) for j in range(3) for _ in range(n[i, j])], columns=["stratum", "map", "reference"])
    same = a.estimate(points, dict(enumerate(pixels)), classes=range(3), fpc=fpc)
    for row in table.itertuples():
        assert row.estimate == pytest.approx(a.pick(same, row.measure, row._2), rel=1e-9)
        assert row.se == pytest.approx(a.pick(same, row.measure, row._2, "se"), rel=1e-6, abs=1e-12)


def test_intervals_of_ratios_hold_what_they_promise():
    gen = rng(0, "coverage")
    truth = gen.random(60_000) < 0.15
    pred = np.where(gen.random(60_000) < 0.9, truth, ~truth)
    stratum = np.where(gen.random(60_000) < 0.8, pred, ~pred).astype(int)  # strata of another map
    pixels = {s: float((stratum == s).sum()) for s in (0, 1)}
    exact = {"f1": 2 * (truth & pred).sum() / (truth.sum() + pred.sum()), "iou": (truth & pred).sum() / (truth | pred).sum(), "producers": (truth & pred).sum() / truth.sum()}
    covered = dict.fromkeys(exact, 0)
    for seed in range(100):
        pick = np.concatenate([rng(seed, "pick", s).choice(np.flatnonzero(stratum == s), 200, replace=False) for s in (0, 1)])
        table = a.estimate(pd.DataFrame({"stratum": stratum[pick], "map": pred[pick].astype(int), "reference": truth[pick].astype(int)}), pixels)
        for k, v in exact.items():
            covered[k] += a.pick(table, k, 1, "lo") <= v <= a.pick(table, k, 1, "hi")
    assert min(covered.values()) >= 0.88 * 100


def test_a_census_is_exact_and_a_lone_point_says_nothing_of_its_spread():
    t, _ = made_up(60)
    census = t.groupby("stratum").size().to_dict()
    table = a.estimate(t, census)
    assert a.pick(table, "overall") == pytest.approx((t["map"] == t.reference).mean())
    assert a.pick(table, "overall", "all", "se") == pytest.approx(0)
    alone = pd.DataFrame({"stratum": ["A", "A", "B"], "map": [0, 1, 1], "reference": [0, 0, 1]})
    assert np.isnan(a.pick(a.estimate(alone, {"A": 100, "B": 100}), "overall", "all", "se"))


def test_points_without_a_label_belong_to_the_area_but_not_to_the_map():
    t = pd.DataFrame({"stratum": [0, 0, 0, 0, 5, 5], "map": [0, 0, 1, 1, 2, 2], "reference": [0, 0, 1, 0, 1, 0]})
    table = a.estimate(t, {0: 100, 5: 100})
    assert a.pick(table, "overall") == 0.75
    assert a.pick(table, "share", 1) == pytest.approx((0.25 + 0.5) / 2)
    assert a.pick(table, "mapped", 0) + a.pick(table, "mapped", 1) == pytest.approx(0.5)


def test_paired_difference_is_narrower_than_two_intervals():
    t, pixels = made_up(600)
    t["other"] = np.where((t["map"] != t.reference) & (rng(1, "x").random(600) < 0.4), t.reference, t["map"])
    for measure in ("overall", "f1", "iou", "users", "producers"):
        d = a.paired_difference(t, "other", "map", measure, pixels=pixels)
        single = [a.estimate(t, pixels, mapped=c) for c in ("other", "map")]
        cls = "all" if measure == "overall" else 1
        assert d["estimate"] == pytest.approx(a.pick(single[0], measure, cls) - a.pick(single[1], measure, cls))
        assert 0 < d["se"] < np.hypot(*(a.pick(s, measure, cls, "se") for s in single))


@pytest.fixture(scope="module")
def strata():
    g = square_geobox(114.3, 30.6, 300 * 16, 16)
    codes = rng(0, "strata").choice([0, 1, 2, 255], g.shape.yx, p=(0.6, 0.05, 0.3, 0.05)).astype(np.uint8)
    return raster(codes, g, "strata", nodata=NODATA)


def test_label_check_leaves_out_pixels_without_truth(strata):
    import xarray as xr
    label = strata.where(strata != 2, 1).astype(np.uint8).rio.write_nodata(255)
    rule = xr.where(strata == 2, RULE_POSTERIOR, RULE_AGREEMENT).astype(np.uint8)
    rule = raster(np.where(label == 255, 255, rule).astype(np.uint8), strata.odc.geobox, "rule", nodata=255)
    truth = raster(np.where(np.arange(300) < 150, label, 255).astype(np.uint8), strata.odc.geobox, "truth", nodata=255)
    table, points = a.label_check(xr.Dataset({"label": label, "rule": rule}), truth, design="stratified")
    assert (points.col < 150).all() and (table.estimate.dropna().isin([0, 1])[:5]).all()
    agreed = table.set_index("quantity").loc["accuracy where the products agree"]
    assert agreed.estimate == 1 and 0.9 < agreed.lo < 1  # all right, but no interval of width zero


def test_bad_input_is_one_clear_line():
    def says(error, text, f, *args, **kwargs):
        with pytest.raises(error, match=text) as e:
            f(*args, **kwargs)
        assert "\n" not in str(e.value)

    t, pixels = made_up()
    says(DataError, "lacks the column 'map'", a.estimate, t.drop(columns="map"), pixels)
    says(DataError, "lacks the column 'pixels'", a.estimate, t)
    says(DataError, "reference class 7 is not among the classes", a.estimate, t.assign(reference=7), pixels)
    says(DataError, "covers pixels but has no points", a.estimate, t[t.stratum != "A"], pixels)
    says(DataError, "cannot be negative", a.olofsson, [[-1, 2], [3, 4]], [5, 6])
    says(DataError, "give a square table", a.olofsson, [[1, 2]], [5])
    says(RequestError, "unknown measure 'auc'", a.paired_difference, t, "map", "map", "auc", pixels=pixels)
    says(RequestError, "level 95", a.proportion, 1, 2, level=95)
