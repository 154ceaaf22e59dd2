"""A trace as a figure: how far each layer's output is from Keras's."""

from typing import Any

from parity.models.rounding import TIMES_NOISE

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

# What a line or a mark stands for: arguments of ``Axes.plot``. The colours are three of Okabe and Ito's, which people
# with any colour vision tell apart (https://jfly.uni-koeln.de/color/).
KERAS = {"color": "#0072b2", "marker": "s", "linestyle": "-"}
RIGHT = {"color": "#009e73", "marker": "o", "linestyle": "--"}
WRONG = {"color": "#d55e00", "marker": "x", "linestyle": ":"}


def error_by_layer(axes: Axes, before: pd.DataFrame, after: pd.DataFrame | None = None) -> None:
    """Plot how far each layer's output is from Keras's, on a logarithmic axis, with the first divergence marked.

    Args:
        axes: Where to draw.
        before: A trace, as ``parity.trace.trace`` returns it. A row from the top down for each layer whose output was
            seen; its noise is a grey bar, within which a difference is no mistake.
        after: A trace of the same Keras model and the mended twin.
    """
    before = before[before.outputs.notna() & before.noise.notna()].reset_index(drop=True)
    rows = np.arange(len(before))
    noise = before.noise.where(before.noise > 0)
    finite = before.outputs[np.isfinite(before.outputs)]
    left, right = noise.min() / 30, 10 * max(finite.max(), noise.max())
    axes.set_xscale("log")
    axes.set_xlim(left, right)
    axes.barh(rows, TIMES_NOISE * noise.fillna(left), left=left, color="#dddddd", height=0.9, label="rounding")
    traces = ((before, WRONG, "before"), (after, RIGHT, "after"))
    for traced, style, label in traces:
        if traced is None:
            continue
        compared = traced[traced.noise.notna()].set_index("layer")
        outputs = compared.outputs.reindex(before.layer).clip(left * 2, right / 2)
        # A cross shows on a disc, a disc hides a cross.
        look: dict[str, Any] = style | {"linestyle": "none", "zorder": 3 if traced is before else 2}
        axes.plot(outputs, rows, markersize=7, markeredgewidth=2, label=label, **look)
    starts = before.verdict.str.startswith(("DIVERGES", "TAKES"))
    if starts.any():
        first = int(np.argmax(starts))
        axes.axhline(first - 0.5, color="black", linestyle="--", linewidth=1.2)
        axes.text(left * 1.5, first - 0.6, "first divergence", va="bottom", fontsize=10)
    axes.set_yticks(rows, before.layer, fontsize=9)
    axes.set_ylim(len(rows) - 0.4, -1.6)
    axes.set_xlabel("largest |Keras - PyTorch| of the output")
    axes.legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=3)
    axes.spines[["top", "right"]].set_visible(False)
