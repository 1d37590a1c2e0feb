# The commands of this repository. `make test` needs python3 (3.11 or newer) with its venv module, and nothing else.
VENV ?= .venv
PYTHON ?= python3
# `make install TORCH=cpu`, once and first, takes the small build of PyTorch without CUDA (0.2 GB instead of 5 GB).
TORCH ?= default

PY := $(VENV)/bin/python
UV := $(VENV)/bin/uv
INSTALLED := $(VENV)/.installed

# Where `make demo` works.
DEMO ?= demo

.PHONY: install demo test test-all lint types format check lock bench-keras clean

install: $(INSTALLED)

$(INSTALLED): pyproject.toml requirements.lock requirements-torch.lock
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check "uv>=0.5"
ifeq ($(TORCH),cpu)
	$(UV) pip install --compile-bytecode --python $(PY) --torch-backend=cpu $$(grep -E '^(torch|torchvision)==' requirements-torch.lock | sed 's/ ;.*//')
else
	$(UV) pip install --compile-bytecode --python $(PY) -r requirements-torch.lock
endif
	$(UV) pip install --compile-bytecode --python $(PY) -r requirements.lock
	$(UV) pip install --compile-bytecode --python $(PY) --no-deps --editable .
	touch $@

# Simulated images, two small networks, three optimizers, a report. Given again, it goes on where it was.
demo: install
	@grep -qs '"complete": true' $(DEMO)/images/phantom.json || \
		$(VENV)/bin/sonobreast data phantom $(DEMO)/images --n 300 --seed 1
	@$(VENV)/bin/sonobreast study run --recipe quick --data $(DEMO)/images --weights none --out $(DEMO)/study
	@echo
	@echo "The report on simulated images: $(DEMO)/study/report.html"
	@echo "Next, try:"
	@echo "  $(VENV)/bin/sonobreast train --recipe quick --architecture ResNet-mini --weights none \\"
	@echo "      --data $(DEMO)/images --out $(DEMO)/longer --set training.epochs=60"
	@echo "  $(VENV)/bin/sonobreast data check FOLDER      (your own images, one folder for each class)"

test: install
	OMP_NUM_THREADS=1 $(PY) -m pytest -m "not slow" -n 2

test-all: install
	OMP_NUM_THREADS=1 $(PY) -m pytest -n 2

lint: install
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

types: install
	$(PY) -m mypy

format: install
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

check: lint types test

# PyTorch and the CUDA packages it brings stand in a lock of their own, so that a machine without a GPU can leave them.
lock:
	$(UV) pip compile --quiet --universal --python-version 3.11 --no-header --no-annotate --no-emit-index-url \
		--extra dev pyproject.toml --output-file .lock.all
	grep -E '^(torch|torchvision|triton|nvidia-[a-z0-9-]+|cuda-[a-z0-9-]+)==' .lock.all > requirements-torch.lock
	grep -vE '^(torch|torchvision|triton|nvidia-[a-z0-9-]+|cuda-[a-z0-9-]+|sonobreast)==|^-e ' .lock.all > requirements.lock
	rm .lock.all

# The environment of the Keras scripts that benchmarks/paper_grid.py and service.py compare with; nothing else needs it.
bench-keras: benchmarks/.keras/.installed

benchmarks/.keras/.installed: benchmarks/requirements-keras.txt | $(INSTALLED)
	test -x benchmarks/.keras/bin/python || $(PYTHON) -m venv benchmarks/.keras
	$(UV) pip install --python benchmarks/.keras/bin/python -r benchmarks/requirements-keras.txt
	touch $@

clean:
	rm -rf $(VENV) benchmarks/.keras demo .mypy_cache .pytest_cache .ruff_cache
