"""The site: every page listed, every link alive, every stored output fit to be shown, and nbdev able to stage it.

Rendering with Quarto itself is not tested here, because Quarto is no Python package; staging and plain pages are.
"""
import ast
import re
from base64 import b64decode
from pathlib import Path

import nbformat
import pytest
import yaml

from isa_nb import site
from isa_nb.core import RequestError

ROOT = Path(__file__).parents[1]
NBS = ROOT / "nbs"
NOTEBOOKS = sorted(p for p in NBS.rglob("*.ipynb") if not any(part[0] in "._" for part in p.relative_to(NBS).parts))
TEXTS = [*NBS.rglob("*.qmd"), *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md"))]

if not (ROOT / "settings.ini").exists():
    pytest.skip("the site is tested in a checkout", allow_module_level=True)


def read(path: Path) -> nbformat.NotebookNode:
    return nbformat.read(path, 4)


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_configuration():
    config = yaml.safe_load((ROOT / "_quarto.yml").read_text())
    assert (NBS / "_quarto.yml").read_text() == (ROOT / "_quarto.yml").read_text(), "nbs/_quarto.yml must be a symlink to (or a copy of) ../_quarto.yml"
    assert set(config["format"]) == {"html"} and config["execute"]["enabled"] is False
    for file in [*config["metadata-files"], config["format"]["html"]["css"], *(item["href"] for item in config["website"]["navbar"]["left"])]:
        assert (NBS / file).exists(), f"_quarto.yml names {file}, which is not there"


def test_title_and_address_come_from_settings(tmp_path, monkeypatch):
    from nbdev.config import get_config
    from nbdev.quarto import _nbdev_yml
    monkeypatch.chdir(ROOT)
    get_config.cache_clear()
    cfg = get_config()
    made = _nbdev_yml.format(doc_path=cfg.doc_path.name, **{k: cfg[k] for k in ("title", "description", "branch", "git_url", "doc_host", "doc_baseurl")})
    assert (NBS / "nbdev.yml").read_text() == made, "nbs/nbdev.yml is out of date: run nbdev.quarto.refresh_quarto_yml()"


def test_every_page_is_listed_once_and_exists():
    listed = [page for _, page in site.pages(NBS)]
    there = sorted(str(p.relative_to(NBS)) for p in [*NOTEBOOKS, *NBS.rglob("*.qmd")])
    assert len(listed) == len(set(listed)), "a page is listed twice in nbs/sidebar.yml"
    assert set(there) - set(listed) == set(), "pages that nbs/sidebar.yml does not list"
    assert set(listed) - set(there) == set(), "pages of nbs/sidebar.yml that do not exist"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=name)
def test_notebook_begins_with_a_title_and_one_line(path):
    first = read(path).cells[0]
    lines = [line for line in first.source.splitlines() if line.strip()]
    assert first.cell_type == "markdown" and lines[0].startswith("# ") and lines[1].startswith("> "), "first cell: '# Title', then '> one line'"
    assert read(path).metadata.get("kernelspec", {}).get("name") == "python3", "no kernel is named: JupyterLab would ask for one"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=name)
def test_stored_outputs_can_be_shown(path):
    nb = read(path)
    assert "widgets" not in nb.metadata, "widget state is stored: run it with jupyter execute --inplace, then nbdev_clean"
    for cell in nb.cells:
        for output in cell.get("outputs", []):
            where = f"cell {cell.source[:60]!r}"
            data = output.get("data", {})
            assert output.output_type != "error", f"{where} stores an error"
            assert output.get("name") != "stderr", f"{where} stores stderr: {output.get('text', '')[:200]}"
            assert not any("widget" in kind for kind in data), f"{where} stores a widget: maps belong in maps.map_cell"
            text = output.get("text", "") + "".join(str(v) for k, v in data.items() if k.startswith("text"))
            assert not re.search(r"(?<![\w.])/(?:home|tmp|root|Users)/", text) and str(ROOT.resolve()) not in text, f"{where} stores a path of a machine"
            assert " at 0x" not in text, f"{where} stores an address in memory"
            if "image/png" in data:
                size = len(b64decode(data["image/png"])) // 1024
                assert size < 200, f"{where} stores a picture of {size} kB: draw it smaller"


@pytest.mark.parametrize("path", [p for p in NOTEBOOKS if p.parent.name == "reference"], ids=name)
def test_imports_stand_alone(path):
    "nbdev runs cells that import when it makes the reference; one that also does something else then lacks what came before."
    for cell in read(path).cells:
        if cell.cell_type != "code" or re.search(r"^#\| *exports?\b", cell.source, re.M) or cell.source.lstrip().startswith(("%", "!")):
            continue
        kinds = {isinstance(node, ast.Import | ast.ImportFrom) for node in ast.parse(cell.source).body}
        assert kinds != {True, False}, f"imports and code in one cell: {cell.source[:80]!r}; put the imports in a cell of their own"


@pytest.mark.parametrize("path", [p for p in NOTEBOOKS if p.name != "61_maps.ipynb"], ids=name)
def test_maps_are_made_in_one_way(path):
    "A static picture first, a map of local rasters second, no base map that a network must bring: `maps.map_cell` sees to it."
    code = "\n".join(c.source for c in read(path).cells if c.cell_type == "code")
    assert not re.search(r"\b(?:leafmap|ipyleaflet|folium)\b|\bleaf\(|basemap=True", code), "show rasters with maps.map_cell"


def links(text: str) -> list[str]:
    text = re.sub(r"```.*?```", "", text, flags=re.S)
    text = re.sub(r"`[^`]*`", "", text)
    found = [*re.findall(r"\]\(([^)\s]+)\)", text), *re.findall(r'(?:src|href)="([^"]+)"', text)]
    return [target.split("#")[0] for target in found if not re.match(r"(?:https?:|mailto:|data:|#|attachment:)", target)]


@pytest.mark.parametrize("path", [*NOTEBOOKS, *TEXTS], ids=name)
def test_links_and_images_exist(path):
    if path.suffix == ".ipynb":
        nb = read(path)
        text = "\n".join(c.source for c in nb.cells if c.cell_type == "markdown")
        text += "\n".join("".join(o.get("data", {}).get("text/markdown", "")) for c in nb.cells for o in c.get("outputs", []))
    else:
        text = path.read_text(encoding="utf-8")
    dead = [target for target in links(text) if not (path.parent / target).exists()]
    assert not dead, f"dead links: {dead}"


@pytest.mark.parametrize("path", TEXTS, ids=name)
def test_front_matter_parses(path):
    text = path.read_text(encoding="utf-8")
    front = re.match(r"\A---\n(.*?)\n---\n", text, re.S)
    if path.suffix == ".qmd":
        assert front and yaml.safe_load(front[1])["title"]
    assert str(ROOT.resolve()) not in text and "TODO" not in text


def small_checkout(folder: Path) -> Path:
    "Three pages and what nbdev needs, so that staging them takes seconds."
    for file in ("settings.ini", "_quarto.yml"):
        (folder / file).write_bytes((ROOT / file).read_bytes())
    (folder / "isa_nb").symlink_to(ROOT / "isa_nb")
    nbs = folder / "nbs"
    chosen = ["index.qmd", "styles.css", "reference/00_core.ipynb", "explanations/style.ipynb"]
    for page in chosen:
        (nbs / page).parent.mkdir(parents=True, exist_ok=True)
        (nbs / page).write_bytes((NBS / page).read_bytes())
    (nbs / "images").mkdir()
    (nbs / "images/readme.png").write_bytes((NBS / "images/readme.png").read_bytes())
    (nbs / "_quarto.yml").symlink_to("../_quarto.yml")
    pages = [p for p in chosen if not p.endswith(".css")]
    (nbs / "sidebar.yml").write_text(yaml.safe_dump({"website": {"sidebar": {"contents": pages}}}))
    return folder


def test_staging_for_quarto(tmp_path, monkeypatch):
    root = small_checkout(tmp_path)
    monkeypatch.setattr("nbdev.doclinks._build_modidx", lambda: None)  # it would rewrite the index of the real library
    staged = site.stage(root)
    assert not (staged / "_quarto.yml").is_symlink() and yaml.safe_load((staged / "_quarto.yml").read_text())["project"]["type"] == "website"
    assert yaml.safe_load((staged / "nbdev.yml").read_text())["website"]["title"] == "isa_nb"
    core = read(staged / "reference/00_core.ipynb")
    front = yaml.safe_load(core.cells[0].source.strip("-\n "))
    assert front["title"] == "core" and front["description"]
    shown = "\n".join("".join(o.get("data", {}).get("text/markdown", "")) for c in core.cells for o in c.get("outputs", []))
    assert "area_geobox" in shown and "west, south, east, north in degrees" in shown, "the reference of a function with its comments"
    assert not any(o.output_type == "error" for c in core.cells for o in c.get("outputs", []))


def test_plain_pages_without_quarto(tmp_path, monkeypatch):
    root = small_checkout(tmp_path)
    monkeypatch.setattr("shutil.which", lambda _: None)
    front, maker = site.build(root, tmp_path / "site")
    assert maker == "nbconvert" and front.exists() and site.build(root, tmp_path / "site")[0] == front, "its own folder is replaced"
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("keep me")
    for out, line in (("mine", "is not empty and was not made by isa docs: choose another --out"), ("mine/thesis.txt", "is a file: choose a folder as --out"), (".", "is not empty")):
        with pytest.raises(RequestError, match=line):
            site.build(root, tmp_path / out)
    assert (tmp_path / "mine/thesis.txt").read_text() == "keep me" and (tmp_path / "settings.ini").exists()
    for page in front.parent.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        assert "<script" not in text and 'class="isa-nav"' in text
        local = [t for t in re.findall(r'<(?:a|img)[^>]+(?:href|src)="([^"#]+)', text) if not t.startswith(("http", "data:"))]
        listed = {p for _, p in site.pages(root / "nbs")}
        for target in local:
            there = (page.parent / target).resolve()
            known = str(there.relative_to(front.parent.resolve()))
            assert there.exists() or known.replace(".html", ".ipynb") not in listed, f"{page.name}: {target}"
