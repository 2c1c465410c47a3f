"Remote sources over real connections to this machine: every kind of access, every fault, and the same against the real services (pytest -m live)."
import base64
import contextlib
import gzip
import hashlib
import json
import shutil
import struct
import sys
import threading
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import get_context

import geopandas as gpd
import numpy as np
import pytest
import rasterio
import requests
from affine import Affine
from servers import PEERS, Answer, Scripted, cog, http_date, rar_file, rar_link, rarred, tiff, zipped
from shapely.geometry import LineString, box, mapping

from isa_nb import archives, meter, remote
from isa_nb.archives import unpack
from isa_nb.catalog import Catalog
from isa_nb.core import DataError, RequestError, square_geobox
from isa_nb.drivers import Request, open_raster
from isa_nb.lab import world
from isa_nb.lab.fields import LC_LUT
from isa_nb.remote import Asset, boxes, cached, download, endpoint

CAT = Catalog.load()
WUHAN = square_geobox(114.31, 30.6, 3000, 30)
DELAWARE = square_geobox(-75.5, 39.2, 3000, 30)
DATA = bytes(range(256)) * 4096  # 1 MiB
SOON = 25  # seconds in which a busy machine, too, is through; who waits in vain waits longer


@pytest.fixture
def server():
    s = Scripted()
    yield s
    s.close()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch, request):
    if "live" not in request.keywords:
        monkeypatch.setenv("ISA_TIMEOUT", "0.5")
    monkeypatch.setenv("ISA_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("ISA_OFFLINE", raising=False)
    monkeypatch.delenv("ISA_ENDPOINTS", raising=False)
    return tmp_path / "cache"


def some(server, **known):
    return Asset(f"{server.url}/a.bin", "some", "some/a.bin", **known)


def md5(data):
    return f"md5:{hashlib.md5(data).hexdigest()}"


def line(e):
    "The message, which must be one line."
    text = str(e.value)
    assert "\n" not in text and len(text) < 700
    return text


def clean(cache):
    "Nothing but locks may be left of a download that failed."
    return sorted(p.name for p in cache.rglob("*") if p.is_file() and p.suffix != ".lock" and p.parent.name != "answers")


# ---- addresses

def test_endpoint_longest_beginning_wins(monkeypatch, tmp_path):
    assert endpoint("https://zenodo.org/api/records/1") == "https://zenodo.org/api/records/1"
    (tmp_path / "e.yaml").write_text("https://zenodo.org: http://a\nhttps://zenodo.org/api: http://b\n")
    monkeypatch.setenv("ISA_ENDPOINTS", str(tmp_path / "e.yaml"))
    assert [endpoint(f"https://zenodo.org/{p}") for p in ("api/x", "y")] == ["http://b/x", "http://a/y"]
    monkeypatch.setenv("ISA_ENDPOINTS", '{"https://zenodo.org": "http://c"}')
    assert endpoint("https://zenodo.org/y") == "http://c/y"


@pytest.mark.parametrize("text", ["[1]", "a: [1]", "x: &a {b: c}\ny: *a", ": : :", "missing.yaml"])
def test_bad_endpoints(monkeypatch, tmp_path, text):
    (tmp_path / "e.yaml").write_text(text)
    monkeypatch.setenv("ISA_ENDPOINTS", "missing.yaml" if text == "missing.yaml" else str(tmp_path / "e.yaml"))
    with pytest.raises(RequestError, match="ISA_ENDPOINTS"):
        endpoint("https://zenodo.org")


def test_yaml_bomb(monkeypatch, tmp_path):
    lines = ["a: &a [x, x, x, x, x, x, x, x, x, x]"] + [f"{b}: &{b} [{', '.join([f'*{a}'] * 10)}]" for a, b in zip("abcdefghi", "bcdefghij", strict=True)]
    (tmp_path / "e.yaml").write_text("\n".join(lines))
    monkeypatch.setenv("ISA_ENDPOINTS", str(tmp_path / "e.yaml"))
    began = time.perf_counter()
    with pytest.raises(RequestError, match="must map addresses to addresses") as e:
        endpoint("https://zenodo.org")
    assert time.perf_counter() - began < SOON and line(e)
    with pytest.raises(RequestError, match="aliases .* are not read"):
        Catalog.load(overlay=tmp_path / "e.yaml")


# ---- one file, and what may go wrong with it

def test_download_is_whole_checked_and_asked_for_once(server, cache):
    server.files["/a.bin"] = DATA
    seen = []
    a = some(server, size=len(DATA), checksum=md5(DATA))
    assert cached(a) is None
    path = download(a, lambda done, total: seen.append((done, total)))
    assert path == cache / "some/a.bin" and path.read_bytes() == DATA and cached(a) == path
    assert seen[-1] == (len(DATA), len(DATA)) and seen == sorted(seen)
    assert download(a) == path and len(server.gets("/a.bin")) == 1
    assert clean(cache) == ["a.bin"]


@pytest.mark.parametrize("peer", PEERS)
def test_other_servers_resume(peer, tmp_path, cache):
    "A part that is here already is not sent again, by servers that are not ours."
    if peer == "nginx" and not shutil.which("nginx"):
        pytest.skip("nginx is not installed")
    files, work = tmp_path / "files", tmp_path / "work"
    files.mkdir(), work.mkdir()
    (files / "a.bin").write_bytes(DATA)
    with PEERS[peer](files, work) as p:
        tag = requests.head(f"{p.url}/a.bin", timeout=5).headers["ETag"]
        part = cache / "some/a.bin.part"
        part.parent.mkdir(parents=True)
        part.write_bytes(DATA[:900_000])
        part.with_name("a.bin.part.tag").write_text(f"{p.url}/a.bin\n{tag}")
        p.sent()
        assert download(Asset(f"{p.url}/a.bin", "some", "some/a.bin", checksum=md5(DATA))).read_bytes() == DATA
        assert p.sent() < 160_000


def test_resumes_after_cuts(server):
    server.files["/a.bin"] = DATA
    tag = f'"{hashlib.md5(DATA).hexdigest()}"'
    server.script["/a.bin"] = [Answer(DATA, cut=300_000, ETag=tag)]
    assert download(some(server, checksum=md5(DATA))).read_bytes() == DATA
    first, second = server.gets("/a.bin")
    assert "range" not in first and second["range"].startswith("bytes=") and second["if-range"] == tag
    assert int(second["range"][6:-1]) > 0


def test_changed_file_is_not_patched(server):
    "After a cut the file is another one: it is sent whole, not joined to the old beginning."
    new = DATA[::-1]
    server.files["/a.bin"] = new
    server.script["/a.bin"] = [Answer(DATA, cut=300_000, ETag='"old"')]
    assert download(some(server)).read_bytes() == new


def test_server_without_ranges(server):
    server.script["/a.bin"] = [Answer(DATA, cut=300_000, ETag='"x"'), Answer(DATA, ETag='"x"')]
    assert download(some(server, checksum=md5(DATA))).read_bytes() == DATA


def test_truncated_for_ever(server, cache):
    server.script["/a.bin"] = [Answer(DATA, cut=1000)] + [Answer(DATA, cut=0) for _ in range(9)]
    with pytest.raises(DataError, match="cannot be reached: check the network and try again") as e:
        download(some(server))
    assert line(e) and "a.bin" not in clean(cache)
    server.script.clear()
    server.files["/a.bin"] = DATA
    assert download(some(server)).read_bytes() == DATA


def test_shorter_than_promised(server, cache):
    server.files["/a.bin"] = DATA[:-1]
    with pytest.raises(DataError, match=f"is {len(DATA) - 1} bytes long where {len(DATA)} were promised") as e:
        download(some(server, size=len(DATA)))
    assert line(e) and clean(cache) == []


def test_stalled_socket(server):
    server.files["/a.bin"] = DATA
    server.script["/a.bin"] = [Answer(DATA, stall=500_000, ETag=f'"{hashlib.md5(DATA).hexdigest()}"')]
    began = time.perf_counter()
    assert download(some(server, checksum=md5(DATA))).read_bytes() == DATA
    assert time.perf_counter() - began < SOON


def test_stalled_for_ever(server, cache):
    server.script["/a.bin"] = [Answer(DATA, stall=0) for _ in range(20)]
    with pytest.raises(DataError, match="does not answer in time|cannot be reached") as e:
        download(some(server))
    assert line(e) and clean(cache) == []


@pytest.mark.parametrize(("status", "text"), [(404, "does not exist on the server"), (403, "may not be read without an account"), (418, "the server answers 418")])
def test_refusals(server, cache, status, text):
    server.script["/a.bin"] = [Answer(b"no", status)]
    with pytest.raises(DataError, match=text) as e:
        download(some(server))
    assert line(e) and clean(cache) == [] and len(server.gets("/a.bin")) == 1


def test_waits_as_the_server_asks(server):
    server.files["/a.bin"] = DATA
    server.script["/a.bin"] = [Answer(status=429, Retry_After="1"), Answer(status=503, Retry_After=http_date(1))]
    began = time.perf_counter()
    download(some(server))
    assert 1 <= time.perf_counter() - began < SOON and len(server.gets("/a.bin")) == 3


def test_does_not_wait_for_hours(server, cache):
    server.script["/a.bin"] = [Answer(status=429, Retry_After="7200")]
    began = time.perf_counter()
    with pytest.raises(DataError, match="asks to come back in 7200 s") as e:
        download(some(server))
    assert line(e) and time.perf_counter() - began < SOON and clean(cache) == []


def test_bursts_of_server_errors(server):
    server.files["/a.bin"] = DATA
    server.script["/a.bin"] = [Answer(status=s) for s in (500, 502, 503)]
    assert download(some(server)).read_bytes() == DATA
    assert len(server.gets("/a.bin")) == 4


def test_server_errors_for_ever(server, cache, monkeypatch):
    monkeypatch.setattr("isa_nb.downloads.ATTEMPTS", 2)
    monkeypatch.setattr("isa_nb.downloads._HERE", threading.local())
    server.script["/a.bin"] = [Answer(status=500) for _ in range(20)]
    with pytest.raises(DataError, match="the server answers 500 .* again and again: try later") as e:
        download(some(server))
    assert line(e) and clean(cache) == [] and len(server.gets("/a.bin")) == 3


def test_wrong_hash(server, cache):
    server.files["/a.bin"] = DATA
    for checksum in ("md5:" + "0" * 32, "sha256:" + "0" * 64):
        with pytest.raises(DataError, match=f"has another hash than promised \\({checksum.split(':')[0]} begins") as e:
            download(some(server, checksum=checksum))
        assert line(e) and clean(cache) == []
    server.script["/a.bin"] = [Answer(b"x" * len(DATA))]  # damaged once, whole the second time
    assert download(some(server, checksum=md5(DATA))).read_bytes() == DATA


@pytest.mark.parametrize("answer", [Answer(b"<html>log in", Content_Type="text/html; charset=utf-8"), Answer(b"\n <!DOCTYPE HTML><html>log in")])
def test_page_instead_of_a_file(server, cache, answer):
    server.script["/a.bin"] = [answer]
    with pytest.raises(DataError, match="sends a web page where a file was due") as e:
        download(some(server))
    assert line(e) and clean(cache) == []


def test_redirects(server, cache):
    server.files["/b.bin"] = DATA
    server.script["/a.bin"] = [Answer(status=302, Location=f"{server.url}/b.bin")]
    assert download(some(server)).read_bytes() == DATA
    server.script["/loop"] = [Answer(status=302, Location="/loop") for _ in range(40)]
    with pytest.raises(DataError, match="leads in a circle of redirects") as e:
        download(Asset(f"{server.url}/loop", "some", "some/loop"))
    assert line(e) and clean(cache) == ["a.bin"]


def test_nobody_listens(cache):
    with pytest.raises(DataError, match="cannot be reached: check the network and try again") as e:
        download(Asset("http://127.0.0.1:9/a.bin", "some", "some/a.bin"))
    assert line(e) and clean(cache) == []


def test_offline(server, cache, monkeypatch):
    server.files["/a.bin"] = DATA
    download(some(server))
    monkeypatch.setenv("ISA_OFFLINE", "1")
    assert download(some(server)).read_bytes() == DATA
    with pytest.raises(RequestError, match="is not in the cache, and ISA_OFFLINE forbids asking for it") as e:
        download(Asset(f"{server.url}/b.bin", "some", "some/b.bin"))
    assert line(e) and len(server.asked) == 1


def test_cache_that_cannot_be_written(server, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ISA_CACHE", str(tmp_path / "file"))
    server.files["/a.bin"] = DATA
    with pytest.raises(DataError, match="set ISA_CACHE to another folder") as e:
        download(some(server))
    assert line(e)


def _fetch(url, cache):
    import os
    os.environ["ISA_CACHE"] = cache
    return hashlib.md5(download(Asset(url, "some", "some/a.bin")).read_bytes()).hexdigest()


def test_several_runs_share_the_cache(server, cache):
    "Threads and processes that want one file at once: it is fetched once, and all get it whole."
    server.files["/a.bin"] = DATA
    found = []
    threads = [threading.Thread(target=lambda: found.append(download(some(server)).read_bytes() == DATA)) for _ in range(8)]
    for t in threads:
        t.start()
    with get_context("spawn").Pool(1) as pool:
        assert pool.apply(_fetch, (f"{server.url}/a.bin", str(cache))) == hashlib.md5(DATA).hexdigest()
    for t in threads:
        t.join()
    assert found == [True] * 8 and len(server.gets("/a.bin")) == 1 and clean(cache) == ["a.bin"]


# ---- archives

def test_zip_with_names_outside(tmp_path):
    for name in ("../a.tif", "/etc/a.tif", "..\\a.tif", "a/../../a.tif", "C:/a.tif"):
        with zipfile.ZipFile(tmp_path / "a.zip", "w") as z:
            z.writestr("good.tif", b"x")
            z.writestr(name, b"x")
        with pytest.raises(DataError, match="names a file outside its folder") as e:
            unpack(tmp_path / "a.zip", ("*.tif",))
        assert line(e) and sorted(p.name for p in tmp_path.rglob("*")) == ["a.zip", "a.zip.lock"]


def test_zip_bomb(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as z, z.open("a.tif", "w", force_zip64=True) as f:
        for _ in range(13):
            f.write(bytes(2**23))
    assert (tmp_path / "a.zip").stat().st_size < 300_000
    with pytest.raises(DataError, match="would swell from .* this is no honest archive") as e:
        unpack(tmp_path / "a.zip")
    assert line(e) and not (tmp_path / "a.zip.d").exists()


def test_zip_that_lies_about_a_size(tmp_path):
    data = zipped(a_DOT_tif=bytes(5000))
    (tmp_path / "a.zip").write_bytes(data.replace(struct.pack("<I", 5000), struct.pack("<I", 50)))
    with pytest.raises(DataError, match="no honest archive|not a whole zip") as e:
        unpack(tmp_path / "a.zip")
    assert line(e) and not list(tmp_path.rglob("*.tif"))


def test_cut_zip(tmp_path):
    (tmp_path / "a.zip").write_bytes(zipped(a_DOT_tif=DATA)[:-50])
    with pytest.raises(DataError, match="is not a whole zip file"):
        unpack(tmp_path / "a.zip")


# Archives that WinRAR made, two files of 2,048 bytes each: out of the tests of rarfile 4.5 (https://github.com/markokr/rarfile, ISC licence, (c) Marko Kreen).
MADE_BY_RAR = {"rar3-solid": "UmFyIRoHADvQcwgADQAAAAAAAAArNHSAkCwAXAAAAAAIAAADoua3xbBmzD4dMwoApIEAAHN0ZXN0MS50eHQAwBEMzP6MnrD+MYGrrLG7QHeoCmTWSzeDwQe8AeCFku77th0ACCAACIjpeAzSDAdhOkF4S7Nun1IK2sonQLrnC2SKYnH7uACRnlAv2FX/+sZY6+vE14h+VJaHH03s2RZ0kJAsAA4AAAAACAAAA6Lmt8WwZsw+HTMKAKSBAABzdGVzdDIudHh0AMCxIACIB+vyCmn6/JTe0MQ9ewBABwA=",
               "rar5-solid": "UmFyIRoHAQAJ78hvCwEFBwQGAQGAgIAA3vVwchwCAroABIAQtoMCoua3xYAbAQpzdGVzdDEudHh0waw3REQj+iP2l/1iU1G+TJGBQQKMwQN5XL9Ho6otoDaT3aBYAEACANRQBHb2xH8y6p8ypcTM14PfABDoLYkcAgKNAASAELaDAqLmt8XAGwEKc3Rlc3QyLnR4dEUVCmABAAgD37f79vwdd1ZRAwUEAA=="}


@pytest.mark.parametrize("name", MADE_BY_RAR)
def test_rar(tmp_path, name):
    "What WinRAR packed comes out, of the older and of the newer kind, solid; what is there is not unpacked again; a folder's name may be in any script."
    (folder := tmp_path / "Ünter 武汉").mkdir()
    (folder / "a.rar").write_bytes(base64.b64decode(MADE_BY_RAR[name]))
    one, = unpack(folder / "a.rar", ("*2.TXT",))
    assert one == folder / "a.rar.d/stest2.txt" and len(one.read_bytes()) == 2048
    stamp = one.stat().st_mtime_ns
    both = unpack(folder / "a.rar")
    assert [p.name for p in both] == ["stest1.txt", "stest2.txt"] and one.stat().st_mtime_ns == stamp
    with pytest.raises(RequestError, match="a.rar holds no [*].tif: it holds stest1.txt, stest2.txt") as e:
        unpack(folder / "a.rar", ("*.tif",))
    assert line(e)


def test_rar_of_files_like_those_of_the_deposits(tmp_path):
    big = np.random.default_rng(0).bytes(3_000_000)  # more than one piece
    (tmp_path / "a.rar").write_bytes(rarred(in__b_DOT_shp=b"s", in__b_DOT_dbf=b"d", in__c_DOT_tif=big, in__leer_DOT_tif=b""))
    assert [p.name for p in unpack(tmp_path / "a.rar", ("*.shp",))] == ["b.shp"] and (tmp_path / "a.rar.d/in/b.dbf").read_bytes() == b"d"
    c, empty = unpack(tmp_path / "a.rar", ("*.tif",))
    assert c.read_bytes() == big and empty.read_bytes() == b""


HOSTILE = {  # a .rar, and the line that is said of it
    **{f"name {n}": (rarred(rar_file("good.tif", b"x"), rar_file(n, b"x")), "names a file outside its folder") for n in ("../a.tif", "/etc/a.tif", "a/../../a.tif", "C:/a.tif")},
    "link": (rarred(rar_link("a.tif", "/etc/passwd")), "a.tif is a link: it is not unpacked"),
    "bomb": (rarred(rar_file("a.tif", b"x", size=2**40)), "would swell from .* this is no honest archive"),
    "no size": (rarred(rar_file("a.tif", b"x", about=12)), "would swell from .* this is no honest archive"),
    "volume": (rarred(rar_file("a.tif", b"x", flags=16)), "goes on in another volume"),
    "dictionary": (rarred(rar_file("a.tif", b"x", dictionary=14)), "asks for more than 1 GiB of memory"),
    "longer than it says": (rarred(rar_file("a.tif", bytes(5000), size=50)), "is not a whole rar file"),
    "shorter than it says": (rarred(rar_file("a.tif", bytes(50), size=5000)), "is not a whole rar file"),
    "other data": (rarred(rar_file("a.tif", b"abcdefgh")).replace(b"abcdefgh", b"abcdefgx"), "is not a whole rar file .its data are damaged"),
    "cut": (rarred(a_DOT_tif=DATA)[:-5000], "is not a whole rar file"),
    "cut in a header": (rarred(a_DOT_tif=b"x", b_DOT_tif=b"y").partition(b"b.tif")[0], "is not a whole rar file"),
    "no rar": (zipped(a_DOT_tif=b"x"), "is not a whole rar file .it is no RAR archive"),
    "empty": (b"", "is not a whole rar file"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_rar(tmp_path, capfd, case):
    data, text = HOSTILE[case]
    (tmp_path / "a.rar").write_bytes(data)
    with pytest.raises(DataError, match=text) as e:
        unpack(tmp_path / "a.rar", ("*.tif",))
    assert line(e) and sorted(p.name for p in tmp_path.rglob("*") if p.is_file()) == ["a.rar", "a.rar.lock"] and capfd.readouterr() == ("", "")


@pytest.mark.parametrize("pack", [zipped, rarred])
def test_archive_of_too_many_files(tmp_path, monkeypatch, pack):
    monkeypatch.setattr("isa_nb.archives.MEMBERS", 2)
    path = tmp_path / ("a.zip" if pack is zipped else "a.rar")
    path.write_bytes(pack(a=b"1", b=b"2", c=b"3", d=b"4"))
    with pytest.raises(DataError, match="holds more than 2 files: this is no honest archive") as e:
        unpack(path)
    assert line(e)


def test_rar_is_left_at_once(tmp_path, monkeypatch):
    "Ctrl-C, or a full disk, while a piece is taken: nothing is left behind, and the next call is as the first."
    (tmp_path / "a.rar").write_bytes(rarred(a_DOT_tif=DATA))
    real, pieces = archives._whole, []

    @contextlib.contextmanager
    def interrupted(*args):
        with real(*args):
            def add(piece):
                pieces.append(piece)
                raise KeyboardInterrupt
            yield add
    monkeypatch.setattr(archives, "_whole", interrupted)
    with pytest.raises(KeyboardInterrupt):
        unpack(tmp_path / "a.rar")
    assert len(pieces) == 1 and not list((tmp_path / "a.rar.d").iterdir())
    monkeypatch.setattr(archives, "_whole", real)
    assert unpack(tmp_path / "a.rar")[0].read_bytes() == DATA


def test_rar_by_several_threads(tmp_path):
    for n in range(6):
        (tmp_path / f"{n}.rar").write_bytes(rarred(a_DOT_tif=bytes([n]) * 10**6))
    with ThreadPoolExecutor(6) as pool:
        got = list(pool.map(lambda n: unpack(tmp_path / f"{n}.rar")[0].read_bytes(), range(6)))
    assert got == [bytes([n]) * 10**6 for n in range(6)]


def test_no_unpacker(tmp_path, monkeypatch):
    (tmp_path / "a.rar").write_bytes(rarred(a_DOT_tif=b"x"))
    monkeypatch.setitem(sys.modules, "unrar.cffi", None)
    with pytest.raises(RequestError, match="cannot be unpacked on this machine, for which the package unrar2-cffi has no wheel: unpack it on another one") as e:
        unpack(tmp_path / "a.rar")
    assert line(e)
    with pytest.raises(RequestError, match="a.7z is neither a .zip nor a .rar: unpack it by hand") as e:
        unpack(tmp_path / "a.7z")
    assert line(e)


# ---- rasters that are not what they say

def test_absurd_geotiff(server, tmp_path):
    (tmp_path / "a.tif").write_bytes(absurd(8))
    began = time.perf_counter()
    for grid in (WUHAN, None):
        with pytest.raises(DataError) as e:
            open_raster(tmp_path / "a.tif", grid, crs="EPSG:4326")
        assert line(e)
    assert time.perf_counter() - began < SOON


def test_xml_in_the_place_of_an_image(server, tmp_path, monkeypatch):
    (tmp_path / "secret.tif").write_bytes(tiff(190))
    bomb = b'<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a "aaaaaaaaaa">' + b"".join(b'<!ENTITY %c "%s">' % (98 + i, b"&%c;" % (97 + i) * 10) for i in range(9)) + b"]><x>&j;</x>"
    vrt = f'<VRTDataset rasterXSize="64" rasterYSize="64"><SRS>EPSG:4326</SRS><GeoTransform>113,0.0625,0,33,0,-0.0625</GeoTransform><VRTRasterBand dataType="Byte" band="1"><SimpleSource><SourceFilename>{tmp_path}/secret.tif</SourceFilename></SimpleSource></VRTRasterBand></VRTDataset>'.encode()
    for i, data in enumerate((bomb, vrt)):
        server.files[f"/{i}.tif"] = data
        for windowed, said in ((False, "is no GeoTIFF, and nothing else is opened of what came over a network"), (True, "cannot be read as a raster")):
            with pytest.raises(DataError, match=said) as e:
                remote.open_assets(Request("some", "classes", {}, WUHAN), [Asset(f"{server.url}/{i}.tif", "some", f"some/{i}{windowed}.tif", windowed=windowed)])
            assert line(e)


def test_what_leads_elsewhere(server, tmp_path):
    "Labels that name another file, a virtual table: what was fetched is no key to this machine's own files."
    secret = tmp_path / "secret.img"
    secret.write_bytes(bytes(64 * 64))
    pds = f'PDS_VERSION_ID = PDS3\nRECORD_TYPE = FIXED_LENGTH\nRECORD_BYTES = 64\n^IMAGE = "{secret}"\nOBJECT = IMAGE\n LINES = 64\n LINE_SAMPLES = 64\n SAMPLE_TYPE = UNSIGNED_INTEGER\n SAMPLE_BITS = 8\nEND_OBJECT = IMAGE\nEND\n'
    table = f'<OGRVRTDataSource><OGRVRTLayer name="secret"><SrcDataSource>{tmp_path}/secret.gpkg</SrcDataSource></OGRVRTLayer></OGRVRTDataSource>'
    gpd.GeoDataFrame({"a": [1]}, geometry=[box(114, 30, 115, 31)], crs="EPSG:4326").to_file(tmp_path / "secret.gpkg", layer="secret")
    for name, kind, data, said in (("a.tif", "classes", pds, "is no GeoTIFF, and nothing else is opened"), ("a.gpkg", "vector", table, "is a virtual table, which may lead to other files: it is not opened")):
        server.files[f"/{name}"] = data.encode()
        with pytest.raises(DataError, match=said) as e:
            remote.open_assets(Request("some", kind, {}, WUHAN), [Asset(f"{server.url}/{name}", "some", f"some/{name}")])
        assert line(e)
    for url in (f"file://{secret}", f"/vsizip/{secret}", str(secret)):
        with pytest.raises(DataError, match="cannot be asked for") as e:
            download(Asset(url, "some", "some/secret.img"))
        assert line(e) and not (cached(Asset(url, "some", "some/secret.img")))


# ---- windows of remote files

@pytest.fixture(scope="module")
def big(tmp_path_factory):
    "A COG of 100 km at 10 m."
    values = np.random.default_rng(0).integers(1, 9, (1250, 1250), np.uint8).repeat(8, 0).repeat(8, 1)
    return cog(tmp_path_factory.mktemp("big") / "big.tif", values, Affine(10, 0, 200_000, 0, -10, 3_420_000))


@pytest.mark.parametrize("peer", PEERS)
def test_a_window_costs_a_window(peer, big, tmp_path, cache):
    "5 km of a COG of 100 km: less than 5 % of its bytes, and the same pixels as from the disk."
    if peer == "nginx" and not shutil.which("nginx"):
        pytest.skip("nginx is not installed")
    grid = square_geobox(114.31, 30.6, 5000, 10)
    with PEERS[peer](big.parent, tmp_path) as p:
        p.sent()
        got = remote.open_assets(Request("big", "classes", {}, grid), [Asset(f"{p.url}/big.tif", "big", "big/big.tif", windowed=True)])
        share = p.sent() / big.stat().st_size
    assert (got.values == open_raster(big, grid).values).all() and got.shape == (500, 500)
    assert 0 < share < 0.05, share
    assert clean(cache) == []


@pytest.mark.parametrize("kind", ["COG none", "COG lzw", "COG deflate", "strips lzw", "planes lzw"])
def test_a_window_brings_no_more_than_it_promised(kind, tmp_path, cache):
    "Noise, which no compression makes smaller (LZW makes it larger): what the server sends is what the budget counts, and never more than the promise, for windows of all sizes, on the file's pixels, on coarser ones and in another CRS."
    layout, compress = kind.split()
    bands, grid = 3 if layout == "planes" else 1, square_geobox(114.31, 30.6, 14_000, 10)
    values = np.random.default_rng(0).integers(0, 255, (bands, *grid.shape.yx), np.uint8)
    made = {"driver": "COG", "blocksize": 256, "overviews": "ignore_existing"} if layout == "COG" else {"driver": "GTiff", "interleave": "band"}
    with rasterio.open(tmp_path / "a.tif", "w", height=grid.shape.y, width=grid.shape.x, count=bands, dtype="uint8", crs=str(grid.crs), transform=grid.affine, compress=compress, **made) as f:
        f.write(values)
    with PEERS["starlette"](tmp_path, tmp_path) as p:
        for n, (part, resampling) in enumerate([(grid[700:710, 20:25], "nearest"), (grid[100:800, 300:1400], "nearest"), (grid, "nearest"), (grid.zoom_out(7), "average"), (square_geobox(114.31, 30.6, 9000, 12, "EPSG:32649"), "bilinear"),
                                                (square_geobox(114.24, 30.6, 4000, 30, "EPSG:32650"), "nearest")]):
            (tmp_path / f"{n}.tif").symlink_to(tmp_path / "a.tif")  # GDAL remembers what it has read
            budget, promised = meter.Budget(1e12, 0), []
            real = budget.window
            budget.window = lambda most, promised=promised, real=real: promised.append(most) or real(most)
            p.sent()
            with meter.metered(budget):
                remote.open_assets(Request("a", "continuous", {}, part, resampling=resampling, fill=0), [Asset(f"{p.url}/{n}.tif", "a", "a/a.tif", windowed=True)])
            sent = p.sent()
            assert abs(sent - budget.done) <= 2**10 and 0 < sent <= sum(promised), (n, sent, promised, budget.done)
            budget = meter.Budget(promised[0] - 1, 0)
            with meter.metered(budget), pytest.raises(RequestError, match="the next window of a remote file may bring .* GB allowed have come in: allow more with --max-size") as e:
                remote.open_assets(Request("a", "continuous", {}, part, resampling=resampling, fill=0), [Asset(f"{p.url}/{n}.tif", "a", "a/a.tif", windowed=True)])
            assert line(e) and p.sent() < 2**18, "nothing but a header"


def test_budget_without_the_count_of_gdal(monkeypatch):
    "Where GDAL cannot be asked what it has read, what windows promise is counted."
    monkeypatch.setattr(meter, "_GDAL", [None])
    budget = meter.Budget(100, 0)
    with meter.metered(budget), meter.on_budget(lambda: 60):
        assert budget.done == 0
    assert budget.done == 60
    with meter.metered(budget), pytest.raises(RequestError, match="may bring 0.0 MB"), meter.on_budget(lambda: 60):
        raise AssertionError("read")


def test_window_of_a_file_that_fails(server, monkeypatch):
    monkeypatch.setitem(remote.GDAL, "GDAL_HTTP_MAX_RETRY", "0")
    server.script["/a.tif"] = [Answer(status=500) for _ in range(30)]
    with pytest.raises(DataError, match="cannot be read as a raster") as e:
        remote.open_assets(Request("some", "classes", {}, WUHAN), [Asset(f"{server.url}/a.tif", "some", "some/a.tif", windowed=True)])
    assert line(e)


def absurd(offset):
    "Two billion pixels a side in a file of some hundred bytes; its first block lies at `offset`."
    tags = [(256, 4, 1, 2_000_000_000), (257, 4, 1, 2_000_000_000), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1), (273, 4, 1, offset), (277, 3, 1, 1), (278, 4, 1, 1), (279, 4, 1, 8)]
    return b"II*\0" + struct.pack("<I", 16) + bytes(8) + struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *t) for t in tags) + bytes(4)


@pytest.mark.parametrize(("fault", "answer"), [("404", Answer(b"no", 404)), ("403", Answer(b"no", 403)), ("page", Answer(b"<html>log in", Content_Type="text/html")), ("loop", Answer(status=302, Location="/loop.tif")),
                                               ("cut", Answer(tiff(190), cut=100)), ("absurd", Answer(absurd(8))), ("holes", Answer(absurd(0))), ("text", Answer(b"# no image\n"))])
def test_windows_of_what_is_wrong(server, cache, fault, answer):
    "What is read where it lies goes wrong: one line, soon, and nothing is left in the cache."
    path = "/loop.tif" if fault == "loop" else f"/{fault}.tif"
    if answer.status == 200 and answer.cut is None:
        server.files[path] = answer.body
    else:
        server.script[path] = [answer] * 90
    began = time.perf_counter()
    with pytest.raises(DataError, match="cannot be read as a raster|which is absurd for this file|breaks off while it is read|does not overlap") as e:
        remote.open_assets(Request("some", "classes", {"crs": "EPSG:4326"}, WUHAN), [Asset(f"{server.url}{path}", "some", f"some/{fault}.tif", windowed=True)])
    assert line(e) and time.perf_counter() - began < SOON and clean(cache) == []


def test_window_that_stalls(server):
    server.files["/a.tif"] = tiff(190)
    server.script["/a.tif"] = [Answer(tiff(190)), *(Answer(tiff(190), 206, stall=0, Content_Range="bytes 0-1000/2000") for _ in range(9))]
    began = time.perf_counter()
    with pytest.raises(DataError, match="cannot be read as a raster") as e:
        remote.open_assets(Request("some", "classes", {}, WUHAN), [Asset(f"{server.url}/a.tif", "some", "some/a.tif", windowed=True)])
    assert line(e) and time.perf_counter() - began < SOON


def test_window_survives_a_busy_server(server):
    server.files["/a.tif"] = tiff(190, nodata=250)
    server.script["/a.tif"] = [Answer(status=503), Answer(status=502)]
    got = remote.open_assets(Request("some", "classes", {}, WUHAN), [Asset(f"{server.url}/a.tif", "some", "some/a.tif", windowed=True)])
    assert (got.values == 190).all()


@pytest.mark.parametrize("times", [2, 90])
def test_window_whose_pixels_break_off(server, tmp_path, monkeypatch, times):
    "What breaks off is asked for again; what breaks off every time is one line."
    values = np.random.default_rng(0).integers(1, 200, (1100, 1100), np.uint8)
    server.files["/a.tif"] = cog(tmp_path / "a.tif", values, WUHAN.pad(500).affine, WUHAN.crs.to_wkt()).read_bytes()
    broken = []

    def given(h, path):
        answer = server.stored(path, h.headers)
        if h.headers.get("Range", "bytes=0-").startswith("bytes=0-") or len(broken) == times:
            return answer
        broken.append(h.headers["Range"])
        answer.cut = len(answer.body) // 2
        return answer
    monkeypatch.setattr(server, "given", given)
    ask = lambda: remote.open_assets(Request("some", "classes", {}, WUHAN), [Asset(f"{server.url}/a.tif", "some", "some/a.tif", windowed=True)])  # noqa: E731
    if times == 2:
        assert (ask().values == values[500:600, 500:600]).all() and len(broken) == 2
    else:
        with pytest.raises(DataError, match="breaks off while it is read: check the network and try again") as e:
            ask()
        assert line(e) and len(broken) >= 3


# ---- the edges of the world

def test_boxes_at_the_edges():
    assert len(boxes(WUHAN)) == 1
    west, east = boxes(square_geobox(180, -17, 20_000, 100, "EPSG:32701"))
    assert west[2] == 180 and east[0] == -180 and 0 < 180 - west[0] < 1 and 0 < east[2] + 180 < 1
    assert boxes(square_geobox(0, 90, 20_000, 100, "EPSG:3413"))[0][0::2] == (-180.0, 180.0)
    assert boxes(square_geobox(0, -90, 20_000, 100, "EPSG:3031"))[0][1] == -90


def test_mosaic_across_the_antimeridian(server, monkeypatch):
    "Fiji: one tile ends at 180 E, the next begins at 180 W, and the grid in UTM has no seam."
    monkeypatch.setenv("ISA_ENDPOINTS", json.dumps({"https://esa-worldcover.s3.eu-central-1.amazonaws.com": server.url}))
    name = "/v200/2021/map/ESA_WorldCover_10m_2021_v200_{}_Map.tif"
    server.files[name.format("S18E177")] = tiff(10, (177, -18, 180, -15), nodata=0)
    server.files[name.format("S18W180")] = tiff(50, (-180, -18, -177, -15), nodata=0)
    got = CAT.open("esa_worldcover_2021", square_geobox(180, -16.8, 20_000, 100, "EPSG:32701"))
    assert set(np.unique(got)) == {10, 50} and (got.values[:, :90] == 10).all() and (got.values[:, 110:] == 50).all()


def test_polar_area(server, monkeypatch):
    monkeypatch.setenv("ISA_ENDPOINTS", json.dumps({"https://esa-worldcover.s3.eu-central-1.amazonaws.com": server.url}))
    server.files["/v200/2021/map/ESA_WorldCover_10m_2021_v200_N81W033_Map.tif"] = tiff(70, (-33, 81, -30, 84), nodata=0)
    got = CAT.open("esa_worldcover_2021", square_geobox(-32, 83, 20_000, 100, "EPSG:3413"))
    assert (got.values == 70).all()
    with pytest.raises(DataError, match="esa_worldcover_2021 has no file for the asked area: it is not covered") as e:
        CAT.open("esa_worldcover_2021", square_geobox(0, -89.99, 1000, 100, "EPSG:3031"))
    assert line(e)


# ---- every source that has an access, through the catalogue, unchanged

def record(*files):
    "An answer of Zenodo's interface, with the shape of a recorded one."
    return json.dumps({"id": 1, "doi": "10.5281/zenodo.1", "files": [{"key": k, "size": len(d), "checksum": md5(d), "links": {"self": "unused"}} for k, d in files], "metadata": {"title": "x"}}).encode()


def zenodo(number, *files):
    return {f"/api/records/{number}": record(*files), **{f"/api/records/{number}/files/{k}/content": d for k, d in files}}


def figshare(path, name, data):
    said = {"files": [{"id": 7, "name": name, "size": len(data), "is_link_only": False, "download_url": "https://ndownloader.figshare.com/files/7", "supplied_md5": "", "computed_md5": md5(data)[4:], "mimetype": ""}]}
    return {f"/v2/articles/{path}": json.dumps(said).encode(), "/files/7": data}


def shapefile(folder, name, frame):
    "The members of a zip that hold a shapefile."
    folder.mkdir(exist_ok=True)
    frame.to_file(folder / f"{name}.shp", engine="pyogrio")
    return {f"{name}_DOT_{p.suffix[1:]}": p.read_bytes() for p in folder.glob(f"{name}.*")}


WORLD, AROUND = (-180, -90, 180, 90), (100, 20, 130, 40)
ECO = gpd.GeoDataFrame({"ECO_NAME": ["Wuhan plain"]}, geometry=[box(110, 25, 120, 35)], crs="EPSG:4326")
UTM50, MOLLWEIDE = (100_000, 3_300_000, 900_000, 3_500_000), (9_959_000, 3_000_000, 10_959_000, 4_000_000)
SOURCES = {  # name -> (beginning of the addresses, path -> file, grid, value or check)
    "gisa_2019": lambda t: ("https://zenodo.org", zenodo(5136330, ("GISA_v01_1972_2019_35N_110E.tif", tiff(30)), ("GISA_v01_1972_2019_35N_115E.tif", tiff(1))), WUHAN, 30),
    "gisa_10m": lambda t: ("https://zenodo.org", zenodo(5791855, ("GISA-10m_35N_110E.tif", tiff(1))), WUHAN, 1),
    "gisa_new": lambda t: ("https://zenodo.org", zenodo(14848113, ("new.tif", tiff(3)), ("new.vrt", b"x")), WUHAN, 3),
    "gaia": lambda t: ("http://data.ess.tsinghua.edu.cn", {"/data/GAIA/GAIA_1985_2018_31_114.tif": tiff(5)}, WUHAN, 5),
    "ghsl_built_s_2018": lambda t: ("https://jeodpp.jrc.ec.europa.eu", {"/ftp/jrc-opendata/GHSL/GHS_BUILT_S_GLOBE_R2023A/GHS_BUILT_S_E2018_GLOBE_R2023A_54009_10/V1-0/tiles/GHS_BUILT_S_E2018_GLOBE_R2023A_54009_10_V1_0_R6_C29.zip":
                                    zipped(readme_DOT_pdf=b"x", t_DOT_tif=tiff(77, MOLLWEIDE, "ESRI:54009", "uint16"))}, WUHAN, 77),
    "wsf_2015": lambda t: ("https://api.figshare.com https://ndownloader.figshare.com", figshare("10048412/versions/1", "WSF2015_v1_EPSG4326.zip", zipped(
        WSF__WSF2015_v1_EPSG4326_e110_n40_e120_n30_DOT_tif=tiff(255), WSF__WSF2015_v1_EPSG4326_e100_n40_e110_n30_DOT_tif=tiff(0))), WUHAN, 255),
    "wsf_2019": lambda t: ("https://download.geoservice.dlr.de", {"/WSF2019/files/WSF2019_v1_114_30.tif": tiff(255)}, WUHAN, 255),
    "glc_fcs30_2020": lambda t: ("https://zenodo.org", zenodo(4280923, ("GLC_FCS30_2020_E110N35.tif", tiff(190))), WUHAN, 190),
    "glc_fcs30d": lambda t: ("https://zenodo.org", zenodo(8239305, ("GLC_FCS30D_19852022maps_E110-E115.zip", zipped(
        maps__GLC_FCS30D_20002022_E110N35_Annual_V1_DOT_1_DOT_tif=tiff(list(range(1, 24))), maps__GLC_FCS30D_20002022_E115N35_Annual_V1_DOT_1_DOT_tif=tiff([0] * 23)))), WUHAN, 23),
    "esa_worldcover_2020": lambda t: ("https://esa-worldcover.s3.eu-central-1.amazonaws.com", {"/v100/2020/map/ESA_WorldCover_10m_2020_v100_N30E114_Map.tif": tiff(50)}, WUHAN, 50),
    "esa_worldcover_2021": lambda t: ("https://esa-worldcover.s3.eu-central-1.amazonaws.com", {"/v200/2021/map/ESA_WorldCover_10m_2021_v200_N30E114_Map.tif": tiff(50)}, WUHAN, 50),
    "esri_annual": lambda t: ("https://lulctimeseries.blob.core.windows.net", {"/lulctimeseriesv003/lc2020/50R_20200101-20210101.tif": tiff(7, UTM50, "EPSG:32650")}, WUHAN, 7),
    "from_glc10_2017": lambda t: ("http://data.ess.tsinghua.edu.cn", {"/data/fromglc10_2017v01/fromglc10v01_30_114.tif": tiff(80)}, WUHAN, 80),
    "sinolc_1": lambda t: ("https://zenodo.org", zenodo(8103779, ("Hubei.zip", zipped(Central_Hubei_Wuhan_DOT_tif=tiff(5)))), WUHAN, 5),
    "nlcd": lambda t: ("https://www.mrlc.gov", {"/downloads/sciweb1/shared/mrlc/data-bundles/Annual_NLCD_LndCov_2013_CU_C1V1.zip": zipped(a_DOT_tif=tiff(24, (1_500_000, 1_500_000, 2_000_000, 2_200_000), "EPSG:5070"))}, DELAWARE, 24),
    "chesapeake_6": lambda t: ("https://lilablobssc.blob.core.windows.net", {"/lcmcvpr2019/de_1m_2013.zip": zipped(de__m_1_lc_DOT_tif=tiff(5, (400_000, 4_300_000, 500_000, 4_400_000), "EPSG:26918"), de__m_1_naip_DOT_tif=b"x")}, DELAWARE, 5),
    "cisc": lambda t: ("https://zenodo.org", zenodo(15004180, ("CISC2020.tif", tiff(1)), ("CISC2022.tif", tiff(0))), WUHAN, 1),
    "worldclim_bio12": lambda t: ("https://geodata.ucdavis.edu", {"/climate/worldclim/2_1/base/wc2.1_30s_bio.zip": zipped(
        **{"wc2_DOT_1_30s_bio_12_DOT_tif": tiff(1250, WORLD, dtype="float32", nodata=-3.4e38), "wc2_DOT_1_30s_bio_1_DOT_tif": tiff(17, WORLD, dtype="float32")})}, WUHAN, 1250),
    "chelsa_bio12": lambda t: ("https://os.unil.cloud.switch.ch", {"/chelsa02/chelsa/global/bioclim/bio12/1981-2010/CHELSA_bio12_1981-2010_V.2.1.tif": tiff(12_500, WORLD, dtype="uint16")}, WUHAN, 1250),
    "chirps": lambda t: ("https://data.chc.ucsb.edu", {"/products/CHIRPS-2.0/global_annual/tifs/chirps-v2.0.2020.tif": tiff(1100, (-180, -50, 180, 50), dtype="float32", nodata=-9999)}, WUHAN, 1100),
    "ecoregions_olson": lambda t: ("https://files.worldwildlife.org", {"/wwfcmsprod/files/Publication/file/6kcchn7e3u_official_teow.zip": zipped(**{f"official__{k}": v for k, v in shapefile(t / "o", "wwf_terr_ecos", ECO).items()})}, WUHAN, ECO),
    "ecoregions_resolve_2017": lambda t: ("https://storage.googleapis.com", {"/teow2016/Ecoregions2017.zip": zipped(**shapefile(t / "r", "Ecoregions2017", ECO))}, WUHAN, ECO),
    "cop_dem_30": lambda t: ("https://copernicus-dem-30m.s3.amazonaws.com", {"/{0}/{0}.tif".format("Copernicus_DSM_COG_10_N30_00_E114_00_DEM"): tiff(33, dtype="float32")}, WUHAN, 33),
}


def serve(server, monkeypatch, beginnings, files):
    server.files |= files
    monkeypatch.setenv("ISA_ENDPOINTS", json.dumps(dict.fromkeys(beginnings.split(" "), server.url)))


def overlay(tmp_path, text):
    (tmp_path / "o.yaml").write_text(text)
    return Catalog.load(overlay=tmp_path / "o.yaml")


def planned(cat, name, grid):
    "The plan of a source, judged alike here and at the real service."
    s = cat.source(name)
    plan = remote.PLANNERS[s.access.driver](cat.request(name, grid))
    assert plan and all(a.source == name and a.licence == s.licence and a.citation == s.citation and a.size and cached(a) is None for a in plan)
    return plan


def opened(cat, name, grid):
    "A source on a grid, judged alike here and at the real service."
    s, got = cat.source(name), cat.open(name, grid)
    assert got.attrs["licence"] == s.licence and got.attrs["citation"] == s.citation and got.attrs["source"] == name
    if isinstance(got, gpd.GeoDataFrame):
        assert len(got) and got.crs == grid.crs.to_wkt()
    else:
        assert got.shape == grid.shape.yx and np.isfinite(got.values.astype(float)).any()
    return got


@pytest.mark.parametrize("name", SOURCES)
def test_source(name, server, tmp_path, monkeypatch):
    beginnings, files, grid, expected = SOURCES[name](tmp_path)
    serve(server, monkeypatch, beginnings, files)
    cat = overlay(tmp_path, "sources: {sinolc_1: {access: {options: {region: Hubei}}}}") if name == "sinolc_1" else CAT
    plan = planned(cat, name, grid)
    assert not [p for m, p, _ in server.asked if m == "GET" and p.endswith((".tif", ".zip", "content"))]  # planning fetches nothing
    got = opened(cat, name, grid)
    if isinstance(expected, gpd.GeoDataFrame):
        assert list(got["ECO_NAME"]) == ["Wuhan plain"]
    else:
        assert np.allclose(got.values, expected), np.unique(got)
    monkeypatch.setenv("ISA_OFFLINE", "1")
    if not plan[0].windowed:  # what was fetched opens again without a network
        assert len(cat.open(name, grid)) == len(got)


def test_every_source_is_tested_or_says_why_not():
    left = {n for n, s in CAT.sources.items() if s.access.driver not in ("lab", "file", "stac", "earthengine", "manual")} - set(SOURCES)
    assert left == {"globeland30_2020", "gisd30", "isa_1", "glc_validation", "geofabrik", "ms_buildings"}  # below: a folder of one's own, archives of .rar, extracts, outlines; test_earthengine
    assert len(SOURCES) + len(left) >= 20


@pytest.mark.parametrize("name", ["gisd30", "isa_1", "glc_validation"])
def test_rar_deposits(name, server, tmp_path, monkeypatch):
    "The archive is fetched, checked and unpacked, without a network the second time."
    archive = {"gisd30": "GISD30_1985-2020_E95_E120.rar", "isa_1": "ISA-1-Some-examples.rar", "glc_validation": "GLC_ValidationSampleSet_v1.rar"}[name]
    if name == "glc_validation":
        gpd.GeoDataFrame({"sample_lab": [190, 10]}, geometry=gpd.points_from_xy([114.31, 0], [30.6, 0]), crs="EPSG:4326").to_file(tmp_path / "p.shp")
        packed = rarred(*(rar_file(f"points/{p.name}", p.read_bytes()) for p in tmp_path.glob("p.*")))
    else:
        packed = rarred(rar_file({"gisd30": "GISD30_1985-2020_E110N35.tif", "isa_1": "cities/Wuhan.tif"}[name], tiff(1)))
    made = figshare("28490204/versions/2", archive, packed) if name == "isa_1" else zenodo(CAT.source(name).access.options.record, (archive, packed))
    serve(server, monkeypatch, "https://zenodo.org https://api.figshare.com https://ndownloader.figshare.com", made)
    for _ in range(2):
        got = CAT.open(name, WUHAN)
        assert list(got["sample_lab"]) == [190] if name == "glc_validation" else (got.values == 1).all()
        monkeypatch.setenv("ISA_OFFLINE", "1")


def test_years(server, tmp_path, monkeypatch):
    serve(server, monkeypatch, *SOURCES["glc_fcs30d"](tmp_path)[:2])
    assert (CAT.open("glc_fcs30d", WUHAN, year=2005).values == 6).all()
    with pytest.raises(RequestError, match="glc_fcs30d has no year 1986"):
        CAT.open("glc_fcs30d", WUHAN, year=1986)
    with pytest.raises(RequestError, match=r"holds no .*GLC_FCS30D_19851995_5years_E110N35.tif"):
        CAT.open("glc_fcs30d", WUHAN, year=1990)


@pytest.mark.parametrize(("answer", "text"), [(b"[]", "has no list of files"), (b'{"files": [{"x": 1}]}', "has no list of files"), (b"<html>", "something that is not JSON"), (b"[" * 100_000, "something that is not JSON"),
                                              (record(("readme.txt", b"x")), "the deposit has no file like GISA")])
def test_strange_answers(server, monkeypatch, answer, text):
    serve(server, monkeypatch, "https://zenodo.org", {"/api/records/5136330": answer})
    with pytest.raises(DataError, match=text) as e:
        CAT.open("gisa_2019", WUHAN)
    assert line(e)


@pytest.mark.parametrize(("answer", "text"), [(Answer(b"gone", 404), "does not exist on the server"), (Answer(b"no", 403), "may not be read without an account"), (Answer(status=500), "the server answers 500 .* again and again"),
                                              (Answer(status=429, Retry_After="9000"), "asks to come back in 9000 s"), (Answer(b"{}", stall=1), "does not answer in time|cannot be reached"), (Answer(b'{"files": []}', cut=3), "cannot be reached|is not JSON"),
                                              (Answer(status=302, Location="/loop"), "leads in a circle of redirects")])
@pytest.mark.parametrize(("name", "path"), [("gisa_2019", "/api/records/5136330"), ("wsf_2015", "/v2/articles/10048412/versions/1"), ("geofabrik", "/index-v1.json"), ("ms_buildings", "/global-buildings/dataset-links.csv")])
def test_services_that_fail(server, cache, monkeypatch, answer, text, name, path):
    "What holds for a file holds for the lists of the services: one line, and nothing is kept of it."
    monkeypatch.setattr("isa_nb.downloads.ATTEMPTS", 1)
    monkeypatch.setattr("isa_nb.downloads._HERE", threading.local())
    serve(server, monkeypatch, "https://zenodo.org https://api.figshare.com https://download.geofabrik.de https://minedbuildings.z5.web.core.windows.net", {})
    server.script[path] = server.script["/loop"] = [answer] * 40
    with pytest.raises(DataError, match=text) as e:
        CAT.open(name, WUHAN)
    assert line(e) and clean(cache) == [] and not [p for p in cache.rglob("answers/*.json") if "HEAD" not in p.read_text()]


def test_answers_without_end(server, cache, monkeypatch):
    monkeypatch.setattr("isa_nb.downloads.LARGEST_ANSWER", 2**20)
    serve(server, monkeypatch, "https://zenodo.org", {"/api/records/5136330": bytes(2**20 + 1)})
    with pytest.raises(DataError, match="answers with more than 1 MiB where a list was due") as e:
        CAT.open("gisa_2019", WUHAN)
    assert line(e) and clean(cache) == []


def test_names_of_a_service_are_no_paths(server, cache, monkeypatch):
    serve(server, monkeypatch, "https://zenodo.org", zenodo(14848113, ("../../../new.tif", tiff(3))))
    a, = remote.PLANNERS["zenodo"](CAT.request("gisa_new", WUHAN))
    assert (cache / a.file).resolve().parent == (cache / "gisa_new").resolve()


def test_pattern_without_a_value(server, monkeypatch):
    serve(server, monkeypatch, "https://zenodo.org", zenodo(8103779, ("Hubei.zip", b"x")))
    with pytest.raises(RequestError, match="sinolc_1: {region} in {region}.zip has no value: state access.options.region in an overlay"):
        CAT.open("sinolc_1", WUHAN)
    with pytest.raises(RequestError, match="is a set of tiles of the whole Earth: ask for an area"):
        CAT.open("wsf_2019")


# ---- Geofabrik

def geofabrik(folder):
    regions = {"china": (None, 100, 125), "hubei": ("china", 108, 116.005), "anhui": ("china", 115.995, 120)}
    feature = lambda k, parent, w, e: {"type": "Feature", "properties": {"id": k, "parent": parent, "name": k, "urls": {  # noqa: E731
        "pbf": f"https://download.geofabrik.de/{k}-latest.osm.pbf", "shp": f"https://download.geofabrik.de/{k}-latest-free.shp.zip"}}, "geometry": mapping(box(w, 29, e, 33))}
    files = {"/index-v1.json": json.dumps({"type": "FeatureCollection", "features": [feature(k, *v) for k, v in regions.items()]}).encode()}
    for k, x in (("hubei", 114.31), ("anhui", 117), ("china", 114.31)):
        roads = gpd.GeoDataFrame({"osm_id": ["1", k], "code": [5111, 5111], "fclass": ["primary", "primary"]}, geometry=[LineString([(115.99, 30.6), (116.01, 30.6)]), LineString([(x, 30.6), (x + 0.005, 30.6)])], crs="EPSG:4326")
        files[f"/{k}-210101-free.shp.zip"] = data = zipped(**shapefile(folder / k, "gis_osm_roads_free_1", roads))
        files[f"/{k}-210101-free.shp.zip.md5"] = f"{md5(data)[4:]}  {k}-210101-free.shp.zip\n".encode()
    return files


def test_geofabrik(server, tmp_path, monkeypatch):
    serve(server, monkeypatch, "https://download.geofabrik.de", geofabrik(tmp_path))
    a, = remote.PLANNERS["geofabrik"](CAT.request("geofabrik", WUHAN, year=2020))
    assert a.url.endswith("/hubei-210101-free.shp.zip") and a.checksum.startswith("md5:") and a.size
    got = CAT.open("geofabrik", WUHAN, year=2020)
    assert list(got["osm_id"]) == ["hubei"] and got.attrs["licence"] == "ODbL-1.0"
    border = square_geobox(116, 30.6, 6000, 10, "EPSG:32650")  # a road that both extracts hold counts once
    assert len(remote.PLANNERS["geofabrik"](CAT.request("geofabrik", border, year=2020))) == 2
    assert list(CAT.open("geofabrik", border, year=2020)["osm_id"]) == ["1"]
    for k in ("hubei", "anhui"):
        del server.files[f"/{k}-210101-free.shp.zip"]
    a, = remote.PLANNERS["geofabrik"](CAT.request("geofabrik", border, year=2020))
    assert a.url.endswith("/china-210101-free.shp.zip")  # the province has none of that date, the country has
    with pytest.raises(DataError, match="Geofabrik has no hubei-220101-free.shp.zip and no china-220101-free.shp.zip: ask for another year") as e:
        CAT.open("geofabrik", WUHAN, year=2021)
    assert line(e)
    with pytest.raises(RequestError, match="unknown region of Geofabrik 'hube': did you mean 'hubei'"):
        overlay(tmp_path, "sources: {geofabrik: {access: {options: {region: hube}}}}").open("geofabrik", WUHAN)


# ---- building outlines

def test_buildings(server, tmp_path, monkeypatch):
    from isa_nb.footprints import quadkeys
    key, = quadkeys(boxes(WUHAN))
    houses = [{"type": "Feature", "properties": {"height": -1.0, "confidence": -1.0}, "geometry": mapping(box(x, y, x + 1e-4, y + 1e-4))} for x, y in ((114.31, 30.6), (114.9, 30.1))]
    table = f"Location,QuadKey,Url,Size,UploadDate\nChina,{key},https://minedbuildings.z5.web.core.windows.net/b/{key}.csv.gz,1KB,2024-01-01\nChina,000000000,https://x/y,1KB,2024-01-01\n"
    serve(server, monkeypatch, "https://minedbuildings.z5.web.core.windows.net", {"/global-buildings/dataset-links.csv": table.encode(), f"/b/{key}.csv.gz": gzip.compress("\n".join(map(json.dumps, houses)).encode())})
    got = CAT.open("ms_buildings", WUHAN)
    assert got[["layer", "fclass"]].values.tolist() == [["buildings_a", "building"]] and got.geometry.area.between(50, 200).all()
    from isa_nb.osm import rasterise
    assert (rasterise(got, square_geobox(114.31, 30.6, 300, 5)) == 1).any()
    server.files["/global-buildings/dataset-links.csv"] = b"no,table\n1,2\n"
    with pytest.raises(DataError, match="is not the table of links that this version knows"):
        CAT.open("ms_buildings", WUHAN)
    server.files["/global-buildings/dataset-links.csv"] = table.replace(key, "111111111").encode()
    assert CAT.open("ms_buildings", WUHAN).attrs["problems"] == ["ms_buildings has no file for the asked area", "no object lies inside the asked area"]


# ---- tiles of one's own

def own_tile(folder, name, grid, packed=None):
    "A tile of the simulated world, in GlobeLand30's codes, as a file or in a zip as it is given out."
    values = np.array([0, 20, 40, 10, 30, 80, 90, 60, 50, 100, 70, 80], np.uint8)[np.where(LC_LUT == 255, 0, LC_LUT)[world.for_geobox(grid, 0).truth(grid, 2020).values]]
    folder.mkdir(parents=True, exist_ok=True)
    with rasterio.open(folder / name, "w", driver="GTiff", height=grid.shape.y, width=grid.shape.x, count=1, dtype="uint8", crs=str(grid.crs), transform=grid.affine) as f:
        f.write(values, 1)
    if packed:
        with zipfile.ZipFile(folder / packed, "w", zipfile.ZIP_DEFLATED) as z:
            z.write(folder / name, f"{packed[:-4]}/{name}")
            z.writestr(f"{packed[:-4]}/readme.txt", "GlobeLand30")
        (folder / name).unlink()
    return values


def test_globeland30_in_a_folder(tmp_path, monkeypatch, server):
    "The tiles as they are given out, as they are unpacked, and renamed: one folder, one line of an overlay; then open, fetch and the rest as with any source."
    from isa_nb import fetch_plan, fetched
    from isa_nb.entries import Area
    grid, name = square_geobox(114.30, 30.55, 6000, 30), "globeland30_2020"
    with pytest.raises(RequestError, match=f"^{name} is given out to registered users only, .*: fetch its tiles, put them into one folder, and name that in an overlay .sources: {{{name}: ") as e:
        CAT.open(name, grid)
    assert line(e)
    cat = overlay(tmp_path, f"sources: {{{name}: {{access: {{options: {{folder: tiles}}}}}}}}")
    with pytest.raises(RequestError, match="tiles is no folder: correct access.options.folder"):
        cat.open(name, grid)
    (tmp_path / "tiles/2020").mkdir(parents=True)
    with pytest.raises(DataError, match="tiles holds no tile that the area needs .as N50_30_2020LC030.tif.: put it there") as e:
        cat.open(name, grid)
    assert line(e)
    values = own_tile(tmp_path / "tiles/2020", "n50_30_2020lc030.tif", grid, "N50_30_2020LC030.zip")
    own_tile(tmp_path / "tiles", "n50_30_2010lc030.tif", square_geobox(114.30, 30.55, 900, 30))  # of another year
    got = cat.open(name, grid)
    assert (got.values == values).all() and got.rio.nodata == 0 and got.attrs["source"] == name and not server.asked
    isa = cat.source(name).to_isa(got)
    assert ((isa.values == 1) == (values == 80)).all()
    assert sorted(p.name for p in (tmp_path / "tiles/2020").iterdir()) == ["N50_30_2020LC030.zip"], "the user's folder is left as it is"
    west, south, east, north = grid[50:150, 50:150].geographic_extent.boundingbox
    area = Area(title="Town", bbox=(west, south, east, north), resolution=30)
    area._name = "town"
    plan = fetch_plan.plan(cat, area, [name], [2020])
    assert plan.items[0].sized == "none" and plan.size == 0 and not plan.items[0].problem, "nothing must come over a network"
    done = fetched.execute(plan, cat, tmp_path / "out")
    assert done.made == [f"{name}_2020"] and (Catalog.load(overlay=done.catalog).open(name, grid[60:140, 60:140]).values == values[60:140, 60:140]).all()
    (tmp_path / "tiles/2020/N50_30_2020LC030.zip").unlink()
    own_tile(tmp_path / "tiles", "N50_30.tif", grid)
    assert (cat.open(name, grid).values == values).all()
    both = overlay(tmp_path, f"sources: {{{name}: {{nodata: 0, access: {{options: {{folder: seam}}}}}}}}")  # a place at the border of two zones, each tile in its own CRS
    for zone in (49, 50):
        own_tile(tmp_path / "seam", f"n{zone}_30_2020lc030.tif", square_geobox(114.0, 30.55, 9000, 30, f"EPSG:326{zone}"))
    seam = square_geobox(114.0, 30.55, 3000, 30, "EPSG:32650")
    assert len(remote.PLANNERS["tiles"](both.request(name, seam))) == 2 and (both.open(name, seam).values > 0).all()


def test_other_sources_in_a_folder(tmp_path, server):
    "GISA-10m and WorldCover, fetched by hand: no network, no hash, the same names."
    for name, tile in (("gisa_10m", "GISA-10m_35N_110E.tif"), ("esa_worldcover_2020", "ESA_WorldCover_10m_2020_v100_N30E114_Map.tif")):
        folder = tmp_path / name
        folder.mkdir()
        (folder / tile).write_bytes(tiff(1 if name == "gisa_10m" else 50))
        cat = overlay(tmp_path, f"sources: {{{name}: {{access: {{options: {{folder: {name}}}}}}}}}")
        got = cat.open(name, WUHAN)
        assert (cat.source(name).to_isa(got).values == 1).all() and not server.asked
    with pytest.raises(DataError, match="the deposit has no file like GISA-10m_{lat}_{lon}.tif: it has ESA"):
        overlay(tmp_path, "sources: {gisa_10m: {access: {options: {folder: esa_worldcover_2020}}}}").open("gisa_10m", WUHAN)

# ---- the real services

@pytest.mark.live
@pytest.mark.parametrize("name", ["esa_worldcover_2021", "esri_annual", "cop_dem_30", "chelsa_bio12", "wsf_2019", "from_glc10_2017", "gaia", "chirps", "ecoregions_resolve_2017"])
def test_live_source(name):
    "As test_source, at the real addresses: what is read by windows or is small."
    planned(CAT, name, WUHAN)
    opened(CAT, name, WUHAN)


@pytest.mark.live
@pytest.mark.parametrize("name", [n for n, s in CAT.sources.items() if s.access.driver in remote.PLANNERS and s.access.driver not in ("stac", "earthengine") and n != "globeland30_2020"])
def test_live_plans(name, tmp_path):
    "What each service has for the area, in size: nothing is fetched."
    cat = overlay(tmp_path, "sources: {sinolc_1: {access: {options: {region: Hubei}}}}") if name == "sinolc_1" else CAT
    planned(cat, name, DELAWARE if name in ("nlcd", "chesapeake_6") else WUHAN)
