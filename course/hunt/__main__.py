"""Write the notebooks of a class, a broken port for each learner, and the key to them.

python -m course.hunt 7                 writes hunt_7.ipynb
python -m course.hunt 1-20 --to class   writes class/hunt_1.ipynb to class/hunt_20.ipynb
python -m course.hunt 1-20 --key        prints what is wrong in each
"""

import argparse
import re
import sys
from pathlib import Path

from course.hunt.drawing import CASES, mistakes, seeds_with
from course.hunt.page import notebook
from parity import CAUSES

import nbformat
import pandas as pd


def main(arguments: list[str] | None = None) -> None:
    """Do what the command line says.

    Raises:
        SystemExit: A seed or a file cannot be had; the message says which, and nothing was written.
    """
    parser = argparse.ArgumentParser(prog="python -m course.hunt", description=__doc__.splitlines()[0])
    parser.add_argument("seeds", nargs="*", type=_seeds, help=f"numbers from 0 to {CASES - 1}, or ranges: 1-20")
    parser.add_argument("--to", type=Path, default=Path(), metavar="FOLDER", help="where to write; the current folder")
    parser.add_argument("--key", action="store_true", help="print what is wrong in each port, and write nothing")
    parser.add_argument("--list", action="store_true", help="print the seeds with --mistakes and --pages")
    parser.add_argument("--mistakes", type=int, choices=(1, 2, 3), help="with --list: how many mistakes a port has")
    parser.add_argument("--pages", default="", help='with --list: the pages that explain them, such as "01,04"')
    said = parser.parse_args(arguments)
    if said.list:
        print(*seeds_with(said.mistakes, said.pages.split(",") if said.pages else ()))
        return
    if not said.seeds:
        parser.error("name seeds, or --list")
    seeds = sorted({seed for several in said.seeds for seed in several})
    if said.key:
        print(key(seeds).to_string(index=False))
        return
    paths = {seed: said.to / f"hunt_{seed}.ipynb" for seed in seeds}
    there = [str(path) for path in paths.values() if path.exists()]
    if there:
        parser.error(f"{', '.join(there)} exists already, and may hold somebody's work; nothing was written")
    said.to.mkdir(parents=True, exist_ok=True)
    for seed, path in paths.items():
        path.write_text(nbformat.writes(notebook(seed)) + "\n", encoding="utf-8", newline="\n")
        print(path)


def key(seeds: list[int]) -> pd.DataFrame:
    """Return a table with a row for each mistake: seed, network, layer, cause, page, what was done, when it shows."""
    rows = [
        (
            seed,
            mistake.network,
            " or ".join(sorted(mistake.layers)),
            mistake.cause,
            CAUSES[mistake.cause],
            mistake.name,
            mistake.shows,
        )
        for seed in seeds
        for mistake in mistakes(seed)
    ]
    return pd.DataFrame(rows, columns=["seed", "network", "layer", "cause", "page", "in the port", "shows"])


def _seeds(text: str) -> range:
    """Return the seeds that a word of the command line names."""
    found = re.fullmatch(r"(\d+)(?:-(\d+))?", text)
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number nor a range such as 1-20")
    first, last = int(found[1]), int(found[2] or found[1])
    if first > last or last >= CASES:
        raise argparse.ArgumentTypeError(f"{text!r}: seeds go from 0 to {CASES - 1}, the smaller one first")
    return range(first, last + 1)


if __name__ == "__main__":
    main(sys.argv[1:])
