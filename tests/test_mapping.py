"Maps of models: exact to the edges, nodata, bands, resumed after kill -9, on workers, within memory, bad input."
import json
import os
import signal
import subprocess
import sys
import textwrap
import warnings
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.enums import ColorInterp
from torch import nn

from isa_nb import mapping, models
from isa_nb.core import DataError, RequestError, raster, rng, square_geobox
from isa_nb.imagery import Imagery
from isa_nb.mapping import Job, fingerprint, make_parts, map_array, map_raster, probability_path
from isa_nb.tiling import Runner, Tiling, axis

GRID = square_geobox(114.3, 30.6, 1400 * 10, 10)


def same(x):
    return x


def array(shape, dtype="float32", nodata=None, **attrs):
    "Random values 1..3000."
    return raster(rng(0, "mapping test", *shape).integers(1, 3000, shape).astype(dtype), GRID[:shape[1], :shape[2]], "image", nodata=nodata, **attrs)


def scores(t: Tiling) -> np.ndarray:
    "(n, y, x) blended scores of all panels."
    out = np.full((t.n, t.rows.size, t.cols.size), np.nan, np.float32)
    for p in range(t.cols.parts):
        a, b = t.cols.span(p)
        for i, s, _ in t.blend(p):
            r0, r1, skip = t.rows.start(i), t.rows.start(i + 1), a - t.across(p)[1]
            out[:, r0:r1, a:b] = s[:, :r1 - r0, skip:skip + b - a]
    return out


def save(path, values, nodata=None, box=None, **options):
    with rasterio.open(path, "w", driver="GTiff", height=values.shape[1], width=values.shape[2], count=len(values), dtype=values.dtype, crs="EPSG:32650",
                       transform=(box or GRID).affine, nodata=nodata, **options) as f:
        f.write(values)
    return path


def read(path, band=1):
    with rasterio.open(path) as f:
        return f.read(band)


# ---- exactness


@pytest.mark.parametrize("shape", [(1000, 1000), (300, 700), (256, 256), (257, 255), (100, 900), (31, 33), (1, 700), (700, 1), (1, 1)])
@pytest.mark.parametrize(("tile", "overlap"), [(256, 64), (256, 0), (200, 150)])
def test_what_is_seen_comes_out(shape, tile, overlap):
    image = array((2, *shape))
    got = scores(Tiling.of(Runner(same), Imagery(image), tile, overlap))
    assert got.shape == image.shape and np.abs(got / image.values - 1).max() <= 1e-6  # nothing is missing either: no NaN passes


@given(st.integers(1, 900), st.integers(1, 300), st.floats(0, 0.99))
@settings(max_examples=150)
def test_weights_add_up_to_one(size, tile, share):
    a, total = axis(size, tile, int(share * tile)), np.zeros(1300)
    for f, w in zip(a.first, a.weights, strict=True):
        assert (w > 0).all()
        total[f:f + a.side] += w
    assert np.abs(total[:size] - 1).max() < 1e-6 and (a.side <= tile)
    spans = [a.span(p) for p in range(a.parts)]
    assert spans[0][0] == 0 and spans[-1][1] == size and all(x[1] == y[0] for x, y in zip(spans, spans[1:], strict=False))


def test_a_network_is_blended_as_the_formula_says():
    "Against weights and sums written out tile by tile in double precision."
    torch.manual_seed(0)
    net, image = nn.Sequential(nn.Conv2d(3, 8, 5, padding=2), nn.ReLU(), nn.Conv2d(8, 4, 3, padding=1)), array((3, 330, 410)) / 3000
    tile, overlap = 128, 32
    got = scores(Tiling.of(Runner(net), Imagery(image), tile, overlap))
    bell = np.maximum(np.exp(-0.5 * ((np.arange(tile) - (tile - 1) / 2) / (tile / 8)) ** 2), 1e-3)
    above, below = np.zeros((4, 330, 410)), np.zeros((330, 410))
    first = lambda size: [*range(0, size - tile, tile - overlap), size - tile]  # noqa: E731
    for r in first(330):
        for c in first(410):
            with torch.no_grad():
                y = net(torch.from_numpy(image.values[None, :, r:r + tile, c:c + tile]))[0].numpy()
            above[:, r:r + tile, c:c + tile] += y * np.outer(bell, bell)
            below[r:r + tile, c:c + tile] += np.outer(bell, bell)
    assert np.abs(got - above / below).max() < 1e-5


def test_panels_and_strips_change_nothing():
    "A buffer so small that columns are split gives the same bits, from wherever the work begins."
    torch.manual_seed(0)
    net, image = nn.Conv2d(2, 3, 5, padding=2), Imagery(array((2, 700, 900)))
    whole, split = Tiling.of(Runner(net), image, 128, 32), Tiling.of(Runner(net), image, 128, 32, part=1, buffer=4 * 3 * 128 * 500)
    assert whole.cols.parts == 1 and split.cols.parts > 2 and split.rows.parts > 6
    want = scores(whole)
    assert (scores(split) == want).all()
    for strip in (5, 2):
        i, s, _ = next(split.blend(1, strip, strip + 1))  # good until the next is asked for
        (r0, r1), (a, b), skip = split.rows.span(strip), split.cols.span(1), split.cols.span(1)[0] - split.across(1)[1]
        assert i == strip and (s[:, :r1 - r0, skip:skip + b - a].numpy() == want[:, r0:r1, a:b]).all()


def test_batches_give_the_same_classes():
    net, image = nn.Conv2d(2, 3, 3, padding=1), array((2, 300, 900))
    a, b = (map_array(net, image, 128, 32, batch=n) for n in (1, 3))
    assert (a.label == b.label).mean() > 0.9999 and np.abs(a.probability - b.probability).max() < 1e-5


# ---- nodata


def two(x):
    return torch.stack([x[:, 0] - 1500, 1500 - x[:, 0]], 1)


def test_nodata_in_is_nodata_out():
    image = array((2, 500, 600), "uint16", nodata=0)
    image[:, 100:220, 250:] = 0
    image[0, 300, 300] = 0  # one band only
    want = np.zeros((500, 600), bool)
    want[100:220, 250:] = True
    got = map_array(two, image, 128, 32)
    assert (got.label.values == 255).tolist() == want.tolist() and np.isnan(got.probability.values).tolist() == want.tolist()
    want[300, 300] = True
    assert ((map_array(two, image, 128, 32, void="any").label.values == 255) == want).all()
    assert (map_array(two, image, 128, 32, nodata="none").label.values != 255).all()
    assert (map_array(two, image, 128, 32, nodata=int(image[0, 5, 5]), void="any").label.values[5, 5]) == 255


@pytest.mark.parametrize("how", ["nan", "mask", "alpha", "nan and nodata"])
def test_nodata_of_every_kind(tmp_path, how):
    values = array((2, 200, 300), "float32" if "nan" in how else "uint8").values
    void = np.zeros((200, 300), bool)
    void[40:90, 10:250] = True
    path = tmp_path / "image.tif"
    if "nan" in how:
        values[1, void] = np.nan  # in one band only
        if "nodata" in how:
            values[:, 150:] = -9
            void[150:] = True
        save(path, values, nodata=-9 if "nodata" in how else None)
    elif how == "mask":
        with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
            save(path, values)
            with rasterio.open(path, "r+") as f:
                f.write_mask(~void)
    else:
        save(path, np.concatenate([values, np.where(void, 0, 255).astype("uint8")[None]]))
        with rasterio.open(path, "r+") as f:
            f.colorinterp = (ColorInterp.grey, ColorInterp.undefined, ColorInterp.alpha)
    out = map_raster(same, path, tmp_path / "map.tif", 128, 32)  # two bands, without alpha
    assert ((read(out) == 255) == void).all() and ((read(probability_path(out)) == 255) == void).all()


def test_what_a_model_sees_of_nodata():
    "A plain network sees 0; a model with a description sees no number, and makes an average pixel of it. Tiles without data are not looked at."
    image = array((2, 400, 400), "uint16", nodata=0)
    image[:, :, 100:] = 0
    seen = []

    class Watcher:
        def __init__(self, spec=None):
            if spec:
                self.spec = spec

        def __call__(self, x):
            seen.append(x.clone())
            return two(x)

    map_array(Watcher(), image, 128, 0)
    assert len(seen) == 1 + 4 and all((x[..., 100:] == 0).all() and (x[..., :100] > 0).all() for x in seen[1:])
    seen.clear()
    spec = models.Spec(architecture="ResNeStASPP", bands=["a", "b"], mean=[1500.0] * 2, std=[800.0] * 2)
    map_array(Watcher(spec), image, 128, 0)
    assert all(x[..., 100:].isnan().all() for x in seen[1:])
    assert (models.Model(nn.Identity(), spec).scaled(seen[1])[..., 100:] == 0).all()


def test_an_image_without_any_data(tmp_path):
    image = array((2, 200, 300), "uint16", nodata=0) * np.uint16(0)
    image = image.rio.write_nodata(0)
    assert (read(map_raster(two, image, tmp_path / "map.tif")) == 255).all()


# ---- files


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    "1400 x 300 px in tiles, with names; a small network. Three parts."
    folder = tmp_path_factory.mktemp("scene")
    path = save(folder / "image.tif", array((3, 1400, 300), "uint16").values, nodata=0, tiled=True, blockxsize=256, blockysize=256, compress="deflate")
    with rasterio.open(path, "r+") as f:
        f.descriptions = ("blue", "green", "red")
        f.update_tags(simulated="yes", licence="CC0", source="lab")
    torch.manual_seed(1)
    return path, nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 2, 1)), folder


OPTIONS = {"tile": 160, "overlap": 32}


@pytest.fixture(scope="module")
def whole(scene):
    path, net, folder = scene
    return map_raster(net, path, folder / "whole.tif", **OPTIONS)


def assert_same(a: Path, b: Path) -> None:
    assert a.read_bytes() == b.read_bytes() and probability_path(a).read_bytes() == probability_path(b).read_bytes()


def test_files_are_what_memory_is(scene, whole):
    path, net, _ = scene
    made = map_array(net, path, **OPTIONS)
    with rasterio.open(whole) as f, rasterio.open(probability_path(whole)) as p:
        assert (f.read(1) == made.label.values).all() and len(np.unique(made.label)) == 2
        assert np.abs(p.read(1) / 100 - made.probability.values).max() < 0.00501
        for x in (f, p):
            assert (x.tags(ns="IMAGE_STRUCTURE")["LAYOUT"], x.nodata, x.dtypes, x.compression.name, x.overviews(1)) == ("COG", 255, ("uint8",), "zstd", [2, 4])
            assert (x.crs.to_epsg(), x.shape, x.transform) == (32650, (1400, 300), GRID.affine)
        assert f.colormap(1)[1][:3] == (255, 255, 255) and f.colormap(1)[0] != f.colormap(1)[255] and p.scales == (0.01,)
        tags = f.tags()
    assert json.loads(tags["classes"]) == {"0": "pervious", "1": "impervious"} and json.loads(tags["bands"]) == ["blue", "green", "red"]
    assert tags["simulated"] == "yes" and json.loads(tags["licences"]) == ["CC0"] and tags["overlap"] == "32"


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_make_the_same_bytes(scene, whole, tmp_path, threads):
    path, net, _ = scene
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)  # of PyTorch itself, which would add up in another order
        assert_same(map_raster(net, path, tmp_path / "map.tif", **OPTIONS, threads=threads), whole)
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


def test_a_vrt_is_a_source(scene, whole, tmp_path):
    from rasterio.shutil import copy
    copy(scene[0], tmp_path / "image.vrt", driver="VRT")
    assert (read(map_raster(scene[1], tmp_path / "image.vrt", tmp_path / "map.tif", **OPTIONS)) == read(whole)).all()


@pytest.mark.parametrize("shape", [(1, 900), (900, 1), (40, 50), (513, 64)])
def test_files_of_odd_shapes(tmp_path, shape):
    image = array((2, *shape))
    out = map_raster(same, image, tmp_path / "map.tif")
    assert (read(out) == image.values.argmax(0)).all() and sorted(p.name for p in tmp_path.iterdir()) == ["map.tif", "map_probability.tif"]


def test_parts_in_any_order(scene, whole, tmp_path):
    path, net, _ = scene
    runner = Runner(net)
    with runner.ready():
        job = Job.of(runner, Imagery(path), 160, 32, None)
        for strip in reversed(range(job.tiling.rows.parts)):
            make_parts(job, tmp_path, 0, strip, strip + 1)
    (tmp_path / "request.json").write_text(json.dumps(job.request()))
    tmp_path.rename(folder := tmp_path.with_name(".map.tif.parts"))
    done = []
    out = map_raster(net, path, folder.with_name("map.tif"), **OPTIONS, overwrite=False, progress=lambda i, n: done.append((i, n)))
    assert done == [(3, 3)]  # all were there
    assert_same(out, whole)


SLOW = """
import sys, time, torch
from torch import nn
from isa_nb import mapping
class Slow(nn.Sequential):
    def forward(self, x):
        time.sleep({pause})
        return super().forward(x)
torch.manual_seed(1)
net = Slow(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 2, 1))
for out in {out!r}:
    mapping.map_raster(net, {path!r}, out, tile=160, overlap=32, progress=lambda i, n: print(i, n, flush=True))
"""


def test_killed_and_started_again(scene, whole, tmp_path):
    path, out, fresh = str(scene[0]), tmp_path / "map.tif", tmp_path / "fresh.tif"
    run = subprocess.Popen([sys.executable, "-c", SLOW.format(pause=0.1, path=path, out=[str(out)])], stdout=subprocess.PIPE, text=True)
    said = [run.stdout.readline(), run.stdout.readline()]
    run.send_signal(signal.SIGKILL)
    run.wait()
    assert said == ["0 3\n", "1 3\n"] and not out.exists() and (tmp_path / ".map.tif.parts" / "part_000_00000.tif").exists()
    again = subprocess.run([sys.executable, "-c", SLOW.format(pause=0, path=path, out=[str(out), str(fresh)])], capture_output=True, text=True, check=True).stdout.splitlines()
    first = again[:again.index("0 3")]
    assert first[0] in ("1 3", "2 3") and first[-1] == "3 3"  # went on where it had stopped
    assert_same(out, fresh)
    assert read(out).tolist() == read(whole).tolist()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["fresh.tif", "fresh_probability.tif", "map.tif", "map_probability.tif"]


def broken_off(model, path, out, **options):
    "A map of which one part is made."
    def stop(done, of):
        if done == 1:
            raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        map_raster(model, path, out, **OPTIONS, **options, progress=stop)


def changed(scene, what, folder):
    "Model, source and options of which one is another."
    path, net, _ = scene
    options = dict(OPTIONS)
    if what == "model":
        net = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 2, 1))
        net.load_state_dict(scene[1].state_dict())
        with torch.no_grad():
            net[0].weight[0, 0, 0, 0] += 1e-3
    elif what == "imagery":
        copy = folder / "image.tif"
        copy.write_bytes(path.read_bytes())
        os.utime(copy, ns=(0, 0))
        path = copy
    else:
        options |= {"overlap": 16} if what == "overlap" else {"batch": 2} if what == "batch" else {"legend": mapping.LEGENDS["isa"] | {"impervious": (), "pervious": (0, 1)}}
    return net, path, options


@pytest.mark.parametrize("what", ["model", "imagery", "overlap", "batch", "legend"])
def test_parts_of_another_request_are_never_mixed_in(scene, tmp_path, what):
    out = tmp_path / "map.tif"
    broken_off(scene[1], scene[0], out)
    net, path, options = changed(scene, what, tmp_path)
    with pytest.raises(RequestError, match=rf"map.tif was begun by another request \(other {what}\)"):
        map_raster(net, path, out, **options, overwrite=False)
    assert (tmp_path / ".map.tif.parts" / "part_000_00000.tif").exists()  # nothing is lost
    with pytest.warns(UserWarning, match=rf"another request \(other {what}\) are dropped"):
        map_raster(net, path, out, **options)
    assert_same(out, map_raster(net, path, tmp_path / "fresh.tif", **options))


def test_a_finished_map_is_not_made_again(scene, whole):
    path, net, _ = scene
    before, made = whole.stat().st_mtime_ns, []
    assert map_raster(net, path, whole, **OPTIONS, overwrite=False, progress=lambda *p: made.append(p)) == whole and not made
    assert whole.stat().st_mtime_ns == before
    with pytest.raises(RequestError, match="is there already, made by another request: choose another name, or ask to overwrite it"):
        map_raster(net, path, whole, 256, 0, overwrite=False)
    assert whole.stat().st_mtime_ns == before
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        map_raster(net, path, whole, **OPTIONS, resume=False)
    assert whole.stat().st_mtime_ns != before


def test_a_damaged_part_is_made_again(scene, whole, tmp_path):
    path, net, _ = scene
    out = tmp_path / "map.tif"
    broken_off(net, path, out)
    part = tmp_path / ".map.tif.parts" / "part_000_00000.tif"
    part.write_bytes(part.read_bytes()[:-200])
    assert_same(map_raster(net, path, out, **OPTIONS), whole)


def test_two_at_once(scene, tmp_path):
    path, net, _ = scene
    out = tmp_path / "map.tif"

    def second(done, of):
        if done == 1:
            with pytest.raises(RequestError, match="another process is making"):
                map_raster(net, path, out, **OPTIONS)
    map_raster(net, path, out, **OPTIONS, progress=second)
    assert out.exists()


def test_a_full_disk(scene, tmp_path):
    path, _, _ = scene
    code = SLOW.format(pause=0, path=str(path), out=[str(tmp_path / "map.tif")])
    limit = "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))\n"
    run = subprocess.run([sys.executable, "-c", limit + code], capture_output=True, text=True, check=False)
    assert run.returncode == 1 and "DataError: cannot write" in run.stderr.splitlines()[-1] and not list(tmp_path.glob("*.tif"))


def test_workers_make_the_same_bytes(scene, whole, tmp_path):
    "Workers are threads here; that a job can be sent to processes is shown by sending it to itself."
    from distributed import Client
    from distributed.protocol import deserialize, serialize
    path, net, _ = scene
    done = []
    with Client(processes=False, n_workers=1, threads_per_worker=2, dashboard_address=None) as client:
        out = map_raster(net, path, tmp_path / "map.tif", **OPTIONS, client=client, progress=lambda i, n: done.append((i, n)))
        with pytest.raises(DataError, match="scores are no numbers"):
            map_raster(nn.Sequential(net, Poison()), path, tmp_path / "poison.tif", **OPTIONS, client=client)
    assert done[0] == (0, 3) and done[-1] == (3, 3)
    assert_same(out, whole)
    job = Job.of(Runner(net.eval()), Imagery(path), 160, 32, None)
    sent = deserialize(*serialize(job))
    assert sent.request() == job.request()
    (_, a, _), (_, b, _) = (next(j.rows(0)) for j in (job, sent))
    assert (a == b).all()


class Poison(nn.Module):
    "Fails only on real pixels, not on the trial."

    def forward(self, x):
        return torch.where(x.abs() > 100, torch.nan, x)


def test_memory_is_bounded(tmp_path):
    "8192 x 3072 px, 4 bands, 6 classes: well below 1 GB above the model."
    with rasterio.open(tmp_path / "image.tif", "w", driver="GTiff", height=3072, width=8192, count=4, dtype="uint16", crs="EPSG:32650", transform=GRID.affine, tiled=True, SPARSE_OK=True):
        pass
    code = textwrap.dedent(f"""
        import resource, torch
        from isa_nb.core import raster, square_geobox
        from isa_nb.mapping import map_array, map_raster
        peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        net = torch.nn.Conv2d(4, 6, 1)
        map_array(net, raster(torch.zeros(4, 64, 64).numpy(), square_geobox(114, 30, 640, 10), "small"))
        before = peak()
        map_raster(net, "{tmp_path}/image.tif", "{tmp_path}/map.tif", threads=2)
        print(peak() - before)
    """)
    assert float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout) < 0.7


# ---- models


def test_a_model_of_the_house(scene, tmp_path):
    "Bands are compared with those of the source, the file tells the origin of the model, and the model is left as it was."
    path, _, _ = scene
    spec = models.Spec(architecture="ResNeStASPP", arguments={"encoder": "resnest14d", "pretrained": False}, bands=["green", "red"], mean=[1500.0] * 2, std=[800.0] * 2, zone="W2", simulated=False,
                       sources=[{"role": "label", "name": "gisa", "licence": "CC-BY-4.0", "simulated": False}])
    model = models.Model(nn.Sequential(nn.Conv2d(2, 2, 3, padding=1), nn.Dropout(0.5)), spec).train()
    model.net[1].eval()
    with pytest.raises(DataError, match=r"the model wants 2 bands \(green, red\) and .*image.tif gives 3 \(blue, green, red\): say bands=\['green', 'red'\]"):
        map_raster(model, path, tmp_path / "map.tif")
    with pytest.raises(DataError, match=r"gives 2 \(red, green\): say bands=\['green', 'red'\]"):
        map_raster(model, path, tmp_path / "map.tif", bands=["red", "green"])
    out = map_raster(model, path, tmp_path / "map.tif", bands=["green", 3], **OPTIONS)
    assert model.training and not model.net[1].training
    with rasterio.open(out) as f:
        tags = f.tags()
    assert tags["simulated"] == "yes" and tags["trained_in"] == "W2" and json.loads(tags["licences"]) == ["CC-BY-4.0", "CC0"] and json.loads(tags["bands"]) == ["green", "red"]


def test_names_are_not_asked_of_a_file_without_them(tmp_path):
    path = save(tmp_path / "image.tif", array((2, 100, 100), "uint16").values)
    spec = models.Spec(architecture="ResNeStASPP", bands=["a", "b"], mean=[1500.0] * 2, std=[800.0] * 2)
    assert map_array(models.Model(nn.Conv2d(2, 2, 1), spec), path).label.shape == (100, 100)


def test_fingerprints():
    "Weights, buffers, architecture and description tell models apart, across processes."
    code = "import torch; from torch import nn; from isa_nb.mapping import fingerprint; torch.manual_seed(3); print(fingerprint(nn.Sequential(nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2))))"
    torch.manual_seed(3)
    net = nn.Sequential(nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2))
    first = fingerprint(net)
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == first
    net[1].running_mean += 1
    second = fingerprint(net)
    net[1].eps = 1e-3
    assert len({first, second, fingerprint(net), fingerprint(nn.Sequential(net[0]))}) == 4
    spec = models.Spec(architecture="ResNeStASPP", bands=["a", "b"], mean=[1500.0] * 2, std=[800.0] * 2)
    assert fingerprint(models.Model(net, spec)) != fingerprint(models.Model(net, spec.model_copy(update={"mean": [1500.0, 1501.0]})))


def test_a_random_forest(tmp_path):
    from isa_nb.chips import Chip
    from isa_nb.forest import PixelForest
    image = array((2, 300, 200), "uint16", nodata=0)
    label = (image.values[0] > 1500).astype(np.uint8)
    chips = [Chip(image.values[:, i:i + 50], label[i:i + 50], np.ones((50, 200), np.float32)) for i in range(0, 300, 50)]
    forest = PixelForest.fit(chips, 2000, 0, n_estimators=5)
    image[:, :, :20] = 0
    made = map_raster(forest, image, tmp_path / "map.tif", **OPTIONS)
    assert (read(made)[:, 20:] == label[:, 20:]).mean() > 0.98 and (read(made)[:, :20] == 255).all()
    assert fingerprint(forest) == fingerprint(forest) != fingerprint(PixelForest.fit(chips, 2000, 1, n_estimators=5))


# ---- bad input


@pytest.mark.parametrize(("options", "kind", "message"), [
    ({"tile": 64, "overlap": 64}, RequestError, "give a tile of at least 1 px, and an overlap from 0 to below it"),
    ({"device": "cuda"}, RequestError, "finds no graphics card"),
    ({"precision": "half"}, RequestError, "unknown precision 'half'"),
    ({"void": "some"}, RequestError, "unknown void 'some'"),
    ({"bands": [1, 7]}, RequestError, "has no band 7: it has 1 blue, 2 green, 3 red"),
    ({"legend": "corine"}, RequestError, "unknown legend 'corine'"),
    ({"legend": "land_cover"}, RequestError, "the model has 2 classes and the legend 11"),
    ({"bands": [1]}, DataError, "the model fails on 1 band(s)"),
])
def test_wrong_requests(scene, tmp_path, options, kind, message):
    if options.get("device") == "cuda" and torch.cuda.is_available():
        pytest.skip("there is a graphics card")
    with pytest.raises(kind) as e:
        map_raster(scene[1], scene[0], tmp_path / "map.tif", **options)
    assert message in str(e.value) and "\n" not in str(e.value)
    assert not list(tmp_path.iterdir())


def test_out_of_memory(scene, tmp_path):
    def greedy(x):
        if x.shape[-1] > 64:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return x
    with pytest.raises(RequestError, match=r"too little memory for 1 tile\(s\) of 160 x 160 px: ask for a smaller batch, or smaller tiles"):
        map_raster(greedy, scene[0], tmp_path / "map.tif", **OPTIONS)


def test_a_source_cut_short(scene, tmp_path):
    path = save(tmp_path / "cut.tif", read(scene[0], None))
    path.write_bytes(path.read_bytes()[:-400_000])
    with pytest.raises(DataError, match="cut.tif: the file is damaged or cut short"):
        map_raster(scene[1], path, tmp_path / "map.tif", **OPTIONS)
    assert not (tmp_path / "map.tif").exists()


def test_places_that_cannot_be_written(scene, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot write to"):
        map_raster(scene[1], scene[0], tmp_path / "file" / "map.tif", **OPTIONS)
    with pytest.raises(RequestError, match="is no name of a GeoTIFF"):
        map_raster(scene[1], scene[0], tmp_path / "map", **OPTIONS)
