"Fusion: properties against an np.where oracle, many products, bad input, and the latent classes."
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isa_nb.core import DataError, RequestError, raster, rng, square_geobox
from isa_nb.fusion import Settlement, by_rule, fuse, majority, table3, voted
from isa_nb.latent import fit, reliability
from isa_nb.votes import Histogram, count_blocks, decode, encode, histogram, shade

GRID = square_geobox(116.4, 39.9, 320, 16)
DATA = Path(__file__).parents[1] / "../shared/data"


def maps(n, seed=0, shape=GRID.shape.yx, silent=0.1):
    draw = rng(seed, "maps", n)
    return {f"p{i}": raster(draw.choice(np.array([0, 1, 255], np.uint8), shape, p=[0.6 - silent, 0.4, silent]), GRID, f"p{i}", nodata=255) for i in range(n)}


def mask(seed=0):
    return raster(rng(seed, "osm").integers(0, 4, GRID.shape.yx).astype(np.uint8), GRID, "osm")


def oracle(stack, osm, s):
    "The rule once more, as plain np.where on pixels."
    valid, yes = (stack != 255).sum(0), (stack == 1).sum(0)
    label = np.where(yes >= s.agreement * valid - 1e-6, 1, np.where(valid - yes >= s.agreement * valid - 1e-6, 0, 2))
    label = np.where(valid < s.needed(len(stack)), 255, label)
    rule = np.where(label == 255, 255, np.where(label == 2, 5, 1))
    both = {"uncertain": 9, "impervious": 1, "pervious": 0}[s.osm_both]
    osm = np.where(osm == 1, 1, np.where(osm == 2, 0, np.where(osm == 3, both, 9)))
    may = (label == 2) | (s.osm_scope == "all") | ((s.order == "osm_first") & (osm == 1))
    may &= (osm != 9) & (label != 255) & (label != osm) & (s.osm_scope != "none")
    rule = np.where(may, np.where(osm == 1, 2, 3), rule)
    return np.where(may, osm, label), rule


@settings(max_examples=60)
@given(n=st.integers(1, 7), seed=st.integers(0, 99), min_valid=st.sampled_from([None, 1, 2]), agreement=st.sampled_from([0.51, 0.6, 2 / 3, 0.8, 1.0]),
       scope=st.sampled_from(["conflicts", "all", "none"]), both=st.sampled_from(["uncertain", "impervious", "pervious"]), order=st.sampled_from(["settle_conflicts", "osm_first"]))
def test_the_table_does_what_np_where_does(n, seed, min_valid, agreement, scope, both, order):
    chosen = dict(min_valid=None if min_valid is None else min(min_valid, n), agreement=agreement, osm_scope=scope, osm_both=both, order=order)
    products, osm = maps(n, seed), mask(seed)
    ds = fuse(products, osm, **chosen)
    stack = np.stack([p.values for p in products.values()])
    label, rule = oracle(stack, osm.values, Settlement(**chosen))
    assert (ds.label.values == label).all()
    assert (ds.rule.values == rule).all()
    for name, p in products.items():
        assert (voted(ds, name).values == p.values).all()
    c = ds.confidence.values
    assert (np.isnan(c) == (label == 255)).all() and (c[label != 255] >= 0).all() and (c[label != 255] <= 1).all()


@pytest.mark.parametrize("n", [2, 8, 9, 12, 20])
def test_many_products_through_the_hash_table(n):
    products = maps(n)
    stack = np.stack([p.values for p in products.values()])
    ds = fuse(products, mask())
    label, rule = oracle(stack, mask().values, Settlement())
    assert (ds.label.values == label).all() and (ds.rule.values == rule).all()
    assert (ds.votes.values == encode(stack) & np.uint64((1 << 2 * n) - 1)).all()
    assert ds.votes.dtype == {2: np.uint8, 8: np.uint16, 9: np.uint32, 12: np.uint32, 20: np.uint64}[n]


def test_order_of_products_only_reorders_the_votes():
    products = maps(4)
    turned = dict(reversed(products.items()))
    a, b = fuse(products, mask()), fuse(turned, mask())
    for k in ("label", "rule", "confidence"):
        np.testing.assert_array_equal(a[k], b[k])


def test_threads_change_nothing():
    products = maps(5)
    for k, v in fuse(products, mask(), threads=1).items():
        np.testing.assert_array_equal(v, fuse(products, mask(), threads=3)[k])


def test_views_and_bools_are_read_as_they_lie():
    products = maps(2)
    odd = {k: v[::-1, ::-1][::-1, ::-1] for k, v in products.items()}
    assert (fuse(odd).label.values == fuse(products).label.values).all()
    yes = {k: v == 1 for k, v in products.items()}
    wide = {k: v.astype(np.int64) for k, v in yes.items()}
    assert (fuse(yes).label.values == fuse(wide).label.values).all()


def test_majority_is_the_voting_of_simpleitk():
    sitk = pytest.importorskip("SimpleITK")
    products = maps(5, silent=0.0)
    vote = sitk.LabelVotingImageFilter()
    vote.SetLabelForUndecidedPixels(2)
    theirs = sitk.GetArrayFromImage(vote.Execute([sitk.GetImageFromArray(p.values) for p in products.values()]))
    assert (majority(products).values == theirs).all()


def test_stages_add_up_and_confusion_counts_every_labelled_pixel():
    products, osm = maps(3), mask()
    ds = fuse(products, osm, rule="posterior", threshold=0.8)
    counts = table3({"W1": ds})
    assert counts.stage.tolist() == ["before", "after OSM", "after posterior"]
    total = counts[["impervious", "pervious", "uncertain"]].sum(axis=1)
    assert (total == int((ds.label != 255).sum())).all()
    assert counts.uncertain.is_monotonic_decreasing
    truth = raster((mask(1).values > 1).astype(np.uint8), GRID, "truth")
    table = by_rule(ds, truth)
    assert table.pixels.sum() == total[0] and np.isclose(table["share"].sum(), 1)


@pytest.mark.parametrize("change, message", [
    (lambda p: {}, "no product to fuse"),
    (lambda p: [("a", p["p0"]), ("a", p["p1"])], "'a' is named more than once"),
    (lambda p: list(p.values()), "a product without a name"),
    (lambda p: p | {"p1": p["p1"].values}, "product p1 is a ndarray without a grid: give a DataArray"),
    (lambda p: p | {"p1": p["p1"].astype("float32")}, "product p1 is float32"),
    (lambda p: p | {"p1": p["p1"] + np.uint8(2)}, "product p1 holds"),
    (lambda p: p | {"p1": p["p1"].astype(np.int16) - 300}, "product p1 holds"),
    (lambda p: p | {"p1": p["p1"][1:]}, "p0 and p1 are on different grids"),
    (lambda p: p | {"p1": p["p1"].rio.write_crs("EPSG:32651")}, "p0 and p1 are on different grids"),
    (lambda p: p | {"p1": p["p1"].expand_dims("band")}, "with dims ('band', 'y', 'x')"),
    (lambda p: {f"p{i}": p["p0"] for i in range(21)}, "give 1 to 20"),
])
def test_bad_products(change, message):
    with pytest.raises((DataError, RequestError)) as e:
        fuse(change(maps(2)))
    assert message in str(e.value) and "\n" not in str(e.value)


@pytest.mark.parametrize("options, message", [
    (dict(rule="bayes"), "unknown rule 'bayes'"),
    (dict(threshold=0.5), "threshold 0.5 is outside (0.5, 1]"),
    (dict(threshold=1.01), "threshold 1.01 is outside (0.5, 1]"),
    (dict(agreement=0.3), "agreement 0.3 is outside (0.5, 1]"),
    (dict(min_valid=3), "more valid products than the 2 there are"),
    (dict(min_valid=0), "min_valid 0 is below 1"),
    (dict(order="osm_last"), "unknown order 'osm_last'"),
    (dict(treshold=0.9), "unknown choice 'treshold': did you mean 'threshold'?"),
    (dict(osm=mask().values), "OSM is given as a ndarray: give a file, layers by name"),
    (dict(osm=mask()[1:]), "the products and osm are on different grids"),
    (dict(osm=mask() + np.uint8(4)), "the OSM mask holds 7"),
])
def test_bad_requests(options, message):
    with pytest.raises((DataError, RequestError)) as e:
        fuse(maps(2), **options)
    assert message in str(e.value)


def test_finer_products_must_fit_the_grid():
    fine = {k: v for k, v in maps(2).items()}
    with pytest.raises(DataError, match="grid of the result"):
        fuse(fine, geobox=square_geobox(116.4, 39.9, 336, 48))
    coarse = GRID.zoom_out(2)
    ds = fuse(fine, geobox=coarse)
    assert ds.label.shape == (10, 10)
    assert (voted(ds, "p0").values == np.where(shade(fine["p0"].values, 2) > 3, 255, shade(fine["p0"].values, 2) % 2)).all()


# ---- latent classes

def drawn(sens, spec, share=0.2, n=400, seed=0, silent=0.0):
    "Independent votes of a known truth."
    draw = rng(seed, "drawn")
    truth = draw.random((n, n)) < share
    votes = np.stack([np.where(draw.random((n, n)) < np.where(truth, a, 1 - b), 1, 0) for a, b in zip(sens, spec, strict=True)]).astype(np.uint8)
    votes[draw.random(votes.shape) < silent] = 255
    return truth, {f"p{i}": v for i, v in enumerate(votes)}


@pytest.mark.parametrize("silent", [0.0, 0.2])
def test_dawid_skene_recovers_independent_products(silent):
    sens, spec = (0.9, 0.8, 0.7, 0.85), (0.97, 0.95, 0.99, 0.9)
    _, arrays = drawn(sens, spec, silent=silent)
    h = count_blocks(arrays)
    table = reliability(h, fit(h, groups="none", states=(2,)), repeats=40)
    assert np.allclose(table.sensitivity, sens, atol=0.02) and np.allclose(table.specificity, spec, atol=0.01)
    assert (table.sensitivity_se > 0).all() and (table.sensitivity_se < 0.02).all()


def test_standard_errors_cover_the_spread_of_repeated_draws():
    sens, spec = (0.9, 0.8, 0.75), (0.97, 0.95, 0.96)
    estimates, errors = [], []
    for seed in range(12):
        h = count_blocks(drawn(sens, spec, n=160, seed=seed)[1], block=20)
        t = reliability(h, fit(h, groups="none", states=(2,)), repeats=40)
        estimates.append(t.sensitivity)
        errors.append(t.sensitivity_se)
    ratio = np.mean(errors, 0) / np.std(estimates, 0, ddof=1)
    assert (ratio > 0.5).all() and (ratio < 2).all()


def test_histograms_of_windows_add_up_to_that_of_the_whole():
    arrays = {k: v.values for k, v in maps(3, shape=(20, 20)).items()}
    whole = count_blocks(arrays, block=5)
    parts = [count_blocks({k: a[r:r + 10] for k, a in arrays.items()}, block=5, first=r // 5 * 4) for r in (0, 10)]
    merged = Histogram.merge(parts)
    order = np.lexsort((whole.code, whole.block))
    assert (merged.code == whole.code[order]).all() and (merged.count == whole.count[order]).all()
    assert (merged.total == whole.total).all()
    assert (fit(merged).posterior(whole.codes) == fit(whole).posterior(whole.codes)).all()


@pytest.mark.parametrize("n", [1, 2])
def test_one_or_two_products_are_not_identified_and_settle_nothing(n):
    _, arrays = drawn((0.9, 0.7)[:n], (0.99, 0.8)[:n])
    h = count_blocks(arrays)
    model = fit(h)
    assert not model.identified and "assumed (inferred)" in model.note
    if n == 2:
        p = model.posterior(encode(np.array([[1, 0], [0, 1]], np.uint8)))
        assert (p > 0.05).all() and (p < 0.95).all()
        assert np.isclose(*p)


def test_a_map_without_any_impervious_pixel_stays_pervious():
    h = count_blocks({f"p{i}": np.zeros((64, 64), np.uint8) for i in range(5)})
    assert fit(h).posterior(h.codes)[0] < 0.01
    t = reliability(h, repeats=5)
    assert (t.specificity > 0.99).all()


def test_empty_products_give_nodata():
    ds = fuse({k: v.copy(data=np.full(v.shape, 255, np.uint8)) for k, v in maps(3).items()}, rule="posterior")
    assert (ds.label == 255).all() and np.isnan(ds.confidence).all()


def test_posterior_does_not_depend_on_the_order_of_pixels():
    arrays = {k: v.values for k, v in maps(5, silent=0.0).items()}
    turned = {k: v.T.copy() for k, v in arrays.items()}
    a, b = (fit(count_blocks(m)) for m in (arrays, turned))
    codes = count_blocks(arrays).codes
    assert np.allclose(a.posterior(codes), b.posterior(codes))


def test_codes_go_round():
    votes = rng(0, "codes").choice(np.array([0, 1, 2, 3, 255], np.uint8), (6, 200))
    back, osm, mixed = decode(encode(votes, 3), 6)
    assert (back == np.where(votes == 255, 255, votes % 2)).all() and (osm == 3).all() and (mixed == np.isin(votes, (2, 3))).all()


@pytest.mark.skipif(not (DATA / "beijing_30m_builtup_4products").exists(), reason="real Beijing products are not there (../shared/data)")
def test_real_beijing_products():
    from isa_nb.drivers import open_raster
    box = square_geobox(116.4, 39.9, 45_000, 30)
    folder = DATA / "beijing_30m_builtup_4products"
    products = {p.stem: open_raster(p, box, nodata="none", fill=255) for p in sorted(folder.glob("*.tif"))}
    ds = fuse(products, rule="posterior")
    counts = table3({"beijing": ds})
    assert 0.02 < counts.uncertain[0] / counts.iloc[0, 2:].sum() < 0.6
    h = histogram(products)
    t = reliability(h, repeats=20)
    worst = t.set_index("product").specificity.idxmin()
    assert worst == "from-glc2015_bj"  # known to overestimate
    assert (t.sensitivity > 0.5).all() and (t[["sensitivity_se", "specificity_se", "precision_se"]] < 0.2).all(axis=None)
