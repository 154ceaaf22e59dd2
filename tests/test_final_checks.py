"""The final check of each pitfall notebook fails when the naive port is planted in place of the mended one.

The cells run in this process, which has imported the frameworks already; a kernel for each would take minutes.
"""

import traceback

from conftest import OFFICIAL
from parity.official import at_hand

import keras
import matplotlib.pyplot as plt
import nbformat
import pytest
import torch
from anatomy import NOTEBOOKS

PITFALLS = sorted(path for path in NOTEBOOKS.glob("[0-9]*.ipynb") if path.name != OFFICIAL)
if at_hand():
    PITFALLS.append(NOTEBOOKS / OFFICIAL)


def as_new():
    """Bring both frameworks to the state of a new process, so far as notebooks change it."""
    keras.config.set_floatx("float32")
    keras.utils.clear_session()
    torch.set_default_dtype(torch.float32)
    plt.close("all")


@pytest.fixture(autouse=True)
def new_session(monkeypatch):
    monkeypatch.chdir(NOTEBOOKS)
    plt.switch_backend("agg")
    as_new()
    yield
    as_new()


def cells_to_the_final_check(path):
    """Return the code of a notebook up to its final check, and that of the check."""
    code = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    tagged = [number for number, cell in enumerate(code) if "final-check" in cell.metadata.get("tags", ())]
    assert len(tagged) == 1, f"{path.name} has {len(tagged)} cells tagged final-check"
    sources = [cell.source for cell in code[: tagged[0] + 1]]
    return sources[:-1], sources[-1]


@pytest.mark.parametrize("path", PITFALLS, ids=[path.stem for path in PITFALLS])
def test_naive_port_fails_the_final_check(path):
    before, check = cells_to_the_final_check(path)
    names = {"__name__": "__main__"}
    for source in before:
        exec(source, names)
    right = dict(names)
    exec(check, right)
    names["fixed"] = names["naive"]
    with pytest.raises(AssertionError) as failure:
        exec(compile(check, "final check", "exec"), names)
    assert traceback.extract_tb(failure.tb)[1].filename == "final check"
