"""The site, as ``make site`` makes it of the notebooks, of the pages in this folder and of the docstrings of parity.

Notebooks are shown as they are stored; nothing is run. The hooks at the end turn what GitHub and JupyterLab understand
into what Sphinx does: folds, alternative texts, links to files of the project.
"""

import json
import os
import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

_PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
# GitHub Actions sets it. Without it there are no buttons that lead to the repository.
_REPOSITORY = os.environ.get("GITHUB_REPOSITORY", "")

project = "Keras to PyTorch, number for number"
author = "the authors of this course"
release = _PROJECT["version"]
html_title = project
language = "en"
root_doc = "docs/index"

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton", "sphinx_design"]
exclude_patterns = [
    "class*",  # the pages of a class: make class
    *(".*", "**/.*", "_site", "tests", "benchmarks", "course", "parity", "work"),
    *("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "*.egg-info"),
    "docs/teaching/slides",  # course.slides reads them
]
nb_execution_mode = "off"
myst_enable_extensions = ["colon_fence", "attrs_inline"]
myst_heading_anchors = 3
suppress_warnings = ["mystnb.unknown_mime_type"]
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_inherit_docstrings = False  # PyTorch's have formulas
napoleon_google_docstring = True
copybutton_exclude = ".linenos, .gp, .go"

# GitHub's headings on a page get their anchors by script, and doi.org leads to publishers that refuse programs.
linkcheck_anchors_ignore_for_url = [r"https://github\.com/.*"]
linkcheck_allowed_redirects = {r"https://doi\.org/.*": r"https://.*"}
linkcheck_timeout = 30
linkcheck_retries = 3

html_theme = "sphinx_book_theme"
html_static_path = ["_static"]
html_css_files = ["course.css"]
_SCRIPTS = ("predict.js", "explorer.js", "explorer_padding.js", "explorer_flatten.js", "tables.js")
html_js_files = [(name, {"defer": "defer"}) for name in _SCRIPTS]
html_context = {"default_mode": "auto"}
html_favicon = "_static/favicon.svg"
html_last_updated_fmt = ""
html_show_sphinx = False
html_theme_options = {
    "show_toc_level": 2,
    "use_download_button": True,
    "home_page_in_toc": True,
    "navbar_persistent": [],
    "search_bar_text": "Search, or paste an error",
}
if _REPOSITORY:
    html_theme_options |= {
        "repository_url": f"https://github.com/{_REPOSITORY}",
        "repository_branch": "main",
        "use_repository_button": True,
        "use_issues_button": True,
        "launch_buttons": {
            "colab_url": "https://colab.research.google.com",
            "binderhub_url": "https://mybinder.org",
            "notebook_interface": "jupyterlab",
        },
    }

# Where an explorer stands: the page, the heading in front of which it comes, its name, and what it says first.
_EXPLORERS = {
    "notebooks/04_same_padding": (
        "## Fix it",
        "padding",
        "**Explore it.** Move the sliders. Above is Keras, below the usual port with half of the kernel on each side.",
    ),
    "notebooks/06_flatten_order": (
        "## Fix it",
        "flatten",
        "**Explore it.** Move the sliders. Each box is a feature with its height, width and channel.",
    ),
}
_README = re.compile(r"\]\(((?:\.\./)+)README\.md(?:#[\w-]*)?\)")
_FOLD = re.compile(r"<details><summary>(.*?)</summary>\n(.*?)\n</details>", re.DOTALL)


def adapt_notebook(app, docname, source):
    """Turn folds into dropdowns and give pictures their alternative texts; keep solutions out of the search."""
    if not docname.startswith("notebooks/") or docname.endswith("README"):
        return
    notebook = json.loads(source[0])
    if "/solutions/" in docname:
        notebook["metadata"] |= {"orphan": True, "nosearch": True}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "markdown":
            text = _README.sub(r"](\1docs/index.md)", "".join(cell["source"]))
            cell["source"] = _with_explorer(docname, _FOLD.sub(r"::::{dropdown} \1\n\2\n::::", text))
        if "outputs" in cell:
            cell["outputs"] = [output for output in cell["outputs"] if not _is_empty(output)]
        for output in cell.get("outputs", []):
            alt = output.get("metadata", {}).get("image/png", {}).get("alt")
            if alt:
                cell["metadata"]["mystnb"] = {"image": {"alt": alt}}
    source[0] = json.dumps(notebook)


def _is_empty(output):
    """Tell whether an output shows nothing, such as what Keras's summary displays before its table."""
    data = output.get("data", {})
    texts = [re.sub(r"<[^>]*>", "", "".join(text)) for kind, text in data.items() if kind.startswith("text/")]
    return bool(data) and len(texts) == len(data) and not any(text.strip() for text in texts)


def _with_explorer(docname, text):
    """Put the explorer of a page in front of its heading."""
    heading, name, introduction = _EXPLORERS.get(docname, ("", "", ""))
    if not heading or not re.search(rf"^{heading}$", text, flags=re.MULTILINE):
        return text
    before, after = re.split(rf"^{heading}$", text, maxsplit=1, flags=re.MULTILINE)
    mount = f'```{{raw}} html\n<div class="explorer" id="explorer-{name}"></div>\n```'
    return f"{before}{introduction}\n\n{mount}\n\n{heading}{after}"


def adapt_links(app, docname, source):
    """Let links to the README lead to the landing page, and links to a folder to the first page in it."""
    if docname.startswith("notebooks/") and not docname.endswith("README"):
        return
    first = {
        "solutions": "solutions/00_do_two_models_agree_solutions.ipynb",
        "further": "further/10_hunt_the_divergence.ipynb",
    }
    for folder, page in first.items():
        source[0] = source[0].replace(f"]({folder})", f"]({page})")
        source[0] = source[0].replace(f"](../../notebooks/{folder})", f"](../../notebooks/{page})")
    source[0] = _FOLD.sub(r"::::{dropdown} \1\n\2\n::::", source[0])
    source[0] = re.sub(r"\]\(\.\./README\.md(#[\w-]*)?\)", "](index.md)", source[0])


def escape_stars(app, what, name, obj, options, lines):
    """Keep the stars of shapes such as (batch, *spatial, channels)."""
    lines[:] = [re.sub(r"\*(?=spatial)", r"\\*", line) for line in lines]


def lead_to_copies(app, pagename, templatename, context, doctree):
    """Let the Colab button lead to the copy of a notebook that course.colab makes."""
    for group in context.get("header_buttons", []):
        for button in group.get("buttons", []):
            if button.get("text") == "Colab":
                button["url"] = button["url"].replace("/blob/main/", "/blob/colab/")


def write_entrance(app, exception):
    """Let the folder's index.html lead to the landing page."""
    if exception is None:
        page = f"{root_doc}.html"
        Path(app.outdir, "index.html").write_text(
            f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{project}</title>'
            f'<meta http-equiv="refresh" content="0; url={page}"><a href="{page}">{project}</a></html>\n',
            encoding="utf-8",
        )


def setup(app):
    """Register the hooks."""
    app.connect("source-read", adapt_notebook)
    app.connect("source-read", adapt_links)
    app.connect("html-page-context", lead_to_copies, priority=900)  # the theme makes the buttons at 501
    app.connect("build-finished", write_entrance)
    app.connect("autodoc-process-docstring", escape_stars)
