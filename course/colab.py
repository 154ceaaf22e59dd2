"""Copies of the notebooks for Colab, each of which begins with a cell that fetches the course there.

``python -m course.colab OWNER/NAME`` writes them into ``_site/colab``. The workflow colab.yml puts that folder on the
branch ``colab`` of the repository, and the site's Colab buttons lead to it. The notebooks themselves stay as they are.
"""

import argparse
import json
import os
import re
import tomllib
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from posixpath import normpath

from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[1]
COPIES = ROOT / "_site" / "colab"
BRANCH = "colab"

_LINK = re.compile(r"(\[[^\]]*\]\()([^)\s]+)(\))")

# Colab sets the variable in each of its machines. --depth 1: without the history. --no-deps: over the packages that
# Colab has, because others would take minutes and a restart.
_CELL = """\
# @title On Colab, run this cell first: it fetches the course (elsewhere it does nothing)
import os
import sys

if "COLAB_RELEASE_TAG" in os.environ:
    if not os.path.exists("/content/course"):
        !git clone --quiet --depth 1 https://github.com/REPOSITORY /content/course
    !{sys.executable} -m pip install --quiet --no-deps --editable /content/course
    %cd -q /content/course/FOLDER
    if "/content/course" not in sys.path:
        sys.path.insert(0, "/content/course")
    from course.colab import say_ready

    say_ready()"""

_README = """\
These are copies of the notebooks for Colab. Each begins with a cell that fetches the course. A workflow makes them from
the branch `main`, so change the notebooks there.
"""


def older() -> Iterator[str]:
    """Yield each package that a page needs and that is missing here, or older than those that the tests ran with."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    needed = [Requirement(line) for line in [*project["dependencies"], *extras["plot"], *extras["tensorflow"]]]
    installed = {requirement.name: _version(requirement.name) for requirement in needed}
    # TensorFlow has two names, of which one is enough: Colab has the one that pyproject.toml does not ask for on Linux.
    either = installed["tensorflow"] or installed["tensorflow-cpu"]
    installed |= {"tensorflow": either, "tensorflow-cpu": either}
    for requirement in needed:
        floor = min(Version(specifier.version) for specifier in requirement.specifier)
        found = installed[requirement.name]
        if requirement.name == "tensorflow-cpu":
            continue
        if found is None:
            yield f"{requirement.name} is missing"
        elif found < floor:
            yield f"{requirement.name} is {found}, and the tests ran with {floor} and later"


def _version(name: str) -> Version | None:
    try:
        return Version(version(name))
    except PackageNotFoundError:
        return None


def say_ready() -> None:
    """Print that the course is there, and which packages are missing or older than those that the tests ran with."""
    print("The course is there. Go on with the next cell.")
    for line in older():
        print(f"  {line}")


def copy_for_colab(notebook: dict, path: str, repository: str) -> None:
    """Put the cell that fetches the course in front of a notebook, and let its links lead out of Colab.

    Args:
        notebook: The notebook, as JSON has it; changed in place.
        path: Where it is in the repository, such as notebooks/04_same_padding.ipynb.
        repository: The repository on GitHub, OWNER/NAME.
    """
    folder = path.rpartition("/")[0]
    for cell in notebook["cells"]:
        if cell["cell_type"] == "markdown":
            text = "".join(cell["source"])
            cell["source"] = _LINK.sub(lambda link: link[1] + _address(link[2], folder, repository) + link[3], text)
    first = {
        "cell_type": "code",
        "execution_count": None,
        "id": "on-colab",
        "metadata": {"cellView": "form"},  # Colab shows the title and hides the code
        "outputs": [],
        "source": _CELL.replace("REPOSITORY", repository).replace("FOLDER", folder),
    }
    notebook["cells"].insert(0, first)


def _address(target: str, folder: str, repository: str) -> str:
    """Return where a link of a notebook in a folder leads from Colab: to another copy, or to the file on GitHub."""
    if target.startswith(("https://", "#", "mailto:")):
        return target
    path, mark, part = target.partition("#")
    path = normpath(f"{folder}/{path}")
    if path.endswith(".ipynb"):
        return f"https://colab.research.google.com/github/{repository}/blob/{BRANCH}/{path}{mark}{part}"
    return f"https://github.com/{repository}/{'tree' if (ROOT / path).is_dir() else 'blob'}/main/{path}{mark}{part}"


def write_copies(repository: str, folder: Path) -> list[Path]:
    """Write a copy of each notebook for Colab, under its path in the project, and return the files."""
    written = []
    for path in sorted((ROOT / "notebooks").rglob("[0-9]*.ipynb")):
        if ".ipynb_checkpoints" in path.parts:
            continue
        name = path.relative_to(ROOT).as_posix()
        notebook = json.loads(path.read_text(encoding="utf-8"))
        copy_for_colab(notebook, name, repository)
        copy = folder / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8", newline="\n")
        written.append(copy)
    (folder / "README.md").write_text(_README, encoding="utf-8", newline="\n")
    return written


def main(arguments: list[str] | None = None) -> None:
    """Write the copies for the repository that the command line names."""
    parser = argparse.ArgumentParser(description="Write copies of the notebooks that work in Colab.")
    parser.add_argument("repository", help="the repository on GitHub, OWNER/NAME")
    parser.add_argument("--to", type=Path, default=COPIES, metavar="FOLDER", help="where they go (_site/colab)")
    given = parser.parse_args(arguments)
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", given.repository):
        parser.error(f"{given.repository!r} is not of the form OWNER/NAME")
    print(len(write_copies(given.repository, given.to)), "copies in", os.path.relpath(given.to))


if __name__ == "__main__":
    main()
