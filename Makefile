# make demo   set up .venv with what users need, then shard, train and score a small synthetic corpus
# make check  lint, types and the fast tests, in a minute
# make test   set up .venv with all that the tests need, then what CI runs: ruff, mypy, pytest
# make test-long  the tests that draw random moments, with many of them
# make test-cluster  launch/ on a Slurm of two nodes, on two hosts, and with processes killed; as root, on Debian or Ubuntu
# make test-frameworks  Lightning, the Trainer of transformers and ignite over the stream; installs them
# make test-lowest  the fast tests with the lowest versions that are promised
# make fuzz   all readers of files by coverage-guided fuzzing, FUZZ_SECONDS=60 each
# make faults attack all commands: bad inputs, bit flips, kills, races, full disks, lying servers; FAULTS='--only kills --seed 1'
# make bench  the benchmarks: against other systems, and each stage against this machine's limits
# make bench-peers  streaming by other systems, installed into .venv-peers (benchmarks/peers/README.md)
# make recipes  utterance errors of training recipes, on a synthetic corpus
# make docs   the documentation as a site, in site/; links are checked
# make format rewrite the sources as ruff formats them
PYTHON ?= python3
BIN := .venv/bin
USER_STAMP := .venv/.user-installed
STAMP := .venv/.installed

.PHONY: demo check test test-long test-cluster test-frameworks test-lowest fuzz faults bench bench-peers recipes docs lint format clean

demo: $(USER_STAMP)
	$(BIN)/spkid demo

test: lint
	$(BIN)/python -m pytest -n 2
	@! $(BIN)/python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' || $(BIN)/python -m pytest --gpu -m 'gpu or device'

check: lint
	$(BIN)/python -m pytest -n 2 -q -m fast

test-long: $(STAMP)
	$(BIN)/python -m pytest tests/format/test_job.py tests/format/test_append.py --kills 50
	$(BIN)/python -m pytest tests/format/test_races.py --long --kills 40
	$(BIN)/python -m pytest tests/commands/test_litter.py --kills 20
	$(BIN)/python -m pytest tests/stream/test_state.py tests/measure/test_bench.py --long
	$(BIN)/python -m pytest tests --long -m long --deselect tests/stream/test_state.py
	$(BIN)/python -m pytest tests/train/test_checkpoint.py --kills 30

test-cluster: $(STAMP)
	-$(BIN)/python tests/cluster/two_nodes.py install
	$(BIN)/python -m pytest --cluster tests/cluster

test-frameworks: $(STAMP)
	$(BIN)/python -m pip install --quiet --no-deps -r requirements/frameworks.txt
	$(BIN)/python -m pytest --long tests/stream/test_frameworks.py
	$(BIN)/python -m pytest tests/project/test_examples.py --long -k lightning

FUZZ_SECONDS ?= 60

test-lowest: .venv-lowest/.installed
	.venv-lowest/bin/python -m pytest -n 2 -m fast

.venv-lowest/.installed: pyproject.toml requirements/tested.txt requirements/lowest.txt
	test -x .venv-lowest/bin/python || $(PYTHON) -m venv .venv-lowest
	.venv-lowest/bin/python -m pip install --quiet --no-deps -r requirements/tested.txt
	.venv-lowest/bin/python -m pip install --quiet --no-deps -r requirements/lowest.txt
	.venv-lowest/bin/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

fuzz: $(STAMP)
	$(BIN)/python -m pip install --quiet -r requirements/fuzz.txt
	$(BIN)/python tests/helpers/fuzz.py --seconds $(FUZZ_SECONDS)

FAULTS ?= --out benchmarks/results/faults.json

faults: $(STAMP)
	$(BIN)/python -W ignore tests/faults/campaign.py $(FAULTS)

bench: $(STAMP)
	$(BIN)/python benchmarks/figures.py

bench-peers: .venv-peers/.installed
	$(BIN)/python benchmarks/figures.py --only peers

.venv-peers/.installed: $(STAMP) benchmarks/peers/requirements.txt
	test -x .venv-peers/bin/python || $(BIN)/python -m venv .venv-peers
	$(BIN)/python -c 'import sysconfig; print("import site; site.addsitedir(%r)" % sysconfig.get_path("purelib"))' > "$$(.venv-peers/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/project.pth"
	.venv-peers/bin/python -m pip install --quiet --no-deps -r benchmarks/peers/requirements.txt
	touch $@

recipes: $(STAMP)
	$(BIN)/python -W ignore benchmarks/recipes.py

docs: $(STAMP) .venv-docs/.installed
	$(BIN)/python docs/generate.py
	NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build --strict
	@echo "site/index.html"

.venv-docs/.installed: requirements/docs.txt
	test -x .venv-docs/bin/python || $(PYTHON) -m venv .venv-docs
	.venv-docs/bin/python -m pip install --quiet -r requirements/docs.txt
	touch $@

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

$(STAMP): $(USER_STAMP) requirements/tested.txt
	$(BIN)/python -m pip install --quiet -r requirements/tested.txt
	touch $@

$(USER_STAMP): pyproject.toml requirements/user.txt
	$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if v in ((3, 11), (3, 12), (3, 13)) else "Python 3.11, 3.12 or 3.13 is needed, found %d.%d: make PYTHON=python3.11" % v)'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -r requirements/user.txt
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

clean:
	rm -rf .venv .venv-peers .venv-docs .venv-lowest site demo .mypy_cache .pytest_cache .ruff_cache *.egg-info
