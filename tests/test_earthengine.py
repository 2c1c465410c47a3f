"""Dynamic World through Earth Engine's protocol: a service of ours on the loopback holds scenes of the simulated world, GDAL's own client reads it as a check, and every fault ends in one line.

`pytest -m live` asks the real service, where the environment holds an account.
"""
import json
import os
import threading

import numpy as np
import pytest
import rasterio
from google.auth import jwt
from odc.geo.geobox import GeoBox
from rasterio.warp import Resampling, reproject
from servers import Answer, EarthEngine, Scripted

from isa_nb import earthengine, fetch_plan, fetched, meter
from isa_nb.catalog import Catalog
from isa_nb.core import DataError, RequestError, square_geobox
from isa_nb.entries import Area
from isa_nb.lab import world
from isa_nb.lab.fields import LC_LUT
from isa_nb.remote import PLANNERS

CAT = Catalog.load()
PLACE = (114.30, 30.50)  # Wuhan, UTM zone 50
API = CAT.source("dynamic_world").access.options.api
COLLECTION = "GOOGLE/DYNAMICWORLD/V1"
DYNAMIC = np.array([7, 1, 5, 4, 2, 6, 7, 0, 3, 8, 7, 6], np.uint8)  # the eleven classes in Dynamic World's codes
ACCOUNT = ("EEDA_BEARER", "EEDA_BEARER_FILE", "GOOGLE_APPLICATION_CREDENTIALS", "GOOGLE_CLOUD_QUOTA_PROJECT")
GRID = square_geobox(*PLACE, 2560, 10)


@pytest.fixture(scope="module")
def truth():
    "The simulated world in Dynamic World's codes, with a lake."
    codes = DYNAMIC[np.where(LC_LUT == 255, 0, LC_LUT)[world.for_geobox(GRID, 0).truth(GRID, 2020).values]]
    rows, cols = np.mgrid[:256, :256]
    codes[np.hypot(rows - 60, cols - 190) < 40] = 0
    return codes


@pytest.fixture(scope="module")
def service(truth):
    "Seven scenes of one tile, each with a cloud and errors of its own, and one of the neighbouring zone; no scene shows the first columns."
    ee, draw = EarthEngine(), np.random.default_rng(0)
    rows, cols = np.mgrid[:256, :256]
    for k in range(7):
        wrong = draw.random(truth.shape) < 0.05
        label = np.where(wrong, draw.integers(0, 9, truth.shape), truth).astype(np.uint8)
        masked = (np.hypot(rows - 40 * k, cols - 30 * k - 30) < 45) | (cols < 8)
        water = np.where(label == 0, 0.7, 0.02).astype(np.float32)
        ee.put(f"{COLLECTION}/2020{k + 3:02d}01T030539_2020{k + 3:02d}01T031124_T50RKU", f"2020-{k + 3:02d}-01T03:11:28Z", GRID, water=np.where(masked, 0, water).astype(np.float32), label=np.where(masked, 0, label).astype(np.uint8))
    west = GeoBox.from_bbox(GRID.extent.to_crs("EPSG:32649").boundingbox, "EPSG:32649", resolution=10)
    there = {"water": (truth == 0).astype(np.float32) * 0.6 + 0.05, "label": truth}
    moved = {b: reproject(np.where(cols < 8, 0, v).astype(v.dtype if b == "label" else np.float32), np.zeros(west.shape.yx, np.uint8 if b == "label" else np.float32), src_transform=GRID.affine, src_crs="EPSG:32650",
                          dst_transform=west.affine, dst_crs="EPSG:32649", resampling=Resampling.nearest)[0] for b, v in there.items()}
    ee.put(f"{COLLECTION}/20200520T030539_20200520T031124_T49RGP", "2020-05-20T03:11:28Z", west, **moved)
    ee.put(f"{COLLECTION}/20190701T030539_20190701T031124_T50RKU", "2019-07-01T03:11:28Z", GRID, water=(truth == 0).astype(np.float32), label=truth)
    yield ee
    ee.close()


def lead_to(monkeypatch, server, **account):
    monkeypatch.setenv("ISA_ENDPOINTS", json.dumps({API: f"{server.url}/v1"}))
    for k in ACCOUNT:
        monkeypatch.delenv(k, raising=False)
    for k, v in account.items():
        monkeypatch.setenv(k, v)


@pytest.fixture(autouse=True)
def alone(tmp_path, monkeypatch, request):
    monkeypatch.setenv("ISA_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("ISA_OFFLINE", raising=False)
    if "live" not in request.keywords:
        monkeypatch.setenv("ISA_TIMEOUT", "1")
        lead_to(monkeypatch, request.getfixturevalue("service"), EEDA_BEARER="a-token")
        request.getfixturevalue("service").asked.clear()
        request.getfixturevalue("service").script.clear()


def line(e):
    text = str(e.value)
    assert "\n" not in text and len(text) < 600 and "a-token" not in text
    return text


def test_the_map_of_a_year(service, truth):
    got = CAT.open("dynamic_world", GRID, 2020)
    assert got.dtype == np.uint8 and got.rio.nodata == 255 and got.attrs["year"] == 2020 and got.attrs["licence"] == "CC-BY-4.0" and "Brown C. F. et al. 2022" in got.attrs["citation"]
    assert (got.values[:, :6] == 255).all() and (got.values[:, 10:] != 255).all(), "what no scene shows is nodata, and not water"
    assert (got.values[:, 10:] == truth[:, 10:]).mean() > 0.995, "clouds and errors of single scenes are outvoted"
    assert (got.values[:, 10:][truth[:, 10:] == 0] == 0).mean() > 0.99, "water is water"
    isa = CAT.source("dynamic_world").to_isa(got)
    assert set(np.unique(isa.values)) == {0, 1, 255}
    label = [h for m, p, h in service.asked if p.endswith(":getPixels")]
    assert 8 <= len(label) <= 16 and all(h["authorization"] == "Bearer a-token" for h in label)


def test_a_part_on_another_grid_and_season(service, truth, tmp_path):
    coarse = square_geobox(*PLACE, 1280, 16)
    got = CAT.open("dynamic_world", coarse, 2020)
    want = reproject(truth, np.zeros(coarse.shape.yx, np.uint8), src_transform=GRID.affine, src_crs="EPSG:32650", dst_transform=coarse.affine, dst_crs="EPSG:32650", resampling=Resampling.nearest)[0]
    assert (got.values == want).mean() > 0.98
    (tmp_path / "season.yaml").write_text("sources: {dynamic_world: {access: {options: {season: [5, 6], scenes: 1}}}}")
    plan = PLANNERS["earthengine"](Catalog.load(overlay=tmp_path / "season.yaml").request("dynamic_world", coarse, 2020))
    assert sorted(a.url.rsplit("/", 1)[-1][:8] + a.url[-7:] for a in plan) == ["20200501_T50RKU", "20200520_T49RGP"], "one of each tile"
    assert len(PLANNERS["earthengine"](CAT.request("dynamic_world", coarse, 2020))) == 8, "all pages of the list"


def test_squares_do_not_show(service, truth, monkeypatch):
    whole = CAT.open("dynamic_world", GRID, 2019).values
    monkeypatch.setattr(earthengine, "SIDE", 100)
    assert (CAT.open("dynamic_world", GRID, 2019).values == whole).all() and (whole == np.where(truth == 0, 0, truth)).all()


def test_gdal_reads_the_same(service):
    "The protocol is that of the service as GDAL's driver EEDAI knows it, not one that only our client understands."
    scene = next(s for s in earthengine.scenes_of(CAT.request("dynamic_world", GRID, 2020)) if s.name.endswith("T50RKU"))
    part = GRID[40:200, 30:250]
    with rasterio.Env(EEDA_URL=f"{service.url}/v1/", EEDA_BEARER="a-token"):
        for band in ("label", "water"):
            with rasterio.open(f"EEDAI:{scene.name}:{band}") as src:
                assert (src.read(1, window=((40, 200), (30, 250))) == earthengine.pixels(API, "dynamic_world", scene, band, part)).all()
                assert src.crs.to_epsg() == 32650 and src.transform == GRID.affine


def test_without_an_account(service, monkeypatch):
    lead_to(monkeypatch, service)
    for ask in (lambda: CAT.open("dynamic_world", GRID, 2020), lambda: PLANNERS["earthengine"](CAT.request("dynamic_world", GRID, 2020))):
        with pytest.raises(RequestError, match="dynamic_world is read through Google Earth Engine, which asks for an account: register a project at https://.*set GOOGLE_APPLICATION_CREDENTIALS") as e:
            ask()
        assert line(e) and not service.asked


def key_file(folder, url):
    "A service account of the test's own, and a place where its tokens are given out."
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import rsa
    key = rsa.generate_private_key(65537, 2048)
    private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    public = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    about = {"type": "service_account", "project_id": "mine", "private_key_id": "1", "private_key": private.decode(), "client_email": "me@mine.iam.gserviceaccount.com", "token_uri": f"{url}/token"}
    (folder / "key.json").write_text(json.dumps(about))
    return folder / "key.json", public


def test_accounts(service, monkeypatch, tmp_path):
    tokens = Scripted()
    path, public = key_file(tmp_path, tokens.url)
    given = []

    def given_out(h, path):
        assertion = dict(p.split("=", 1) for p in h.posted.decode().split("&"))["assertion"]
        given.append(jwt.decode(assertion, public, audience="https://oauth2.googleapis.com/token")["scope"])  # a wrong signature is an error
        return EarthEngine.json({"access_token": "a-token", "expires_in": 3600, "token_type": "Bearer"})
    tokens.given = given_out
    lead_to(monkeypatch, service, GOOGLE_APPLICATION_CREDENTIALS=str(path), GOOGLE_CLOUD_QUOTA_PROJECT="mine")
    CAT.open("dynamic_world", GRID, 2019)
    assert given == ["https://www.googleapis.com/auth/earthengine.readonly"], "one token serves all requests"
    assert {h["x-goog-user-project"] for _, _, h in service.asked} == {"mine"}
    (tmp_path / "token").write_text("a-token\n")
    lead_to(monkeypatch, service, EEDA_BEARER_FILE=str(tmp_path / "token"))
    assert len(PLANNERS["earthengine"](CAT.request("dynamic_world", GRID, 2019))) == 1
    (tmp_path / "other.json").write_text(json.dumps(json.loads(path.read_text()) | {"client_email": "b@c"}))
    tokens.given = lambda h, path: EarthEngine.json({"error": "invalid_grant"}, 400)
    for value, error, match in ((tmp_path / "none.json", RequestError, "is no key file"), (tmp_path / "token", RequestError, "is no key file"), (tmp_path / "other.json", DataError, "Google gives no token for the account")):
        lead_to(monkeypatch, service, GOOGLE_APPLICATION_CREDENTIALS=str(value))
        with pytest.raises(error, match=match) as e:
            CAT.open("dynamic_world", GRID, 2019)
        assert line(e)
    lead_to(monkeypatch, service, EEDA_BEARER_FILE=str(tmp_path / "none"))
    with pytest.raises(RequestError, match="EEDA_BEARER_FILE: .* cannot be read"):
        CAT.open("dynamic_world", GRID, 2019)
    tokens.close()


LIST = f"/v1/{EarthEngine.PARENT}/{COLLECTION}:listImages"
PIXELS = f"/v1/{EarthEngine.PARENT}/{COLLECTION}/20190701T030539_20190701T031124_T50RKU:getPixels"


def npy(values):
    import io
    out = io.BytesIO()
    np.save(out, values, allow_pickle=True)
    return out.getvalue()


def test_what_is_temporary_is_repeated(service, truth):
    service.script[LIST] = [Answer(status=429, Retry_After="1"), Answer(status=503)]
    service.script[PIXELS] = [Answer(status=500), Answer(status=502), Answer(status=429, Retry_After="1")]
    assert (CAT.open("dynamic_world", GRID, 2019).values == truth).all()
    assert len(service.asked) == 3 + 5  # the list, the labels, and the water where labels are zero


@pytest.mark.parametrize(("path", "answer", "match"), [
    (LIST, EarthEngine.refusal(403, "Caller does not have required permission"), "does not let this account read .403: Caller does not have required permission.: register its project"),
    (LIST, EarthEngine.refusal(404, "not found"), "has no such collection or image .404: not found.: correct the catalogue entry"),
    (LIST, Answer(b"<html>log in", 200, Content_Type="text/html"), "answers with something that is no list of images"),
    (LIST, Answer(b"[" * 100_000), "answers with something that is no list of images"),
    (LIST, EarthEngine.json({"images": [{"name": "x"}]}), "lists an image without a band 'label'"),
    (LIST, EarthEngine.json({}), "has nothing from 2019-01-01 to 2019-12-31 here: ask for another area or year"),
    (LIST, Answer(status=429, Retry_After="9000"), "asks to come back in 9000 s"),
    (PIXELS, EarthEngine.refusal(400, "Total request size must be less"), "does not understand what it was asked .400: Total request size"),
    (PIXELS, EarthEngine.refusal(401, "expired"), "its token is out of date .401: expired.: set EEDA_BEARER"),
    (PIXELS, Answer(b"<html>log in"), "sends something else than the 256 x 256 pixels"),
    (PIXELS, Answer(npy(np.zeros((3, 3), [("label", "u1")]))), "sends something else than the 256 x 256 pixels"),
    (PIXELS, Answer(npy(np.zeros((256, 256), [("labels", "u1")]))), "sends something else than the 256 x 256 pixels"),
    (PIXELS, Answer(npy(np.zeros((256, 256), "O"))), "sends something else than|answers with more than"),
    (PIXELS, Answer(npy(np.zeros((256, 256), [("label", "u1")]))[:-9]), "sends something else than the 256 x 256 pixels"),
    (PIXELS, Answer(npy(np.full((256, 256), 300, [("label", "u2")]))), "the band label of .* holds values that are no labels .0 to 254.: correct access.options.band"),
    (PIXELS, Answer(npy(np.full((256, 256), 0.5, [("label", "f4")]))), "holds values that are no labels"),
    (PIXELS, Answer(bytes(10**6)), "answers with more than the 528384 bytes that were due"),
    (PIXELS, Answer(bytes(9000), stall=100), "does not answer in time|cannot be reached"),
    (PIXELS, Answer(bytes(9000), cut=100), "cannot be reached"),
    (PIXELS, Answer(status=302, Location=PIXELS), "leads in a circle of redirects"),
])
def test_what_stays_wrong_is_one_line(service, tmp_path, path, answer, match):
    service.script[path] = [answer] * 12
    with pytest.raises(DataError, match=match) as e:
        CAT.open("dynamic_world", GRID, 2019)
    assert line(e) and not [p for p in (tmp_path / "cache").rglob("*") if p.is_file() and p.parent.name != "answers"]


def test_a_list_without_end(service, monkeypatch):
    service.script[LIST] = [EarthEngine.json({"images": [], "nextPageToken": "again"})] * 60
    with pytest.raises(DataError, match="goes on and on: ask for a smaller area") as e:
        CAT.open("dynamic_world", GRID, 2019)
    assert line(e)


def test_server_errors_for_ever(service, monkeypatch):
    monkeypatch.setattr("isa_nb.downloads.ATTEMPTS", 2)
    monkeypatch.setattr("isa_nb.downloads._HERE", threading.local())
    service.script[LIST] = [Answer(status=500)] * 9
    with pytest.raises(DataError, match="Earth Engine does not answer .500: no reason given.: try again later") as e:
        CAT.open("dynamic_world", GRID, 2019)
    assert line(e)


def test_edges_of_the_world(service):
    "Two boxes at the antimeridian, one cap at the pole, and no scene there."
    for grid, lists in ((square_geobox(179.999, -17, 2000, 10), 2), (square_geobox(0, 90, 2000, 10, "EPSG:3413"), 1)):
        service.asked.clear()
        with pytest.raises(DataError, match="has nothing from 2020-01-01 to 2020-12-31 here") as e:
            CAT.open("dynamic_world", grid, 2020)
        assert line(e) and len(service.gets(LIST)) == lists
    for area, year in ((None, 2020), (GRID, None)):
        request = CAT.request("dynamic_world", area, 2020)
        with pytest.raises(RequestError, match="ask for an area or a GeoBox, and say of which year"):
            earthengine.scenes_of(request if year else earthengine.Request("dynamic_world", "classes", request.options, GRID))


def test_windows_are_on_the_budget(service):
    "Answers are counted, and a window that may bring more than is left is not asked for."
    budget = meter.Budget(1e9, 0)
    with meter.metered(budget):
        CAT.open("dynamic_world", GRID, year=2020)
    assert 256 * 256 * 7 < budget.done < 256 * 256 * 8 * 5 * 1.01  # a byte of label and four of probability, eight scenes
    service.asked.clear()
    with meter.metered(meter.Budget(300_000, 0)), pytest.raises(RequestError, match="the next window of a remote file may bring 0.5 MB, and 0.0 MB of the 0.0003 GB allowed have come in: allow more with --max-size") as e:
        CAT.open("dynamic_world", GRID, year=2020)
    assert line(e) and not [p for _, p, _ in service.asked if p.endswith(":getPixels")]


def test_fetched_and_opened_offline(service, truth, monkeypatch, tmp_path):
    west, south, east, north = GRID[60:180, 60:180].geographic_extent.boundingbox
    area = Area(title="Town", bbox=(west, south, east, north), resolution=10)
    area._name = "town"
    plan = fetch_plan.plan(CAT, area, ["dynamic_world"], [2020])
    item, = plan.items
    assert item.licence == "CC-BY-4.0" and len(item.assets) == 8 and item.sized == "estimated" and item.year == 2020 and not item.problem
    assert 8 * 120**2 < item.size < 8 * 200**2 * fetch_plan.LABEL_BYTES, "what the windows of eight scenes hold"
    done = fetched.execute(plan, CAT, tmp_path / "town")
    assert done.made == ["dynamic_world_2020"] and not done.failed and "Brown C. F. et al. 2022" in (tmp_path / "town/LICENCES.md").read_text()
    monkeypatch.setenv("ISA_OFFLINE", "1")
    service.asked.clear()
    got = Catalog.load(overlay=done.catalog).open("dynamic_world", GRID[60:180, 60:180])
    assert (got.values == truth[60:180, 60:180]).mean() > 0.99 and not service.asked
    assert len(PLANNERS["earthengine"](CAT.request("dynamic_world", fetch_plan.grid_of(area, CAT.source("dynamic_world")), 2020))) == 8, "the list is remembered"
    with pytest.raises(RequestError, match="ISA_OFFLINE forbids asking for it"):
        CAT.open("dynamic_world", fetch_plan.grid_of(area, CAT.source("dynamic_world")), 2020)


@pytest.mark.live
@pytest.mark.skipif(not any(os.environ.get(k) for k in ACCOUNT[:3]), reason="the environment holds no account of Earth Engine")
def test_live(tmp_path):
    got = CAT.open("dynamic_world", square_geobox(*PLACE, 2000, 10), 2021)
    assert (got.values != 255).mean() > 0.9 and set(np.unique(got.values)) <= {*range(9), 255}
