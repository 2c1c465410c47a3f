"""Figures: what a notebook cannot show: sameness, size, odd grids, and faults of the data."""
import io

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st
from matplotlib import pyplot as plt
from odc.geo.geobox import GeoBox

from isa_nb import figures
from isa_nb.core import LABEL_COLOURS, NODATA, DataError, RequestError, raster, square_geobox

mpl.use("Agg")


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def label(shape=(60, 80), crs="EPSG:32650", simulated=True):
    codes = (np.indices(shape).sum(0) // 7 % 3).astype(np.uint8)
    codes[0] = NODATA
    grid = GeoBox.from_bbox((114.0, 30.0, 114.8, 30.6), crs="EPSG:4326", shape=shape) if crs == "EPSG:4326" else square_geobox(114.3, 30.6, max(shape) * 20, 20)[:shape[0], :shape[1]]
    return raster(codes, grid, "label", nodata=NODATA, simulated=simulated)


def texts(ax):
    return [t.get_text() for t in ax.texts]


def picture(fig):
    out = io.BytesIO()
    fig.savefig(out, format="png", dpi=80)
    return out.getvalue()


def test_the_same_figure_has_the_same_bytes():
    assert picture(figures.show_all({"a": label(), "b": label()})) == picture(figures.show_all({"a": label(), "b": label()}))


def test_a_users_own_settings_are_left_alone():
    before = dict(mpl.rcParams)
    figures.show_labels(label())
    assert dict(mpl.rcParams) == before


def test_simulated_is_said_and_only_where_it_is_so():
    assert "simulated" in texts(figures.show_labels(label()))
    assert "simulated" not in texts(figures.show_labels(label(simulated=False)))
    assert "simulated" in texts(figures.show_confidence(label().astype("float32").assign_attrs(simulated="yes")))


def test_colours_of_the_paper():
    ax = figures.show_labels(label())
    shown = ax.get_images()[0].get_array()
    for code in (0, 1, 2, NODATA):
        assert (shown[label().values == code] == np.float32(mpl.colors.to_rgba(LABEL_COLOURS[code]))).all()


@given(st.floats(0.05, 4000))
def test_scale_bar_is_round_and_fits(width_km):
    fig, (ax,) = figures.panel(1)
    ax.set(xlim=(0, width_km), ylim=(0, width_km))
    length = figures.scale_bar(ax, label())
    plt.close(fig)
    assert width_km / 13 <= length <= width_km / 4 * 1.001
    assert float(f"{length:e}"[0]) in (1, 2, 5)


def test_geographic_rasters_keep_their_shape_and_scale():
    ax = figures.show_labels(label(crs="EPSG:4326"))
    assert ax.get_aspect() == pytest.approx(1 / np.cos(np.radians(30.3)), rel=1e-6)
    assert any(t.endswith(" km") for t in texts(ax))
    assert ax.get_xlim() == pytest.approx((114.0, 114.8))


def test_large_rasters_are_thinned():
    large = raster(np.zeros((4000, 6000), np.uint8), square_geobox(114.3, 30.6, 120_000, 20)[:4000, :6000], "large")
    assert max(figures.show_labels(large).get_images()[0].get_array().shape[:2]) <= 1500


def test_ticks_are_real_coordinates():
    ax = figures.show_labels(label(), ticks=True)
    assert ax.get_xlabel() == "easting (km)" and 200 < ax.get_xlim()[0] < 300
    assert figures.show_labels(label(crs="EPSG:4326"), ticks=True).get_ylabel() == "latitude (degrees)"


@given(st.integers(2, 12), st.data())
def test_vote_counts_agree_with_counting_by_hand(n, data):
    said = data.draw(st.lists(st.lists(st.sampled_from([0, 1, NODATA]), min_size=n, max_size=n), min_size=1, max_size=8))
    codes = np.array([[sum((s == 1) << i for i, s in enumerate(one)) | sum((s != NODATA) << (n + i) for i, s in enumerate(one)) for one in said]], np.uint32)
    counts = figures.vote_counts(raster(codes, square_geobox(114, 30, 2000, 20)[:1, :len(said)], "votes"), n).values[0]
    for one, count in zip(said, counts, strict=True):
        heard = [s for s in one if s != NODATA]
        expected = NODATA if not heard else n if all(heard) else sum(heard)
        assert count == expected


def test_images_leave_nodata_blank_and_survive_an_empty_one():
    values = np.full((4, 30, 30), 900, np.uint16)
    values[:, :10] = 0
    image = raster(values, square_geobox(114, 30, 600, 20), "image", nodata=0)
    assert (figures.composite(image)[:10, :, 3] == 0).all() and (figures.composite(image)[10:, :, 3] == 1).all()
    assert (figures.composite(raster(values * 0, square_geobox(114, 30, 600, 20), "empty", nodata=0))[..., 3] == 0).all()


def test_bands_are_found_by_name():
    values = np.stack([np.full((5, 5), v, np.uint16) for v in (100, 200, 300, 400)])
    image = raster(values, square_geobox(114, 30, 100, 20), "image", nodata=0).assign_coords(band=["nir", "red", "green", "blue"])
    assert figures.composite(image, limits=(0, 400))[0, 0, :3] == pytest.approx((np.array([200, 300, 400]) / 400) ** (1 / 1.4))


def test_intervals_accept_both_ways_of_naming_bounds():
    table = pd.DataFrame({"map": ["a", "b"], "estimate": [0.8, np.nan], "lo": [0.7, np.nan], "hi": [0.9, np.nan], "true": [0.82, np.nan]})
    assert figures.show_intervals(table, "map", "estimate", known="true").get_xlabel() == "estimate"
    renamed = table.rename(columns={"lo": "estimate_lo", "hi": "estimate_hi"})
    assert figures.show_intervals(renamed, "map", "estimate", published="true", citation="Zhai, Table 4").get_legend() is not None


@pytest.mark.parametrize(("draw", "error", "says"), [
    (lambda: figures.show_labels(label() + np.uint8(5)), DataError, r"label holds codes without a name: \[4, 5, 6, 7\]; known are \[0, 1, 2, 255\]"),
    (lambda: figures.show_labels(label().astype(float)), DataError, "label holds float64, not uint8 codes"),
    (lambda: figures.show_labels(xr.DataArray(np.zeros((4, 4), np.uint8), dims=("y", "x"), name="bare")), DataError, "raster bare carries no CRS or grid"),
    (lambda: figures.show_all({"a": label(), "b": label(crs="EPSG:4326")}), DataError, "must share a CRS, these have"),
    (lambda: figures.show_confusion(np.eye(3), ["a", "b"]), RequestError, r"confusion matrix of shape \(3, 3\) does not fit 2 class names"),
    (lambda: figures.show_intervals(pd.DataFrame({"a": [1]}), "a", "b"), RequestError, "table has no column b, b_lo, b_hi: it has a"),
])
def test_faults_are_said_in_one_line(draw, error, says):
    with pytest.raises(error, match=says) as e:
        draw()
    assert "\n" not in str(e.value)
