"JointSeg: maps finer than their imagery, boundaries, training on pairs, bad input, the real pair."
import json
from pathlib import Path

import geopandas as gpd
import nbformat
import numpy as np
import pytest
import rasterio
import shapely
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.features import geometry_mask
from torch import nn
from typer.testing import CliRunner

from isa_nb import arms, cli, jointseg, mapping, models, pairs, sr_arms
from isa_nb.cards import Spec
from isa_nb.core import NODATA, UNCERTAIN, DataError, RequestError, raster, rng, square_geobox
from isa_nb.imagery import Imagery
from isa_nb.tiling import Runner, Tiling

GRID = square_geobox(114.3, 30.6, 3000, 10)
TINY = {"features": 8, "blocks": 1, "growth": 4, "second": 0, "width": 8}
BANDS = ["blue", "green", "red", "nir"]
REAL = Path(__file__).parents[2] / "shared" / "data" / "satellogic_s2_pair"


def image(height=60, width=60, bands=4, nodata=0):
    values = rng(0, "jointseg", height, width).integers(300, 3000, (bands, height, width)).astype(np.uint16)
    return raster(values, GRID[:height, :width], "image", nodata, long_name=tuple(BANDS[:bands]))


def tiny(**more):
    spec = Spec(architecture="JointSeg", arguments={**TINY, **more}, bands=BANDS, mean=[1500.0] * 4, std=[700.0] * 4, nodata=0, resolution=10)
    return models.build(spec).eval()


@settings(max_examples=10)
@given(st.integers(1, 90), st.integers(1, 90), st.sampled_from((1, 2, 3, 10)), st.sampled_from(((64, 0), (64, 16), (32, 30))))
def test_a_finer_answer_is_reproduced_to_the_edges(height, width, scale, tiles):
    da = image(height, width, 2).astype(np.float32)
    t = Tiling.of(Runner(nn.Upsample(scale_factor=scale)), Imagery(da), *tiles, part=40, buffer=200_000)
    out = np.full((2, height * scale, width * scale), np.nan, np.float32)
    for p in range(t.along.parts):
        a, b = t.along.span(p)
        for i, s, _ in t.blend(p):
            r0, r1, skip = t.down.start(i), t.down.start(i + 1), a - scale * t.across(p)[1]
            out[:, r0:r1, a:b] = s[:, :r1 - r0, skip:skip + b - a]
    np.testing.assert_allclose(out, da.values.repeat(scale, 1).repeat(scale, 2), rtol=5e-6)
    assert t.box.boundingbox == da.odc.geobox.boundingbox


def test_a_map_of_1_m_is_255_outside_the_boundary_and_where_there_is_no_image(tmp_path):
    da, model = image(), tiny()
    da[:, :7, :] = 0
    middle = shapely.Point(*da.odc.geobox.extent.centroid.coords[0])
    city = gpd.GeoDataFrame(geometry=[middle.buffer(250)], crs=str(GRID.crs)).to_crs(4326)
    path = mapping.map_raster(model, da, tmp_path / "map.tif", 32, 8, within=city)
    with rasterio.open(path) as f, rasterio.open(mapping.probability_path(path)) as p:
        codes, share = f.read(1), p.read(1)
        assert (f.shape, f.transform.a, f.nodata, f.tags(ns="IMAGE_STRUCTURE")["LAYOUT"], f.colormap(1)[1]) == ((600, 600), 1, NODATA, "COG", (255, 255, 255, 255))
        outside = geometry_mask([city.to_crs(str(GRID.crs)).geometry[0]], f.shape, f.transform)
    outside[:70] = True
    assert ((codes == NODATA) == outside).all() and ((share == 255) == outside).all() and set(np.unique(codes[~outside])) <= {0, 1}
    whole = mapping.map_array(model, da, 32, 8).label.values
    inner = ~geometry_mask([middle.buffer(60)], whole.shape, mapping.map_array(model, da, 32, 8).label.odc.geobox.affine)
    assert (codes[inner] == whole[inner]).all()


def test_the_boundary_is_part_of_the_request(tmp_path):
    da, model = image(40, 40), nn.Upsample(scale_factor=10)
    at = shapely.Point(*da.odc.geobox.extent.centroid.coords[0])
    cities = [gpd.GeoSeries([at.buffer(r)], crs=str(GRID.crs)) for r in (100, 120)]
    path = mapping.map_raster(model, da, tmp_path / "map.tif", bands=[1, 2], within=cities[0])
    before = path.stat().st_mtime_ns
    mapping.map_raster(model, da, path, bands=[1, 2], within=cities[0])
    assert path.stat().st_mtime_ns == before
    with pytest.raises(RequestError, match="is there already, made by another request"):
        mapping.map_raster(model, da, path, bands=[1, 2], within=cities[1], overwrite=False)


def test_a_city_outside_the_imagery_and_other_bad_boundaries(tmp_path):
    model = nn.Upsample(scale_factor=10)
    shanghai = gpd.GeoSeries([shapely.box(121, 31, 122, 32)], crs=4326)
    with pytest.raises(RequestError, match="the polygons to map within lie outside the array: bring imagery of the place, EPSG:32650"):
        mapping.map_raster(model, image(40, 40), tmp_path / "map.tif", bands=[1, 2], within=shanghai)
    with pytest.raises(DataError, match="carry no CRS: set one with set_crs"):
        mapping.map_array(model, image(40, 40), bands=[1, 2], within=gpd.GeoSeries([shapely.box(0, 0, 1, 1)]))
    assert not list(tmp_path.iterdir())


def test_the_command_maps_within_a_boundary(tmp_path):
    models.save(tiny(), tmp_path / "model")
    da = image(32, 32)
    da.rio.to_raster(tmp_path / "image.tif")
    with rasterio.open(tmp_path / "image.tif", "r+") as f:
        for i, b in enumerate(BANDS, 1):
            f.set_band_description(i, b)
    gpd.GeoSeries([shapely.Point(*da.odc.geobox.extent.centroid.coords[0]).buffer(100)], crs=str(GRID.crs)).to_frame("geometry").to_file(tmp_path / "city.gpkg")
    words = ["map", *(str(tmp_path / n) for n in ("model", "image.tif", "map.tif")), "--tile", "32", "--overlap", "8", "--within", str(tmp_path / "city.gpkg"), "--stac", "2021"]
    done = CliRunner().invoke(cli.app, words)
    assert done.exit_code == 0, done.output
    with rasterio.open(tmp_path / "map.tif") as f:
        assert f.shape == (320, 320) and 0.6 < (f.read(1) == NODATA).mean() < 0.8
    assert json.loads((tmp_path / "map.json").read_text())["assets"]["map"]["raster:bands"][0]["spatial_resolution"] == 1


def test_where_the_map_is_cut_does_not_matter_to_the_network():
    "Attention looks at a neighbourhood, not at the whole tile: far from the cut, a tile and the whole give the same."
    model, x = tiny(), torch.from_numpy(image(40, 40).values[None].astype(np.float32))
    with torch.no_grad():
        whole, part = model(x)[..., 100:200, 100:200], model(x[..., :32, :32])[..., 100:200, 100:200]
    assert (whole - part).abs().max() < 1e-3 * whole.abs().max()


def pieces(n=10):
    "Pairs of a made-up place."
    gen = rng(0, "pieces")
    fine = gen.normal(1500, 300, (n, 4, 80, 80)).astype(np.float32)
    label = (fine.mean(1) > 1550).astype(np.uint8)
    return [pairs.Pair(f.reshape(4, 8, 10, 8, 10).mean((2, 4)), f, t) for f, t in zip(fine, label, strict=True)]


def test_training_on_pairs_is_repeatable_and_goes_on_where_it_stopped(tmp_path):
    arm = sr_arms.arms({k: TINY[k] for k in ("features", "blocks", "growth", "second")}, 8)[sr_arms.JOINT]
    spec, given_ = sr_arms.describe(pieces(), BANDS, resolution=10), (pieces(), pieces(4))
    how = {"epochs": 2, "steps": 4, "batch": 4, "precision": "fp32", "threads": 1}
    a, b = (sr_arms.train(arm, spec, given_, tmp_path / n, **how) for n in "ab")
    for k, v in a.model.state_dict().items():
        assert torch.equal(v, b.model.state_dict()[k])
    before = (tmp_path / "a" / "model.safetensors").stat().st_mtime_ns
    sr_arms.train(arm, spec, given_, tmp_path / "a", **how)
    assert (tmp_path / "a" / "model.safetensors").stat().st_mtime_ns == before
    with pytest.raises(RequestError, match="holds another training"):
        sr_arms.train(arm, spec, given_, tmp_path / "a", weight=0.5, **how)


def test_bands_of_20_m_and_three_bands():
    x = torch.randn(2, 6, 8, 8)
    net = jointseg.JointSeg(6, 2, **TINY, extra=2).eval()
    moved = x.clone()
    moved[:, 4:] += 1
    with torch.no_grad():
        assert net(x).shape == (2, 2, 80, 80) and not torch.allclose(net(x), net(moved))
        assert all(torch.equal(p, q) for p, q in zip(net.generator(x[:, :4]), net.generator(moved[:, :4]), strict=True))
        assert jointseg.JointSeg(3, 2, **TINY, sees="image").eval()(x[:, :3]).shape == (2, 2, 80, 80)


def test_bad_requests_in_one_line():
    with pytest.raises(RequestError, match="unknown way to enlarge 'bilnear': did you mean 'bilinear'"):
        jointseg.Upsampled(4, mode="bilnear")
    with pytest.raises(RequestError, match="unknown input of the segmenter"):
        jointseg.JointSeg(4, **TINY, sees="imge")
    with pytest.raises(DataError, match="there are no pairs to learn from"):
        sr_arms.describe([], BANDS)


def test_scores_are_those_of_scikit_learn():
    from sklearn.metrics import f1_score, precision_score, recall_score
    gen = rng(1, "scores")
    truth, said = (gen.random((60, 60)) < 0.3).astype(np.uint8), (gen.random((60, 60)) < 0.4).astype(np.uint8)
    got = sr_arms.values(arms.count({"a": [said]}, [truth], 20, 2, (UNCERTAIN, NODATA))["a"].sum(0))
    t, s = truth.ravel(), said.ravel()
    for name, value in {"mean_f1": f1_score(t, s, average="macro"), "isa_f1": f1_score(t, s), "other_f1": f1_score(t, s, pos_label=0), "isa_precision": precision_score(t, s), "isa_recall": recall_score(t, s)}.items():
        assert got[name] == pytest.approx(value)


def test_change_maps_every_year_at_1_m_with_the_joint_model_that_jointseg_left(tmp_path):
    "The experiment `change_1m`: the cells of change.ipynb with the folder of a needed jointseg."
    models.save(tiny(), tmp_path / "jointseg" / "data" / "model_joint", {})
    told = {"extent": 160, "years": [2017, 2023], "tile": 16, "overlap": 4, "block": 40, "number_of_points": 40, "out": str(tmp_path / "change"), "inputs": {"jointseg": str(tmp_path / "jointseg")}}
    names: dict = {}
    for cell in nbformat.read(Path(__file__).parents[1] / "nbs" / "experiments" / "change.ipynb", 4).cells:
        if cell.cell_type == "code":
            exec(compile(cell.source, "change.ipynb", "exec"), names)
            names.update(told if "parameters" in cell.metadata.get("tags", []) else {})
    assert names["learn"] == 2020  # the light in which the model learnt
    assert sorted(names["paths"]) == [2017, 2023]
    for path in (*names["paths"].values(), names["made"]["first_year"]):
        with rasterio.open(path) as f:
            assert (f.shape, f.res) == ((160, 160), (1, 1))
    filtered = names["moves"].query("maps == 'filtered'")
    assert filtered.lost.sum() == 0
    assert json.loads((tmp_path / "change" / "outputs.json").read_text())["experiment"] == "change_1m"


@pytest.mark.skipif(not REAL.exists(), reason="../shared/data/satellogic_s2_pair is not there")
def test_the_joint_model_trains_on_the_real_pair(tmp_path):
    "A desert without labels: bright ground stands in for a class, so this shows that training and mapping run on real units, and nothing of accuracy."
    import rioxarray
    fine = rioxarray.open_rasterio(next(REAL.glob("*_TOA.tif")))
    coarse = rioxarray.open_rasterio(next(REAL.glob("*_S2L2A.tif")))[[1, 2, 3, 7]]
    lr, hr = pairs.nest(coarse.assign_coords(band=BANDS), fine.assign_coords(band=BANDS))
    hr = pairs.as_coarse(hr, pairs.radiometry(lr, hr))
    label = raster((hr.values[2] > np.nanmedian(hr.values[2])).astype(np.uint8), hr.odc.geobox, "label", NODATA)
    some = pairs.cut(lr, hr, label, 8, 12)
    arm = sr_arms.arms({k: TINY[k] for k in ("features", "blocks", "growth", "second")}, 8)["joint, consistent"]
    done = sr_arms.train(arm, sr_arms.describe(some, BANDS, resolution=10), (some[:8], some[8:]), tmp_path / "model", epochs=1, steps=4, batch=4, precision="fp32", threads=1)
    made = mapping.map_array(done.model, lr, 32, 8)
    assert made.label.shape == hr.shape[1:] and set(np.unique(made.label)) <= {0, 1, NODATA}
    with torch.no_grad():
        drawn = done.model.net.generator(done.model.scaled(torch.from_numpy(lr.values[None].astype(np.float32))))[1] * done.model.std + done.model.mean
    back = drawn[0].reshape(4, lr.shape[1], 10, lr.shape[2], 10).mean((2, 4)).numpy()
    np.testing.assert_allclose(back, lr.values, rtol=1e-3)
