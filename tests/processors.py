"""Run the tests as other processors would, one setting after another, and print a table of what passed.

Processors without AVX-512 or AVX2 round differently. Each setting makes the libraries use the kernels that they have
for such processors. Run ``python tests/processors.py``, with the names of settings to run only these. Options of
pytest, and files to run instead of all tests and notebooks, follow ``--``.
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple
from xml.etree import ElementTree

import numpy as np
import pandas as pd

ROOT = Path(__file__).parents[1]


def _threads(count: int) -> dict[str, str]:
    names = ("OMP_NUM", "MKL_NUM", "OPENBLAS_NUM", "TF_NUM_INTRAOP", "TF_NUM_INTEROP")
    return {f"{name}_THREADS": str(count) for name in names}


def _numpy_features() -> str:
    """Return the kernels that NumPy has for this processor beyond those for every processor: on x86, AVX2 and above.

    NumPy warns where it is told to leave out others.
    """
    return ",".join(np.show_config(mode="dicts")["SIMD Extensions"].get("found", []))


# By name of a setting: the environment variables that make it. TensorFlow takes few kernels of oneDNN unless told to,
# PyTorch takes them always.
SETTINGS = {
    "as-is": {},
    "onednn": {"TF_ENABLE_ONEDNN_OPTS": "1"},
    "onednn-avx2": {"TF_ENABLE_ONEDNN_OPTS": "1", "ONEDNN_MAX_CPU_ISA": "AVX2"},
    "onednn-sse41": {"TF_ENABLE_ONEDNN_OPTS": "1", "ONEDNN_MAX_CPU_ISA": "SSE41"},
    "aten-avx2": {"ATEN_CPU_CAPABILITY": "avx2"},
    "aten-default": {"ATEN_CPU_CAPABILITY": "default"},
    "numpy-baseline": {"NPY_DISABLE_CPU_FEATURES": _numpy_features()},
    "one-thread": _threads(1),
    "two-threads": _threads(2),
    "lowest": {
        "ONEDNN_MAX_CPU_ISA": "SSE41",
        "ATEN_CPU_CAPABILITY": "default",
        "MKL_CBWR": "COMPATIBLE",
        "OPENBLAS_CORETYPE": "Nehalem",
        "NPY_DISABLE_CPU_FEATURES": _numpy_features(),
        "GLIBC_TUNABLES": "glibc.cpu.hwcaps=-AVX2,-FMA",  # exp, sin and the like of Python's math
    },
}


class Outcome(NamedTuple):
    """What a run of pytest came to.

    Attributes:
        passed: How many tests passed.
        failed: How many failed, or could not be run.
        seconds: How long it took.
        failures: The names of the tests that failed; if pytest itself stopped, why.
    """

    passed: int
    failed: int
    seconds: float
    failures: list[str]


def run_tests(variables: dict[str, str], arguments: Sequence[str]) -> Outcome:
    """Run pytest in this project with other environment variables.

    Args:
        variables: The variables to add; notebooks' kernels inherit them.
        arguments: Options of pytest and files to run; without files it runs everything.
    """
    with TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        # Of the two kinds of report, only xunit1 names the file of each test.
        options = [f"--junitxml={report}", "--override-ini=junit_family=xunit1"]
        command = [sys.executable, "-m", "pytest", *arguments, *options]
        start = time.perf_counter()
        status = subprocess.run(command, cwd=ROOT, env=os.environ | variables, check=False).returncode
        seconds = time.perf_counter() - start
        passed, failures = read_report(report) if report.exists() else (0, [])
    # pytest may also find no tests, or crash, and a crash may look like a good end.
    if not failures and (status or not passed):
        failures.append(f"pytest ended with exit status {status}, and {passed} tests had passed")
    return Outcome(passed, len(failures), seconds, failures)


def read_report(path: Path) -> tuple[int, list[str]]:
    """Return how many tests passed, and the names of those that failed, from a JUnit report of pytest."""
    passed, failures = 0, []
    for case in ElementTree.parse(path).iter("testcase"):
        found = {child.tag for child in case}
        if found & {"failure", "error"}:
            failures.append(f"{case.get('file') or case.get('classname')}::{case.get('name')}")
        elif "skipped" not in found:
            passed += 1
    return passed, failures


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the tests under the chosen settings; return 0 if all passed, else 1.

    Args:
        arguments: The command line, by default that of the process.
    """
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0], epilog=f"settings: {', '.join(SETTINGS)}")
    parser.add_argument("settings", nargs="*", metavar="SETTING", help="settings to run, by default all")
    given = list(sys.argv[1:] if arguments is None else arguments)
    split = given.index("--") if "--" in given else len(given)
    chosen = parser.parse_args(given[:split]).settings or list(SETTINGS)
    if unknown := [name for name in chosen if name not in SETTINGS]:
        parser.error(f"no such setting: {', '.join(unknown)}; there are {', '.join(SETTINGS)}")
    outcomes = {}
    for name in chosen:
        print(f"\n===== {name}: {' '.join('='.join(pair) for pair in SETTINGS[name].items())}", flush=True)
        outcomes[name] = run_tests(SETTINGS[name], given[split + 1 :])
    table = pd.DataFrame([outcome[:3] for outcome in outcomes.values()], columns=["passed", "failed", "seconds"])
    table.insert(0, "setting", list(outcomes))
    print(f"\n{table.round({'seconds': 0}).astype({'seconds': int}).to_string(index=False)}")
    for name, outcome in outcomes.items():
        for failure in outcome.failures:
            print(f"{name}: {failure}")
    return int(any(outcome.failures for outcome in outcomes.values()))


if __name__ == "__main__":
    sys.exit(main())
