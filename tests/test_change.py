"Series of maps and images: what the notebooks do not show."
import numpy as np
import pytest
import rasterio
from hypothesis import given, settings
from hypothesis import strategies as st

from isa_nb import change, growth, harmonise
from isa_nb.catalog import Catalog
from isa_nb.change_files import filter_files
from isa_nb.core import NODATA, DataError, RequestError, raster, rng, square_geobox

GRID = square_geobox(118.8, 32.06, 1000, 10)
YEARS = [2017, 2019, 2021, 2023]


def fails(error, line, call):
    with pytest.raises(error) as e:
        call()
    assert line in str(e.value) and "\n" not in str(e.value), str(e.value)


def scene(seed=0):
    "An image of uint16 digital numbers with dark water, fields and bright roofs; nodata 0."
    gen = rng(seed, "scene")
    kind = np.kron(rng(0, "kinds").integers(0, 3, (20, 20)), np.ones((5, 5), int))
    level = np.array([[350, 380, 300, 250], [600, 800, 700, 3000], [2000, 2200, 2300, 2600]])[kind]
    values = np.moveaxis(level * np.exp(gen.normal(0, 0.05, level.shape)), -1, 0)
    return raster(values.astype(np.uint16), GRID, "s2", 0)


@given(st.integers(2, 6), st.integers(0, 2 ** 32 - 1), st.floats(0.0, 2.0), st.integers(0, 3), st.integers(1, 6))
@settings(max_examples=25)
def test_nothing_vanishes_and_nothing_is_made_up(n, seed, weight, sweeps, least):
    "Whatever the maps: years only add, unknown stays unknown, and what all maps say of an area stands."
    gen = np.random.default_rng(seed)
    maps = gen.choice(np.array([0, 1, 2, 255], np.uint8), (n, 24, 31), p=[0.5, 0.3, 0.1, 0.1])
    maps[:, :8, :8], maps[:, 12:20, 12:20], maps[:, 21:, 20:] = 1, 0, NODATA
    years = [2010 + 2 * i for i in range(n)]
    first, rule = change.settle(maps, years, weight=weight, sweeps=sweeps, least=least)
    after = np.stack([change.at_year(first, y) for y in years]).astype(int)
    known = first != NODATA
    assert (np.diff(after, axis=0)[:, known] >= 0).all() and (known == (maps <= 1).any(0)).all() and (rule[known] <= 4).all()
    assert (after[:, 2:6, 2:6] == 1).all() and (after[:, 14:18, 14:18] == 0).all()


def test_a_pixel_takes_the_best_of_all_histories():
    "The table of histories against the probabilities written out."
    errors = change.Errors(0.2, 0.05, (0.3, 0.05, 0.02, 0.03, 0.6))
    seen = change.patterns(4)
    table = change.histories(np.arange(81, dtype=np.uint16)[None], errors, weight=0)[0]
    for code, row in enumerate(seen):
        if (row == 2).all():
            assert table[code] == NODATA
            continue
        p = []
        for k, prior in enumerate(errors.histories):
            for t, d in enumerate(row):
                built = t >= k
                prior *= 1 if d == 2 else (0.8 if d else 0.2) if built else (0.05 if d else 0.95)
            p.append(prior)
        assert p[table[code]] == pytest.approx(max(p))


def test_errors_are_found_with_holes_in_the_series():
    gen = rng(0, "holes")
    start = gen.choice(6, 300_000, p=[0.3, 0.03, 0.02, 0.03, 0.02, 0.6])
    state = np.arange(5)[:, None] >= start
    seen = np.where(state, gen.random(state.shape) >= 0.1, gen.random(state.shape) < 0.06).astype(np.uint8)
    seen[gen.random(seen.shape) < 0.2] = NODATA
    found = change.fit_errors(np.bincount(change.pattern(seen[:, None]).ravel(), minlength=243))
    assert found.missed == pytest.approx(0.1, abs=0.005) and found.false == pytest.approx(0.06, abs=0.005)


def test_bad_maps_each_with_its_line(tmp_path):
    plain = raster(np.zeros((100, 100), np.uint8), GRID, "map", NODATA)
    good = dict.fromkeys(YEARS, plain)
    fails(RequestError, "no map of 2021: there are 2017, 2019, 2023", lambda: change.check_series({y: m for y, m in good.items() if y != 2021}, YEARS))
    fails(DataError, "the map of 2017 and the map of 2023 are on different grids", lambda: change.filter_series(good | {2023: raster(plain.values, GRID.pad(5)[:100, :100], "map", NODATA)}))
    fails(DataError, "the maps hold the code(s) 5, where 0 pervious", lambda: change.filter_series(good | {2023: plain + np.uint8(5)}))
    fails(DataError, "no pixel is pervious or impervious in any year", lambda: change.filter_series(dict.fromkeys(YEARS, plain + np.uint8(NODATA))))
    plain.rio.to_raster(tmp_path / "isa_2017.tif")
    fails(DataError, "no such file:", lambda: filter_files(f"{tmp_path}/isa_{{year}}.tif", tmp_path / "out", YEARS))
    (tmp_path / "isa_2019.tif").write_text("no raster")
    fails(DataError, "as a raster", lambda: filter_files(f"{tmp_path}/isa_{{year}}.tif", tmp_path / "out", [2017, 2019]))
    assert not (tmp_path / "out").exists()


def test_a_cut_file_leaves_no_map(tmp_path):
    "The second of two maps ends early: one line, and nothing half made."
    gen = rng(0, "cut")
    for y in (2017, 2019):
        raster(gen.integers(0, 2, (1500, 1500), np.uint8), square_geobox(118.8, 32.06, 15000, 10), "map", NODATA).rio.to_raster(tmp_path / f"isa_{y}.tif", tiled=True, compress="deflate")
    data = (tmp_path / "isa_2019.tif").read_bytes()
    (tmp_path / "isa_2019.tif").write_bytes(data[:len(data) // 2])
    fails(DataError, "is damaged or cut short", lambda: filter_files(f"{tmp_path}/isa_{{year}}.tif", tmp_path / "out", [2017, 2019]))
    assert not list(tmp_path.glob("out/*.tif"))


def test_first_years_are_read_by_other_programs(tmp_path):
    maps = {y: raster((np.indices((100, 100)).sum(0) < 60 + 10 * i).astype(np.uint8), GRID, "map", NODATA) for i, y in enumerate(YEARS)}
    for y, m in maps.items():
        m.rio.to_raster(tmp_path / f"isa_{y}.tif")
    paths = filter_files(f"{tmp_path}/isa_{{year}}.tif", tmp_path / "out", YEARS)
    with rasterio.open(paths["first_year"]) as f:
        codes, table = f.read(1), f.colormap(1)
        assert set(np.unique(codes)) == {0, 35, 37, 39, 41} and f.nodata == 255 and f.tags()["years"] == "[2017, 2019, 2021, 2023]" and f.crs == GRID.crs
    assert len({table[c] for c in (0, 35, 37, 39, 41)}) == 5
    legend = Catalog.load().legends["isa_first_year"].codes
    assert {legend[c].year for c in (35, 37, 39, 41)} == set(YEARS)


def test_offset_is_found_in_any_mixture_of_years():
    plain = {y: scene(y) for y in YEARS}
    raised = {y: raster(i.values + np.uint16(1000), GRID, "s2", 0) for y, i in plain.items()}
    for late in ([2023], [2021, 2023], [2019, 2021, 2023]):
        mixed = plain | {y: raised[y] for y in late}
        found = harmonise.find_offsets(mixed)
        assert found[found.offset > 0].year.tolist() == late and set(found[found.offset > 0].by) == {"data"}
        fails(DataError, f"the image of {late[0]} carries an offset of 1000 DN that others lack", lambda m=mixed: harmonise.check_offsets(m))
    assert not harmonise.find_offsets(raised).offset.any()  # the same in all years harms no comparison
    hazy = plain | {2023: raster((plain[2023].values + np.array([500, 350, 200, 50])[:, None, None]).astype(np.uint16), GRID, "s2", 0)}
    assert not harmonise.find_offsets(hazy).offset.any()


def test_given_and_stated_offsets():
    mixed = {2021: scene(1), 2023: raster(scene(2).values + np.uint16(1000), GRID, "s2", 0)}
    stated = mixed | {2023: mixed[2023].assign_attrs(BOA_ADD_OFFSET="-1000")}
    assert harmonise.find_offsets(stated).by.tolist() == ["none seen", "metadata and data"]
    lying = mixed | {2023: mixed[2023].assign_attrs({"earthsearch:boa_offset_applied": "true"})}
    fails(DataError, "the metadata of 2023 say that its offset is gone", lambda: harmonise.find_offsets(lying))
    assert harmonise.find_offsets(lying, {2023: 1000}).offset.tolist() == [0, 1000]


def test_bad_images_each_with_its_line():
    good = {y: scene(y) for y in YEARS}
    fails(RequestError, "no image of 2019: there are 2017, 2021, 2023", lambda: harmonise.harmonise({y: i for y, i in good.items() if y != 2019}, YEARS))
    fails(DataError, "the image of 2017 and the image of 2021 are on different grids", lambda: harmonise.harmonise(good | {2021: raster(good[2021].values, GRID.translate_pix(0, 1), "s2", 0)}))
    fails(DataError, "the images have 3 and 4 bands", lambda: harmonise.harmonise(good | {2021: good[2021][:3]}))
    fails(DataError, "the image of 2021 holds no data here: the area lies outside it", lambda: harmonise.harmonise(good | {2021: raster(np.zeros_like(good[2021].values), GRID, "s2", 0)}))
    burnt = good[2021].copy(deep=True)
    burnt.values[:, :, :70] = 65535
    fails(DataError, "only 30% of the image of 2021 can be used (0% clouded, 70% saturated, 0% without data)", lambda: harmonise.harmonise(good | {2021: burnt}))


def test_a_city_outside_the_imagery_is_said(tmp_path):
    scene().rio.to_raster(tmp_path / "s2.tif")
    (tmp_path / "mine.yaml").write_text("sources:\n  mine: {title: My image, description: one image, kind: imagery, citation: none, licence: not-stated, year: 2021, access: {driver: file, options: {path: s2.tif}}}\n")
    cat = Catalog.load(overlay=tmp_path / "mine.yaml")
    fails(DataError, "mine does not overlap the asked grid", lambda: cat.open("mine", cat.area("kunming").geobox(resolution=10, size=1000)))


def test_scene_classification_is_used_and_its_grid_checked():
    good = {y: scene(y) for y in YEARS}
    scl = raster(np.full((100, 100), 4, np.uint8), GRID, "scl", 0)
    scl.values[:30] = 9
    scl.values[30:40] = 3
    usable, table = harmonise.find_flaws(good, {2021: scl})
    assert usable[2021].sum() == 6000 and table.set_index("year").cloud.to_dict() == {2017: 0, 2019: 0, 2021: 0.4, 2023: 0}
    fails(DataError, "the image of 2021 and its scene classification are on different grids", lambda: harmonise.find_flaws(good, {2021: scl[:, 1:]}))


def test_new_roofs_are_no_clouds():
    "Something bright that stays, and something small and bright in the last year, are kept."
    built = {y: scene(y) for y in YEARS}
    for y in (2021, 2023):
        built[y].values[:, 20:60, 20:60] = 3500
    built[2023].values[:, 70:85, 70:85] = 3500
    usable, _ = harmonise.find_flaws(built)
    assert all(u.all() for u in usable.values())


def test_growth_of_a_census_is_exact_and_pooled_points_are_checked():
    gen = rng(0, "census")
    start = gen.integers(0, 6, (20, 20))
    truth = {y: raster((start <= i).astype(np.uint8), GRID[:20, :20], "truth", NODATA) for i, y in enumerate(YEARS)}
    done = change.filter_series(truth, change.Errors(1e-6, 1e-6, (0.2,) * 5), weight=0)
    points = growth.change_points(done.first_year, done.rule, YEARS, 400, truth)
    table = growth.growth(points, YEARS, 1.0)
    assert table.growth.tolist() == pytest.approx([(truth[b].values.astype(int) - truth[a].values).sum() for a, b in zip(table["from"], table.to, strict=True)])
    assert table.se.max() < 1e-9 and growth.areas(points, YEARS, 1.0).se.max() < 1e-9
    fails(RequestError, "no city to pool", lambda: growth.pool({}, {}))
    fails(DataError, "the points have no reference_2021", lambda: growth.growth(points.drop(columns="reference_2021"), YEARS, 1.0))
