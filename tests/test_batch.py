"""Whole runs of small notebooks: what goes wrong, what stays, what is made again."""
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pandas as pd
import psutil
import pytest

from isa_nb import batch, results
from isa_nb.batch import Request, run
from isa_nb.core import DataError, RequestError, sha256

HEAD = 'out = ""\nplace = ""\nzone = ""\ninputs = {}\nseed = 0\n'
ZONING = """
from isa_nb.step import Step
import pandas as pd
step = Step.open(out, experiment="zoning", simulated=True)
_ = step.table("zones", pd.DataFrame({"zone": ["W1", "W2"]}), "Zones")
"""
LABELS = """
import json, os, signal, time
from pathlib import Path
fault = json.loads(Path(faults).read_text()).get(place)
if fault == "full":
    open("/dev/full", "w").write("x" * 100_000)
if fault == "kill":
    os.kill(os.getpid(), signal.SIGKILL)
if fault == "hang":
    (Path(faults).parent / "hangs").write_text(str(os.getpid()))
    time.sleep(300)
import pandas as pd, matplotlib.pyplot as plt
from isa_nb.step import Step
step = Step.open(out, experiment="labels", place=place, simulated=True, inputs=inputs)
_ = step.table("counts", pd.DataFrame({"zone": [zone], "share": [len(inputs) / 3]}), f"Shares in {place}", published={"share": 0.73}, citation="An Author (2022), Table 9")
fig, ax = plt.subplots(figsize=(2, 2))
ax.plot([1, 2, seed]); ax.set_title(place)
step.figure("map", fig, f"Labels of {place}")
step.data("points.json").write_text(json.dumps([seed, place]))
step.note("A layer was passed over.")
"""
SUMMARY = """
import pandas as pd
from isa_nb.step import Step, load_table
step = Step.open(out, experiment="summary", simulated=True, inputs=inputs)
_ = step.table("all", pd.concat([load_table(f, "counts") for f in step.inputs["labels"].values()]), "All")
"""
SUITE = """
profiles: {{smoke: {{}}, demo: {{}}}}
experiments:
  zoning: {{title: Zones, notebook: zoning.ipynb, scope: run, default: true}}
  labels: {{title: Labels, notebook: labels.ipynb, scope: place, needs: [zoning], default: true, timeout: {{smoke: 300, demo: 100}}, parameters: {{common: {{faults: {faults}}}}}}}
  summary: {{title: Summary, notebook: summary.ipynb, scope: run, needs: [labels], default: true}}
  slow: {{title: Slow, notebook: slow.ipynb, scope: run, timeout: 1}}
"""


def write_notebook(path: Path, *cells: str) -> None:
    "A notebook whose first cell holds the parameters."
    nodes = [nbformat.v4.new_code_cell(c.strip(), metadata={"tags": ["parameters"]} if i == 0 else {}) for i, c in enumerate(cells)]
    nbformat.write(nbformat.v4.new_notebook(cells=nodes), path)


@pytest.fixture(scope="module")
def suite(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("suite")
    write_notebook(folder / "zoning.ipynb", HEAD, ZONING)
    write_notebook(folder / "labels.ipynb", HEAD + f'faults = "{folder}/faults.json"', LABELS)
    write_notebook(folder / "summary.ipynb", HEAD, SUMMARY)
    write_notebook(folder / "slow.ipynb", HEAD, "import time; time.sleep(300)")
    (folder / "experiments.yaml").write_text(SUITE.format(faults=folder / "faults.json"))
    (folder / "faults.json").write_text("{}")
    return folder / "experiments.yaml"


def set_faults(suite: Path, **faults: str) -> None:
    (suite.parent / "faults.json").write_text(json.dumps(faults))


def states(manifest: dict) -> dict[str, str]:
    return {k: s["state"] for k, s in manifest["steps"].items()}


def files(out: Path) -> dict[str, str]:
    "All tables, figures and data of a run, with their hashes."
    return {p.relative_to(out).as_posix(): sha256(p) for p in sorted(out.rglob("*")) if p.parent.name in ("tables", "figures", "data") and p.is_file()}


def command(suite: Path, out: Path, *more: str) -> list[str]:
    return [sys.executable, "-c", "from isa_nb.cli import app; app()", "run", "--suite", str(suite), "--out", str(out), "--profile", "smoke", *more]


@pytest.fixture(scope="module")
def faulty(suite, tmp_path_factory) -> tuple[Path, subprocess.CompletedProcess]:
    "A run of three zones and more, of which three go wrong, each in its own way."
    out = tmp_path_factory.mktemp("run") / "faulty"
    set_faults(suite, W2="full", W3="kill")
    done = subprocess.run(command(suite, out, "--zones", "W1,W2,W3", "--experiments", "summary,slow"), capture_output=True, text=True, timeout=300)
    set_faults(suite)
    return out, done


def test_one_failure_leaves_the_others_whole(faulty):
    out, done = faulty
    manifest = json.loads((out / "manifest.json").read_text())
    assert done.returncode == 1
    assert states(manifest) == {"zoning": "done", "labels/W1": "done", "labels/W2": "failed", "labels/W3": "failed", "summary": "done", "slow": "failed"}
    assert manifest["state"] == "failed" and manifest["steps"]["summary"]["without"] == ["labels/W2", "labels/W3"]
    errors = {k: s["error"] for k, s in manifest["steps"].items() if s["error"]}
    assert errors["labels/W2"] == "OSError: [Errno 28] No space left on device (cell 3)"
    assert errors["labels/W3"].startswith("the kernel was killed (cell 3)")
    assert errors["slow"].startswith("timeout: not finished after 1 s")
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 3 and all(f"isa run: {k} failed: {e}; see " in done.stderr for k, e in errors.items()), done.stderr


def test_the_notebook_of_a_failure_is_kept(faulty):
    out, _ = faulty
    for name in ("labels/W2/labels-W2", "labels/W3/labels-W3", "slow/slow"):
        node = nbformat.read(out / f"{name}.failed.ipynb", 4)
        assert node.cells[0].source.startswith("**This run failed:**")
    assert not any(p.name.startswith(".") and p.name != ".lock" for p in out.rglob("*"))


def test_the_report_tells_what_happened(faulty):
    out, _ = faulty
    page = (out / "index.html").read_text()
    for words in ("What failed, and why", "OSError: [Errno 28] No space left on device (cell 3)", "labels/W3/labels-W3.failed.html", "share<br>(published)", "An Author (2022), Table 9",
                  'src="labels/W1/figures/map.png"', "simulated", "A layer was passed over.", "made without labels/W2"):
        assert words in page, words
    for page in (p.read_text() for p in out.rglob("*.html")):
        assert "<script" not in page and "https://" not in page


def test_the_manifest_says_where_it_came_from(faulty):
    out, _ = faulty
    manifest = json.loads((out / "manifest.json").read_text())
    step = manifest["steps"]["labels/W1"]
    for name, record in step["outputs"].items():
        assert sha256(out / "labels/W1" / name) == record["sha256"]
    assert set(step["outputs"]) == {"tables/counts.csv", "tables/counts.parquet", "figures/map.png", "figures/map.svg", "data/points.json"}
    assert step["parameters"]["seed"] == 0 and step["parameters"]["place"] == "W1" and step["seconds"] > 0
    assert manifest["provenance"]["packages"]["numpy"] and "commit" in manifest["provenance"] and manifest["catalogue"]["hash"]
    assert manifest["command"].startswith("isa run") and manifest["seconds"] > 0


def test_another_request_in_the_same_folder_keeps_what_it_does_not_ask_for(faulty, suite, tmp_path):
    "Of four zones one was never asked for and two have failed; later a folder is lost."
    out = tmp_path / "run"
    shutil.copytree(faulty[0], out)
    manifest = run(Request(out, "smoke", experiments=["zoning"], suite=suite))
    assert states(manifest) == {"slow": "failed", "labels/W2": "failed", "labels/W3": "failed", "zoning": "current", "labels/W1": "current", "summary": "current"}
    assert manifest["steps"]["summary"]["without"] == ["labels/W2", "labels/W3"] and len(pd.read_csv(out / "tables/counts.csv")) == 1
    shutil.rmtree(out / "labels/W1")
    manifest = run(Request(out, "smoke", experiments=["zoning"], suite=suite))
    assert manifest["state"] == "done" and {k: s["reason"] for k, s in manifest["steps"].items() if s["state"] == "stale"} == {
        "labels/W1": "its folder is gone", "summary": "needs labels/W1 (stale), labels/W2 (failed), labels/W3 (failed)"}
    assert (out / "summary/tables/all.csv").exists()


@pytest.fixture(scope="module")
def whole(faulty, suite) -> tuple[Path, dict]:
    "The same folder, run again without the faults."
    out, _ = faulty
    return out, run(Request(out, "smoke", suite=suite))


def test_only_what_is_missing_is_made_again(whole):
    out, manifest = whole
    assert states(manifest) == {"zoning": "current", "labels/W1": "current", "labels/W2": "done", "labels/W3": "done", "labels/W4": "done", "summary": "done", "slow": "failed"}
    assert manifest["steps"]["summary"]["reason"] == "needs changed" and manifest["state"] == "done"
    assert [p.name for p in out.rglob("*.failed.ipynb")] == ["slow.failed.ipynb"]  # not asked for now, and still said to have failed
    together = pd.read_csv(out / "tables/counts.csv")
    assert together["zone"].tolist() == ["W1", "W2", "W3", "W4"] and together["simulated"].all()
    assert len(pd.read_csv(out / "summary/tables/all.csv")) == 4


def test_a_part_of_the_zones_keeps_the_rest(whole, suite):
    out, _ = whole
    before = files(out)
    manifest = run(Request(out, "smoke", zones=["W1"], suite=suite))
    assert list(states(manifest).values()) == ["failed", *["current"] * 6]
    assert files(out) == before


def test_what_was_tampered_with_is_made_again(whole, suite):
    out, _ = whole
    before = files(out)
    (out / "labels/W1/tables/counts.csv").write_text("zone,share\nW1,99\n")
    (out / "labels/W2/data/points.json").unlink()
    manifest = run(Request(out, "smoke", zones=["W1", "W2"], experiments=["labels"], suite=suite))
    assert [k for k, s in states(manifest).items() if s == "done"] == ["labels/W1", "labels/W2"]
    assert manifest["steps"]["labels/W1"]["reason"] == "tables/counts.csv was changed"
    assert manifest["steps"]["labels/W2"]["reason"] == "data/points.json is gone"
    assert files(out) == before


def test_a_failed_redo_destroys_nothing(whole, suite):
    out, _ = whole
    before = files(out)
    notebook = suite.parent / "labels.ipynb"
    source = notebook.read_text()
    try:
        write_notebook(notebook, HEAD + f'faults = "{suite.parent}/faults.json"', "raise ValueError('new and wrong')")
        batch.declared.cache_clear()
        manifest = run(Request(out, "smoke", zones=["W1"], suite=suite))
    finally:
        notebook.write_text(source)
    assert manifest["steps"]["labels/W1"]["state"] == "failed" and manifest["steps"]["labels/W1"]["reason"] == "notebook changed"
    assert manifest["steps"]["labels/W2"]["state"] == "stale" and manifest["steps"]["summary"]["state"] == "skipped"
    assert {k: v for k, v in files(out).items() if k.startswith("labels")} == {k: v for k, v in before.items() if k.startswith("labels")}
    assert (out / "labels/W1/labels-W1.failed.ipynb").exists()
    assert list(states(run(Request(out, "smoke", suite=suite))).values()) == ["failed", *["current"] * 6]
    assert files(out) == before and not (out / "labels/W1/labels-W1.failed.ipynb").exists()


@pytest.fixture
def hanging(suite, tmp_path):
    "Starts a run of two zones and waits until the first is done and the second hangs."
    hangs, started = suite.parent / "hangs", []

    def start() -> tuple[subprocess.Popen, int]:
        hangs.unlink(missing_ok=True)
        set_faults(suite, W2="hang")
        process = subprocess.Popen(command(suite, tmp_path / "run", "--zones", "W1,W2"), start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
                                   preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))  # a shell's background jobs ignore it
        started.append(process)
        end = time.monotonic() + 200
        while not (hangs.exists() and hangs.read_text() and (tmp_path / "run/labels/W1/step.json").exists()):
            assert process.poll() is None and time.monotonic() < end
            time.sleep(0.1)
        return process, int(hangs.read_text())

    yield start
    set_faults(suite)
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def assert_ends(pid: int) -> None:
    "A kernel ends by itself when its parent is gone."
    for _ in range(300):
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return
        time.sleep(0.1)
    pytest.fail("the kernel of a killed run lives on")


def test_killed_interrupted_and_finished_gives_the_same_bytes(whole, suite, tmp_path, hanging):
    out = tmp_path / "run"
    process, kernel = hanging()
    with pytest.raises(RequestError, match="another run is at work in"):
        run(Request(out, "smoke", suite=suite))
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    left = [p.name for p in (out / "labels").iterdir()]
    assert "W2" not in left and any(n.startswith(".W2-") for n in left)
    assert_ends(kernel)

    process, kernel = hanging()
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=200)
    assert process.returncode == 130 and errors.startswith("isa run: interrupted;") and len(errors.strip().splitlines()) == 1, errors
    manifest = json.loads((out / "manifest.json").read_text())
    assert states(manifest) == {"zoning": "current", "labels/W1": "current", "labels/W2": "interrupted", "summary": "interrupted"}
    assert manifest["state"] == "interrupted" and [p.name for p in (out / "labels").iterdir()] == ["W1"]
    assert_ends(kernel)

    set_faults(suite)
    manifest = run(Request(out, "smoke", zones=["W1", "W2"], suite=suite))
    assert states(manifest) == {"zoning": "current", "labels/W1": "current", "labels/W2": "done", "summary": "done"}
    made, unbroken = ({k: v for k, v in files(o).items() if k.startswith(("zoning", "labels/W1", "labels/W2"))} for o in (out, whole[0]))
    assert made == unbroken and len(made) == 12
    assert sorted(p.name for p in (out / "labels").iterdir()) == ["W1", "W2"]


def test_a_cluster_elsewhere(suite, tmp_path):
    from distributed import LocalCluster
    with LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=None) as cluster:
        manifest = run(Request(tmp_path / "run", "smoke", experiments=["zoning"], suite=suite, scheduler=cluster.scheduler_address))
    assert states(manifest) == {"zoning": "done"} and manifest["scheduler"] and manifest["workers"] == 1


@pytest.mark.parametrize(("change", "message"), [
    ({"profile": "smok"}, "unknown profile 'smok': did you mean 'smoke'"),
    ({"zones": ["W9"]}, "unknown zone 'W9'"),
    ({"experiments": ["label"]}, "unknown experiment 'label': did you mean 'labels'"),
    ({"seed": -1}, "the seed is -1"),
    ({"workers": 0}, "0 workers can do nothing"),
    ({"workers": 2, "scheduler": "tcp://localhost:1"}, "give one of them"),
    ({"catalog": "none.yaml"}, "no such catalogue"),
    ({"suite": "none.yaml"}, "no such file of experiments"),
])
def test_a_wrong_request_makes_nothing(suite, tmp_path, change, message):
    with pytest.raises(RequestError, match=message):
        run(Request(**{"out": tmp_path / "run", "profile": "smoke", "suite": suite, **change}))
    assert not (tmp_path / "run").exists()


def test_no_scheduler_answers(suite, tmp_path):
    with pytest.raises(RequestError, match="no Dask scheduler answers at"):
        run(Request(tmp_path / "run", "smoke", suite=suite, scheduler="localhost"))


def test_a_parameter_that_the_notebook_does_not_know(suite, tmp_path):
    wrong = suite.with_name("wrong.yaml")
    wrong.write_text(suite.read_text().replace("{faults:", "{fault:"))
    with pytest.raises(RequestError, match="is given the parameter 'fault', but labels.ipynb declares faults"):
        run(Request(tmp_path / "run", "smoke", suite=wrong))
    assert not (tmp_path / "run").exists()


def test_notebooks_that_cannot_be_read(tmp_path):
    "Damaged, of an older format, or with parameters that are no Python: one line, before anything runs; and what runs nothing does not pay for nbformat."
    from isa_nb.plan import declared
    for k, (text, said) in enumerate((("{", "cannot read the notebook 0.ipynb .JSONDecodeError"), ('{"worksheets": []}', "cannot read the notebook 1.ipynb .KeyError"), ("[" * 100_000, "cannot read the notebook 2.ipynb .RecursionError"))):
        (tmp_path / f"{k}.ipynb").write_text(text)
        with pytest.raises(DataError, match=said) as e:
            declared(tmp_path / f"{k}.ipynb")
        assert "\n" not in str(e.value)
    write_notebook(tmp_path / "a.ipynb", "out = ")
    with pytest.raises(DataError, match="the cell tagged `parameters` of a.ipynb is no Python .invalid syntax"):
        declared(tmp_path / "a.ipynb")
    assert subprocess.run([sys.executable, "-c", "import sys, isa_nb.batch; sys.exit('nbformat' in sys.modules)"], check=False).returncode == 0


def test_folders_that_are_not_ours(whole, suite, tmp_path):
    out, _ = whole
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*")}
    with pytest.raises(RequestError, match="belongs to another run .*seed 0.*seed 1"):
        run(Request(out, "smoke", seed=1, suite=suite))
    with pytest.raises(RequestError, match="belongs to another run .*profile smoke.*profile demo"):
        run(Request(out, "demo", suite=suite))
    assert {p: p.stat().st_mtime_ns for p in out.rglob("*")} == before
    (tmp_path / "photo.jpg").write_text("mine")
    for fresh in (False, True):
        with pytest.raises(RequestError, match="is not empty and holds no run of isa_nb"):
            run(Request(tmp_path, "smoke", suite=suite, fresh=fresh))
    with pytest.raises(RequestError, match="is a file"):
        run(Request(tmp_path / "photo.jpg", "smoke", suite=suite))
    with pytest.raises(RequestError, match="cannot write to"):
        run(Request(tmp_path / "photo.jpg" / "run", "smoke", suite=suite))
    assert [p.name for p in tmp_path.iterdir()] == ["photo.jpg"]


def test_another_version_of_the_folder(tmp_path, suite):
    (tmp_path / "manifest.json").write_text(json.dumps({"layout": results.LAYOUT + 1, "run": {}, "steps": {}}))
    with pytest.raises(RequestError, match="written by another version of isa_nb"):
        run(Request(tmp_path, "smoke", suite=suite))
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(RequestError, match="cannot be read"):
        run(Request(tmp_path, "smoke", suite=suite))


def test_a_full_disk_is_seen_before(suite, tmp_path, monkeypatch):
    monkeypatch.setattr(results.shutil, "disk_usage", lambda path: type("usage", (), {"free": 1e6}))
    with pytest.raises(DataError, match="not enough space for .*: 1 MB are free"):
        run(Request(tmp_path / "run", "smoke", suite=suite))


def test_starting_over(whole, suite, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(whole[0], out)
    (out / "labels/mine.txt").write_text("keep me")
    manifest = run(Request(out, "demo", experiments=["zoning"], suite=suite, fresh=True))
    assert states(manifest) == {"zoning": "done"} and manifest["run"]["profile"] == "demo"
    assert sorted(p.relative_to(out).as_posix() for p in out.glob("*/*")) == sorted(
        ["labels/mine.txt", "tables/zones.csv", "tables/zones.parquet", *(f"zoning/{n}" for n in ("outputs.json", "step.json", "tables", "zoning.html", "zoning.ipynb"))])


# ---- trainings that go on

TRAIN = """
import json, os, signal, time
from pathlib import Path
import pandas as pd
from isa_nb.step import Step
step = Step.open(out, experiment="train", simulated=True)
folder = step.data("model", "Model folder")
folder.mkdir(exist_ok=True)
checkpoint = folder / "checkpoint.safetensors"
rounds = json.loads(checkpoint.read_text()) if checkpoint.exists() else []
first = len(rounds)
for k in range(first, 4):
    rounds.append(k)
    checkpoint.write_text(json.dumps(rounds))
    fault = Path(faults).read_text() if k == 1 else ""
    if fault == "slow":
        time.sleep(300)
    if fault == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
checkpoint.rename(folder / "weights.json")
_ = step.table("rounds", pd.DataFrame({"round": rounds, "taken_up": first}), "Rounds")
"""


@pytest.fixture
def training(tmp_path):
    "A suite of one step, whose training is stopped after its second round as `faults` says; runs it, and tells state, error and rounds that were taken up."
    out, faults = tmp_path / "run", tmp_path / "fault"

    def go(fault: str = "", code: str = "", **more) -> tuple[str, str, list[int]]:
        faults.write_text(fault)
        (tmp_path / "experiments.yaml").write_text(f"profiles: {{smoke: {{}}}}\nexperiments:\n  train: {{title: Train, notebook: train.ipynb, scope: run, default: true, timeout: {20 if fault == 'slow' else 300}}}\n")
        write_notebook(tmp_path / "train.ipynb", HEAD + f'faults = "{faults}"', TRAIN + code)
        step = run(Request(out, "smoke", suite=tmp_path / "experiments.yaml", **more))["steps"]["train"]
        table = out / "train/tables/rounds.csv"
        return step["state"], step["error"] or "", list(pd.read_csv(table)["taken_up"]) if table.exists() else []

    yield out, go


KEPT = "; what it has trained is kept: started again, it goes on from there"


def test_a_training_that_was_stopped_goes_on(training):
    "A step that took too long, and one whose kernel was killed, go on from their checkpoint when started again; afterwards nothing is left of it."
    out, go = training
    state, error, _ = go("slow")
    assert state == "failed" and error.startswith("timeout: not finished after 20 s") and error.endswith(KEPT)
    assert sorted(p.name for p in out.glob(".train*")) == [".train.aside"] and not (out / "train/data").exists()
    state, error, _ = go("kill")  # has done its second round already, and is not stopped
    assert (state, error) == ("done", "") and pd.read_csv(out / "train/tables/rounds.csv").to_dict("list") == {"round": [0, 1, 2, 3], "taken_up": [2] * 4}
    assert sorted(p.name for p in (out / "train/data/model").iterdir()) == ["weights.json"] and not list(out.glob(".train*")) and not (out / "train/started.json").exists()


def test_a_training_of_something_else_is_not_taken_up(training):
    "The notebook has changed since the training was stopped: it begins anew; so it does with --fresh."
    out, go = training
    state, error, _ = go("kill")
    assert state == "failed" and error.startswith("the kernel was killed") and error.endswith(KEPT)
    assert go("", "changed = 1") == ("done", "", [0] * 4) and not list(out.glob(".train*"))
    assert go("kill", "changed = 2")[0] == "failed" and (out / ".train.aside").exists()
    assert go("", "changed = 2", fresh=True) == ("done", "", [0] * 4) and not list(out.glob(".train*"))
