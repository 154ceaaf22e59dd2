"""What a notebook says about the Python that ran it: nothing, so that two machines store the same file."""

from typing import Any

METADATA = {
    "kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"},
    "language_info": {"name": "python", "pygments_lexer": "ipython3"},
}


def scrub(model: dict[str, Any], **_: Any) -> None:
    """Take out of a notebook what JupyterLab adds about the Python in use: a hook that Jupyter calls before it saves.

    JupyterLab saves a notebook by itself two minutes after it was opened, though nothing was changed or run. With this
    hook, which ``make lab`` sets, the file stays as it was.

    Args:
        model: A file as Jupyter's contents manager saves it; changed in place if it is a notebook in Python.
    """
    if model.get("type") != "notebook":
        return
    metadata = model["content"]["metadata"]
    if metadata.get("kernelspec", {}).get("name") == METADATA["kernelspec"]["name"]:
        metadata["language_info"] = dict(METADATA["language_info"])
