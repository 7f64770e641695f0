# make lab         set everything up in .venv and open JupyterLab at the first notebook
# make test        the same set-up, then every test and every notebook, as it is and solved
# make notebooks   run every notebook again and write its outputs into it
# make site        build the web site, docs/_build/html, from the outputs that the notebooks have
# make slides      make slides of the notebooks, docs/_build/slides, from the same outputs
# make release     what students of a class get, docs/_build/course, made by nbgrader
# make screenshots   take a picture of each of its pages, and of the file of an explorer: docs/_build/screenshots
# make requirements  pin requirements.txt anew from requirements.in

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/ready
AS_ROOT := $(if $(filter 0,$(shell id -u)),--allow-root)  # in a container; JupyterLab asks for a token all the same
SITE := docs/_build/html

# Nothing that these run may need a network. (A comment behind the value would make its spaces part of it.)
test notebooks site slides release screenshots: export HF_HUB_OFFLINE := 1

.PHONY: lab test lint notebooks site slides release screenshots requirements clean

lab: $(READY)
	$(BIN)/jupyter lab $(AS_ROOT) notebooks/00_start_here.ipynb

test: lint
	$(BIN)/python -m pytest -n 2 --dist worksteal tests
	$(BIN)/python -m pytest -n 2 --nbmake --nbmake-timeout=600 notebooks
	rm -rf build/solved  # or a notebook that is no more would be tested for ever
	$(BIN)/python notebooks/classroom.py solved build/solved
	NBGRADER_EXECUTION=validate $(BIN)/python -m pytest -n 2 --nbmake --nbmake-timeout=600 build/solved

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

notebooks: $(READY)
	$(BIN)/python notebooks/execute.py

site: $(READY)
	$(BIN)/python -m sphinx --quiet --fresh-env --fail-on-warning --keep-going --conf-dir docs --doctree-dir $(dir $(SITE))doctrees . $(SITE)

slides: $(READY)
	$(BIN)/python notebooks/slides.py docs/_build/slides

release: $(READY)
	$(BIN)/python notebooks/classroom.py release docs/_build/course

screenshots: $(READY)
	$(BIN)/python -m pytest -n 2 tests/screenshots.py

requirements: $(READY)
	$(BIN)/pip install --quiet pip-tools
	$(BIN)/pip-compile --quiet --upgrade --strip-extras --allow-unsafe --no-header --no-annotate \
		--no-emit-index-url --no-emit-find-links --no-emit-options --output-file .venv/pinned.txt requirements.in
	{ echo "# Made by \`make requirements\` from requirements.in; the last line installs this package itself."; \
		sed 's/+cpu$$//' .venv/pinned.txt | grep -v '^#' | grep .; echo "-e ."; } > requirements.txt

$(READY): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or later is needed; name one with: make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --requirement requirements.txt
	touch $(READY)

clean:
	rm -rf .venv build docs/_build
