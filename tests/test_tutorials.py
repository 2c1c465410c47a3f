"""Tutorials: the parts a learner counts on, and every tutorial running from top to bottom, first unanswered and then with its folded solutions."""
import multiprocessing
import re
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import nbformat
import pytest

from isa_nb import house

ROOT = Path(__file__).parents[1]
TUTORIALS = house.tutorials_of(ROOT)

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


def answered(path: Path) -> nbformat.NotebookNode:
    "The tutorial, each exercise checked as it is stored, then solved and checked again; then what it offers to go on with (a training cut short)."
    cells, solutions = parts(path)
    code, made, answers = nbformat.v4.new_code_cell, [], iter(solutions)
    for i, cell in enumerate(cells):
        made.append(cell)
        if "exercise" in cell.metadata.get("tags", []):
            name = re.search(r"(\w+) = \.\.\.\s*$", cell.source)[1]
            made += [code(cells[i + 1].source), code(next(answers)), code(f"assert {name} is not ..., 'the solution does not set it'")]
    made += [code(more.replace("epochs=20", "epochs=1")) for more in further(cells)]
    return nbformat.v4.new_notebook(cells=made, metadata=nbformat.read(path, 4).metadata)


@pytest.fixture(scope="module")
def process() -> Iterator[ProcessPoolExecutor]:
    "A process in which tutorials are run one after the other, as `isa test` runs the other notebooks."
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield pool


@pytest.mark.parametrize("path", TUTORIALS, ids=lambda p: p.stem)
def test_runs_unanswered_and_with_its_solutions(path, process, tmp_path):
    nbformat.write(answered(path), tmp_path / path.name)
    assert process.submit(house._run_notebook, tmp_path / path.name, ROOT, True).result(), "see the traceback above"
