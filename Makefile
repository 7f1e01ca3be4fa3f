# make demo | make test | make test-all | make bench   (needs Python >= 3.11; everything else goes into .venv)

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CONSTRAINTS := constraints.txt
DEMO := demo_output

# pytest's processes, each with one thread of torch: two cores are then busy and no sum depends on their number.
WORKERS := 2
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

.PHONY: install demo test test-all test-oldest quick lint bench clean

install: $(VENV)/installed

$(VENV)/installed: pyproject.toml $(CONSTRAINTS)
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12 demo")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --constraint $(CONSTRAINTS) --editable '.[dev]'
	touch $@

# The commands are printed as they run: they are the ones for your own images, with other folders.
demo: install
	rm -rf $(DEMO)
	$(BIN)/python -m shards.toy_dishes --out $(DEMO)/dishes --count 2520 --size 32
	$(BIN)/python -m shards.create --input $(DEMO)/dishes --out $(DEMO)/shards --size 32 --format png --encoder hashing
	$(BIN)/python -m shards.inspect $(DEMO)/shards
	$(BIN)/accelerate launch --config_file configs/accelerate/one_process.yaml --num_cpu_threads_per_process 2 toolkit/train.py \
	    --config configs/demo.yaml --data $(DEMO)/shards --out_dir $(DEMO)/run
	$(BIN)/python -m toolkit.generate --checkpoint $(DEMO)/run --prompts_file configs/demo_prompts.txt --seeds 0-5 \
	    --out_dir $(DEMO)/images
	$(BIN)/python -m evaluation.toy_agreement --checkpoint $(DEMO)/run > $(DEMO)/agreement.json
	@echo
	@echo "Look at  $(DEMO)/images/grid.png          images for configs/demo_prompts.txt (the last two never seen)"
	@echo "         $(DEMO)/run/training_plots.png     losses, logits, penalties"
	@echo "         $(DEMO)/run/sample_*.png           how the images came about"
	@echo "         $(DEMO)/agreement.json             the table above"
	@echo "Try      $(BIN)/python -m toolkit.generate --checkpoint $(DEMO)/run --interactive"

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m mypy toolkit shards evaluation

# At most ten minutes on two cores: every behaviour once. CONTRIBUTING.md says what is marked slow.
test: lint
	$(PYTEST) -m "not slow"

# Everything, at most 25 minutes on two cores.
test-all: install
	$(PYTEST)

quick: install
	$(PYTEST) -m "not slow"

# The same tests on the oldest versions of torch and Python that are supported (needs python3.12). Types are those of the
# newest torch alone: the oldest annotates other overloads.
test-oldest:
	$(MAKE) quick PYTHON=python3.12 VENV=.venv-oldest CONSTRAINTS=constraints-oldest.txt

# At most ten minutes on a CPU; benchmarks/gpu.sh is for a GPU.
bench: install
	$(BIN)/python -m benchmarks

clean:
	rm -rf $(VENV) .venv-oldest $(DEMO) *.egg-info
