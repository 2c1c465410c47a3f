"The real layers of ../shared/data through `isa run`, from files to report."
import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

HERE = Path(__file__).parent
DATA = HERE.parent / "../shared/data"
pytestmark = pytest.mark.skipif(not DATA.exists(), reason="the real files of ../shared/data are not here")


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    "A run of the experiments that have real input."
    out = tmp_path_factory.mktemp("real") / "run"
    command = [sys.executable, "-c", "from isa_nb.cli import app; app()", "run", "--profile", "smoke", "--experiments", "zoning,osm,labels,buildings", "--catalog", str(HERE / "real/catalog.yaml"), "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, cwd=HERE.parent)
    assert done.returncode == 0, done.stderr[-2000:]
    return out


def table(results, step, name):
    return pd.read_csv(results / step / "tables" / f"{name}.csv")


def test_every_step_is_made(results):
    steps = json.loads((results / "manifest.json").read_text())["steps"]
    assert {"zoning", "labels/W3", "osm/shaanxi", "osm/helsinki", "buildings/massachusetts"} <= set(steps)
    assert not [s for s, v in steps.items() if v["state"] != "done"] and "simulated" not in (results / "buildings/massachusetts/outputs.json").read_text().replace('"simulated": false', "")


def test_beijing_is_fused_and_its_products_judged(results):
    counts = table(results, "labels/W3", "table3_counts")
    assert (counts[["impervious", "pervious", "uncertain"]].sum(axis=1) > 1_000_000).all() and (counts.uncertain > 0).all()
    reliability = table(results, "labels/W3", "reliability")
    assert reliability.filter(like="se").gt(0).any().any()
    assert set(table(results, "labels/W3", "products").year) == {2013, 2015, 2017}


def test_buildings_of_massachusetts(results):
    scores = table(results, "buildings/massachusetts", "buildings_accuracy")
    f1 = scores[scores.score == "building_f1"].set_index("map")
    assert set(f1.index) == {"network", "random forest"} and (f1.blocks >= 10).all()
    known = f1[f1.estimate.notna()]
    assert len(known) and ((known.lo <= known.estimate) & (known.estimate <= known.hi) | known.lo.isna()).all()
    assert table(results, "buildings/massachusetts", "split").set_index("split").chips[["train", "test", "buffer"]].gt(0).all()
