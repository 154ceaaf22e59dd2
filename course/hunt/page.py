"""The notebook of a hunt."""

from textwrap import dedent

from course.pages.clean_save import METADATA

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

_CELLS = (
    (
        "markdown",
        """
        # Hunt {seed}: a port with mistakes

        A Keras model was ported to PyTorch. All shapes fit, all weights are loaded, and there is no error. But the
        outputs are wrong, because there are **one to three mistakes** in the port, each in another layer. You find
        them, explain them, and fix them.

        Each cause that you can name has a row in the cheat sheet of the course, or a page. It helps to have read page
        10, "Hunt the divergence". Plan 30 minutes. The mistakes are in the port's layers, in their settings and in
        their weights. How the layers are connected is right. What matters only in training is not part of the hunt.

        The next cell loads both frameworks. This takes 10 to 40 seconds.
        """,
    ),
    (
        "code",
        """
        from textwrap import fill

        from course.hunt import (
            broken_port,
            check_fixed,
            check_found,
            code_of,
            hint,
            keras_side,
        )
        from parity import CAUSES, compare, diagnose, readable, run_torch, trace

        import torch
        from torch import nn

        from parity.padding import (
            AvgPool1dSame,
            AvgPool2dSame,
            Conv1dSame,
            Conv2dSame,
            MaxPool1dSame,
            MaxPool2dSame,
        )

        SEED = {seed}
        model, x, mapping = keras_side(SEED)
        port = broken_port(SEED)
        """,
    ),
    (
        "markdown",
        """
        ## The Keras model

        Its settings are in `model.get_layer(name).get_config()`. In a model within the model, take its layers from
        there.
        """,
    ),
    ("code", "model.summary(show_trainable=False, line_length=76)"),
    (
        "markdown",
        """
        ## The port

        `print` shows its layers with their settings, and `code_of` how they are connected.
        """,
    ),
    ("code", "print(port)"),
    ("code", "print(code_of(port))"),
    (
        "markdown",
        """
        ## Predict

        Read the settings of both models first. Which layer do you suspect, and why? Write it down before you go on. A
        mistake in the weights cannot be seen here.
        """,
    ),
    ("markdown", "*My suspicion:*"),
    (
        "markdown",
        """
        ## Find

        `compare` says whether the outputs agree. `trace` says which layers do. The model exists for several sizes of
        inputs, with the same weights: `keras_side(SEED, size=1)` returns the second. A mistake may hide at one of them.
        """,
    ),
    (
        "code",
        """
        compare("outputs", model(x, training=False), run_torch(port, x))
        readable(trace(model, port, x, mapping))[["layer", "twin", "inputs", "outputs"]]
        """,
    ),
    (
        "markdown",
        """
        `diagnose(model, port, x, mapping)` would also name the cause. Try to find it without. These are the causes that
        you can name:
        """,
    ),
    ("code", 'print(fill(", ".join(CAUSES), width=76))'),
    (
        "markdown",
        """
        Write what you found: the name of the Keras layer, and the cause.
        """,
    ),
    (
        "code",
        """
        found = {{
            # "name of a layer": "cause",
        }}
        check_found(SEED, found)
        """,
    ),
    (
        "markdown",
        """
        ## Explain

        For each mistake, write two sentences that somebody understands who has not seen this port. What does PyTorch do
        here, and what does Keras? Which inputs would have hidden the mistake, if any?
        """,
    ),
    ("markdown", "*My explanation:*"),
    (
        "markdown",
        """
        ## Fix

        Write into `my_fix` what fixes the port. It gets a broken port, the same at each call. You may put in another
        module (`port.conv = ...`, in a Sequential `port[3] = ...`), change a setting (`port.norm.eps = ...`), or
        overwrite a weight (`port.conv.weight.data = ...`). Keras's numbers are in
        `model.get_layer(name).get_weights()`. A new module has new weights, computes in float32 and is in
        training mode. So call `new.double()`, `new.load_state_dict(old.state_dict())` and `new.eval()`. The names of
        the weights have to stay.
        """,
    ),
    (
        "code",
        """
        def my_fix(port):
            pass


        check_fixed(SEED, my_fix)
        """,
    ),
    (
        "markdown",
        """
        This traces the port that you have fixed so far, each time from the broken port on.
        """,
    ),
    (
        "code",
        """
        fixed = broken_port(SEED)
        fixed = my_fix(fixed) or fixed
        readable(trace(model, fixed, x, mapping))[["layer", "twin", "inputs", "outputs"]]
        """,
    ),
    (
        "markdown",
        """
        ## Hints

        Hint 1 says how many mistakes there are. Hint 2 says where they are, and hint 3 what they are and which page
        explains them.
        """,
    ),
    ("code", "hint(SEED, 1)"),
)


def notebook(seed: int) -> nbformat.NotebookNode:
    """Return the notebook of a seed, without outputs."""
    made = new_notebook(metadata=dict(METADATA))
    for number, (kind, text) in enumerate(_CELLS, 1):
        source = dedent(text).strip().format(seed=seed)
        cell = new_markdown_cell(_unwrapped(source)) if kind == "markdown" else new_code_cell(source)
        cell["id"] = f"hunt-{seed}-{number:02}"
        made.cells.append(cell)
    return made


def _unwrapped(text: str) -> str:
    """Return a text with one line for each paragraph, as the pages of the course have it."""
    return "\n\n".join(paragraph.replace("\n", " ") for paragraph in text.split("\n\n"))
