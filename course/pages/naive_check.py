"""A notebook's final check, tried on its naive port: a check that passes that port, too, checks nothing."""

import random
import sys
import traceback
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

_FILE = "final check"


def plant(check: str, namespace: dict[str, Any]) -> None:
    """Run a final check with the naive port in place of the mended one: an assertion of its own must fail.

    Afterwards the namespace holds the names that it held, with the same objects. The next random numbers are those that
    would have come without it: Python's, PyTorch's, NumPy's, and those of NumPy's generators in the namespace.

    Args:
        check: The source of the check, which measures what ``fixed`` names.
        namespace: The names of the notebook's kernel; the naive port is called ``naive`` in it.

    Raises:
        AssertionError: If the check passes. Any error that is not of an assertion in the check itself is passed on.
    """
    before, restore_random = dict(namespace), _random_states(namespace.values())
    namespace["fixed"] = namespace["naive"]
    try:
        exec(compile(check, _FILE, "exec"), namespace)
    except AssertionError as error:
        if traceback.extract_tb(error.__traceback__)[-1].filename != _FILE:
            raise
    else:
        raise AssertionError("the final check passes the naive port")
    finally:
        for name in namespace.keys() - before.keys():
            del namespace[name]
        namespace.update(before)
        for restore in restore_random:
            restore()


def _random_states(values: Iterable[Any]) -> list[Callable[[], Any]]:
    """Return functions that put the random states back: the frameworks' that are loaded, and those of generators."""
    states: list[Callable[[], Any]] = [partial(random.setstate, random.getstate())]
    if torch := sys.modules.get("torch"):
        states.append(partial(torch.set_rng_state, torch.get_rng_state()))
    if numpy := sys.modules.get("numpy"):
        states.append(partial(numpy.random.set_state, numpy.random.get_state()))
        generators = [value for value in values if isinstance(value, numpy.random.Generator)]
        states += [partial(setattr, one.bit_generator, "state", one.bit_generator.state) for one in generators]
    return states
