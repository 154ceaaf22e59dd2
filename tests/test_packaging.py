"""The wheel holds the tool and nothing else, and works without the course; every list of packages says the same."""

import json
import os
import re
import subprocess
import sys
import tarfile
import tomllib
from collections import defaultdict
from importlib.metadata import packages_distributions, requires, version
from importlib.util import find_spec
from pathlib import Path
from zipfile import ZipFile

import pytest
import yaml
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
ENVIRONMENT = (ROOT / "environment.yml").read_text(encoding="utf-8")
USER = ROOT / "tests" / "helpers" / "wheel_user.py"

# The packages that environment.yml names, whatever else is installed.
NAMED = {"jupyter", "tensorflow", "tensorflow-cpu", "keras", "torch", "numpy", "pandas", "matplotlib", "nbval"}

# The systems that the course runs on: what a marker may ask for.
SYSTEMS = [
    {"sys_platform": "linux", "platform_machine": "x86_64", "os_name": "posix", "platform_system": "Linux"},
    {"sys_platform": "linux", "platform_machine": "aarch64", "os_name": "posix", "platform_system": "Linux"},
    {"sys_platform": "darwin", "platform_machine": "arm64", "os_name": "posix", "platform_system": "Darwin"},
    {"sys_platform": "win32", "platform_machine": "AMD64", "os_name": "nt", "platform_system": "Windows"},
]
MACHINES = [
    {**default_environment(), **system, "python_version": python, "python_full_version": f"{python}.9"}
    for system in SYSTEMS
    for python in ("3.11", "3.12", "3.13")
]


# --- The lists of packages -------------------------------------------------------------------------------------------


def requirements(*without: str) -> list[Requirement]:
    """Return what pyproject.toml asks for, all extras included but those named, without the project itself."""
    extras = PROJECT["optional-dependencies"]
    lists = PROJECT["dependencies"], *(lines for extra, lines in extras.items() if extra not in without)
    asked = [Requirement(line) for lines in lists for line in lines]
    return [requirement for requirement in asked if requirement.name != PROJECT["name"]]


def pins() -> list[Requirement]:
    """Return the lines of constraints.txt."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def named() -> list[Requirement]:
    """Return the packages that environment.yml names."""
    [pip] = [entry["pip"] for entry in yaml.safe_load(ENVIRONMENT)["dependencies"] if isinstance(entry, dict)]
    return [Requirement(line) for line in pip if not line.startswith("-")]


def versions(lines: list[Requirement], name: str, machine: dict[str, str]) -> list[str]:
    """Return the versions that the lines pin for a package on a machine."""
    return [
        specifier.version
        for line in lines
        if canonicalize_name(line.name) == canonicalize_name(name)
        and (line.marker is None or line.marker.evaluate(machine))
        for specifier in line.specifier
    ]


def distributions_of(asked: list[Requirement]) -> set[str]:
    """Return the distributions that requirements pull in here, with all that those pull in."""
    seen = set()
    left = [(requirement, {""}) for requirement in asked]  # the extras are those of what asks for the requirement
    while left:
        requirement, extras = left.pop()
        known = canonicalize_name(requirement.name), frozenset(requirement.extras)
        marker = requirement.marker
        if known not in seen and (marker is None or any(marker.evaluate({"extra": extra}) for extra in extras)):
            seen.add(known)
            left += [(Requirement(line), {"", *requirement.extras}) for line in requires(known[0]) or []]
    return {name for name, _ in seen}


def test_constraints_pin_each_package_exactly_and_once_on_any_machine():
    lines = defaultdict(list)
    for pin in pins():
        assert [specifier.operator for specifier in pin.specifier] == ["=="], str(pin)
        lines[canonicalize_name(pin.name)].append(pin)
    for name, same in lines.items():
        if len(same) > 1:
            assert all(len(versions(same, name, machine)) <= 1 for machine in MACHINES), same


def test_every_requirement_is_pinned_to_a_version_that_it_allows():
    for machine in MACHINES:
        for asked in requirements():
            if asked.marker is None or asked.marker.evaluate(machine):
                [pinned] = versions(pins(), asked.name, machine)
                assert pinned in asked.specifier, f"{asked}: constraints.txt has {pinned}"


def test_what_the_pinned_packages_pull_in_is_pinned():
    # make test does not install what only the site needs.
    without = [] if find_spec("sphinx_design") else ["site"]
    pulled_in = distributions_of(requirements(*without))
    pinned = {name: set(versions(pins(), name, default_environment())) for name in pulled_in}
    others = [name for name in pinned if not pinned[name] <= {Version(version(name)).public}]
    if others:
        pytest.skip(f"other versions are installed: {others}")
    assert all(pinned.values()), f"not in constraints.txt: {[name for name in pinned if not pinned[name]]}"
    assert {"torch", "sympy", "keras", "optree", "jupyterlab", "fqdn"} <= pulled_in


def test_environment_yml_is_an_environment_of_conda():
    environment = yaml.safe_load(ENVIRONMENT)
    assert set(environment) == {"name", "channels", "dependencies"}  # of conda's keys there are two more, both optional
    assert re.fullmatch(r"[\w.-]+", environment["name"])
    assert environment["channels"] == ["conda-forge"]
    *conda, last = environment["dependencies"]
    python = next(match for entry in conda if (match := re.fullmatch(r"python=(3\.\d+)", entry)))
    assert python[1] in {machine["python_version"] for machine in MACHINES}
    assert "pip" in conda  # or conda says that it will choose one
    assert set(last) == {"pip"}
    # pip reads the first path from the file that conda writes beside environment.yml, the second from that folder.
    assert last["pip"][:2] == ["-c constraints.txt", "-e .[course]"]
    assert (ROOT / "constraints.txt").is_file()


def test_environment_yml_names_the_packages_with_the_pinned_versions():
    assert {requirement.name for requirement in named()} == NAMED
    for machine in MACHINES:
        for name in NAMED:
            assert versions(named(), name, machine) == versions(pins(), name, machine), name


def test_environment_yml_says_what_each_package_is_for():
    explained = False
    for line in ENVIRONMENT.partition("dependencies:")[2].splitlines():
        text, _, comment = line.partition(" #")
        # A comment on a line of its own is for the lines below it, up to one with a comment of its own.
        explained = (not text.strip() or explained) and not (text.strip() and comment)
        assert explained or comment or text.strip() in ("", "- pip:"), line


def test_hooks_run_the_pinned_versions():
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    revisions = {repository["repo"].rpartition("/")[2]: repository["rev"] for repository in config["repos"]}
    [ruff] = versions(pins(), "ruff", MACHINES[0])
    assert revisions["ruff-pre-commit"] == f"v{ruff}"


# --- The wheel -------------------------------------------------------------------------------------------------------


def run(*command: str | Path, **options) -> str:
    """Run a command and return what it prints; fail with its messages."""
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def sdist(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sdist")
    run(sys.executable, "-m", "hatchling", "build", "--target", "sdist", "--directory", folder, cwd=ROOT)
    [archive] = folder.iterdir()
    return archive


@pytest.fixture(scope="module")
def wheel(sdist, tmp_path_factory) -> Path:
    """Build the wheel as a packager does: from the unpacked sdist, with what is installed."""
    folder = tmp_path_factory.mktemp("wheel")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    [unpacked] = folder.iterdir()
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", folder / "dist"]
    run(*build, cwd=unpacked)
    [built] = (folder / "dist").iterdir()
    return built


def tool() -> set[str]:
    """Return the files of the tool in the checkout."""
    files = [path for path in (ROOT / "parity").rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    return {path.relative_to(ROOT).as_posix() for path in files}


def test_the_wheel_holds_the_tool_and_nothing_else(wheel):
    with ZipFile(wheel) as archive:
        names = set(archive.namelist())
        metadata = archive.read(next(name for name in names if name.endswith(".dist-info/METADATA"))).decode()
    assert wheel.name.endswith("-py3-none-any.whl")
    assert {name for name in names if ".dist-info/" not in name} == tool()
    assert "parity/py.typed" in names
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)
    needed = [line.partition(": ")[2] for line in metadata.splitlines() if line.startswith("Requires-Dist: ")]
    always = {Requirement(line).name for line in needed if "extra ==" not in line}
    assert always == {"h5py", "keras", "numpy", "pandas", "torch"}


def test_the_sdist_holds_what_the_wheel_is_built_from(sdist):
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert names - tool() == {
        "pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff", "PKG-INFO", ".gitignore",
    }  # fmt: skip
    assert tool() <= names


def without(distributions: set[str]) -> list[str]:
    """Return the modules here that belong to none of the distributions."""
    owners = packages_distributions()
    return sorted(name for name, held in owners.items() if not distributions & {canonicalize_name(one) for one in held})


@pytest.fixture(scope="module")
def environment(wheel, tmp_path_factory) -> tuple[Path, Path]:
    """Make an environment of the wheel and of nothing else; return its Python and the folder of its packages.

    To stay quick and offline, the wheel's dependencies are those of the running environment. A .pth file adds the
    folders that hold them; .pth files in those are not read, such as that of an editable install of this project.
    """
    folder = tmp_path_factory.mktemp("environment")
    run(sys.executable, "-m", "venv", "--without-pip", folder)
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    packages = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'), end='')"))
    run(sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--target", packages, wheel)
    dependencies = ("h5py", "keras", "numpy", "pandas", "torch", "tensorflow")
    folders = {str(Path(find_spec(name).origin).parents[1]) for name in dependencies}
    (packages / "dependencies.pth").write_text("\n".join(sorted(folders)), encoding="utf-8")
    return python, packages


@pytest.mark.parametrize(("backend", "first"), [("torch", "parity"), ("", "keras")])
def test_a_user_of_the_wheel_moves_and_checks_weights(environment, tmp_path, backend, first):
    """The user chooses Keras's backend or not, and imports parity before Keras or after it: it sets no variable."""
    python, packages = environment
    needed = PROJECT["dependencies"] + PROJECT["optional-dependencies"]["tensorflow"]
    had = distributions_of([Requirement(line) for line in needed]) | {canonicalize_name(PROJECT["name"])}
    absent = without(had)
    assert {"matplotlib", "pytest", "pooch", "IPython"} <= set(absent)
    assert not {"keras", "torch", "numpy", "pandas", "h5py", "tensorflow"} & set(absent)
    given = json.dumps({"home": str(packages), "absent": absent, "first": first})
    # What the tests and the course settle for themselves would hide what parity sets.
    settled = ("KERAS_BACKEND", "TF_CPP_MIN_LOG_LEVEL", "TF_ENABLE_ONEDNN_OPTS", "OMP_NUM_THREADS", "XLA_FLAGS")
    variables = {name: value for name, value in os.environ.items() if name not in settled}
    variables |= {"KERAS_BACKEND": backend} if backend else {}
    # -I: neither the folder that the program lies in nor PYTHONPATH is searched.
    said = run(python, "-I", USER, given, cwd=tmp_path, env=variables)
    assert said.splitlines()[-1] == str(packages / "parity" / "__init__.py")
