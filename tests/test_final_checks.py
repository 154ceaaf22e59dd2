"""The final check of each pitfall notebook fails when the naive port is planted in place of the mended one."""

from parity.official import at_hand

import nbformat
import pytest
from anatomy import NOTEBOOKS
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbformat.v4 import new_code_cell

PITFALLS = sorted(NOTEBOOKS.glob("0[0-7]_*.ipynb"))
if at_hand():
    PITFALLS.append(NOTEBOOKS / "09_official_weights.ipynb")
PLANT = "fixed = naive"


def planted(path, plant=PLANT):
    """Return the notebook up to its final check, the plant just before that, and the check itself."""
    notebook = nbformat.read(path, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    tagged = [number for number, cell in enumerate(code) if "final-check" in cell.metadata.get("tags", ())]
    assert len(tagged) == 1, f"{path.name} has {len(tagged)} cells tagged final-check"
    notebook.cells = [*code[: tagged[0]], new_code_cell(plant), code[tagged[0]]]
    return notebook


def run(notebook):
    """Run a notebook in its own kernel; return the number of the cell that failed and its error, or nothing."""
    client = NotebookClient(notebook, timeout=120, kernel_name="python3", resources={"metadata": {"path": NOTEBOOKS}})
    try:
        client.execute()
    except CellExecutionError as error:
        failed = [any(output.output_type == "error" for output in cell.outputs) for cell in notebook.cells]
        return failed.index(True), error.ename
    return None


@pytest.mark.parametrize("path", PITFALLS, ids=[path.stem for path in PITFALLS])
def test_naive_port_fails_the_final_check(path):
    notebook = planted(path)
    assert run(notebook) == (len(notebook.cells) - 1, "AssertionError")


def test_planting_is_what_makes_it_fail():
    assert run(planted(PITFALLS[0], plant="pass")) is None
