"""design: draws from files and arrays, chances, allocation, and bad input."""
import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isa_nb import design as d
from isa_nb.core import NODATA, DataError, RequestError, raster, rng, square_geobox


@settings(max_examples=60)
@given(st.integers(1, 500), st.dictionaries(st.integers(0, 9), st.integers(1, 400), min_size=1, max_size=6), st.sampled_from(["proportional", "equal"]))
def test_allocation_adds_up_and_fits(n, pixels, method):
    got = d.allocate(n, pixels, method)
    assert sum(got.values()) == min(n, sum(pixels.values())) and all(0 <= got[k] <= pixels[k] for k in pixels)


@pytest.fixture(scope="module")
def strata():
    g = square_geobox(114.3, 30.6, 300 * 16, 16)
    codes = rng(0, "strata").choice([0, 1, 2, 255], g.shape.yx, p=(0.6, 0.05, 0.3, 0.05)).astype(np.uint8)
    return raster(codes, g, "strata", nodata=NODATA)


def test_draws_do_not_depend_on_how_the_raster_is_read(strata, tmp_path, monkeypatch):
    strata.rio.to_raster(tmp_path / "s.tif", tiled=True, blockxsize=64, blockysize=64, compress="deflate")
    whole, strips = d.draw(strata, 40, seed=3), d._strips
    monkeypatch.setattr(d, "_strips", lambda *args: strips(*args, pixels=3_000))
    pieces = d.draw(tmp_path / "s.tif", 40, seed=3)
    pd.testing.assert_frame_equal(pd.DataFrame(whole.drop(columns="geometry")), pd.DataFrame(pieces.drop(columns="geometry")))
    assert whole.geometry.geom_equals_exact(pieces.geometry, 1e-6).all()
    of = lambda label: d.map_strata(label, edge=2)  # noqa: E731
    pd.testing.assert_series_equal(d.draw([strata], 25, of=of, halo=2).col, d.draw([tmp_path / "s.tif"], 25, of=of, halo=2).col)


def test_every_pixel_has_the_same_chance(strata):
    small = strata[:12, :12]
    hits = np.zeros(small.shape)
    for seed in range(250):
        p = d.draw(small, {0: 10}, seed=seed)
        hits[p.row, p.col] += 1
    n = int((small == 0).sum())
    assert (hits[small.values != 0] == 0).all()
    assert abs(hits[small.values == 0] - 2500 / n).max() < 5 * np.sqrt(2500 / n)
    assert d.draw(small, {0: 10}).probability.iloc[0] == pytest.approx(10 / n)


def test_a_small_stratum_is_taken_whole_and_said(strata):
    got = d.draw(strata[:10, :10], {1: 50})
    assert len(got) == int((strata[:10, :10] == 1).sum()) and (got.probability == 1).all()


def test_values_at_points_in_another_crs_and_outside(strata):
    points = d.draw(strata, 5).to_crs(4326)
    out = gpd.GeoDataFrame(geometry=gpd.points_from_xy([0], [0]), crs=4326)
    got = d.values_at(pd.concat([points[["geometry"]], out], ignore_index=True), code=strata)
    assert got.code.tolist()[:-1] == points.stratum.tolist() and got.code.isna().iloc[-1]


def test_bad_input_is_one_clear_line(strata, tmp_path):
    def says(error, text, f, *args, **kwargs):
        with pytest.raises(error, match=text) as e:
            f(*args, **kwargs)
        assert "\n" not in str(e.value)

    says(DataError, "cannot read .*none.tif as a raster", d.draw, tmp_path / "none.tif", 5)
    (tmp_path / "text.tif").write_text("not a raster")
    says(DataError, "cannot read .*text.tif as a raster", d.draw, tmp_path / "text.tif", 5)
    says(DataError, "different grids", d.draw, [strata, strata[1:]], 5, of=d.fusion_strata)
    says(DataError, "every pixel is nodata", d.draw, strata * 0 + 255, 5)
    says(RequestError, "stratum 9 holds no pixel", d.draw, strata, {9: 3})
    says(RequestError, "unknown allocation", d.allocate, 10, {0: 5}, "optimal")
    says(RequestError, "one weight and one expected accuracy", d.sample_size, [1], [0.5, 0.5], 0.01)
