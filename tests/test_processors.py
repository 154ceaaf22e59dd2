"""The script that runs the tests as other processors would: a failure under one setting is seen, and named."""

import re

from tests import processors

import numpy as np
import pytest
from nbformat import write
from nbformat.v4 import new_code_cell, new_notebook

TESTS = """
import os
import pytest

def test_of_one_setting():
    assert os.environ.get("ATEN_CPU_CAPABILITY") != "default"

def test_that_passes():
    pass

@pytest.mark.skip
def test_that_is_skipped():
    pass
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Return a folder with tests of its own: one passes, one is skipped, one fails under the setting aten-default."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # faster
    monkeypatch.delenv("ATEN_CPU_CAPABILITY", raising=False)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    (tmp_path / "test_here.py").write_text(TESTS)
    return tmp_path


def test_a_failure_under_one_setting_is_seen_and_named(folder, capsys):
    assert processors.main(["aten-avx2", "aten-default", "--", "-pno:cacheprovider", str(folder)]) == 1
    printed = capsys.readouterr().out
    assert re.search(r"^ *aten-avx2 +2 +0 +\d+$", printed, flags=re.MULTILINE)
    assert re.search(r"^ *aten-default +1 +1 +\d+$", printed, flags=re.MULTILINE)
    assert printed.splitlines()[-1] == "aten-default: test_here.py::test_of_one_setting"


def test_all_is_well_only_if_every_test_passed(folder, capsys):
    assert processors.main(["onednn", "--", "-pno:cacheprovider", str(folder)]) == 0
    assert re.search(r"^ *onednn +2 +0 +\d+$", capsys.readouterr().out.splitlines()[-1])


def test_the_kernels_of_notebooks_have_the_setting(folder):
    cell = new_code_cell('import os\nassert os.environ["OMP_NUM_THREADS"] == "2"', execution_count=1)
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    write(new_notebook(cells=[cell], metadata=kernel), folder / "page.ipynb")
    options = ["-pnbval.plugin", "-pno:cacheprovider", "--nbval", "--nbval-current-env", str(folder / "page.ipynb")]
    assert processors.run_tests(processors.SETTINGS["two-threads"], options)[:2] == (1, 0)


@pytest.mark.parametrize("text", ["", "def", "import os; os._exit(0)"], ids=["no test", "syntax error", "crash"])
def test_a_run_that_comes_to_nothing_is_no_pass(text, folder):
    (folder / "test_here.py").write_text(text)
    assert processors.run_tests({}, ["-pno:cacheprovider", str(folder)])[:2] == (0, 1)


def test_an_unknown_setting_is_refused(capsys):
    with pytest.raises(SystemExit):
        processors.main(["as-is", "fast"])
    assert "no such setting: fast; there are as-is, onednn" in capsys.readouterr().err


def test_numpy_is_told_to_leave_out_what_it_has_found_and_nothing_else():
    found = np.show_config(mode="dicts")["SIMD Extensions"].get("found", [])
    left_out = processors.SETTINGS["numpy-baseline"]["NPY_DISABLE_CPU_FEATURES"]
    assert left_out.split(",") == (found or [""])
