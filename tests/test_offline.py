"""The page on a class without a network says what the Makefile, the workflows and the list of packages do."""

import json
import os
import re
import shutil
import subprocess
import tomllib

from course.pages.anatomy import ROOT, link_faults
from course.pages.wheels import PYTHONS, SYSTEMS, environment, pins

import pytest
import yaml
from packaging.specifiers import SpecifierSet

FOLDER = ROOT / "docs" / "teaching"
PAGE = (FOLDER / "offline.md").read_text(encoding="utf-8")
WORKFLOWS = ROOT / ".github" / "workflows"
CONTAINER = json.loads((ROOT / ".devcontainer" / "devcontainer.json").read_text(encoding="utf-8"))
BLOCKS = re.findall(r"```\n(.*?)```", PAGE, flags=re.DOTALL)
COMMANDS = [line.partition("    #")[0] for block in BLOCKS for line in block.splitlines()]
PYTHON = re.compile(r"^\.venv[/\\](bin|Scripts)[/\\]python ")


def pip(verb):
    """Return the commands of the page that let pip do something, without the path of Python, each once."""
    return {PYTHON.sub("", command) for command in COMMANDS if PYTHON.match(command) and f" pip {verb} " in command}


def what_make_runs(target, folder):
    """Return the calls of pip that make would do for a target, in an environment that is there and empty."""
    if shutil.which("make") is None:
        pytest.skip("no make here")
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, folder)
    (folder / ".venv").mkdir()
    (folder / ".venv" / "pyvenv.cfg").touch()
    variables = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "CONSTRAINTS")}
    command = ["make", "--dry-run", target]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True, env=variables)
    lines = re.sub(r"\\\n\s*", "", done.stdout).splitlines()
    return [" ".join(PYTHON.sub("", line).split()) for line in lines if " pip " in line]


def words(command):
    return sorted(command.split())


def test_the_commands_to_collect_are_those_of_make_and_one_on_all_systems(tmp_path):
    [collect] = pip("download")
    [made] = what_make_runs("wheels", tmp_path)
    # For the small PyTorch make also looks where the wheels are.
    assert words(made.replace("--find-links wheels ", "")) == words(collect)


def test_the_commands_to_install_are_those_of_make_and_one_on_all_systems(tmp_path):
    [install] = pip("install")
    made = what_make_runs("offline", tmp_path)
    assert all("--no-index --find-links wheels" in command for command in made)
    assert words(made[-1]) == words(install)


def test_what_is_installed_over_a_network_asks_for_no_folder(tmp_path):
    assert not any("--no-index" in command for command in what_make_runs(".venv/installed", tmp_path))


def test_what_builds_the_project_is_collected():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    [collect] = pip("download")
    backends = {re.match(r"[\w-]+", line)[0] for line in settings["build-system"]["requires"]}
    # Hatchling asks for the other one when a project is installed for editing.
    assert collect.split()[-len(backends) - 1 :] == [*sorted(backends), "editables"]


def test_each_system_has_its_own_python_in_its_commands():
    for block in BLOCKS:
        windows, others = ".venv\\Scripts" in block, ".venv/bin" in block
        assert not (windows and others), block
        assert windows == ("py -3.11" in block or "Scripts\\jupyter" in block), block
        if " -m venv " in block:
            assert block.splitlines()[0].endswith("--version"), block


def test_the_commands_without_make_are_run_on_windows_each_week():
    workflow = yaml.safe_load((WORKFLOWS / "offline.yml").read_text(encoding="utf-8"))
    run = [line for step in workflow["jobs"]["plain"]["steps"] for line in step.get("run", "").splitlines()]
    for command in COMMANDS:
        if command.startswith(".venv\\Scripts\\python "):
            assert command in run, command
    systems = workflow["jobs"]["make"]["strategy"]["matrix"]["os"]
    assert systems == ["ubuntu-latest", "macos-latest", "windows-latest"]
    assert "schedule" in workflow[True]  # YAML takes on for a truth value


def test_the_versions_of_the_page_are_those_that_are_installed():
    """If one fails here, the sizes, the systems and the tables of the page have to be measured anew."""
    said = dict(re.findall(r"\b(PyTorch|TensorFlow) (\d+\.\d+\.\d+)(?= and|:)", PAGE))
    for system, name in (("windows", "tensorflow-cpu"), ("linux", "tensorflow-cpu"), ("macos", "tensorflow")):
        pinned = pins(environment(system, "3.11"))
        assert said == {"PyTorch": pinned["torch"].strip("="), "TensorFlow": pinned[name].strip("=")}, system


def test_the_pythons_of_the_page_are_those_that_the_project_allows():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    listed = [line.rpartition(" ")[2] for line in settings["classifiers"] if re.search(r":: 3\.\d+$", line)]
    assert listed == [*PYTHONS]
    assert f"Python must be {listed[0]}, {listed[1]} or {listed[2]}." in PAGE
    assert all(SpecifierSet(settings["requires-python"]).contains(f"{python}.0") for python in listed)
    assert {re.search(r"course\.pages\.wheels (\w+)", line)[1] for line in COMMANDS if "pages.wheels" in line} == {
        *SYSTEMS
    }


def test_the_pages_that_are_opened_exist():
    opened = [command.split()[-1] for command in COMMANDS if "jupyter" in command]
    assert len(opened) == 2
    assert all((ROOT / page).is_file() for page in opened)
    assert all("--ServerApp.root_dir=." in command for command in COMMANDS if "jupyter" in command)


def test_links_lead_somewhere():
    assert [*link_faults(PAGE, FOLDER)] == []
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "## For a class or without a network\n" in readme
    assert "(docs/teaching/offline.md)" in readme
    assert "(teaching/offline.md)" in (ROOT / "docs" / "questions.md").read_text(encoding="utf-8")


# --- The dev container ------------------------------------------------------------------------------------------------


def test_the_dev_container_has_the_python_of_environment_yml_and_no_root():
    file = (ROOT / ".devcontainer" / CONTAINER["build"]["dockerfile"]).read_text(encoding="utf-8")
    python = re.search(r"^FROM python:(\d+\.\d+)-", file, flags=re.MULTILINE)[1]
    assert f"python={python}" in (ROOT / "environment.yml").read_text(encoding="utf-8")
    # JupyterLab refuses to start as root.
    assert f"useradd --create-home --shell /bin/bash {CONTAINER['remoteUser']}\n" in file


def test_the_dev_container_makes_what_the_makefile_has():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for command in CONTAINER["postCreateCommand"].split(" && "):
        make, target = command.split()
        assert make == "make"
        assert re.search(rf"^{re.escape(target)}:", makefile, flags=re.MULTILINE), target
    assert CONTAINER["forwardPorts"] == [8888]  # JupyterLab's own
    assert [*CONTAINER["portsAttributes"]] == ["8888"]
