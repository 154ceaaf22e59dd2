"""The list of causes, the attempts and the notebooks fit together: nothing is missing, nothing left over."""

import ast
import inspect
from pathlib import Path

import parity
from course.pages.anatomy import pages
from parity.diagnosis import (
    activations,
    attention,
    geometry,
    inputs,
    merging,
    norms,
    order,
    parts,
    recurrence,
    settings,
    weights,
)
from parity.diagnosis.causes import CAUSES, CHEAT_SHEET, Cause, known_cause
from parity.diagnosis.diagnose import _CAUSES_IN_TRAINING, WRONG_INPUT, WRONG_OUTPUT
from parity.diagnosis.settings import _SETTINGS
from parity.tracing.training import Fault

import pytest

PACKAGE = Path(parity.__file__).parent
MODULES = (activations, attention, geometry, inputs, merging, norms, order, parts, recurrence, settings, weights)
HELPERS = {"by_scaling"}  # takes more than the evidence: it is called by attempts


def named_in(source):
    """Return each cause that a call of known_cause names, and the source of each first argument that is no text."""
    texts, others = set(), set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "known_cause":
            first = node.args[0]
            found = [part.value for part in ast.walk(first) if isinstance(part, ast.Constant)]
            if isinstance(first, ast.Constant):
                texts.update(found)
            else:
                others.add(ast.unparse(first))
    return texts, others


SOURCES = {path: path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py")}


def test_the_names_are_found_in_a_source():
    source = "known_cause('a', 'b')\nknown_cause(x[0], 'c')\nother('d')"
    assert named_in(source) == ({"a"}, {"x[0]"})


def test_every_cause_that_is_named_is_in_the_list_and_the_other_way_round():
    found = [named_in(source) for source in SOURCES.values()]
    texts = set().union(*(texts for texts, _ in found))
    others = set().union(*(others for _, others in found))
    assert texts <= set(CAUSES)
    # What is not written at the call itself is one of these tables and variables.
    assert others == {"_SETTINGS[name]", "_CAUSES_IN_TRAINING[fault.kind]", "cause"}
    assert {*_SETTINGS.values(), *_CAUSES_IN_TRAINING.values()} <= set(CAUSES)
    written = {
        node.value
        for path, source in SOURCES.items()
        if path.name != "causes.py"
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Constant)
    }
    assert set(CAUSES) <= written


@pytest.mark.parametrize("cause", CAUSES)
def test_every_cause_has_a_notebook_or_is_in_the_cheat_sheet(cause):
    notebook = known_cause(cause).notebook
    assert (notebook is None) == (CAUSES[cause] == CHEAT_SHEET)
    assert notebook is None or [path.name[:2] for path in pages()].count(notebook) == 1
    assert known_cause(cause, "so") == Cause(cause, "so", notebook)
    assert known_cause(cause).detail == ""


def test_a_cause_says_where_it_is_explained():
    assert str(known_cause("epsilon", "eps is 1e-05, not 0.001")) == "epsilon (eps is 1e-05, not 0.001): notebook 03"
    assert str(known_cause("axis")) == "axis: see the cheat sheet"


def test_a_cause_that_is_not_in_the_list_is_refused():
    with pytest.raises(KeyError):
        known_cause("bad luck")


def test_every_attempt_of_the_package_is_tried():
    found = {
        function
        for module in MODULES
        for name, function in vars(module).items()
        if name.startswith("by_") and name not in HELPERS and inspect.getmodule(function) is module
    }
    assert {*WRONG_OUTPUT, *WRONG_INPUT} == found
    every = {
        path.stem for path in (PACKAGE / "diagnosis").glob("*.py") if "def by_" in path.read_text(encoding="utf-8")
    }
    assert every == {module.__name__.rpartition(".")[2] for module in MODULES}


def test_every_fault_of_training_has_a_cause():
    # Other statistics are a matter of a setting: see by_settings.
    assert {*_CAUSES_IN_TRAINING} == {*Fault} - {Fault.STATISTICS}
    assert "momentum" in _SETTINGS
