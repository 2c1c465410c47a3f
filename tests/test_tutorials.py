"""Tutorials: the parts a learner counts on, and every folded solution passing its own self-check."""
import re
from pathlib import Path

import matplotlib
import nbformat
import pytest
import torch

NBS = Path(__file__).parents[1] / "nbs"
TUTORIALS = sorted((NBS / "tutorials").glob("*.ipynb"))

if not TUTORIALS:
    pytest.skip("the tutorials are tested in a checkout", allow_module_level=True)


def parts(path: Path) -> tuple[list, list[str]]:
    "The cells, and the folded solutions in order."
    cells = nbformat.read(path, 4).cells
    text = "\n".join(c.source for c in cells if c.cell_type == "markdown")
    return cells, re.findall(r"<details><summary>Solution</summary>\s*```python\n(.*?)```\s*</details>", text, re.S)


def further(cells: list) -> list[str]:
    "Folded code that is offered to go on with, besides the solutions."
    text = "\n".join(c.source for c in cells if c.cell_type == "markdown")
    return re.findall(r"<details><summary>Code [^<]*</summary>\s*```python\n(.*?)```\s*</details>", text, re.S)


@pytest.fixture(autouse=True)
def threads():
    "A tutorial may limit torch to one core: not beyond its end."
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("path", TUTORIALS, ids=lambda p: p.stem)
def test_states_what_a_learner_needs(path):
    cells, solutions = parts(path)
    for line in ("**Goal**", "**Prerequisites**", "**Time**"):
        assert line in cells[0].source
    assert 10 <= int(re.search(r"\*\*Time\*\* \| (\d+) minutes", cells[0].source)[1]) <= 25
    exercises = [i for i, c in enumerate(cells) if "exercise" in c.metadata.get("tags", [])]
    assert exercises and len(exercises) == len(solutions), "one folded solution per exercise"
    for i in exercises:
        assert cells[i].source.rstrip().endswith("= ...") and "check(" in cells[i + 1].source, "an exercise is followed by its self-check"
        assert any("Your turn" in o.get("text", "") for o in cells[i + 1].outputs), "stored without an answer"


@pytest.mark.parametrize("path", TUTORIALS, ids=lambda p: p.stem)
def test_solutions_pass_their_own_checks(path, monkeypatch, capsys):
    "The tutorial run from top to bottom with every solution in the place of its exercise, and what it offers to go on with (a training cut short)."
    matplotlib.use("Agg")
    monkeypatch.chdir(path.parent)
    monkeypatch.setenv("ISA_INTERACTIVE", "0")
    cells, solutions = parts(path)
    answers, world = iter(solutions), {"__name__": "__main__"}
    for cell in cells:
        if cell.cell_type == "code":
            source = next(answers) if "exercise" in cell.metadata.get("tags", []) else cell.source
            exec(compile(source, f"{path.name}: {source[:40]!r}", "exec"), world)
    for more in further(cells):
        exec(compile(more.replace("epochs=20", "epochs=1"), f"{path.name}: further code", "exec"), world)
    said = capsys.readouterr().out
    assert said.count("Right.") == len(solutions) and "Your turn" not in said
    matplotlib.pyplot.close("all")
