"The catalogue: every entry, overlays, faults, legends, opening; the real layers."
from pathlib import Path

import geopandas as gpd
import numpy as np
import pytest
import rasterio
import yaml
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from shapely.geometry import box

from isa_nb.catalog import Catalog, read_yaml
from isa_nb.core import LAND_COVER, DataError, RequestError, geobox_of, raster, resource, same_grid, sha256, square_geobox
from isa_nb.drivers import CLASS_KINDS
from isa_nb.entries import DOI, LICENCES

HERE = Path(__file__).parent
DATA = HERE.parent / "../shared/data"
real = pytest.mark.skipif(not DATA.exists(), reason="the real files of ../shared/data are not here")
CAT = Catalog.load()
GRID = square_geobox(116.4, 39.9, 6000, 30)


def overlay(tmp_path, text, name="mine.yaml"):
    (tmp_path / name).write_text(text, encoding="utf-8")
    return Catalog.load(overlay=tmp_path / name)


def refused(tmp_path, text, *parts):
    with pytest.raises(RequestError) as e:
        overlay(tmp_path, text)
    assert "\n" not in str(e.value)
    for p in parts:
        assert p in str(e.value), str(e.value)


# ---- every entry

@pytest.mark.parametrize("name", list(CAT.sources))
def test_source(name, tmp_path, monkeypatch):
    s = CAT.source(name)
    assert s.name == name and LICENCES.fullmatch(s.licence) and (s.doi is None or DOI.fullmatch(s.doi))
    assert not LICENCES.fullmatch(s.doi or "") and not DOI.search(s.licence)
    assert s.title[-1] != "." and s.citation and s.access.driver
    assert s.simulated == (s.access.driver == "lab") == name.startswith("lab_")
    if s.simulated:
        assert s.title.startswith("Simulated") and "simulated" in s.citation
    if s.kind in CLASS_KINDS and not s.legend:
        assert "not found" in s.note  # said, not guessed
    if s.kind in ("imagery", "vector", "continuous"):
        assert not s.legend
    if s.access.driver not in ("file", "lab"):  # without a network, or for ever: one line that says what to do
        monkeypatch.setenv("ISA_OFFLINE", "1")
        monkeypatch.setenv("ISA_CACHE", str(tmp_path))
        with pytest.raises(RequestError) as e:
            CAT.open(name, GRID)
        assert "\n" not in str(e.value)
        if s.access.driver == "manual":
            assert "fetch the files and give their place in an overlay" in str(e.value) and (s.alternative is None or f"or use {s.alternative}" in str(e.value))
        assert s.alternative is None or CAT.source(s.alternative).simulated


@pytest.mark.parametrize("name", list(CAT.legends))
def test_legend(name):
    legend = CAT.legends[name]
    names = [c.name for c in legend.codes.values() if c.isa != 255]
    assert len(names) == len(set(names))
    assert any(c.isa == 1 for c in legend.codes.values())
    for c in legend.codes.values():
        assert c.lc in (0, *LAND_COVER) and (c.lc == 0 if c.isa == 255 else True)
        assert c.isa != 0 or c.lc not in (5, 11)  # building and road are impervious
    assert name == "isa_first_year" or any(s.legend_name == name for s in CAT.sources.values())  # the first: of maps that isa_nb.change makes


@pytest.mark.parametrize("name", list(CAT.areas))
def test_area(name):
    a = CAT.area(name)
    lon, lat = a.centre
    assert a.bbox[0] < lon < a.bbox[2] and a.bbox[1] < lat < a.bbox[3] and a.citation and a.zone
    g = a.geobox(size=1600)
    assert g.shape.yx == (round(1600 / a.resolution),) * 2 and g.crs.epsg == a.geobox(resolution=1000).crs.epsg
    side = a.geobox(resolution=100).shape
    assert all(abs(n * 100 - (16_400 if name == "jiangxi" else 110_400)) < 5000 for n in side)
    roles = a.sources
    assert all(CAT.source(n).simulated for n in [*roles.products, *roles.osm, *roles.imagery, roles.truth, roles.precipitation, roles.ecoregions])
    assert "bbox" in a.inferred


def test_zones():
    assert list(CAT.zones) == ["W1", "W2", "W3", "W4"]
    bounds = [(z.precipitation.lo, z.precipitation.hi) for z in CAT.zones.values()]
    assert bounds == [(0, 200), (200, 400), (400, 800), (800, None)]
    for n, z in CAT.zones.items():
        assert CAT.area(z.area).zone == n
        facts = z.facts("Table 4").set_index("item").value
        assert list(facts.index) == ["aAcc", "mIoU", "mAcc", "mDice", "mFscore", "mPrecision", "mRecall"]
        assert facts.mAcc == facts.mRecall and facts.mDice == facts.mFscore  # methods A5
        assert set(z.facts("Table 5")["item"]) == {"oa", "kappa"}
    t3 = CAT.zone("W4").facts("Table 3").set_index("item").value
    before, after = (t3.filter(like=f"{w} OSM") for w in ("before", "after"))
    assert before[before > 1].sum() == after[after > 1].sum() == 79_605_760
    assert t3["conflicts settled by OSM"] == pytest.approx(1 - 2_364_147 / 2_423_091, abs=1e-4)


def test_the_published_codes():
    "Values that other tools have got wrong."
    gisa = CAT.legends["gisa_v1"].codes
    assert [gisa[c].year for c in (1, 2, 3, 37)] == [1972, 1978, 1985, 2019] and len(gisa) == 38
    assert all(gisa[y - 1982].year == y for y in range(1985, 2020))
    gaia = CAT.legends["gaia"].codes
    assert (gaia[34].year, gaia[1].year, gaia[29].year) == (1985, 2018, 1990)
    assert CAT.legends["glc_fcs30_2020"].codes[190].isa == 1 and CAT.legends["glc_fcs30_2020"].codes[250].isa == 255
    assert {51, 52, 91, 92, 181, 187} <= set(CAT.legends["glc_fcs30d"].codes) and 50 not in CAT.legends["glc_fcs30d"].codes
    assert CAT.legends["io_lulc_10"].codes[7].isa == 1 and 3 not in CAT.legends["io_lulc_9"].codes and CAT.legends["io_lulc_9"].codes[11].name == "rangeland"
    assert CAT.legends["dynamic_world"].codes[6].isa == 1 and CAT.legends["from_glc10"].codes[80].isa == 1
    assert [c for c, k in CAT.legends["sinolc1"].codes.items() if k.isa == 1] == [5, 11]
    assert CAT.legends["ghsl_ldsmt"].codes[6].year == 1975 and CAT.legends["gisd30"].codes[8].year == 2020
    assert CAT.source("chelsa_bio12").scale == 0.1
    # harmonisation of methods C4: class -> ESA, Esri 2020, FROM-GLC10
    want = {1: (10, 2, 20), 2: (20, 6, 40), 3: (40, 5, 10), 4: (30, 3, 30), 5: (50, 7, 80), 6: (60, 8, 90), 7: (80, 1, 60), 8: (90, 4, 50), 9: (70, 9, 100)}
    for lc, codes in want.items():
        for legend, code in zip(("esa_worldcover", "io_lulc_10", "from_glc10"), codes, strict=True):
            assert CAT.legends[legend].codes[code].lc == lc
    assert CAT.legends["esa_worldcover"].codes[100].lc == CAT.legends["from_glc10"].codes[70].lc == 10 and CAT.legends["esa_worldcover"].codes[95].lc == 1


def test_lab_and_real_products_share_legends():
    for lab, real_one in (("lab_gisa", "gisa_2019"), ("lab_glc_fcs30", "glc_fcs30_2020"), ("lab_esa", "esa_worldcover_2020"), ("lab_esri", "esri_2020"), ("lab_from_glc10", "from_glc10_2017")):
        assert CAT.source(lab).legend == CAT.source(real_one).legend and CAT.source(lab).year == CAT.source(real_one).year


def test_file_is_plain():
    text = resource("data_catalog.yaml").read_text(encoding="utf-8")
    assert text.startswith("# data_catalog.yaml") and "\t" not in text
    assert yaml.safe_load(text) == read_yaml(resource("data_catalog.yaml"))
    assert len(CAT.table()) == len(CAT.sources)


# ---- faults of a catalogue

def test_unsafe_tag(tmp_path):
    refused(tmp_path, "sources:\n  x: !!python/object/apply:os.system [touch pwned]\n", "mine.yaml: sources.x (line 2)", "!!python/object/apply:os.system is not allowed")
    refused(tmp_path, "sources: {x: {title: !Thing a}}", "the YAML tag !Thing is not allowed")
    refused(tmp_path, "sources: {lab_osm: {note: 2020-01-01}}", "sources.lab_osm.note", "dates in quotes")
    assert not (tmp_path / "pwned").exists()


def test_duplicates(tmp_path):
    refused(tmp_path, "sources:\n  a: {title: x}\n  a: {title: y}\n", "sources.a (line 3)", "'a' is given twice")
    refused(tmp_path, "legends: {m: {title: m, codes: {50: {name: a, isa: 1}, 0x32: {name: b, isa: 0}}}}", "legends.m.codes.0x32", "given twice")
    refused(tmp_path, "sources: {lab_osm: {title: one two, title: two}}", "sources.lab_osm.title", "given twice")


def test_aliases(tmp_path):
    refused(tmp_path, "sources: {a: &x {title: b}, c: *x}", "aliases (*name) are not read")
    refused(tmp_path, "sources:\n  a: &x {title: b}\n  c: {<<: *x}\n", "not")


@pytest.mark.parametrize("text,parts", [
    ("source: {}", ["unknown key 'source': did you mean 'sources'?", "allowed are areas, legends, regions, schema, sources, version, zones"]),
    ("schema: 9", ["schema 9 is not read by this version: it must be 1"]),
    ("sources: {lab_gisa: {licnce: MIT}}", ["sources.lab_gisa: licnce: unknown key", "did you mean 'licence'?", "allowed are"]),
    ("sources: {lab_gisa: {access: {driver: lab, options: {layr: gisa}}}}", ["sources.lab_gisa: access.options.layr: unknown key", "allowed are layer"]),
    ("sources: {lab_gisa: {access: {driver: lab, options: {layer: gissa}}}}", ["access.options.layer", "'gisa'", "given is 'gissa'"]),
    ("sources: {lab_gisa: {access: {driver: ftp, options: {}}}}", ["sources.lab_gisa: access", "'file'", "'ftp'"]),
    ("sources: {lab_gisa: {licence: CC BY-NC-SA 4.0}}", ["licence: 'CC BY-NC-SA 4.0' is not a known licence: write one like CC-BY-4.0"]),
    ("sources: {lab_gisa: {doi: CC-BY-4.0}}", ["doi: 'CC-BY-4.0' is not a DOI: write it as 10.xxxx/name"]),
    ("sources: {lab_gisa: {doi: 'https://doi.org/10.1000/x'}}", ["without https://doi.org/"]),
    ("sources: {lab_gisa: {crs: EPSG:99999999}}", ["crs: 'EPSG:99999999' is not a CRS: write for instance EPSG:4326"]),
    ("sources: {lab_gisa: {kind: raster}}", ["sources.lab_gisa: kind", "'classes', 'first_year', 'binary', 'continuous', 'imagery', 'vector' or 'points'", "given is 'raster'"]),
    ("sources: {lab_gisa: {legend: gisa}}", ["sources.lab_gisa: legend: unknown legend 'gisa': did you mean 'gisa_v1'?"]),
    ("sources: {lab_gisa: {legend: esa_worldcover}}", ["code 50 of esa_worldcover has no year"]),
    ("sources: {lab_gisa: {nodata: 37}}", ["nodata: 37 is also the class 'impervious since 2019' of legend gisa_v1"]),
    ("sources: {lab_gisa: {year: 1066}}", ["year", "greater than or equal to 1950"]),
    ("sources: {lab_osm: {legend: binary}}", ["a source of kind vector has no legend"]),
    ("sources: {lab_gisa: {alternative: nothing}}", ["alternative: unknown source 'nothing'"]),
    ("sources: {lab_gisa: {inferred: [nodta]}}", ["inferred names the key 'nodta', which does not exist"]),
    ("sources: {lab_gisa: {sha256: abc}}", ["sha256", "pattern"]),
    ("sources: {new_one: {title: only a title}}", ["sources.new_one: description: this key is missing"]),
    ("sources: {new_one: {title: one two, descripton: a map}}", ["sources.new_one: descripton: unknown key 'descripton': did you mean 'description'?"]),
    ("sources: {New-One: {}}", ["sources.New-One: a name is lower case letters, digits and _ (snake_case)"]),
    ("sources: {lab_gisa: 3}", ["sources.lab_gisa: must be a mapping with the keys title"]),
    ("sources: [a, b]", ["sources: must be a mapping from names to entries"]),
    ("[1, 2]", ["must be a mapping from keys to values"]),
    ("sources: {a: [}", ["mine.yaml: line 1: not valid YAML"]),
    ("legends: {m: {title: m, codes: {300: {name: a, isa: 1}}}}", ["legends.m: codes.300", "less than or equal to 255"]),
    ("legends: {m: {title: m, codes: {-1: {name: a, isa: 1}}}}", ["codes.-1", "greater than or equal to 0"]),
    ("legends: {m: {title: m, codes: {'5': {name: a, isa: 1}}}}", ["codes.5", "valid integer"]),
    ("legends: {m: {title: m, codes: {5: {name: a, isa: 3}}}}", ["codes.5.isa", "0, 1, 2 or 255"]),
    ("legends: {m: {title: m, codes: {5: {name: a, isa: 1, lc: 12}}}}", ["codes.5.lc", "less than or equal to 11"]),
    ("legends: {m: {title: m, codes: {5: {isa: 1}}}}", ["codes.5.name: this key is missing"]),
    ("legends: {m: {title: m, codes: {5: {name: a, isa: 1, yeer: 3}}}}", ["codes.5.yeer: unknown key 'yeer': did you mean 'year'?"]),
    ("legends: {m: {title: m, codes: {}}}", ["legends.m: codes", "at least 1"]),
    ("areas: {here: {title: Here, bbox: [10, 50, 9, 51]}}", ["areas.here: bbox [10.0, 50.0, 9.0, 51.0] is not west < east, south < north"]),
    ("areas: {here: {title: Here, bbox: [9, 50, 10, 51], centre: [0, 0]}}", ["lies outside bbox"]),
    ("areas: {here: {title: Here, bbox: [9, 50, 10, 51], zone: W5}}", ["areas.here: zone", "'W1', 'W2', 'W3' or 'W4'"]),
    ("areas: {here: {title: Here, bbox: [9, 50, 10, 51], sources: {products: [lab_gissa]}}}", ["sources.products: unknown source 'lab_gissa': did you mean 'lab_gisa'?"]),
    ("areas: {here: {title: Here, bbox: [9, 50, 10, 51], sources: {product: [lab_gisa]}}}", ["sources.product: unknown key 'product': did you mean 'products'?"]),
    ("areas: {urumqi: null}", ["data_catalog.yaml: zones.W1: area: needs the area 'urumqi', which mine.yaml removes: remove or change this entry there too"]),
    ("sources: {lab_gisa: null}", ["needs the source 'lab_gisa', which mine.yaml removes"]),
    ("sources: {nothing: null}", ["sources.nothing: unknown source 'nothing'"]),
    ("regions: {mine: {title: Mine, provinces: [Hubei]}}", ["mine.yaml: regions.mine: provinces: 'Hubei' is also in central: keep it in one of them"]),
    ("zones: {W1: {precipitation: {lo: -5}}}", ["zones.W1: precipitation.lo", "greater than or equal to 0"]),
    ("zones: {W1: {published: [{table: T, item: x, value: much, citation: c}]}}", ["zones.W1: published.0.value", "valid number"]),
])
def test_malformed(tmp_path, text, parts):
    refused(tmp_path, text, "mine.yaml", *parts)


def test_missing_and_binary_catalogue(tmp_path):
    with pytest.raises(RequestError, match="no such catalogue"):
        Catalog.load(overlay=tmp_path / "none.yaml")
    (tmp_path / "b.yaml").write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(RequestError, match="cannot be read: give a YAML file"):
        Catalog.load(overlay=tmp_path / "b.yaml")
    with pytest.raises(RequestError):
        Catalog.load(overlay=tmp_path)
    deep = "a: " + "[" * 3_000
    refused(tmp_path, deep, "mine.yaml")


@settings(max_examples=60)
@given(text=st.text(max_size=200))
def test_any_text_is_refused_in_one_line_or_read(tmp_path_factory, text):
    path = tmp_path_factory.mktemp("any") / "any.yaml"
    path.write_text(text, encoding="utf-8", errors="ignore", newline="")
    try:
        assert isinstance(read_yaml(path), dict)
    except RequestError as e:
        assert "\n" not in str(e)


# ---- overlays

def tiff(path, values, nodata=None, crs="EPSG:4326"):
    with rasterio.open(path, "w", driver="GTiff", width=values.shape[1], height=values.shape[0], count=1, dtype=values.dtype, crs=crs, nodata=nodata,
                       transform=Affine(0.0005, 0, 116.3, 0, -0.0005, 40.0)) as d:
        d.write(values, 1)
    return path


def test_overlay_changes_access_and_finds_files_beside_itself(tmp_path):
    values = np.full((400, 400), 33, np.uint8)
    (tmp_path / "tiles").mkdir()
    tiff(tmp_path / "tiles/GISA_v01_1972_2019_40N_115E.tif", values)
    cat = overlay(tmp_path, "sources: {gisa_2019: {access: {driver: file, options: {path: tiles/GISA_*.tif}}}}")
    s = cat.source("gisa_2019")
    assert s.citation == CAT.source("gisa_2019").citation and s.access.options.path == str(tmp_path / "tiles/GISA_*.tif")
    got = cat.open("gisa_2019", GRID, year=2014)
    same_grid(got, GRID)
    assert got.attrs["year"] == 2014 and not got.attrs["simulated"] and got.attrs["licence"] == "CC-BY-4.0" and "Huang" in got.attrs["citation"]
    assert (s.to_isa(got) == 0).all() and (s.to_isa(cat.open("gisa_2019", GRID)) == 1).all() and (s.to_isa(got, year=2015) == 1).all()
    with pytest.raises(RequestError, match="gisa_2019 has no year 1980: it has 1972 to 2019"):
        cat.open("gisa_2019", GRID, year=1980)


def test_overlay_adds_a_product(tmp_path):
    tiff(tmp_path / "mine.tif", np.tile(np.array([3, 9], np.uint8), (400, 200)))
    cat = overlay(tmp_path, """
legends:
  mine: {title: Mine, codes: {3: {name: field, isa: 0, lc: 3}, 9: {name: town, isa: 1, lc: 5}}}
sources:
  mine:
    {title: My map, description: a map, kind: classes, legend: mine, citation: I myself, licence: CC0-1.0, year: 2022,
     access: {driver: file, options: {path: mine.tif}}}
areas:
  mine: {title: Mine, bbox: [116.35, 39.85, 116.4, 39.9], sources: {products: [mine, lab_gisa]}}
""")
    got = cat.open("mine", "mine")
    assert set(np.unique(cat.source("mine").to_isa(got))) == {0, 1} and set(np.unique(cat.source("mine").to_lc(got))) == {3, 5}
    with pytest.raises(RequestError, match="mine has no year 2019: it has 2022"):
        cat.open("mine", "mine", year=2019)


def test_overlay_of_an_overlay(tmp_path):
    (tmp_path / "a.yaml").write_text("sources: {lab_osm: {note: first, unit: x}}\nzones: {W1: null, W2: null}\n")
    (tmp_path / "b.yaml").write_text("sources: {lab_osm: {note: second}}\n")
    cat = Catalog.load(overlay=[tmp_path / "a.yaml", tmp_path / "b.yaml"])
    assert (cat.source("lab_osm").note, cat.source("lab_osm").unit, list(cat.zones)) == ("second", "x", ["W3", "W4"])
    assert [p.name for p in cat.paths] == ["data_catalog.yaml", "a.yaml", "b.yaml"]


def test_nodata_null_overrules_the_file(tmp_path):
    tiff(tmp_path / "a.tif", np.full((400, 400), 255, np.uint8), nodata=255)
    entry = "sources: {{wsf_2015: {{nodata: {}, access: {{driver: file, options: {{path: a.tif}}}}}}}}"
    for word in ("null", "none"):
        cat = overlay(tmp_path, entry.format(word))
        got = cat.open("wsf_2015", GRID)
        assert got.rio.nodata == 254 and (cat.source("wsf_2015").to_isa(got) == 1).all()
    beyond = cat.open("wsf_2015", square_geobox(116.3, 40.0, 6000, 30))
    assert beyond.rio.nodata == 254 and set(np.unique(cat.source("wsf_2015").to_isa(beyond))) == {1, 255}


def test_hash(tmp_path):
    tiff(tmp_path / "a.tif", np.full((400, 400), 50, np.uint8))
    text = "sources: {esa_worldcover_2020: {sha256: %s, access: {driver: file, options: {path: a.tif}}}}"
    assert overlay(tmp_path, text % sha256(tmp_path / "a.tif")).open("esa_worldcover_2020", GRID).shape == (200, 200)
    with pytest.raises(DataError, match="is not the file that esa_worldcover_2020 means: its SHA-256 begins"):
        overlay(tmp_path, text % ("ab" * 32)).open("esa_worldcover_2020", GRID)


# ---- codes

def test_codes_outside_the_legend(tmp_path):
    s = CAT.source("glc_fcs30_2020")
    values = np.full((200, 200), 190, np.uint8)
    values[0, :3], values[1, :2] = 7, 99
    with pytest.raises(DataError, match=r"2 codes outside its legend: 7 \(3 pixels\), 99 \(2 pixels\)") as e:
        s.to_isa(raster(values, GRID, "x", nodata=250))
    assert "\n" not in str(e.value)
    assert (s.to_isa(raster(np.where(values == 190, values, 250).astype(np.uint8), GRID, "x")).values[0, :3] == 255).all()


def test_wide_integers_and_nodata_beyond_a_byte():
    s = CAT.source("esa_worldcover_2020")
    values = np.full((200, 200), 50, np.int32)
    values[0, 0] = -9999
    got = s.to_isa(raster(values, GRID, "x", nodata=-9999))
    assert got.dtype == np.uint8 and got.values[0, 0] == 255 and got.values[0, 1] == 1 and got.rio.nodata == 255
    with pytest.raises(DataError, match=r"-9999 \(1 pixels\)"):
        s.to_isa(raster(values, GRID, "x"))


def test_nodata_that_is_a_class_and_floats():
    s = CAT.source("esa_worldcover_2020")
    with pytest.raises(DataError, match="nodata 50 is also the class 'built-up': state `nodata: none`"):
        s.to_isa(raster(np.full((200, 200), 50, np.uint8), GRID, "x", nodata=50))
    with pytest.raises(DataError, match="float32 values where class codes are due"):
        s.to_isa(raster(np.full((200, 200), 50, np.float32), GRID, "x"))
    with pytest.raises(DataError, match="a ndarray without a grid was given: pass on what Catalog.open returns"):
        s.to_isa(np.full((200, 200), 50, np.uint8))


def test_no_legend():
    with pytest.raises(RequestError, match="nuaci has no legend in the catalogue: add one in an overlay"):
        CAT.source("nuaci").isa_lut()
    with pytest.raises(RequestError, match="no legend"):
        CAT.source("nuaci").to_lc(raster(np.zeros((200, 200), np.uint8), GRID, "x"))


@pytest.mark.parametrize("name", [n for n, s in CAT.sources.items() if s.legend and s.kind in CLASS_KINDS])
def test_lookup_tables(name):
    s = CAT.source(name)
    lut, known = s.isa_lut()
    assert lut.dtype == np.uint8 and lut.shape == (256,) and set(np.unique(lut)) <= {0, 1, 255} and known == set(s.legend)
    assert all(lut[c] == 255 for c in range(256) if c not in known)
    assert set(np.unique(s.lc_lut())) <= {0, *LAND_COVER}


@given(a=st.integers(1985, 2019), b=st.integers(1985, 2019))
@settings(max_examples=30)
def test_imperviousness_only_grows(a, b):
    s = CAT.source("gisa_2019")
    early, late = (s.isa_lut(y)[0] for y in sorted((a, b)))
    assert ((early == 1) <= (late == 1)).all()
    assert (s.isa_lut(a)[0] == 1).sum() == a - 1982  # ISA(Y) = 0 < v <= Y - 1982


# ---- opening

def test_areas_and_grids():
    with pytest.raises(RequestError, match="unknown area 'wuhn': did you mean 'wuhan'?"):
        CAT.open("lab_gisa", "wuhn")
    with pytest.raises(RequestError, match="unknown source 'gissa'"):
        CAT.open("gissa", "wuhan")
    with pytest.raises(RequestError, match="empty bounding box"):
        CAT.open("lab_gisa", (2, 0, 1, 1))
    with pytest.raises(RequestError, match="is not understood: give a name, a bounding box"):
        CAT.open("lab_gisa", (2, 0, 1))
    with pytest.raises(RequestError, match="simulated source without an end"):
        CAT.open("lab_gisa")
    with pytest.raises(RequestError, match="is 360 degrees wide, too much for one UTM zone: ask for a part of it"):
        CAT.grid((-180, -80, 180, 80))
    with pytest.raises(RequestError, match="resolution -5: give a pixel side above 0"):
        CAT.area("wuhan").geobox(resolution=-5)
    with pytest.raises(RequestError, match="a square of -1000 m with pixels of 10 m"):
        square_geobox(10, 50, -1000, 10)
    with pytest.raises(RequestError, match="year '2019' of lab_gisa: give a whole number, without quotes"):
        CAT.open("lab_gisa", GRID, "2019")
    assert CAT.grid("wuhan", size=3200).shape.yx == (200, 200)
    assert CAT.grid((116, 39.8, 116.1, 39.9), resolution=100).resolution.x == 100


def test_class_rasters_are_never_averaged(tmp_path):
    with pytest.raises(RequestError, match="resampling 'bilinear' does not fit lab_esa, which holds classes"):
        CAT.open("lab_esa", GRID, resampling="bilinear")
    with pytest.raises(RequestError, match="which is continuous"):
        CAT.open("lab_precipitation", GRID, resampling="mode")


def test_float_file_for_a_class_source(tmp_path):
    tiff(tmp_path / "a.tif", np.full((400, 400), 50, np.float32))
    cat = overlay(tmp_path, "sources: {esa_worldcover_2020: {access: {driver: file, options: {path: a.tif}}}}")
    with pytest.raises(DataError, match="esa_worldcover_2020 holds float32 values where class codes are due"):
        cat.open("esa_worldcover_2020", GRID)


def test_wrong_crs_against_the_entry(tmp_path):
    tiff(tmp_path / "a.tif", np.full((400, 400), 50, np.uint8), crs="EPSG:32650")
    text = "sources: {esa_worldcover_2020: {access: {driver: file, options: {path: a.tif%s}}}}"
    with pytest.raises(DataError, match="has the CRS EPSG:32650 and the catalogue entry says EPSG:4326: correct `crs` there, or overrule the file with access.options.crs"):
        overlay(tmp_path, text % "").open("esa_worldcover_2020", GRID)
    got = overlay(tmp_path, text % ", crs: EPSG:4326").open("esa_worldcover_2020", GRID)
    assert (got == 50).all()


def test_scale(tmp_path):
    tiff(tmp_path / "a.tif", np.array([[6000, 65535]] * 2, np.uint16).repeat(200, 0).repeat(200, 1), nodata=65535)
    cat = overlay(tmp_path, "sources: {chelsa_bio12: {access: {driver: file, options: {path: a.tif}}}}")
    got = cat.open("chelsa_bio12", GRID)
    assert got.dtype == np.float32 and got.attrs["unit"] == "mm" and np.isnan(got.rio.nodata)
    assert np.nanmax(got) == np.nanmin(got) == pytest.approx(600)


def test_vector_source(tmp_path):
    gpd.GeoDataFrame({"k": [1]}, geometry=[box(116.38, 39.88, 116.42, 39.92)], crs="EPSG:4326").to_file(tmp_path / "b.gpkg")
    cat = overlay(tmp_path, "sources: {ms_buildings: {access: {driver: file, options: {path: b.gpkg}}}}")
    got = cat.open("ms_buildings", GRID)
    assert len(got) == 1 and got.attrs["licence"] == "ODbL-1.0" and got.crs == GRID.crs and got.attrs["simulated"] is False


LAB = [n for n, s in CAT.sources.items() if s.access.driver == "lab"]


@pytest.mark.parametrize("name", LAB)
def test_lab_source(name):
    s = CAT.source(name)
    grid = square_geobox(116.4, 39.9, 480, 2 if name == "lab_hr" else 16)
    got = CAT.open(name, grid)
    assert got.attrs["simulated"] is True and got.attrs["source"] == name and got.attrs["seed"] == 0
    if s.kind == "vector":
        assert got.crs == grid.crs
        return
    same_grid(got, grid)
    if s.kind == "imagery":
        assert got.dims == ("band", "y", "x") and got.band.values.tolist() == ["blue", "green", "red", "nir"] and got.dtype == np.uint16
    elif s.kind in CLASS_KINDS:
        assert set(np.unique(s.to_isa(got))) <= {0, 1, 255} and set(np.unique(s.to_lc(got))) <= {0, *LAND_COVER}
    assert np.array_equal(got.values, CAT.open(name, grid).values)


def test_lab_climate_gives_each_area_its_zone():
    climate = pytest.importorskip("isa_nb.lab.climate")
    for name in ("urumqi", "ili", "beijing", "wuhan", "jiangxi"):
        a = CAT.area(name)
        assert climate.zone_at(*a.centre) == a.zone


def test_lab_truth_is_whole_and_a_window_of_it_too():
    grid = square_geobox(116.4, 39.9, 960, 16)
    whole, part = CAT.open("lab_truth_isa", grid), CAT.open("lab_truth_isa", grid[10:40, 5:50])
    assert (whole.values[10:40, 5:50] == part.values).all() and set(np.unique(whole)) <= {0, 1}


# ---- the real layers

REAL = HERE / "real/catalog.yaml"


@real
def test_real_catalogue():
    cat = Catalog.load(overlay=REAL)
    assert list(cat.zones) == ["W3"] and cat.area("beijing").sources.osm == [] and cat.area("beijing").sources.truth is None
    assert [a for a, v in cat.areas.items() if v.experiments and a not in CAT.areas] == ["shaanxi", "helsinki", "massachusetts", "lataseno", "desert", "rotterdam", "jaca"]
    for n in (n for n in cat.sources if n.startswith("real_")):
        assert not cat.source(n).simulated


@real
def test_real_beijing():
    cat = Catalog.load(overlay=REAL)
    grid = cat.area("beijing").geobox()
    shares = {}
    for n in cat.area("beijing").sources.products:
        isa = cat.source(n).to_isa(cat.open(n, grid))
        assert geobox_of(isa).crs.epsg == 32650 and set(np.unique(isa)) == {0, 1}
        shares[n] = float(isa.mean())
    assert shares["real_from_glc_2015"] == max(shares.values()) or shares["real_from_glc_2015"] > shares["real_from_glc_2013"]
    assert {cat.source(n).year for n in shares} == {2013, 2015, 2017}


@real
def test_real_zoning_layers():
    cat = Catalog.load(overlay=REAL)
    rain, eco = cat.open("real_worldclim_bio12"), cat.open("real_ecoregions2017")
    assert rain.shape == (900, 2160) and len(eco) >= 840 and eco.geometry.is_valid.all()
    assert len(cat.open("real_china")) == 1 and len(cat.open("real_china_provinces")) == 34


@real
@pytest.mark.parametrize("name,area,layers", [("real_osm_shaanxi", "shaanxi", {"traffic", "traffic_a", "transport", "transport_a"}), ("real_osm_helsinki", "helsinki", {"buildings_a", "roads", "water_a"})])
def test_real_osm(name, area, layers):
    cat = Catalog.load(overlay=REAL)
    got = cat.open(name, area)
    assert layers <= set(got.layer) and set(got.columns) - {"tunnel"} == {"layer", "fclass", "code", "osm_id", "geometry"} and got.attrs["problems"]


@real
def test_real_corine_of_lataseno_fits_the_legend(tmp_path):
    text = f"sources: {{clc2018_fi20m: {{access: {{driver: file, options: {{path: '{(DATA / 's2_clc_lataseno/clc_2018_lataseno.tif').resolve()}'}}}}}}}}"
    cat = overlay(tmp_path, text)
    s2 = rasterio.open(DATA / "s2_clc_lataseno/s2_lataseno_ex.tif")
    whole = cat.open("clc2018_fi20m")
    isa, lc = cat.source("clc2018_fi20m").to_isa(whole), cat.source("clc2018_fi20m").to_lc(whole)
    assert float((isa == 1).mean()) < 0.01 and {1, 2, 8} <= set(np.unique(lc)) and (isa.values == 255).sum() >= (whole.values == 255).sum()
    near = cat.open("clc2018_fi20m", (22.39, 68.486, 22.48, 68.506), resolution=20)
    assert geobox_of(near).crs.epsg == 32634 and s2.crs.to_epsg() == 25835


@real
def test_real_image_whose_nodata_is_wrong(tmp_path):
    path = (DATA / "mass_buildings_1m/22978945_15.tif").resolve()
    cat = overlay(tmp_path, f"""
sources:
  roofs: {{title: Aerial image, description: 1 m RGB, kind: imagery, citation: MassGIS, licence: not-stated, crs: EPSG:26986, resolution: 1, nodata: none,
          bands: [red, green, blue], access: {{driver: file, options: {{path: '{path}'}}}}}}
""")
    got = cat.open("roofs")
    assert got.rio.nodata is None and got.band.values.tolist() == ["red", "green", "blue"]
    with pytest.raises(DataError, match="roofs declares no nodata and the asked grid reaches beyond it"):
        cat.open("roofs", (-71.16, 42.29, -71.12, 42.31), resolution=10)


def test_example_of_the_readme_loads(tmp_path):
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    (tmp_path / "mine.yaml").write_text(readme.split("```yaml\n")[1].split("```")[0], encoding="utf-8")
    cat = Catalog.load(overlay=tmp_path / "mine.yaml")
    assert cat.area("wuhan").sources.products == ["my_product", "lab_glc_fcs30"]
    assert cat.source("my_product").isa_lut()[0][[0, 1]].tolist() == [0, 1]
