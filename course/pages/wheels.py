"""Collect the packages of the course for another system than this one: ``python -m course.pages.wheels windows``.

For the own system ``make wheels`` is enough, which is one call of pip. For another system that call fails: pip chooses
files for the system it is told, but decides by its own system what a package needs. So this module walks from package
to package itself. It reads in each wheel what that needs on the other system, and lets pip fetch the version that
constraints.txt pins.
"""

import argparse
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from email.parser import HeaderParser
from pathlib import Path
from zipfile import ZipFile

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name, parse_wheel_filename

ROOT = Path(__file__).parents[2]

_LINUX = ["manylinux1", "manylinux2010", "manylinux2014", *(f"manylinux_2_{minor}" for minor in range(17, 29))]
SYSTEMS: dict[str, tuple[list[str], dict[str, str]]] = {
    "windows": (
        ["win_amd64"],
        {"sys_platform": "win32", "platform_machine": "AMD64", "os_name": "nt", "platform_system": "Windows"},
    ),
    "macos": (
        ["macosx_14_0_arm64"],  # pip knows that this system takes files of older ones, too
        {"sys_platform": "darwin", "platform_machine": "arm64", "os_name": "posix", "platform_system": "Darwin"},
    ),
    "linux": (
        [f"{name}_x86_64" for name in _LINUX],
        {"sys_platform": "linux", "platform_machine": "x86_64", "os_name": "posix", "platform_system": "Linux"},
    ),
}
"""For each system the tags of the wheels that it takes, and how the markers of requirements name it."""
PYTHONS = ("3.11", "3.12", "3.13")


class CollectError(Exception):
    """The packages cannot be collected; the message says why."""


def environment(system: str, python: str) -> dict[str, str]:
    """Return what a marker is judged by on a system: a name of ``SYSTEMS``, with a Python such as 3.11."""
    machine = SYSTEMS[system][1]
    return machine | {
        "python_version": python,
        "python_full_version": f"{python}.0",
        "implementation_name": "cpython",
        "implementation_version": f"{python}.0",
        "platform_python_implementation": "CPython",
        "platform_release": "",
        "platform_version": "",
    }


def asked(extra: str = "course") -> list[Requirement]:
    """Return what an extra of pyproject.toml asks for, and what its editable install is built with."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    project = settings["project"]
    lines = [*settings["build-system"]["requires"], "editables", *project["dependencies"]]
    extras = [extra]
    for name in extras:  # grows while it is walked
        for line in project["optional-dependencies"][name]:
            requirement = Requirement(line)
            if requirement.name == project["name"]:
                extras += sorted(requirement.extras - {*extras})
            else:
                lines.append(line)
    return [Requirement(line) for line in lines]


def pins(machine: dict[str, str]) -> dict[str, str]:
    """Return the version that constraints.txt has for each package on a machine, as ``environment`` describes it."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    requirements = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {
        canonicalize_name(requirement.name): str(requirement.specifier)
        for requirement in requirements
        if requirement.marker is None or requirement.marker.evaluate(machine)
    }


def needs(wheel: Path, extras: Iterable[str], machine: dict[str, str]) -> list[Requirement]:
    """Return what a wheel needs on a machine, with some of its extras."""
    with ZipFile(wheel) as archive:
        [name] = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA") and name.count("/") == 1]
        metadata = HeaderParser().parsestr(archive.read(name).decode())
    lines = [Requirement(line) for line in metadata.get_all("Requires-Dist", [])]
    return [
        line
        for line in lines
        if line.marker is None or any(line.marker.evaluate(machine | {"extra": extra}) for extra in ("", *extras))
    ]


def download(lines: list[str], system: str, python: str, folder: Path) -> None:
    """Let pip fetch the wheels of exactly these packages for a system into a folder.

    Raises:
        CollectError: If pip fails; it has said why.
    """
    platforms = [f"--platform={tag}" for tag in SYSTEMS[system][0]]
    options = ["--no-deps", "--only-binary=:all:", *platforms, f"--python-version={python}", f"--dest={folder}"]
    command = [sys.executable, "-m", "pip", "download", "--quiet", f"--find-links={folder}", *options, *lines]
    if subprocess.run(command, check=False).returncode:
        raise CollectError(f"pip cannot fetch these for {system} with Python {python}: {', '.join(lines)}")


def collect(system: str, python: str, folder: Path) -> list[Path]:
    """Fetch all that the course needs on a system into a folder, and return the wheels.

    Args:
        system: A name of ``SYSTEMS``.
        python: The Python that is used there, a name of ``PYTHONS``.
        folder: Where the wheels go; those that are there already are not fetched again.

    Raises:
        CollectError: If a package has no wheel for the system, or if PyTorch turns out to be the build for GPUs.
    """
    folder.mkdir(parents=True, exist_ok=True)
    machine = environment(system, python)
    pinned = pins(machine)
    found: dict[str, Path] = {}
    walked = set()
    left = [line for line in asked() if line.marker is None or line.marker.evaluate(machine)]
    while left:
        named = {canonicalize_name(line.name): line for line in left}
        missing = {name: line for name, line in named.items() if name not in found}
        if gpu := sorted(name for name in missing if name.startswith("nvidia-")):
            raise CollectError(
                f"PyTorch asks for {gpu[0]}: this is its build for GPUs, of several gigabytes. Name the index of the"
                " small one in the variable PIP_EXTRA_INDEX_URL; docs/teaching/offline.md says where it is shown."
            )
        if missing:
            lines = [f"{name}{pinned.get(name, line.specifier)}" for name, line in missing.items()]
            download(lines, system, python, folder)
            there = {parse_wheel_filename(path.name)[0]: path for path in sorted(folder.glob("*.whl"))}
            found |= {name: there[name] for name in missing}
        needed = []
        for line in left:
            walk = canonicalize_name(line.name), frozenset(line.extras)
            if walk not in walked:
                walked.add(walk)
                needed += needs(found[walk[0]], line.extras, machine)
        left = needed
    return sorted(found.values())


def main(arguments: list[str] | None = None) -> None:
    """Collect the wheels for the system that the command line names, and say how large they are."""
    parser = argparse.ArgumentParser(description="Collect the packages of the course for another system.")
    parser.add_argument("system", choices=SYSTEMS)
    parser.add_argument("--python", choices=PYTHONS, default="3.11", help="the Python used there (3.11)")
    parser.add_argument("--to", type=Path, metavar="FOLDER", help="where the wheels go (wheels-SYSTEM)")
    given = parser.parse_args(arguments)
    folder = given.to or Path(f"wheels-{given.system}")
    try:
        wheels = collect(given.system, given.python, folder)
    except CollectError as error:
        parser.exit(1, f"{error}\n")
    size = sum(path.stat().st_size for path in wheels)
    print(f"{folder}: {len(wheels)} files, {size / 1e6:.0f} MB, for {given.system} with Python {given.python}")


if __name__ == "__main__":
    main()
