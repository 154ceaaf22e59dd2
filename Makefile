# The Python to make the environment with, 3.11 to 3.13: make convert PYTHON=python3.12
PYTHON ?= python3

ifeq ($(OS),Windows_NT)
bin := .venv/Scripts
else
bin := .venv/bin
endif

.PHONY: convert test lab record lint format

# Convert the project's DroNet weights, verify the result, write torch_weights.pth.
convert: .venv/installed
	$(bin)/python convert.py

# Run every notebook and compare its outputs with those stored; run the tests.
test: .venv/installed
	$(bin)/python -m pytest --nbval

# Open JupyterLab at the first notebook; its root is this folder, so that links to the project's files work.
lab: .venv/installed
	$(bin)/jupyter lab --LabApp.default_url=/lab/tree/$(firstword $(sort $(wildcard notebooks/*.ipynb)))

# Run every notebook and store its outputs.
record: .venv/installed
	$(bin)/python -m course.pages.record

lint: .venv/installed
	$(bin)/ruff check
	$(bin)/ruff format --check

format: .venv/installed
	$(bin)/ruff check --fix
	$(bin)/ruff format

.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(bin)/python -m pip install --editable .
	touch $@
