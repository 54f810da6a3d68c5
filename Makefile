# Every target works from a fresh clone with Python 3.11, pip and make. `make test MARKS=gpu` runs what a mark names.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
# Marks left out: of `make test` what is slow or starts other processes, of `make check` what this machine may not have.
MARKS ?= not slow and not integration and not cluster and not drill and not browser and not gpu and not torture \
 and not prometheus
ALL_MARKS := not browser and not gpu and not torture
# Without Prometheus its tests are left out, which is said at the begin and at the end.
ifeq ($(shell command -v prometheus >/dev/null 2>&1 && command -v promtool 2>/dev/null),)
ALL_MARKS += and not prometheus
LEFT_OUT := echo "*** LEFT OUT: the tests that need Prometheus. Mend: apt-get install prometheus (docs/ci.md) ***" >&2
else
LEFT_OUT := true
endif
ROOMS := esper actors drills
# Where the wheel is tried. Its dependencies are installed anew only when what they are made of has changed.
CLEAN := .clean
MADE_OF := { $(PYTHON) --version; cat pyproject.toml constraints.txt; }
# torch comes first and by its exact pin: a range would make pip weigh gigabytes of other builds.
PINNED := -c constraints.txt "$$(grep '^torch==' constraints.txt)"

.PHONY: venv run test check left-out torture drills soak minutes lint types wheel clean

venv: $(READY)

$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q $(PINNED) hatchling
	$(BIN)/python -m pip install -q -c constraints.txt --no-build-isolation -e '.[test,dev,digits]'
	touch $@

run: $(READY)
	$(BIN)/esper run --set growth.managers=2

test: $(READY)
	$(BIN)/python tools/parts.py test -m "$(MARKS)"

check: left-out lint types wheel
	$(BIN)/python tools/parts.py check -m "$(ALL_MARKS)" && code=0 || code=$$?; $(LEFT_OUT); exit $$code

left-out:
	@$(LEFT_OUT)

torture: $(READY)
	$(BIN)/python -m pytest -s -m torture --new-workers --timeout 7200 $(ARGS)

# Every drill of the catalogue, with a minute of the random schedule; `make drills DRILLS="--task my.py:task"` adds words.
drills: $(READY)
	$(BIN)/esper drill run --all --report drills.html $(DRILLS)

# The random schedule of faults for half an hour. SEED repeats it.
SEED ?= 0
soak: $(READY)
	$(BIN)/esper drill run random-schedule --soak 1800 --seed $(SEED) --report soak.html $(DRILLS)

# How long they took goes from pytest's reports into docs/ci.md.
minutes: $(READY)
	$(BIN)/python tools/minutes.py

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/mypy --strict $(ROOMS) tools

wheel: $(READY)
	rm -rf build dist
	$(BIN)/python -m build --wheel --no-isolation
	$(MADE_OF) | cmp -s - $(CLEAN)/.made-of || { rm -rf $(CLEAN) && $(PYTHON) -m venv $(CLEAN) && \
		$(CLEAN)/bin/python -m pip install -q $(PINNED); }
	$(CLEAN)/bin/python -m pip uninstall -q -y esper-runtime
	$(CLEAN)/bin/python -m pip install -q -c constraints.txt dist/*.whl
	$(MADE_OF) > $(CLEAN)/.made-of
	$(CLEAN)/bin/python -I tools/installed.py $(ROOMS)
	$(CLEAN)/bin/esper --help

clean:
	rm -rf build dist $(CLEAN) .parts .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find $(ROOMS) tests tools -name __pycache__ -type d -prune -exec rm -rf {} +
