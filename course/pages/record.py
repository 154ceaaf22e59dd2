"""Run notebooks and store their outputs, so that a second run changes no byte: ``make record``.

With arguments it records only those: ``python -m course.pages.record notebooks/08_dronet.ipynb``.
"""

import os
import sys
from base64 import b64decode
from pathlib import Path

from course.official_weights import at_hand
from course.pages.anatomy import NOTEBOOKS, OFFICIAL, ROOT

import nbformat
from nbclient import NotebookClient
from tqdm import tqdm

README_PICTURE = ROOT / ".github" / "readme.png"


def record(path: Path) -> None:
    """Run a notebook in its own folder and store its outputs; an error leaves it as it was."""
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
    notebook.metadata = {
        "kernelspec": {
            "display_name": "Python 3 (ipykernel)",
            "language": "python",
            "name": "python3",
        },
        "language_info": {"name": "python", "pygments_lexer": "ipython3"},
    }
    nbformat.validate(notebook)
    for cell in notebook.cells:
        if "readme-picture" in cell.metadata.get("tags", ()):
            README_PICTURE.write_bytes(b64decode(cell.outputs[-1].data["image/png"]))
    path.write_text(nbformat.writes(notebook) + "\n", encoding="utf-8", newline="\n")


def main() -> None:
    """Record the notebooks named on the command line, or all that need no download."""
    # TensorFlow writes to the file descriptor of stderr. A kernel that believes to be in a test does not watch that. So
    # what is stored is what the tests see.
    os.environ["PYTEST_CURRENT_TEST"] = "record"
    paths = [Path(name) for name in sys.argv[1:]]
    if not paths:
        paths = sorted([*NOTEBOOKS.glob("[0-9]*.ipynb"), *NOTEBOOKS.glob("solutions/[0-9]*.ipynb")])
        if not at_hand():
            paths.remove(NOTEBOOKS / OFFICIAL)
            print(f"not recorded, for want of the official weights: {OFFICIAL}")
    for path in tqdm(paths):
        tqdm.write(str(path))
        record(path)


if __name__ == "__main__":
    main()
