"""A broken port for each learner: every seed can be found, each mistake has to be fixed, and nobody's work is lost."""

import contextlib
import itertools
import re
import sys

from course.hunt import CASES, broken_port, check_fixed, check_found, code_of, hint, keras_side
from course.hunt.__main__ import key, main
from course.hunt.drawing import mistakes
from course.hunt.page import notebook
from course.mutants import MUTANTS, load_network
from parity import CAUSES, ParityError, compare, diagnose, run_torch

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn

SEEDS = st.integers(0, CASES - 1)


def right_port(seed):
    return load_network(mistakes(seed)[0].network).build()


def said(capsys, check, *arguments):
    """Return what a check prints, its lines joined."""
    capsys.readouterr()
    check(*arguments)
    return " ".join(capsys.readouterr().out.split())


def found(seed):
    """Return the right answer."""
    return {min(mistake.layers): mistake.cause for mistake in mistakes(seed)}


def is_findable(seed):
    """Tell whether ``diagnose`` names all mistakes of a seed, if each that it names is fixed before the next call."""
    fixed = ()
    while len(fixed) < len(mistakes(seed)):
        found = named(seed, fixed)
        if found is None:
            return False
        fixed += (found,)
    return True


def named(seed, fixed):
    """Return a mistake that ``diagnose`` locates and explains, at one of the sizes; None if it does so with none."""
    port = broken_port(seed, but=fixed)
    for size in range(len(load_network(mistakes(seed)[0].network).probes)):
        model, x, mapping = keras_side(seed, size)
        diagnosis = diagnose(model, port, x, mapping)
        if diagnosis.divergence is None:
            continue
        causes = [cause.cause for cause in diagnosis.causes]
        for mistake in mistakes(seed):
            if mistake not in fixed and mistake.accepts(diagnosis.divergence.layer) and causes == [mistake.cause]:
                return mistake
    return None


def first_seed(count):
    return next(seed for seed in range(CASES) if len(mistakes(seed)) == count)


def test_there_are_more_than_500_and_no_two_plant_the_same():
    planted = [frozenset((m.network, m.name) for m in mistakes(seed)) for seed in range(CASES)]
    assert len(set(planted)) == CASES > 500
    assert {len(one) for one in planted} == {1, 2, 3}
    for seed in range(CASES):
        assert all(not a.layers & b.layers for a, b in itertools.combinations(mistakes(seed), 2))


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: f"{mutant.network} {mutant.name}")
def test_a_mistake_is_said_to_be_in_a_forward_just_where_it_is(mutant):
    """A forward that a mutant writes belongs to a class that no module holds."""
    port = mutant.plant(load_network(mutant.network).build())
    written = [
        type(module)
        for module in port.modules()
        if getattr(sys.modules[type(module).__module__], type(module).__qualname__, None) is not type(module)
    ]
    assert mutant.in_forward == bool(written)


def all_outputs(seed, but=()):
    """Return what a port returns at each size, and None where it fails."""
    port = broken_port(seed, but)
    found = []
    for _, x in load_network(mistakes(seed)[0].network).probes:
        with contextlib.suppress(ParityError):
            returned = run_torch(port, x if len(x) > 1 else x[0])
            found.append(returned if isinstance(returned, list | tuple) else [returned])
            continue
        found.append(None)
    return found


def test_no_mistake_undoes_another():
    for seed in range(CASES):
        whole = all_outputs(seed)
        for mistake in mistakes(seed):
            pairs = zip(whole, all_outputs(seed, but=(mistake,)), strict=True)
            same = [a is b if a is None or b is None else all(map(np.array_equal, a, b)) for a, b in pairs]
            assert not all(same), f"{mistake.name} cannot be seen in seed {seed}"


@settings(max_examples=20, deadline=None)
@given(SEEDS)
def test_diagnose_finds_all_mistakes_one_after_the_other(seed):
    assert is_findable(seed)


@settings(max_examples=12, deadline=None)
@given(SEEDS)
def test_a_port_with_any_mistake_left_is_not_fixed(seed):
    for left in mistakes(seed):
        rest = tuple(mistake for mistake in mistakes(seed) if mistake is not left)
        broken = broken_port(seed, but=rest)
        outputs = []
        for size in range(len(load_network(left.network).probes)):
            model, x, _ = keras_side(seed, size)
            outputs.append(compare("port", model(x, training=False), run_torch(broken, x), within=2e-6))
        assert not all(outputs), left


@settings(max_examples=6, deadline=None)
@given(SEEDS)
@example(first_seed(3))
def test_the_check_tells_a_fixed_port_from_one_with_a_mistake_left(seed):
    with pytest.MonkeyPatch.context() as patch:
        lines = []
        patch.setattr("course.exercises.report.print", lines.append, raising=False)
        check_fixed(seed, lambda port: right_port(seed))
        for left in mistakes(seed):
            rest = tuple(mistake for mistake in mistakes(seed) if mistake is not left)
            check_fixed(seed, lambda port, rest=rest: broken_port(seed, but=rest))
    right, *others = lines
    assert right.startswith("✓ Fixed: right"), right
    assert len(others) == len(mistakes(seed))
    for line, left in zip(others, mistakes(seed), strict=True):
        assert line.startswith("✗ Fixed: "), line
        assert any(layer in line for layer in left.layers), (line, left)


def test_a_port_that_was_left_as_it_was_is_not_fixed(capsys):
    assert said(capsys, check_fixed, 1, lambda port: None) == "… Fixed: not attempted yet"
    assert said(capsys, check_fixed, 1, lambda port: port).startswith("✗ Fixed: ")
    assert "it returned str, not the port" in said(capsys, check_fixed, 1, lambda port: "done")
    assert "computes in float32" in said(capsys, check_fixed, 1, lambda port: right_port(1).float())


def test_a_fix_in_place_counts(capsys):
    seed = next(seed for seed in range(CASES) if [m.name for m in mistakes(seed)] == ["2: not transposed"])

    def fix(port):
        port[2].weight.data = port[2].weight.data.T

    assert said(capsys, check_fixed, seed, fix).startswith("✓ Fixed: right")


@pytest.mark.parametrize("count", [1, 2, 3])
def test_what_was_found_is_judged(capsys, count):
    seed = first_seed(count)
    right = found(seed)
    answer = said(capsys, check_found, seed, right)
    assert answer.startswith("✓ Found: right; these are all mistakes")
    for mistake in mistakes(seed):
        assert mistake.name in answer
    assert said(capsys, check_found, seed, {}) == "… Found: not attempted yet"
    layer, cause = next(iter(right.items()))
    another = "groups" if cause != "groups" else "epsilon"
    assert f"there is a mistake at {layer}, and it is not '{another}'" in said(
        capsys, check_found, seed, right | {layer: another}
    )
    assert "is not in the list of causes" in said(capsys, check_found, seed, {layer: "wrong"})
    assert "the Keras model has no layer 'convolution'" in said(
        capsys, check_found, seed, right | {"convolution": cause}
    )
    if count > 1:
        answer = said(capsys, check_found, seed, {layer: cause})
        assert f"✗ Found: right so far, and there {'is 1' if count == 2 else 'are 2'} more mistake" in answer
    layers = [layer.name for layer in keras_side(seed)[0].layers]
    for name in layers:
        if not any(mistake.accepts(name) for mistake in mistakes(seed)):
            assert f"there is no mistake at {name}" in said(capsys, check_found, seed, right | {name: cause})


def test_hints_say_more_and_more(capsys):
    seed = first_seed(3)
    one, two, three = (said(capsys, hint, seed, number) for number in (1, 2, 3))
    assert "3 mistakes" in one
    for mistake in mistakes(seed):
        assert min(mistake.layers) not in one
        assert min(mistake.layers) in two
        assert mistake.cause not in two
        assert f"{mistake.cause} (" in three
    with pytest.raises(ParityError, match="there is no hint 4"):
        hint(seed, 4)


def test_no_right_setting_is_shown():
    """The code of a port is its forward. Its ``__init__`` would say what is right."""
    for network in {m.network for seed in range(CASES) for m in mistakes(seed)}:
        seed = next(seed for seed in range(CASES) if mistakes(seed)[0].network == network)
        code = code_of(broken_port(seed))
        assert "__init__" not in code
        assert ("def forward" in code) != isinstance(right_port(seed), nn.Sequential)


@pytest.mark.parametrize("seed", [first_seed(1), first_seed(3)])
def test_the_notebook_runs_and_checks_itself(seed, capsys):
    cells = [cell.source for cell in notebook(seed).cells if cell.cell_type == "code"]
    names = {}
    for cell in cells:
        exec(cell, names)
    printed = capsys.readouterr().out
    assert "… Found: not attempted yet" in printed
    assert "… Fixed: not attempted yet" in printed
    assert "Hint 1: there " in printed
    answered = [cell for cell in cells if "check_found(SEED" in cell or "check_fixed(SEED" in cell]
    names["right_port"] = lambda: right_port(seed)
    for cell in answered:
        cell = re.sub(r"(found = \{)", rf"\1{str(found(seed))[1:-1]},", cell)
        exec(cell.replace("    pass", "    return right_port()"), names)
    printed = capsys.readouterr().out
    assert printed.count("✓") == 2
    assert "✗" not in printed


def test_a_class_gets_its_notebooks_and_the_teacher_the_key(tmp_path, capsys):
    main(["3", "5-6", "--to", str(tmp_path / "class")])
    written = sorted(path.name for path in (tmp_path / "class").iterdir())
    assert written == ["hunt_3.ipynb", "hunt_5.ipynb", "hunt_6.ipynb"]
    for path in (tmp_path / "class").iterdir():
        text = path.read_text()
        assert not any(mistake.name in text for seed in (3, 5, 6) for mistake in mistakes(seed))
    capsys.readouterr()
    main(["3", "5-6", "--key"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + sum(len(mistakes(seed)) for seed in (3, 5, 6))
    table = key([3, 5, 6])
    assert list(table.cause) == [mistake.cause for seed in (3, 5, 6) for mistake in mistakes(seed)]
    assert set(table.page) <= set(CAUSES.values())


def test_seeds_can_be_chosen_by_what_a_class_has_read(capsys):
    main(["--list", "--mistakes", "2", "--pages", "01,03"])
    listed = [int(seed) for seed in capsys.readouterr().out.split()]
    assert listed
    for seed in range(CASES):
        fits = len(mistakes(seed)) == 2 and all(CAUSES[m.cause] in ("01", "03") for m in mistakes(seed))
        assert (seed in listed) == fits
    main(["--list"])
    assert len(capsys.readouterr().out.split()) == CASES
    with pytest.raises(SystemExit):
        main([])


def test_an_exchange_may_be_named_at_both_of_its_layers(capsys):
    seed = next(s for s in range(CASES) if [m.cause for m in mistakes(s)] == ["heads exchanged"])
    layers = sorted(mistakes(seed)[0].layers)
    both = dict.fromkeys(layers, "weights of another layer")
    answer = said(capsys, check_found, seed, both)
    assert answer.startswith("✓ Found: right")
    assert "the other side of the same mistake" in answer
    assert "✗" in said(capsys, check_found, seed, {layers[0]: "heads exchanged", layers[1]: "epsilon"})


def test_a_wrong_cause_at_the_other_layer_of_a_mistake_is_wrong(capsys):
    """Where a mistake may be located at two layers, only its own cause, or another name of it, counts at the second."""
    seed = next(
        s for s in range(CASES) if [(len(m.layers), m.cause) for m in mistakes(s)] == [(2, "overwritten in place")]
    )
    one, other = sorted(mistakes(seed)[0].layers)
    assert said(capsys, check_found, seed, {one: "overwritten in place"}).startswith("✓ Found: right")
    for cause in ("heads exchanged", "weights of another layer", "epsilon"):
        assert said(capsys, check_found, seed, {one: "overwritten in place", other: cause}).startswith("✗ Found: ")


def test_a_weight_under_another_name_is_told(capsys):
    seed = next(seed for seed in range(CASES) if [m.name for m in mistakes(seed)] == ["2: not transposed"])

    def fix(port):
        port[2] = nn.Sequential(port[2])

    assert "it has no 2.bias any more" in said(capsys, check_fixed, seed, fix)


def test_nobodys_work_is_overwritten(tmp_path, capsys):
    (tmp_path / "hunt_2.ipynb").write_text("my work")
    with pytest.raises(SystemExit):
        main(["1-3", "--to", str(tmp_path)])
    assert "hunt_2.ipynb exists already" in capsys.readouterr().err
    assert [path.read_text() for path in tmp_path.iterdir()] == ["my work"]


@pytest.mark.parametrize("words", [["x"], ["5-3"], [str(CASES)], ["1-"], ["-1"]])
def test_a_seed_that_is_none_is_refused(words, tmp_path, capsys):
    with pytest.raises(SystemExit):
        main([*words, "--to", str(tmp_path)])
    assert capsys.readouterr().err
    assert not list(tmp_path.iterdir())
    with pytest.raises(ParityError, match=f"take one from 0 to {CASES - 1}"):
        broken_port(CASES)


def test_a_port_is_the_same_at_every_call():
    a, b = (broken_port(first_seed(3)).state_dict() for _ in range(2))
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)
