"""Write the pages of a class, without outputs and without solutions: make class.

python -m course.classroom                                writes all pages into the folder class
python -m course.classroom --route half-day               only the pages of half a day
python -m course.classroom --pages 00 10                  only these pages
python -m course.classroom --route 90min --to class-b     into another folder
"""

import argparse
import sys
from pathlib import Path

from course.classroom.copies import is_for_a_class, write_pages
from course.classroom.routes import ROUTES
from course.pages.anatomy import ROOT


def main(arguments: list[str] | None = None) -> None:
    """Do what the command line says.

    Raises:
        SystemExit: The folder will not do, or holds such pages already; nothing was written.
    """
    parser = argparse.ArgumentParser(
        prog="python -m course.classroom", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--route", choices=list(ROUTES), default="two-days", help="which pages; all of them")
    which.add_argument("--pages", nargs="+", choices=ROUTES["two-days"], metavar="NN", help="these pages, as 00 10")
    parser.add_argument("--to", type=Path, default=ROOT / "class", metavar="FOLDER", help="where to write; class")
    said = parser.parse_args(arguments)
    if not is_for_a_class(said.to):
        parser.error(f"the pages use files of the project, so name a folder in it such as class-b, not {said.to}")
    try:
        files = write_pages(sorted({*said.pages}) if said.pages else ROUTES[said.route], said.to)
    except FileExistsError as error:
        parser.error(str(error))
    for file in files:
        print(file.relative_to(ROOT).as_posix() if file.is_relative_to(ROOT) else file)


if __name__ == "__main__":
    main(sys.argv[1:])
