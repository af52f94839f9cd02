# `make demo` and `make test` create the virtual environment if there is none.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
TRITON_TESTS := $(addprefix tests/test_kernels_,\
  triton_batch_hard.py triton_ranking.py triton_logsumexp.py triton_symmetric.py \
  triton_symmetric_ranking.py \
  triton_retrieval_counts.py gpu_presets.py)
INSTALLED := $(VENV)/.installed
ADAPTERS ?= $(VENV)-adapters

.PHONY: help install demo test docs docs-pages docs-commands faults exactness step-cost kills cluster hostile fuzz lint types \
  golden speed ranks-alike calibration kernels-report kernels-predictions kernels-gpu-path launch-counts gpu-cache gpu test-adapters retrieval-peers kernels-alone steady wheels wheels-alone clean

help:
	@echo "make demo    train MaskReID on the shards of this repository and rank their gallery (PRETRAINED=1: no training)"
	@echo "make test    run the tests"
	@echo "make docs    build the documentation into dist/site; warnings and dead links are errors"
	@echo "make docs-pages     write what pages say of the code (commands, keys of a recipe, recipes) and of a study's results"
	@echo "make docs-commands  run the documentation's commands that train (the others are in make test)"
	@echo "make test-adapters  test the losses in other libraries' calling forms against them, FAISS's lists, Torchreid's figures"
	@echo "make retrieval-peers  the exact ranking beside Torchreid, torchmetrics and an argsort; some 4 minutes"
	@echo "make kernels-alone  the losses in a fresh environment: size, import, tests (TORCH=torch==VERSION)"
	@echo "make faults  the tests of dead, stuck and failing ranks that take minutes"
	@echo "make steady  the tests that wait for other processes, 20 times each (OPTIONS=...)"
	@echo "make kills   kill a training 60 times, at random moments (KILLS=NUMBER SEED=NUMBER)"
	@echo "make cluster train over several hosts, namespaces of this machine, by every launcher (root; OPTIONS=--help)"
	@echo "make exactness  1, 2, 4 ranks x ZeRO 0-3 x micro batches x memory, and changes of both: tables"
	@echo "make step-cost  a step beside bare forward, backward and optimizer; peak memory of micro_images"
	@echo "make ranks-alike  score, re-rank (RUN=...: evaluate, embed too) with 1, 2, 3 ranks beside one process"
	@echo "make calibration  20 times, a threshold of half of the walkers' persons measured on the others (RUN=...)"
	@echo "make hostile  what a user may be given: links, pipes, lies, odd servers (SECURITY.md)"
	@echo "make fuzz    an hour of odd inputs for everything that reads given files (OPTIONS=--help)"
	@echo "make lint    ruff, format and rules"
	@echo "make types   mypy"
	@echo "make golden  compare training, losses and a conversion with a commit's, bit for bit (BASE=COMMIT)"
	@echo "make speed   time the losses beside those of a commit, on the CPU (BASE=COMMIT, OPTIONS=...)"
	@echo "make kernels-report  every Triton program ahead of time: limits, predicted times (OUTPUT=FILE.md)"
	@echo "make kernels-predictions  what a GPU is predicted to measure, for the Triton of PYTHON"
	@echo "make kernels-gpu-path  the Triton tests on a GPU's path without one: every launch compiles, none runs"
	@echo "make launch-counts  launches of each loss, forward and backward, counted without a GPU"
	@echo "make gpu-cache PYTHON=...  compile what the Triton tests run on a GPU into dist/gpu-cache.tar.xz"
	@echo "make gpu     on a CUDA machine: the kernels' tests and figures (kernels/bench/GPU.md)"
	@echo "make wheels  build the four distributions into dist/ and check them"
	@echo "make wheels-alone  the wheels in empty environments of Python 3.11 to 3.13: install, doctor, demo, search"
	@echo "make clean   remove the virtual environment and the runs"

install: $(INSTALLED)

$(INSTALLED): pyproject.toml kernels/pyproject.toml shards/pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	PIP_CONSTRAINT=constraints.txt $(BIN)/python -m pip install --quiet --disable-pip-version-check \
	  -e ./kernels -e ./shards -e '.[dev]'
	@touch $@

demo: $(INSTALLED)
	$(BIN)/maskreid demo $(if $(PRETRAINED),--pretrained)

# A process a core, a test file at a time; each with one thread, or they stand in each other's way. (nproc
# counts no more than OMP_NUM_THREADS, which CI sets.)
test: $(INSTALLED)
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/python -m pytest -q --durations=10 \
	  -n $$(env -u OMP_NUM_THREADS nproc) --maxprocesses 8 --dist loadfile

$(VENV)/.docs: $(INSTALLED)
	PIP_CONSTRAINT=constraints.txt $(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[docs]'
	@touch $@

docs: $(VENV)/.docs
	rm -rf dist/site
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	$(BIN)/python tests/check_site.py dist/site

docs-pages: $(INSTALLED)
	$(BIN)/python tests/generated_pages.py

docs-commands: $(INSTALLED)
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/python -m pytest -q -m documented tests/test_documentation.py

# Needs no environment of its own: it makes one, with a CPU build of torch.
kernels-alone:
	$(PYTHON) tests/kernels_alone.py $(if $(TORCH),--torch $(TORCH))

# An environment of its own on top of the other, whose torch it shares.
$(ADAPTERS)/.installed: $(INSTALLED) tests/adapters.txt
	$(PYTHON) -m venv $(ADAPTERS)
	folder=$$($(BIN)/python -c "import sysconfig; print(sysconfig.get_path('purelib'))") && \
	  echo "import site; site.addsitedir('$$folder')" > \
	  "$$($(ADAPTERS)/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/shared.pth"
	$(ADAPTERS)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r tests/adapters.txt
	@touch $@

test-adapters: $(ADAPTERS)/.installed
	ADAPTERS=all $(ADAPTERS)/bin/python -m pytest -q tests/test_kernels_adapters.py tests/test_kernels_readme.py \
	  tests/test_retrieval_faiss.py tests/test_retrieval_torchreid.py

retrieval-peers: $(ADAPTERS)/.installed
	OMP_NUM_THREADS=1 $(ADAPTERS)/bin/python -m maskreid_dist bench retrieval --size market1501 $(OPTIONS)

faults: $(INSTALLED)
	$(BIN)/python -m pytest -q -m faults --durations=0

steady: $(INSTALLED)
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/python tests/steady.py $(OPTIONS)

kills: $(INSTALLED)
	PYTHONPATH=tests $(BIN)/python tests/kills.py --kills $(or $(KILLS),60) $(if $(SEED),--seed $(SEED))

# Needs root, pdsh and openssh-server; tests/cluster/cases.py says what is tried.
cluster: $(INSTALLED)
	PYTHONPATH=tests $(BIN)/python -m cluster $(OPTIONS)

exactness: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python tests/exactness.py
	OMP_NUM_THREADS=1 $(BIN)/python tests/changing_ranks.py

step-cost: $(INSTALLED)
	$(BIN)/python tests/step_cost.py $(OPTIONS)

ranks-alike: $(INSTALLED)
	$(BIN)/python tests/ranks_alike.py $(RUN) $(OPTIONS)

# Without RUN a short training of its own, which the same command continues or takes as it is.
calibration: $(INSTALLED)
	$(if $(RUN),,$(BIN)/maskreid train launch/recipes/walkers_demo.toml --resume --set name=calibration \
	  --set optimizer.steps=120 --set optimizer.warmup_steps=20)
	$(BIN)/maskreid calibrate $(or $(RUN),runs/calibration) shards/walkers --false-match-rate $(or $(RATE),0.01) \
	  --check-splits 20

hostile: $(INSTALLED)
	$(BIN)/python -m pytest -q tests/test_hostile_*.py tests/test_checkpoint_damage.py --durations=5

fuzz: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python tests/fuzz.py $(OPTIONS)

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(INSTALLED)
	$(BIN)/mypy

golden: $(INSTALLED)
	@test -n "$(BASE)" || { echo "error: name the commit to compare with: make golden BASE=HEAD~1" >&2; exit 2; }
	PYTHONPATH=tests $(BIN)/python -m golden $(BASE)

speed: $(INSTALLED)
	@test -n "$(BASE)" || { echo "error: name the commit to compare with: make speed BASE=HEAD~1" >&2; exit 2; }
	PYTHONPATH=tests $(BIN)/python -m golden.speed $(BASE) $(OPTIONS)

kernels-report: $(INSTALLED)
	env -u TRITON_INTERPRET $(BIN)/python -m maskreid_kernels.bench ahead-of-time \
	  $(if $(OUTPUT),--output $(OUTPUT))

kernels-predictions:
	env -u TRITON_INTERPRET PYTHONPATH=kernels $(PYTHON) -m maskreid_kernels.bench ahead-of-time --predictions

# Two processes; tests/gpu_path.py says what each keeps.
kernels-gpu-path: $(INSTALLED)
	for part in 1/2 2/2; do \
	  GPU_PATH_PART=$$part PYTHONPATH=tests $(BIN)/python -m pytest -q -p gpu_path -p no:cacheprovider \
	    $(TRITON_TESTS) & pids="$$pids $$!"; \
	done; for pid in $$pids; do wait $$pid || failed=1; done; test -z "$$failed"

launch-counts: $(INSTALLED)
	$(BIN)/python tests/launch_counts.py

# With the triton of the GPU's machine: PYTHON is its Python's like, not the virtual environment's.
gpu-cache:
	$(PYTHON) tests/pack_compile_cache.py $(or $(OUTPUT),dist/gpu-cache.tar.xz)

# Needs no environment of its own: torch, Triton, NumPy and pytest of the machine's Python.
gpu:
	$(PYTHON) kernels/bench/gpu.py

wheels: $(INSTALLED)
	rm -rf dist
	for folder in kernels shards shards/walkers .; do $(BIN)/python -m build --no-isolation --outdir dist $$folder || exit; done
	$(BIN)/twine check --strict dist/*

# Needs no environment but that of the build: it makes its own, with a CPU build of torch.
wheels-alone: wheels
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/python tests/wheels_alone.py $(OPTIONS)

clean:
	rm -rf $(VENV) $(ADAPTERS) runs dist
