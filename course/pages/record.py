"""Run notebooks and store their outputs, so that a second run changes no byte: ``make record``.

With arguments it records only those: ``python -m course.pages.record notebooks/08_dronet.ipynb``.
"""

import os
import sys
from base64 import b64decode
from copy import deepcopy
from pathlib import Path

from course.official_weights import at_hand
from course.pages.anatomy import MINUTES, NOTEBOOKS, OFFICIAL, ROOT, minutes_to_read, pages
from course.pages.clean_save import METADATA

import nbformat
from nbclient import NotebookClient
from tqdm import tqdm

README_PICTURE = ROOT / "docs" / "roads.png"


def record(path: Path) -> None:
    """Run a notebook in its own folder, store its outputs, and state how long it takes to read.

    An error leaves it as it was.
    """
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook,
        kernel_name="python3",
        timeout=300,
        record_timing=False,
        coalesce_streams=True,
        resources={"metadata": {"path": str(path.parent)}},
    )
    client.execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
    notebook.metadata = deepcopy(METADATA)
    if notebook.cells and notebook.cells[0].cell_type == "markdown":
        minutes = minutes_to_read(notebook)
        reading = f"Reading: {minutes} minute{'s' * (minutes > 1)}."
        notebook.cells[0].source = MINUTES.sub(reading, notebook.cells[0].source)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        if "readme-picture" in cell.metadata.get("tags", ()):
            README_PICTURE.write_bytes(b64decode(_picture(cell)))
    path.write_text(nbformat.writes(notebook) + "\n", encoding="utf-8", newline="\n")


def _picture(cell: nbformat.NotebookNode) -> str:
    """Return the last picture that a cell displays, in base64."""
    return [output.data["image/png"] for output in cell.outputs if "image/png" in output.get("data", {})][-1]


def main() -> None:
    """Record the notebooks named on the command line, or all that need no download."""
    # TensorFlow writes to the file descriptor of stderr. A kernel that believes to be in a test does not watch that. So
    # what is stored is what the tests see.
    os.environ["PYTEST_CURRENT_TEST"] = "record"
    paths = [Path(name) for name in sys.argv[1:]]
    if not paths:
        paths = [*pages(), *sorted(NOTEBOOKS.glob("solutions/[0-9]*.ipynb"))]
        if not at_hand():
            paths.remove(NOTEBOOKS / OFFICIAL)
            print(f"not recorded, for want of the official weights: {OFFICIAL}")
    for path in tqdm(paths):
        tqdm.write(str(path))
        record(path)


if __name__ == "__main__":
    main()
