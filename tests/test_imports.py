"""The architecture: who may import whom, where private names of the frameworks may stand, how large things may be."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# Who may import what of the project. A folder stands for every module in it; "parity" alone for its public names.
ALLOWED = {
    "parity.errors": set(),
    "parity.axes": {"parity.errors"},
    "parity.tensors": set(),
    "parity.comparison": set(),
    "parity.padding": set(),
    "parity.precision": set(),
    "parity.recurrent": set(),
    "parity.weights": {"parity.errors", "parity.tensors", "parity.models.keras_layers", "parity.recurrent"},
    "parity.models": {"parity.errors", "parity.tensors", "parity.axes", "parity.recurrent"},
    "parity.proposal": {"parity.errors", "parity.tensors", "parity.weights", "parity.models"},
    "parity.tracing": {"parity.errors", "parity.tensors", "parity.weights", "parity.models"},
    "parity.diagnosis": {
        *("parity.errors", "parity.tensors", "parity.weights", "parity.models"),
        *("parity.padding", "parity.recurrent", "parity.tracing"),
    },
    "parity": {
        "parity.axes",
        "parity.comparison",
        "parity.errors",
        "parity.padding",
        "parity.precision",
        "parity.recurrent",
    }
    | {f"parity.{room}" for room in ("weights", "models", "tracing", "diagnosis", "proposal")},
    "course.official_weights": set(),
    "course.pages": {"course.official_weights"},
    "course": {
        "parity",
        "parity.axes",
        "parity.padding",
        "parity.recurrent",
        "parity.tracing.plot",
        "keras_model",
        "torch_model",
    },
    "keras_model": {"course"},
    "torch_model": {"parity.padding"},
}
# What the course needs of parity beyond its public names.
EXCEPTIONS = {
    # COLUMNS: the names of a mapping's columns, where a page or a network makes one.
    "course.small_models": {"parity.weights.mapping"},
    **{f"course.exercises.{page}": {"parity.weights.mapping"} for page in ("e08_dronet", "e10_hunt")},
}


def modules(*folders):
    """Yield the dotted name and the syntax tree of each module in folders, or of a file."""
    for folder in folders:
        paths = sorted((ROOT / folder).rglob("*.py")) if (ROOT / folder).is_dir() else [ROOT / folder]
        for path in paths:
            dotted = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
            yield dotted, ast.parse(path.read_text(encoding="utf-8"))


def imports(tree):
    """Yield the module that each import names; of ``from a import b`` also ``a.b``, which may be a module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports are absolute"
            yield from ((node.module, alias.name) for alias in node.names)


def is_module(dotted):
    path = ROOT.joinpath(*dotted.split("."))
    return path.is_dir() or path.with_suffix(".py").is_file()


def within(module, place):
    return module == place or module.startswith(f"{place}.")


def rule_for(module):
    """Return the entry of ``ALLOWED`` that is nearest to a module."""
    return max((place for place in ALLOWED if within(module, place)), key=len)


def forbidden(module, tree):
    """Yield each import of the project's own modules that a module must not make."""
    place = rule_for(module)
    allowed = ALLOWED[place] | EXCEPTIONS.get(module, set())
    for name, member in imports(tree):
        target = f"{name}.{member}" if member and is_module(f"{name}.{member}") else name
        if not any(within(target, own) for own in ("parity", "course", "tests", "keras_model", "torch_model")):
            continue
        if place not in ("parity", "course") and within(target, place):
            continue
        if place == "course" and within(target, "course"):
            continue
        # The name of the package alone allows its public names, not its modules.
        if not any(target == one if one == "parity" else within(target, one) for one in allowed):
            yield f"{module} imports {target}"


def test_imports_run_one_way():
    found = list(modules("parity", "course", "keras_model.py", "torch_model.py"))
    assert len(found) > 60
    assert [fault for dotted, tree in found for fault in forbidden(dotted, tree)] == []


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("parity.weights.transfer", "from parity.models.keras_graph import Step"),
        ("parity.weights.transfer", "import parity.tracing"),
        ("parity.tracing.trace", "from parity.diagnosis.diagnose import diagnose"),
        ("parity.tracing.trace", "from parity import diagnose"),
        ("parity.proposal.search", "from parity.tracing import port"),
        ("parity.tensors", "from parity.errors import ParityError"),
        ("parity.diagnosis.inputs", "import course"),
        ("parity.models.rounding", "from tests.helpers import models"),
        ("course.exercises.e01_kernels", "from parity.weights.transfer import transfer"),
        ("course.official_weights", "from parity import ParityError"),
        ("course.pages.record", "from course import figures"),
    ],
)
def test_an_import_the_wrong_way_is_found(module, line):
    assert len(list(forbidden(module, ast.parse(line)))) == 1


# A name with one underscore in front belongs to the module, class or package that has it.
PRIVATE = re.compile(r"^_[a-zA-Z]\w*$")


def private_names(tree):
    """Yield each private name that is read from something that is not ``self``, ``cls`` or a module of the project."""
    own = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and is_own(node.value)}
    own |= {
        node.target.id
        for node in ast.walk(tree)
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }
    named_tuple = {"_replace", "_fields", "_asdict", "_make"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and PRIVATE.match(node.attr) and not is_own(node.value):
            if node.attr not in own | named_tuple:
                yield node.attr
        elif isinstance(node, ast.ImportFrom):
            parts = [*node.module.split("."), *(alias.name for alias in node.names)]
            yield from (part for part in parts if PRIVATE.match(part))
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("getattr", "hasattr"):
            name = node.args[1]
            if isinstance(name, ast.Constant) and PRIVATE.match(str(name.value)):
                yield name.value


def is_own(node):
    return isinstance(node, ast.Name) and node.id in ("self", "cls")


def test_private_names_of_the_frameworks_stay_in_models():
    found = {dotted: set(private_names(tree)) for dotted, tree in modules("parity")}
    outside = {dotted: names for dotted, names in found.items() if names and not within(dotted, "parity.models")}
    assert outside == {}
    assert found["parity.models.keras_graph"]  # the test sees them where they are


def test_no_file_is_long():
    lines = {
        path.relative_to(ROOT).as_posix(): len(path.read_text(encoding="utf-8").splitlines())
        for folder in ("parity", "course", "benchmarks")
        for path in (ROOT / folder).rglob("*.py")
    }
    assert {name: count for name, count in lines.items() if count > 400} == {}


def parameters(function):
    arguments = function.args
    every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    return [argument.arg for argument in every if argument.arg not in ("self", "cls")]


def test_no_function_has_many_parameters_but_public_ones():
    public = {"__init__"}
    for dotted, tree in modules("parity/__init__.py"):
        public |= {member for name, member in imports(tree) if member}
        assert dotted == "parity"
    many = [
        f"{dotted}.{node.name}: {len(parameters(node))}"
        for dotted, tree in modules("parity", "course")
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) and len(parameters(node)) > 5 and node.name not in public
        # In the course, what the pages and the networks call is public.
        if within(dotted, "parity") or node not in tree.body or node.name.startswith("_")
    ]
    assert many == []
