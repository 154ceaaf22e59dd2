"""A final check that cannot fail is reported, and a kernel in which one was tried is as it was before."""

import random
from contextlib import suppress
from types import SimpleNamespace

from course.pages.naive_check import plant
from course.pages.pytest_plugin import PLANT

import numpy as np
import pytest
import torch


def deeper():
    raise AssertionError("not of the check")


def names():
    """Return what a kernel holds before a final check."""
    return {"naive": 3, "fixed": 4, "other": [1], "rng": np.random.default_rng(0), "deeper": deeper}


def test_a_check_that_catches_the_naive_port_is_good():
    assert plant("x = fixed + 1\nassert x == 5", names()) is None


@pytest.mark.parametrize("check", ["assert fixed > 2", "x = fixed", ""])
def test_a_check_that_passes_the_naive_port_is_reported(check):
    with pytest.raises(AssertionError, match="the final check passes the naive port"):
        plant(check, names())


@pytest.mark.parametrize(
    ("check", "error", "message"),
    [
        ("int('x')", ValueError, "invalid literal"),
        ("assert unknown", NameError, "unknown"),
        ("deeper()", AssertionError, "not of the check"),
        ("assert (", SyntaxError, "never closed"),
    ],
)
def test_an_error_that_is_no_assertion_of_the_check_is_reported(check, error, message):
    with pytest.raises(error, match=message):
        plant(check, names())


CHECKS = {
    "fails": "assert fixed == 4",
    "passes": "assert fixed == 3",
    "breaks": "int('x')",
    "binds names": "new = 1\nother = 2\nfixed = 5\nassert False",
    "deletes names": "del other, naive\nassert False",
    "does not compile": "assert (",
    "draws": "import random, numpy, torch\nrandom.random(), numpy.random.rand(), torch.rand(3), rng.random()\nassert 0",
}


@pytest.mark.parametrize("check", CHECKS.values(), ids=CHECKS)
def test_the_namespace_is_as_before(check):
    namespace = names()
    before = dict(namespace)
    with suppress(AssertionError, ValueError, SyntaxError):
        plant(check, namespace)
    assert namespace.keys() == before.keys()
    assert all(namespace[name] is before[name] for name in before)


def drawn(rng):
    """Return the next random number of each source."""
    return random.random(), np.random.rand(), torch.rand(1).item(), rng.random()  # noqa: NPY002


def test_the_next_random_numbers_are_as_before():
    namespace = names()
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    expected = drawn(np.random.default_rng(0))
    random.setstate(states[0])
    np.random.set_state(states[1])  # noqa: NPY002
    torch.set_rng_state(states[2])
    plant(CHECKS["draws"], namespace)
    assert drawn(namespace["rng"]) == expected


def test_what_a_kernel_is_sent_leaves_no_name_and_replaces_none():
    namespace = names() | {"plant": "the page's own"}
    before = dict(namespace)
    kernel = {"get_ipython": lambda: SimpleNamespace(user_ns=namespace)}
    exec(PLANT.format(check='assert plant == "the page\'s own"\nassert fixed == 4'), kernel)
    assert namespace == before
    assert kernel.keys() == {"get_ipython", "__builtins__"}
    with pytest.raises(AssertionError, match="passes the naive port"):
        exec(PLANT.format(check="assert fixed == 3"), kernel)
