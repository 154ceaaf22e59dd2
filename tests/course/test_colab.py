"""The copies for Colab begin with a cell that fetches the course there, and does nothing elsewhere."""

import os
import subprocess
import sys

from course import colab
from course.colab import main, older, write_copies
from course.pages.anatomy import LINK, NOTEBOOKS, ROOT

import nbformat
import pytest
import yaml
from nbclient import NotebookClient
from packaging.version import Version

REPOSITORY = "somebody/course"
ORIGINALS = sorted(path for path in NOTEBOOKS.rglob("[0-9]*.ipynb") if ".ipynb_checkpoints" not in path.parts)


@pytest.fixture(scope="module")
def copies(tmp_path_factory):
    folder = tmp_path_factory.mktemp("copies")
    write_copies(REPOSITORY, folder)
    return folder


def first_cell(copies, name="notebooks/00_do_two_models_agree.ipynb"):
    return nbformat.read(copies / name, as_version=4).cells[0]


@pytest.mark.parametrize("path", ORIGINALS, ids=lambda path: path.stem)
def test_a_copy_is_the_notebook_with_a_cell_in_front_and_links_that_lead_out(copies, path):
    original = nbformat.read(path, as_version=4)
    copy = nbformat.read(copies / path.relative_to(ROOT), as_version=4)
    nbformat.validate(copy)
    first, *rest = copy.cells
    assert first.cell_type == "code"
    assert first.source.startswith("# @title On Colab, run this cell first")
    assert f"https://github.com/{REPOSITORY} " in first.source
    assert f"/content/course/{path.parent.relative_to(ROOT).as_posix()}\n" in first.source
    assert "pip install --quiet --no-deps --editable" in first.source
    assert first.metadata["cellView"] == "form"
    assert len(rest) == len(original.cells)
    for ours, theirs in zip(original.cells, rest, strict=True):
        if ours.cell_type == "code":
            assert ours == theirs
        else:
            assert LINK.sub("", ours.source) == LINK.sub("", theirs.source)
            assert all(target.startswith(("https://", "#")) for target in LINK.findall(theirs.source))


def test_links_lead_to_other_copies_and_to_files_on_github(copies):
    text = (copies / "notebooks/further/10_hunt_the_divergence.ipynb").read_text(encoding="utf-8")
    to_copy = "https://colab.research.google.com/github/somebody/course/blob/colab/notebooks/"
    assert f"]({to_copy}08_dronet.ipynb)" in text
    assert f"]({to_copy}further/11_which_check_catches_which_bug.ipynb)" in text
    assert "](https://github.com/somebody/course/blob/main/docs/cheat-sheet.md#activations)" in text


def test_the_notebooks_themselves_have_no_such_cell_and_a_second_run_changes_no_byte(copies, tmp_path):
    assert not any("COLAB_RELEASE_TAG" in path.read_text(encoding="utf-8") for path in ORIGINALS)
    written = write_copies(REPOSITORY, tmp_path)
    assert len(written) == len(ORIGINALS)
    for path in written:
        assert path.read_bytes() == (copies / path.relative_to(tmp_path)).read_bytes()


def run(source, folder, **variables):
    """Run a cell, and one that says where Python is, in a kernel; return what they print."""
    cells = [
        nbformat.v4.new_code_cell(source),
        nbformat.v4.new_code_cell("import os, sys; print(os.getcwd(), sys.path)"),
    ]
    notebook = nbformat.v4.new_notebook(cells=cells)
    client = NotebookClient(notebook, kernel_name="python3", timeout=120, resources={"metadata": {"path": str(folder)}})
    variables = {name: value for name, value in os.environ.items() if name != "COLAB_RELEASE_TAG"} | variables
    client.execute(env=variables)
    return ["".join(output.get("text", "") for output in cell.outputs) for cell in notebook.cells]


def test_elsewhere_the_cell_does_nothing(copies, tmp_path):
    said, where = run(first_cell(copies).source, tmp_path)
    assert said == ""
    assert where.startswith(f"{os.path.realpath(tmp_path)} ")
    assert [*tmp_path.iterdir()] == []


@pytest.mark.skipif(sys.platform == "win32", reason="Colab's machines run Linux")
def test_on_colab_the_cell_fetches_the_course_and_goes_to_the_page(copies, tmp_path):
    """The cell is run as it is, but for its folder, with a repository on disk; pip does not install in earnest."""
    origin = tmp_path / "origin"
    for name in ("course", "notebooks"):
        (origin / name).mkdir(parents=True)
    for name in ("course/__init__.py", "course/colab.py", "pyproject.toml", "README.md", "LICENSE"):
        (origin / name).write_bytes((ROOT / name).read_bytes())
    (origin / "notebooks" / "page.txt").touch()
    git = ["git", "-c", "user.name=t", "-c", "user.email=t@example.org", "-C", str(origin)]
    for command in (["init", "--quiet"], ["add", "."], ["commit", "--quiet", "--message=first"]):
        subprocess.run([*git, *command], check=True)
    source = first_cell(copies).source.replace("/content/course", str(tmp_path / "content" / "course"))
    said, where = run(
        source,
        tmp_path,
        COLAB_RELEASE_TAG="release",
        GIT_CONFIG_COUNT="1",
        GIT_CONFIG_KEY_0=f"url.{origin.as_uri()}.insteadOf",
        GIT_CONFIG_VALUE_0=f"https://github.com/{REPOSITORY}",
        PIP_DRY_RUN="1",
        PIP_NO_BUILD_ISOLATION="0",  # pip's way to say: in the environment that is there, which has hatchling
        PIP_NO_INDEX="1",
        PIP_ROOT_USER_ACTION="ignore",
        PYTHONPATH="",
    )
    assert said == "The course is there. Go on with the next cell.\n"
    folder = tmp_path / "content" / "course"
    assert where.startswith(f"{os.path.realpath(folder / 'notebooks')} ['{folder}'")


def test_what_colab_has_too_old_or_not_at_all_is_said(monkeypatch, capsys):
    had = {"torch": Version("2.11.0"), "pandas": None, "tensorflow-cpu": None, "tensorflow": Version("2.20.0")}
    monkeypatch.setattr(colab, "_version", lambda name: had.get(name, Version("999")))
    assert [*older()] == [
        "pandas is missing",
        "torch is 2.11.0, and the tests ran with 2.13 and later",
        "tensorflow is 2.20.0, and the tests ran with 2.21 and later",
    ]
    colab.say_ready()
    assert capsys.readouterr().out.count("\n") == 4


def test_one_name_of_tensorflow_is_enough_and_nothing_is_said_here():
    assert [*older()] == []


@pytest.mark.parametrize("repository", ["course", "a/b/c", "https://github.com/a/b", "a/b'; x"])
def test_what_is_no_repository_is_refused(repository, tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        main([repository, "--to", str(tmp_path)])
    assert "OWNER/NAME" in capsys.readouterr().err


def test_the_workflow_puts_the_copies_on_the_branch_of_the_links():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "colab.yml").read_text(encoding="utf-8"))
    [job] = workflow["jobs"].values()
    script = next(step["run"] for step in job["steps"] if "course.colab" in step.get("run", ""))
    assert f"--initial-branch={colab.BRANCH}\n" in script
    assert f"cd {colab.COPIES.relative_to(ROOT).as_posix()}\n" in script
    assert script.rstrip().endswith(f" {colab.BRANCH}")


def test_the_button_of_the_site_leads_to_the_copy():
    """The hook of docs/conf.py, without building a site."""
    names = {"__file__": str(ROOT / "docs" / "conf.py")}
    exec((ROOT / "docs" / "conf.py").read_text(encoding="utf-8"), names)
    address = "https://colab.research.google.com/github/a/b/blob/main/notebooks/x.ipynb"
    buttons = [{"text": "Colab", "url": address}, {"text": "Binder", "url": "https://mybinder.org/v2/gh/a/b/main"}]
    context = {"header_buttons": [{"type": "link"}, {"type": "group", "buttons": buttons}]}
    names["lead_to_copies"](None, "notebooks/x", "page.html", context, None)
    assert buttons[0]["url"] == f"https://colab.research.google.com/github/a/b/blob/{colab.BRANCH}/notebooks/x.ipynb"
    assert buttons[1]["url"].endswith("/a/b/main")
