# Two commands do everything: `make repro` and `make test`. `make nightly` tests longer: every fault, many more examples.
PYTHON ?= python3
VENV := .venv
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)

.PHONY: install repro test nightly lint audit lock bench clean

install: $(VENV)/installed

# The venv is made anew when the lock or the project's metadata change.
$(VENV)/installed: requirements.lock pyproject.toml
	@$(PYTHON) -c "import sys; sys.version_info >= (3, 11) or sys.exit('Python 3.11 or newer is needed: make PYTHON=python3.12')"
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet -r requirements.lock
	$(VENV)/bin/pip install --quiet --no-deps --no-build-isolation -e .
	touch $@

repro: install
	dvc repro

test: install lint
	python -m pytest -n 2 --dist loadfile

nightly: install lint
	-python -m pip install --quiet --only-binary :all: atheris==3.0.0  # where there is one; else its tests are skipped
	mkdir -p .resume
	python -m pytest -n 2 --dist loadfile -m "" --junit-xml=.resume/nightly.xml
	python tests/fault_table.py .resume/nightly.xml docs/reliability.md
	python tests/soak_table.py .resume/nightly.xml docs/reliability.md

lint: install
	ruff check .

# Asks whether vulnerabilities of the packages are known.
audit: install
	python .ci/audit.py

# Each is a command of its own, too: python benchmarks/NAME.py.
bench: install
	for script in $(filter-out %/harness.py,$(wildcard benchmarks/*.py)); do python $$script || exit; done

# Resolves the versions of pyproject.toml for every platform and Python from 3.11 on.
lock:
	uv pip compile --universal --python-version 3.11 --extra test --no-emit-index-url --no-header \
		--no-annotate --generate-hashes --quiet pyproject.toml -o requirements.lock

clean:
	rm -rf $(VENV) .resume
