"""Maps: what a notebook cannot show, because a widget made in a headless run would be stored in it."""
import base64
import io

import ipywidgets
import numpy as np
import pytest
import xarray as xr
from matplotlib import pyplot as plt
from PIL import Image

from isa_nb import maps
from isa_nb.core import DataError, raster, square_geobox
from isa_nb.figures import CLASS_CODES


@pytest.fixture(autouse=True)
def no_widget_stays():
    "Maps left open would end up in the notebooks that later tests of this process stage."
    yield
    ipywidgets.Widget.close_all()



@pytest.fixture
def label() -> xr.DataArray:
    codes = np.zeros((100, 140), np.uint8)
    codes[10:30, 20:60], codes[50:60], codes[:, :3] = 1, 2, 255
    return raster(codes, square_geobox(114.3, 30.6, 2800, 20)[:100], "label", nodata=255, simulated=True)


def picture(layer) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(layer.url.partition(",")[2]))))


def test_simulated_data_gets_no_base_map_and_real_data_gets_one(label):
    assert [layer.name for layer in maps.leaf({"a": label, "b": label}).layers] == ["a", "b"]
    real = label.assign_attrs(simulated=False)
    assert [layer.name for layer in maps.leaf(real).layers] == ["OpenStreetMap", "label"]
    assert [layer.name for layer in maps.leaf(real, basemap=False).layers] == ["label"]


def test_layer_lies_where_the_raster_lies(label):
    layer, = maps.leaf(label).layers
    (south, west), (north, east) = layer.bounds
    box = label.odc.geobox.boundingbox.to_crs("EPSG:4326")
    assert np.allclose((west, south, east, north), (box.left, box.bottom, box.right, box.top), atol=2e-3)
    shown = picture(layer)
    assert max(shown.shape[:2]) in (1200, 1201)  # enlarged, so that pixels stay sharp
    opaque = shown[..., 3] > 0
    assert 0.9 < opaque.mean() < 1  # the grid of UTM is turned a little against the meridians
    share = lambda colour: (shown[opaque][:, :3] == colour).all(1).mean()  # noqa: E731
    assert share((255, 255, 255)) == pytest.approx((label == 1).mean().item(), abs=0.01)
    assert share((0xD7, 0x26, 0x3D)) == pytest.approx((label == 2).mean().item(), abs=0.01)


def test_a_large_file_is_read_thinned(tmp_path, label):
    path = tmp_path / "large.tif"
    large = np.kron(label.values, np.ones((40, 40), np.uint8))  # 4000 x 5600
    raster(large, label.odc.geobox.zoom_to(large.shape), "large", nodata=255).rio.to_raster(path, tiled=True)
    layer = maps.leaf(path, basemap=False).layers[0]
    assert layer.name == "large" and len(layer.url) < 100_000


@pytest.mark.parametrize(("kind", "dtype"), [("image", np.uint16), ("confidence", np.float32), ("classes", np.uint8)])
def test_images_values_and_classes(label, kind, dtype):
    box = label.odc.geobox
    if kind == "image":
        da = raster(np.full((4, *box.shape.yx), 900, dtype), box, kind, nodata=0)
    else:
        da = raster(np.full(box.shape.yx, 5, dtype), box, kind)
    m = maps.leaf(da, codes=CLASS_CODES, basemap=False)
    assert (picture(m.layers[0])[..., 3] > 0).any()


def test_static_picture_first_and_map_only_for_a_person(label, monkeypatch):
    shown = []
    monkeypatch.setattr(maps, "display", shown.append)
    monkeypatch.setenv("ISA_INTERACTIVE", "0")
    maps.map_cell({"a": label, "b": label})
    assert [type(o).__name__ for o in shown] == ["Figure"]
    monkeypatch.delenv("ISA_INTERACTIVE")
    monkeypatch.setenv("JPY_SESSION_NAME", "nbs/tutorials/01.ipynb")
    maps.map_cell({"a": label, "b": label})
    assert [type(o).__name__ for o in shown] == ["Figure", "Figure", "Map"]
    assert not plt.get_fignums()


def test_a_file_without_crs_or_content_says_so(tmp_path):
    bare = tmp_path / "bare.tif"
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(bare)
    with pytest.raises(DataError, match="bare.tif has no CRS"):
        maps.leaf(bare)
    with pytest.raises(DataError, match="no such file: .*absent.tif"):
        maps.leaf(tmp_path / "absent.tif")
