# `make demo` and `make test` need only Python 3.11 or newer; everything else goes into $(VENV).
PYTHON ?= python3
VENV ?= .venv
RUN := $(VENV)/bin/python

.PHONY: help setup demo demo-search test test-slow test-datasets3 test-stranger test-minimum test-latest test-mutants docs-check docs-check-fast photo-models demo-webperson lint benchmark gpu-check clean
.DEFAULT_GOAL := help

help: ## list these targets
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

# one marker file, so that a second run installs nothing; pins are in .ci/constraints.txt and nowhere else
setup: $(VENV)/.installed ## create the virtual environment with the pinned versions

$(VENV)/.installed: .ci/constraints.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "make: $(PYTHON) is missing or older than 3.11; choose another: make $(MAKECMDGOALS) PYTHON=python3.11"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { echo "make: $(PYTHON) -m venv failed; install python3-venv"; exit 1; }
	@echo "installing pinned versions into $(VENV) ..."
	@$(RUN) -m pip install --quiet --disable-pip-version-check --constraint .ci/constraints.txt --editable '.[examples,test]' \
		&& $(RUN) -m pip install --quiet --disable-pip-version-check --constraint .ci/constraints.txt --no-deps open_clip_torch \
		|| { echo "make: installation failed; see the lines above, then run make again"; exit 1; }
	@touch $@

demo: setup ## pre-train a small GA-DMS offline and show what it learns (2 cores, under 10 minutes)
	@$(VENV)/bin/accelerate launch --quiet --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no \
		--num_cpu_threads_per_process $$($(RUN) -c 'import os; print(os.cpu_count())') examples/pretrain.py \
		|| { echo "make: the demo failed; its message is above"; exit 1; }

demo-webperson: setup ## build a small WebPerson from web images, end to end and offline (2 cores, under 10 minutes)
	@OMP_NUM_THREADS=1 $(RUN) examples/demo_webperson.py || { echo "make: the demonstration failed; its message is above"; exit 1; }

demo-search: setup ## build a gallery of 20,000 drawings, or of FOLDER=, and open its page (2 cores, under 5 minutes)
	@$(RUN) examples/demo_search.py $(if $(FOLDER),--images "$(FOLDER)") || { echo "make: the demonstration failed; its message is above"; exit 1; }

photo-models: setup ## fetch photographs and two small models for the construction (needs npm, apt-get and dpkg)
	@$(RUN) examples/prepare_photo_models.py || { echo "make: preparation failed; see above"; exit 1; }

test: setup ## the test suite (under 15 minutes on 2 cores)
	@OMP_NUM_THREADS=1 $(RUN) -m pytest --quiet --numprocesses 2 --dist loadfile -m "not slow" || { echo "make: the test suite failed; its report is above"; exit 1; }

test-slow: setup ## tests of minutes each: fine-tuning until retrieval improves
	@$(RUN) -m pytest --quiet -m slow || { echo "make: a slow test failed; its report is above"; exit 1; }

# its own environment: `datasets` 3.6 and the current version cannot be installed side by side
$(VENV)-datasets3/.installed: .ci/requirements-datasets3.txt
	@$(PYTHON) -m venv $(VENV)-datasets3 || { echo "make: $(PYTHON) -m venv failed; install python3-venv"; exit 1; }
	@$(VENV)-datasets3/bin/python -m pip install --quiet --disable-pip-version-check \
		--requirement .ci/requirements-datasets3.txt \
		|| { echo "make: installation failed; see the lines above, then run make again"; exit 1; }
	@touch $@

test-datasets3: setup $(VENV)-datasets3/.installed ## read a released WebPerson with datasets 3.6 and with the current version
	@DATASETS3_PYTHON=$(VENV)-datasets3/bin/python $(RUN) -m pytest --quiet tests/dataset_webperson/test_datasets3.py \
		|| { echo "make: versions differ; the report is above"; exit 1; }

PIP := -m pip install --quiet --disable-pip-version-check

$(VENV)-stranger/.installed: .ci/constraints.txt
	@$(PYTHON) -m venv $(VENV)-stranger && $(VENV)-stranger/bin/python $(PIP) --constraint .ci/constraints.txt torch transformers pillow
	@touch $@

$(VENV)-exports/.installed: .ci/constraints.txt .ci/constraints-exports.txt
	@$(PYTHON) -m venv $(VENV)-exports && $(VENV)-exports/bin/python $(PIP) --constraint .ci/constraints.txt \
		--constraint .ci/constraints-exports.txt \
		torch transformers pillow accelerate onnx onnxscript onnxruntime sentence-transformers
	@touch $@

test-stranger: setup $(VENV)-stranger/.installed $(VENV)-exports/.installed ## load a checkpoint where this package is not installed; ONNX, sentence-transformers
	@STRANGER_PYTHON=$(abspath $(VENV)-stranger/bin/python) EXPORTS_PYTHON=$(abspath $(VENV)-exports/bin/python) \
		$(RUN) -m pytest --quiet tests/modeling_gadms/test_stranger.py || { echo "make: a stranger cannot use it; the report is above"; exit 1; }

$(VENV)-minimum/.installed: .ci/constraints-minimum.txt .ci/constraints.txt
	@$(PYTHON) -m venv $(VENV)-minimum && $(VENV)-minimum/bin/python $(PIP) --constraint .ci/constraints-minimum.txt \
		torch transformers datasets accelerate peft evaluate safetensors numpy ijson pillow pyyaml tqdm pytest regex ftfy matplotlib jinja2
	@$(VENV)-minimum/bin/python $(PIP) --constraint .ci/constraints.txt --no-deps open_clip_torch
	@touch $@

test-minimum: $(VENV)-minimum/.installed ## test the model on the oldest versions allowed (downloads 3 GB)
	@PYTHONPATH=. OMP_NUM_THREADS=1 $(VENV)-minimum/bin/python -m pytest --quiet tests/modeling_gadms/test_*.py \
		tests/modeling_gadms/training/test_trainer.py

# what a stranger's `pip install` brings today: nothing is pinned, and the environment is made anew each time;
# torchcodec is here alone, for its wheels do not load beside a torch without CUDA, such as the pinned one
test-latest: ## test the model on the newest versions there are (downloads 3 GB)
	@$(PYTHON) -m venv --clear $(VENV)-latest && $(VENV)-latest/bin/python $(PIP) --upgrade \
		torch torchcodec transformers datasets accelerate peft evaluate safetensors numpy ijson pillow pyyaml tqdm pytest regex ftfy matplotlib jinja2
	@$(VENV)-latest/bin/python $(PIP) --no-deps open_clip_torch
	@PYTHONPATH=. OMP_NUM_THREADS=1 $(VENV)-latest/bin/python -m pytest --quiet tests/modeling_gadms/test_*.py \
		tests/modeling_gadms/training/test_trainer.py tests/modeling_gadms/training/test_image_decoding.py

test-mutants: setup ## break the numeric core in many ways, each of which a test must catch
	@OMP_NUM_THREADS=1 $(RUN) tests/mutations.py

docs-check-fast: setup ## the same without running anything: commands, options and links
	@OMP_NUM_THREADS=1 $(RUN) tests/docs_check.py --fast

docs-check: setup ## check every command in the pages, cards and docstrings
	@OMP_NUM_THREADS=1 $(RUN) tests/docs_check.py

lint: setup ## check style, formatting and types
	@$(VENV)/bin/ruff check . && $(VENV)/bin/ruff format --check . && $(VENV)/bin/mypy

benchmark: setup ## time the parts of a training step beside a plain one
	@$(RUN) examples/benchmark_step.py

# the environment may have torch, transformers, datasets, accelerate and Pillow alone, so none is made here
gpu-check: ## check and measure a CUDA device, where there is one (8 minutes there)
	@PYTHONPATH=. $(if $(wildcard $(RUN)),$(RUN),$(PYTHON)) examples/gpu_check.py --output_dir runs/gpu_check

clean: ## remove the virtual environment and caches, never runs/
	rm -rf $(VENV) $(VENV)-datasets3 $(VENV)-stranger $(VENV)-exports $(VENV)-minimum $(VENV)-latest .pytest_cache .ruff_cache *.egg-info build
