"""Slides for a class: ``docs/teaching/slides/NN.md``, and what it takes from the notebook with this number.

Pictures, code, outputs, the prediction and the exercises are taken from the notebook as it is stored, so that a slide
cannot say what its page no longer says. A cell, a name or an exercise that is gone is a :class:`SlideError`.
"""


class SlideError(ValueError):
    """A deck asks for what its page does not have, or is not written as a deck is."""
