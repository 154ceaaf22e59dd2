"""Packages are collected for another system as that system needs them."""

import zipfile

from course.pages import wheels
from course.pages.wheels import SYSTEMS, CollectError, asked, collect, environment, main, needs, pins

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

# What the wheels of this test need.
NEEDS = {
    "torch": ["sympy", 'nvidia-cublas; sys_platform == "linux"'],
    "ipykernel": ['appnope; sys_platform == "darwin"', "jupyter-server"],
    "jupyter-server": ['pywinpty; os_name == "nt"', "jsonschema[format]"],
    "jsonschema": ['fqdn; extra == "format"', 'unwanted; extra == "other"'],
    "tqdm": ['colorama; platform_system == "Windows"'],
}


def write_wheel(folder, name, lines):
    file = folder / f"{name.replace('-', '_')}-1.0-py3-none-any.whl"
    metadata = "".join(f"Requires-Dist: {line}\n" for line in lines)
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(
            f"{name}-1.0.dist-info/METADATA", f"Metadata-Version: 2.1\nName: {name}\n{metadata}\nIt needs\n"
        )
        archive.writestr(f"{name}/vendor/other-1.0.dist-info/METADATA", "Requires-Dist: vendored\n")
    return file


@pytest.fixture
def fetched(monkeypatch):
    """Let wheels be written instead of downloaded; return what was asked of pip."""
    lines = []

    def write(asked_for, system, python, folder):
        lines.extend(asked_for)
        for line in asked_for:
            name = canonicalize_name(Requirement(line).name)
            write_wheel(folder, name, NEEDS.get(name, []))

    monkeypatch.setattr(wheels, "download", write)
    return lines


@pytest.mark.parametrize(
    ("system", "its", "not_its"),
    [
        ("windows", {"tensorflow-cpu", "pywinpty", "colorama"}, {"tensorflow", "appnope", "nvidia-cublas"}),
        ("macos", {"tensorflow", "appnope"}, {"tensorflow-cpu", "pywinpty", "colorama", "nvidia-cublas"}),
    ],
)
def test_each_system_gets_what_it_needs_and_nothing_else(fetched, tmp_path, system, its, not_its):
    names = {path.name.partition("-")[0].replace("_", "-") for path in collect(system, "3.12", tmp_path)}
    assert its <= names
    assert not not_its & names
    assert {"torch", "keras", "jupyter", "nbval", "hatchling", "editables", "sympy", "fqdn"} <= names
    assert not {"unwanted", "vendored", "sphinx", "pre-commit", "keras-torch-parity"} & names


def test_every_package_is_asked_for_once_and_in_the_pinned_version(fetched, tmp_path):
    collect("macos", "3.11", tmp_path)
    assert len(fetched) == len({Requirement(line).name for line in fetched})
    pinned = pins(environment("macos", "3.11"))
    assert f"torch{pinned['torch']}" in fetched
    assert f"appnope{pinned['appnope']}" in fetched
    assert {line for line in fetched if "==" not in line} == {"editables"}


def test_the_build_for_gpus_is_refused_before_it_is_fetched(fetched, tmp_path):
    with pytest.raises(CollectError, match=r"nvidia-cublas.*build for GPUs.*PIP_EXTRA_INDEX_URL"):
        collect("linux", "3.11", tmp_path)
    assert not any("nvidia" in line for line in fetched)


def test_what_is_asked_is_what_pyproject_says_for_the_course():
    names = {canonicalize_name(line.name) for line in asked()}
    assert {"torch", "matplotlib", "pooch", "jupyterlab", "hatchling", "editables", "tensorflow-cpu"} <= names
    assert "sphinx" not in names
    assert "keras-torch-parity" not in names


def test_a_wheel_says_what_it_needs_with_the_extras_that_are_asked(tmp_path):
    wheel = write_wheel(tmp_path, "jsonschema", NEEDS["jsonschema"])
    machine = environment("windows", "3.11")
    assert needs(wheel, (), machine) == []
    assert [line.name for line in needs(wheel, ("format",), machine)] == ["fqdn"]


def test_every_system_is_one_that_a_marker_can_be_judged_for():
    for system in SYSTEMS:
        assert pins(environment(system, "3.11"))["torch"]


def test_what_pip_cannot_fetch_is_said_in_one_line(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(wheels.subprocess, "run", lambda *_, **__: type("Done", (), {"returncode": 1}))
    with pytest.raises(SystemExit, match="1"):
        main(["windows", "--python", "3.13", "--to", str(tmp_path)])
    said = capsys.readouterr().err
    assert said.startswith("pip cannot fetch these for windows with Python 3.13: ")
    assert said.count("\n") == 1


@pytest.mark.parametrize("arguments", [["beos"], ["windows", "--python", "3.14"], []])
def test_what_does_not_exist_is_refused(arguments, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    assert "usage" in capsys.readouterr().err
