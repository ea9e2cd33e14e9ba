# make demo, make test: each makes .venv itself when it is missing or when pyproject.toml changed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# The stamp is written last. An environment without one was interrupted, and is made anew.
STAMP := $(VENV)/.stamp-$(shell cksum < pyproject.toml | tr ' ' '-')
ARGS ?=
# Nothing is compiled at installation: 395 MB of Python take a minute of one core, and most is never imported.
export PIP_NO_COMPILE := 1
TOOLS := outputs/.tools

.PHONY: help demo test frameworks lint docs pictures resolve fuzz sbom release clean
help:
	@echo 'make demo    train the tiny model on a CPU with veRL and show that it got better (outputs/demo)'
	@echo 'make test    run all tests; quick ones only: make test ARGS="-m '"'not e2e'"'"'
	@echo 'make lint    ruff and pyright'
	@echo 'make docs    the site of the documentation (outputs/site)'
	@echo 'make pictures the pictures of README and docs; needs Chromium'
	@echo 'make resolve what pip would install for each extra on Python 3.10 to 3.12; fetches gigabytes'
	@echo 'make fuzz    look for inputs that break grader, pictures, rows, report, templates; a minute (outputs/fuzz)'
	@echo 'make sbom    list what an extra brings: make sbom ARGS="--extras base eval" (outputs/sbom)'
	@echo 'make release build wheel and sdist, check them, and try the wheel in an empty environment (dist)'
	@echo 'make clean   remove .venv and caches; outputs/ is kept'
	@echo 'Options go in ARGS, as in: make demo ARGS="--seed 2". Another Python: make PYTHON=python3.12 demo'

demo: $(STAMP)
	$(BIN)/tpru demo $(ARGS)

# 8 processes at most, because each takes 1 GB and more.
WORKERS ?= $(shell cores=$$(nproc); echo $$((cores < 8 ? cores : 8)))
test: $(STAMP) frameworks
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder $(ARGS)

# Environments of tests/test_frameworks.py: a list's packages in front of those of $(VENV).
# `make --jobs 4 test` makes several at once, `make test FRAMEWORKS=` none.
FRAMEWORKS ?= $(patsubst tests/frameworks/%.txt,%,$(wildcard tests/frameworks/*.txt))
frameworks: $(FRAMEWORKS:%=$(VENV)/frameworks/%/.stamp)

$(VENV)/frameworks/%/.stamp: tests/frameworks/%.txt $(STAMP)
	@echo "Making $(@D)"
	@rm -rf $(@D)
	@$(BIN)/python -m venv --without-pip $(@D)
	@$(BIN)/python -m pip --quiet --python $(@D)/bin/python install --no-deps --requirement $<
	@echo "import site; site.addsitedir('$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')')" \
	  > $$($(@D)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/zz_venv.pth
	@touch $@

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

docs: $(STAMP)
	$(BIN)/mkdocs build --strict --quiet

pictures: $(STAMP)
	$(BIN)/python docs/picture.py
	$(BIN)/python docs/pictures.py $(ARGS)

resolve: $(STAMP)
	$(BIN)/python benchmarks/resolve.py $(ARGS)

fuzz: $(STAMP)
	$(BIN)/python tests/fuzz/run.py $(ARGS)

sbom: $(TOOLS)/.stamp
	$(TOOLS)/bin/python benchmarks/sbom.py $(ARGS)

release: $(TOOLS)/.stamp
	rm -rf build dist *.egg-info
	$(TOOLS)/bin/python -m build
	$(TOOLS)/bin/python -m twine check --strict dist/*
	$(TOOLS)/bin/python tests/support/smoke.py dist/*.whl

# What builds and lists a release, apart from what runs.
$(TOOLS)/.stamp: pyproject.toml
	@rm -rf $(TOOLS)
	@$(PYTHON) -m venv $(TOOLS)
	@$(TOOLS)/bin/python -m pip --quiet install build cyclonedx-bom pip-audit psutil twine
	@touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .hypothesis

$(STAMP):
	@$(PYTHON) -c 'import sys; v = sys.version_info; (3, 10) <= v < (3, 13) or sys.exit(f"Found Python {v[0]}.{v[1]}, expected 3.10 to 3.12: name one, as in make PYTHON=python3.12 test")'
	@if ls $(VENV)/.stamp-* >/dev/null 2>&1; \
	then echo "pyproject.toml changed: updating $(VENV)"; rm -f $(VENV)/.stamp-*; \
	else echo "Making $(VENV): about 5 GB and a few minutes"; rm -rf $(VENV); $(PYTHON) -m venv $(VENV); fi
	@$(BIN)/python -m pip install --editable '.[cpu,build,eval,dev,docs]' || { \
	  echo 'Installation failed. If pip found no torch==2.13.0+cpu: set PIP_EXTRA_INDEX_URL to the CPU wheel index of PyTorch, then run make again.'; exit 1; }
	@$(BIN)/python -m tpru_verl.doctor.torchvision_repair
	@touch $@
