# The Python to make the environment with, 3.11 to 3.13: make convert PYTHON=python3.12
PYTHON ?= python3

ifeq ($(OS),Windows_NT)
bin := .venv/Scripts
else
bin := .venv/bin
endif

# The versions to install. None, and pip takes the newest: make test CONSTRAINTS=
CONSTRAINTS ?= constraints.txt
from =
install = $(bin)/python -m pip install $(from) $(if $(CONSTRAINTS),--constraint $(CONSTRAINTS))

.PHONY: convert test lab site slides links class handout record wheels offline lint format constraints

# Convert the project's DroNet weights, verify the result, write torch_weights.pth. Needs no notebook and no test.
convert: .venv/convert-installed
	$(bin)/python convert.py

# Run every notebook and compare its outputs with those stored; run the tests.
test: .venv/installed
	$(bin)/python -m pytest --nbval

# Open JupyterLab at the first notebook; its root is this folder, so that links to the project's files work. Saving a
# notebook that was only opened changes no byte.
lab: .venv/installed
	$(bin)/jupyter lab --LabApp.default_url=/lab/tree/$(firstword $(sort $(wildcard notebooks/*.ipynb))) \
		--FileContentsManager.pre_save_hook=course.pages.clean_save.scrub

# Make the site from the notebooks as they are stored; it opens at _site/html/index.html.
site: .venv/site-installed
	$(bin)/python -m sphinx -W --keep-going -q -b html -c docs . _site/html

# Make the slides for a class from docs/teaching/slides and from the notebooks, in _site/slides. Needs npm, which fetches
# reveal.js.
slides: .venv/site-installed course/slides/node_modules/.package-lock.json
	$(bin)/python -m course.slides

# Do the links to other sites lead somewhere? The README is no page of the site; here it is read, too.
links: .venv/site-installed
	$(bin)/python -m sphinx -q -b linkcheck -c docs -D exclude_patterns=".*,**/.*,_site,class*,tests,benchmarks,course,parity,work,docs/teaching/slides" \
		. _site/links

# Write the pages of a class into the folder class, without outputs and solutions. ROUTE=half-day (or 90min) takes only
# the pages of that route, TO=class-b another folder.
class: .venv/installed
	$(bin)/python -m course.classroom $(if $(ROUTE),--route $(ROUTE)) $(if $(TO),--to $(TO))

# Print the cheat sheet and the exit paper of a class, one A4 page each: handout.pdf, exit-paper.pdf.
handout: .venv/site-installed
	$(bin)/python -m course.handout

# Run every notebook and store its outputs; reckon the timetables of docs/teaching anew.
record: .venv/installed
	$(bin)/python -m course.pages.record
	$(bin)/python -m course.classroom.timetable

# Collect the packages of the course in the folder wheels, with what builds the project, for laptops like this one.
wheels: .venv/pyvenv.cfg
	mkdir -p wheels
	$(bin)/python -m pip download --dest wheels --only-binary=:all: --find-links wheels \
		$(if $(CONSTRAINTS),--constraint $(CONSTRAINTS)) ".[course]" hatchling editables

# Install from the folder wheels, without a network. Then make lab and make test install nothing more.
offline: from = --no-index --find-links wheels
offline: .venv/installed

lint: .venv/installed
	$(bin)/ruff check
	$(bin)/ruff format --check
	$(bin)/mypy

format: .venv/installed
	$(bin)/ruff check --fix
	$(bin)/ruff format

# Pin the newest versions that fit pyproject.toml, of what is pulled in too, for every system and Python that it allows.
# RENEW= keeps the pins that still fit, RENEW="--upgrade-package keras" renews one.
RENEW ?= --upgrade
constraints: .venv/pyvenv.cfg
	$(install) uv
	$(bin)/uv pip compile pyproject.toml --universal --all-extras --group dev --fork-strategy fewest $(RENEW) \
		--no-annotate --custom-compile-command "make constraints" --output-file constraints.txt

.venv/installed: .venv/convert-installed
	$(install) --editable ".[course]"
	$(bin)/jupyter labextension disable --level=sys_prefix "@jupyterlab/apputils-extension:announcements"
	touch $@

.venv/site-installed: .venv/convert-installed
	$(install) --editable ".[site]"
	touch $@

course/slides/node_modules/.package-lock.json: course/slides/package-lock.json
	cd course/slides && npm ci

.venv/convert-installed: .venv/pyvenv.cfg pyproject.toml $(CONSTRAINTS)
	$(install) --editable ".[convert]"
	touch $@

.venv/pyvenv.cfg:
	$(PYTHON) -m venv .venv
