"""The simulated world: the same through any window, in any order, in any process; and monotone in time."""
import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox

from isa_nb.core import RequestError, square_geobox
from isa_nb.lab import climate
from isa_nb.lab.fields import CODE, ISA_LUT, LC_LUT, SURFACES, extents, hash64, make_key, noise, shapes, stream, take
from isa_nb.lab.land import PLACES, STUDY, Plane, water
from isa_nb.lab.sensors import SENSORS, image, shadows
from isa_nb.lab.settlements import settlements
from isa_nb.lab.world import CHUNK, World, for_geobox

WORLDS = {zone: World(zone, str(square_geobox(lon, lat, 100, 10).crs)) for zone, (_, lon, lat) in STUDY.items()}


def grid(world: World, res: float, n: int, dx: float = 0, dy: float = 0) -> GeoBox:
    "n x n pixels from the pinned city on, on whole multiples of the pixel."
    x, y = (np.floor((v + d) / res) * res for v, d in zip(world.plane.pins[0], (dx, dy), strict=True))
    return GeoBox((n, n), Affine(res, 0, x, 0, -res, y), world.crs)


@pytest.mark.parametrize("zone", STUDY)
@pytest.mark.parametrize("res", [1, 10, 16])
def test_a_window_shows_what_the_whole_shows(zone, res):
    w = WORLDS[zone]
    whole = grid(w, res, 220, 900, 500)
    part = whole[31:120, 77:201]
    np.testing.assert_array_equal(w.truth(part, 2019).values, w.truth(whole, 2019).values[31:120, 77:201])
    np.testing.assert_array_equal(w.isa_fraction(part, 2019).values, w.isa_fraction(whole, 2019).values[31:120, 77:201])


@settings(max_examples=8)
@given(st.integers(0, 60), st.integers(0, 60), st.integers(5, 40), st.sampled_from(list(STUDY)))
def test_windows_across_the_border_of_a_chunk(r, c, n, zone):
    w = WORLDS[zone]
    x, y = (np.ceil(v / CHUNK) * CHUNK for v in w.plane.pins[0])
    whole = GeoBox((100, 100), Affine(4, 0, x - 200, 0, -4, y + 200), w.crs)  # four chunks meet in the middle
    np.testing.assert_array_equal(w.truth(whole[r:r + n, c:c + n]).values, w.truth(whole).values[r:r + n, c:c + n])


def across(w: World, i: int, j: int, vertical: bool) -> list[set]:
    "Objects that cross the border of two neighbouring chunks (and only that one), as each of the two made them."
    pair = [w.chunk(i, j).shapes, w.chunk(i, j + 1).shapes if vertical else w.chunk(i + 1, j).shapes]
    along, over = (0, 1) if vertical else (1, 0)
    edge, lo = ((j + 1) * CHUNK, i * CHUNK) if vertical else ((i + 1) * CHUNK, j * CHUNK)
    out = []
    for s in pair:
        e = extents(s)
        q = take(s, (e[:, over] < edge - 1) & (e[:, over + 2] > edge + 1) & (e[:, along] > lo + 1) & (e[:, along + 2] < lo + CHUNK - 1))
        out.append({(int(q.key[k]), int(q.kind[k]), int(q.layer[k]), int(q.code[k]), int(q.built[k]), *np.round(q.xy[q.start[k]], 3)) for k in range(len(q))})
    return out


@pytest.mark.parametrize("zone", STUDY)
def test_no_seams_between_chunks(zone):
    "Objects that cross the border of two chunks are made by both in the same way."
    w = WORLDS[zone]
    i, j = (int(v // CHUNK) for v in w.plane.pins[0])
    found = 0
    for di, dj, vertical in ((-1, 0, False), (0, 0, True), (3, 2, False), (-4, 3, True)):
        one, other = across(w, i + di, j + dj, vertical)
        assert one == other, f"{zone}: {len(one ^ other)} objects differ at {di, dj}"
        found += len(one)
    assert found > 5
    a, b = w.chunk(i, j).terrain, w.chunk(i + 1, j).terrain
    for name in ("height", "moist", "river", "hill"):
        np.testing.assert_allclose(getattr(a, name)[:, -3:], getattr(b, name)[:, :3], atol=1e-6)


def test_same_bytes_in_another_process():
    code = ("from test_lab_world import *; import hashlib\n"
            "print(hashlib.sha256(WORLDS['W4'].truth(grid(WORLDS['W4'], 16, 60)).values.tobytes() + image('s2', grid(WORLDS['W4'], 10, 30)).values.tobytes()).hexdigest())")
    here = hashlib.sha256(WORLDS["W4"].truth(grid(WORLDS["W4"], 16, 60)).values.tobytes() + image("s2", grid(WORLDS["W4"], 10, 30)).values.tobytes()).hexdigest()
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parent).stdout.strip()
    assert here == there


def test_seeds_and_zones_are_different_worlds():
    a = WORLDS["W3"].truth(grid(WORLDS["W3"], 16, 100)).values
    assert (a != World("W3", WORLDS["W3"].crs, 1).truth(grid(WORLDS["W3"], 16, 100)).values).mean() > 0.2
    assert (a != World("W4", WORLDS["W3"].crs, 0).truth(grid(WORLDS["W3"], 16, 100)).values).mean() > 0.2


@pytest.mark.parametrize("zone", STUDY)
def test_what_is_sealed_stays_sealed(zone):
    w = WORLDS[zone]
    g = grid(w, 8, 400, -1600, 1600)
    before = ISA_LUT[w.render(g.affine.c, g.affine.f, 8, (400, 400), 2014)[0]]
    first = before.sum()
    for year in range(2015, 2024):
        now = ISA_LUT[w.render(g.affine.c, g.affine.f, 8, (400, 400), year)[0]]
        assert (now >= before).all(), f"{zone}: something impervious of {year - 1} is gone in {year}"
        before = now
    assert before.sum() > 1.005 * first


def test_fraction_agrees_with_fine_truth():
    w = WORLDS["W3"]
    coarse = grid(w, 16, 40)
    fine = GeoBox((640, 640), Affine(1, 0, coarse.affine.c, 0, -1, coarse.affine.f), w.crs)
    mean = ISA_LUT[w.truth(fine).values].reshape(40, 16, 40, 16).mean((1, 3))
    f = w.isa_fraction(coarse, oversample=16).values
    np.testing.assert_allclose(f, mean, atol=1e-6)
    assert abs(w.isa_fraction(coarse).values.mean() - mean.mean()) < 0.01
    np.testing.assert_array_equal(w.isa(coarse).values, w.isa_fraction(coarse).values >= 0.5)


def test_a_grid_in_degrees_sees_the_same_land():
    w = WORLDS["W4"]
    _, lon, lat = STUDY["W4"]
    degrees = GeoBox((40, 40), Affine(0.0003, 0, lon, 0, -0.0003, lat), "EPSG:4326")
    metres = degrees.to_crs(w.crs, resolution=4)
    a, b = w.isa_fraction(degrees), w.isa_fraction(metres)
    b = b.odc.reproject(degrees, resampling="average", dst_nodata=np.nan)
    inside = np.isfinite(b.values)
    assert np.abs(a.values - b.values)[inside].mean() < 0.06
    np.testing.assert_array_equal(w.truth(degrees[5:20, 7:30]).values, w.truth(degrees).values[5:20, 7:30])


def test_a_crs_is_the_same_however_it_is_spelt():
    here = grid(WORLDS["W3"], 10, 60, 303, 207)
    spelt = GeoBox(here.shape, here.affine, here.crs.to_wkt())
    assert str(spelt.crs) != str(here.crs) == WORLDS["W3"].crs == World("W3", spelt.crs).crs
    np.testing.assert_array_equal(for_geobox(spelt).truth(spelt, 2020).values, for_geobox(here).truth(here, 2020).values)
    np.testing.assert_array_equal(image("s2", spelt, 2020).values, image("s2", here, 2020).values)


def test_objects_are_the_truth():
    w = WORLDS["W3"]
    x, y = w.plane.pins[0]
    bounds = x + 200, y - 900, x + 700, y - 400
    o = w.objects(bounds, 2020)
    assert o.crs == w.crs and o.geometry.is_valid.mean() > 0.98
    assert set(o.columns) >= {"kind", "tag", "surface", "code", "built", "height", "width", "key", "geometry"}
    assert (o.built <= 2020).all()
    houses = o[o.kind == "building"]
    p = houses.geometry.representative_point()
    p = p[(p.x > bounds[0]) & (p.x < bounds[2]) & (p.y > bounds[1]) & (p.y < bounds[3])]
    g = GeoBox((500, 500), Affine(1, 0, np.floor(bounds[0]), 0, -1, np.floor(bounds[3])), w.crs)
    at = w.truth(g, 2020).values[((g.affine.f - p.y).astype(int)).clip(0, 499), ((p.x - g.affine.c).astype(int)).clip(0, 499)]
    assert np.isin(LC_LUT[at], (5,)).mean() > 0.85  # the rest is under trees or cut by a road
    assert w.objects(bounds).equals(w.objects(bounds))


def test_every_surface_is_known():
    assert set(SURFACES) == {c for c in range(256) if ISA_LUT[c] != 255}
    for zone, w in WORLDS.items():
        assert set(np.unique(w.truth(grid(w, 16, 300, -2400, 2400)).values)) <= set(SURFACES), zone


@pytest.mark.parametrize("sensor", SENSORS)
def test_images_through_any_window(sensor):
    w = WORLDS["W4"]
    whole = grid(w, SENSORS[sensor].resolution, 90, 100, 300)
    a = image(sensor, whole, world=w)
    assert a.dtype == np.uint16 and a.dims == ("band", "y", "x") and a.rio.nodata == 0 and a.attrs["simulated"] == "yes"
    assert (a.values > 0).all() and a.values.max() < 12_000
    np.testing.assert_array_equal(image(sensor, whole[20:63, 11:70], world=w).values, a.values[:, 20:63, 11:70])


def test_images_on_another_grid():
    w = WORLDS["W2"]
    g = grid(w, 16, 60)
    a = image("s2", g, world=w)
    assert a.shape == (4, 60, 60) and a.odc.geobox == g and (a.values > 0).all()
    assert np.corrcoef(a.values[2].ravel(), image("gf1", g, world=w).values[2].ravel())[0, 1] > 0.7


def test_shadows_fall_away_from_the_sun():
    h = np.zeros((60, 60), np.float32)
    h[30:34, 30:34] = 20
    dark = shadows(h, 1.0, 180.0, 45.0)  # sun in the south: shadows to the north (up)
    assert dark[15:29, 31].all() and not dark[35:, :].any() and not dark[:8].any()


def test_bad_requests_are_one_clear_line():
    with pytest.raises(RequestError, match="unknown zone 'W5'.*known are W1, W2, W3, W4"):
        World("W5", "EPSG:32650")
    with pytest.raises(RequestError, match="metric CRS, not in EPSG:4326"):
        World("W3", "EPSG:4326")
    with pytest.raises(RequestError, match="unknown sensor 'landsat': known are gf1, hr, s2"):
        image("landsat", grid(WORLDS["W3"], 10, 5))
    with pytest.raises(RequestError, match="covers 60..150 E.*state the zone yourself"):
        for_geobox(square_geobox(10.0, 50.0, 100, 10))


def test_climate_layers_look_like_the_real_ones():
    mm, eco = climate.precipitation(), climate.ecoregions()
    assert mm.dtype == np.int16 and mm.rio.nodata == -9999 and mm.rio.crs == "EPSG:4326"
    assert set(eco.columns) >= {"ECO_ID", "ECO_NAME", "BIOME_NUM", "BIOME_NAME", "REALM", "NNH", "NNH_NAME", "SHAPE_AREA", "LICENSE", "geometry"}
    assert eco.ECO_NAME.str.startswith("Simulated ").all() and eco.geometry.is_valid.all() and eco.ECO_ID.is_unique
    overlap = eco.geometry.union_all().area / eco.geometry.area.sum()
    assert overlap > 0.999  # neighbours share their borders
    g = square_geobox(116.4, 39.9, 50_000, 5000)
    assert climate.precipitation(g).values.min() > 300


def test_pinned_cities_lie_in_their_zones():
    for name, lon, lat, zone in PLACES:
        assert climate.zone_at(lon, lat) == zone, name
        w = for_geobox(square_geobox(lon, lat, 100, 10))
        assert w.isa_fraction(square_geobox(lon, lat, 1200, 40), oversample=4).values.mean() > 0.1, name  # a great river may run through the middle


def test_streams_of_numbers_are_independent():
    k = make_key("a", 1)
    u = np.stack([stream(k, name, np.arange(20_000)) for name in ("one", "two", "three")])
    assert np.abs(np.corrcoef(u) - np.eye(3)).max() < 0.03
    keys = hash64(k, np.arange(1000), 0, 0)
    assert len(np.unique(keys)) == 1000
    v = noise(np.arange(0, 1e6, 97.0), 0.0, 500, k, 3)
    assert abs(v.mean()) < 0.02 and 0.1 < v.std() < 0.4


def test_settlements_do_not_stand_in_rivers_or_each_other():
    p = Plane("W4", "EPSG:32650")
    x, y = p.pins[0]
    b = (x - 15_000, y - 15_000, x + 15_000, y + 15_000)
    w = water(p, b)
    s = settlements(p, b, w)
    small = s[s.level > 0]
    assert not w.covers(small.x, small.y).any()
    big = s[s.level == 0]
    d = np.hypot(small.x[:, None] - big.x, small.y[:, None] - big.y)
    assert (d > big.radius).all()
    assert (s.level == 2).sum() > 30 and len(big) >= 1


@pytest.mark.parametrize("zone", STUDY)
def test_cities_and_towns_follow_zipf(zone):
    "The upper half of the areas of several planes falls with an exponent near 1, and a part of a window holds what the whole holds there."
    areas = []
    for seed in range(8 if zone == "W1" else 2):  # W1 has some 30 places in 300 km
        p = Plane(zone, WORLDS[zone].crs, seed)
        x, y = p.pins[0]
        wide = x - 150_000, y - 150_000, x + 150_000, y + 150_000
        w = water(p, (0, 0, 1, 1))
        s = settlements(p, wide, w, lowest=1)
        part = settlements(p, (x + 20_000, y - 40_000, x + 70_000, y + 10_000), w, lowest=1)
        inside = (np.abs(s.x - x - 45_000) < 25_000) & (np.abs(s.y - y + 15_000) < 25_000)
        assert set(s.key[inside]) <= set(part.key) <= set(s.key)
        areas.append(s.radius ** 2)
    area = np.sort(np.concatenate(areas))[::-1]
    rank, big = np.arange(1, len(area) + 1), area >= np.median(area)
    assert 0.8 < -np.polyfit(np.log(area[big]), np.log(rank[big] - 0.5), 1)[0] < 1.3


def test_an_empty_window_is_empty():
    assert len(take(shapes(np.zeros((1, 3, 2)), "patch", CODE["grass"], 0, np.array([1], np.uint64)), np.zeros(1, bool))) == 0
