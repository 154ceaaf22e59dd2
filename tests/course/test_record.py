"""Recording a notebook stores what it prints, the same bytes each time, and the runs of tests share the machine."""

import copy
import gc
import os

from course.pages import record as module
from course.pages.anatomy import NOTEBOOKS, OFFICIAL, pages
from course.pages.clean_save import scrub
from course.pages.processes import kernel_profile, settle
from course.pages.record import main, record

import nbformat
import pytest
from jupyter_server.services.contents.filemanager import FileContentsManager
from nbclient.exceptions import CellExecutionError
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook


def written(path, *sources):
    nbformat.write(new_notebook(cells=[new_code_cell(source) for source in sources]), path)
    return path


def test_what_a_notebook_prints_is_stored_and_a_second_run_changes_no_byte(tmp_path):
    path = written(tmp_path / "page.ipynb", "import os", "print(os.path.basename(os.getcwd()))\nprint(1 + 1)")
    record(path)
    first = path.read_bytes()
    cells = nbformat.read(path, as_version=4).cells
    assert [cell.execution_count for cell in cells] == [1, 2]
    assert [output.text for output in cells[1].outputs] == [f"{tmp_path.name}\n2\n"]
    assert all("execution" not in cell.metadata for cell in cells)
    record(path)
    assert path.read_bytes() == first


def test_a_notebook_with_an_error_is_left_as_it_was(tmp_path):
    path = written(tmp_path / "page.ipynb", "print(1)", "1 / 0")
    before = path.read_bytes()
    with pytest.raises(CellExecutionError, match="ZeroDivisionError"):
        record(path)
    assert path.read_bytes() == before


def test_the_picture_of_the_readme_is_that_of_the_tagged_cell(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "README_PICTURE", tmp_path / "readme.png")
    path = tmp_path / "page.ipynb"
    show = "from IPython.display import Image, display\ndisplay(Image({}, format='png'))"
    cells = [new_code_cell(show.format(name)) for name in (b"\x89PNG 1", b"\x89PNG 2")]
    cells[1].metadata.tags = ["readme-picture"]
    nbformat.write(new_notebook(cells=cells), path)
    record(path)
    assert (tmp_path / "readme.png").read_bytes() == b"\x89PNG 2"


def test_the_minutes_that_a_page_states_are_reckoned(tmp_path):
    path = tmp_path / "page.ipynb"
    cells = [
        new_markdown_cell("# Title\n\n*Reading: 99 minutes. Exercises: 7 minutes.*"),
        new_code_cell("x = 1\n" * 15),
    ]
    nbformat.write(new_notebook(cells=cells), path)
    record(path)
    first = nbformat.read(path, as_version=4).cells[0].source
    assert first == "# Title\n\n*Reading: 2 minutes. Exercises: 7 minutes.*"


def test_a_notebook_that_jupyter_saves_keeps_its_bytes(tmp_path):
    """JupyterLab adds what its kernel says of the Python in use, and saves."""
    path = written(tmp_path / "page.ipynb", "print(1)")
    record(path)
    before = path.read_bytes()
    manager = FileContentsManager(root_dir=str(tmp_path), pre_save_hook="course.pages.clean_save.scrub")
    model = manager.get("page.ipynb")
    mode = {"name": "ipython", "version": 3}
    info = model["content"]["metadata"]["language_info"]
    info.update(version="3.12.1", codemirror_mode=mode, file_extension=".py", mimetype="text/x-python")
    manager.save(model, "page.ipynb")
    assert path.read_bytes() == before
    model["content"]["cells"][0]["source"] = "print(2)"
    manager.save(model, "page.ipynb")
    assert nbformat.read(path, as_version=4).cells[0].source == "print(2)"


def test_files_and_notebooks_of_other_languages_are_saved_as_they_are():
    info = {"name": "julia", "version": "1.9"}
    notebook = {"type": "notebook", "content": {"metadata": {"kernelspec": {"name": "julia"}, "language_info": info}}}
    file = {"type": "file", "content": "text"}
    for model in (notebook, file):
        before = copy.deepcopy(model)
        scrub(model)
        assert model == before


@pytest.mark.parametrize("at_hand", [True, False])
def test_all_notebooks_are_recorded_but_what_needs_a_download(at_hand, monkeypatch, capsys):
    recorded = []
    monkeypatch.setattr(module, "record", recorded.append)
    monkeypatch.setattr(module, "at_hand", lambda: at_hand)
    monkeypatch.setattr("sys.argv", ["record"])
    monkeypatch.setenv("PYTEST_CURRENT_TEST", "this")  # main sets it
    main()
    expected = {*pages(), *NOTEBOOKS.glob("solutions/*.ipynb")}
    assert set(recorded) == (expected if at_hand else expected - {NOTEBOOKS / OFFICIAL})
    assert ("not recorded" in capsys.readouterr().out) != at_hand


def test_what_is_set_already_stays(monkeypatch):
    for name in ("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "XLA_FLAGS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    settle()
    assert os.environ["OMP_NUM_THREADS"] == "3"
    assert os.environ["TF_NUM_INTRAOP_THREADS"] == "1"
    assert os.environ["XLA_FLAGS"]


def test_a_kernel_searches_for_garbage_as_seldom_as_the_tests_do(tmp_path, monkeypatch):
    monkeypatch.setenv("IPYTHONDIR", "")  # kernel_profile sets it
    folder = kernel_profile()
    path = written(tmp_path / "page.ipynb", "import gc\nprint(gc.get_threshold()[0])")
    record(path)
    folder.cleanup()
    (output,) = nbformat.read(path, as_version=4).cells[0].outputs
    assert output.text == f"{gc.get_threshold()[0]}\n"
