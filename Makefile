# make q1 | q2 | run   execute one notebook, or both, into $(OUT)      make lab    opens them in JupyterLab
# make test            the quick checks, make test-all every check     make setup  installs, as all others do first
# Of one's own: make q1 DATA=… PRESET=…      make q2 IMAGE=… PROMPT="cat. red dog" [VIDEO=…] [MODELS=tiny]
PYTHON ?= python3
OUT    ?= outputs
PRESET ?= quick
DATA   ?=
IMAGE  ?=
VIDEO  ?=
PROMPT ?=
# Images or a video of one's own want the real models, which are fetched; the drawn examples are for the tiny ones. Without
# either, real models that lie in ./weights are used, and nothing is fetched, unless MODELS=auto or MODELS=full asks for it.
MODELS ?= $(if $(IMAGE)$(VIDEO),full)

BIN := .venv/bin
# as helpers/__init__.py says, for tests and benches, too
export GOMP_SPINCOUNT ?= 1000
# Nothing is fetched unless DATA=auto asks for it; DATA=path names images of the user's own.
Q1 = -r out_dir "$(OUT)/q1" -r preset "$(PRESET)" $(if $(DATA),-r data_root "$(DATA)") $(if $(filter auto,$(DATA)),,-p download False)
Q2 = -r OUT_DIR "$(OUT)/q2" -r models "$(or $(MODELS),auto)" $(if $(filter auto full,$(MODELS)),,-p download False) \
     $(if $(IMAGE),-r IMAGE_PATH "$(IMAGE)") $(if $(VIDEO),-r VIDEO_PATH "$(VIDEO)") $(if $(PROMPT),-r TEXT_PROMPT "$(PROMPT)")
PAPERMILL = TQDM_DISABLE=1 $(BIN)/papermill --log-output --no-progress-bar --kernel python3

.PHONY: setup run q1 q2 lab test test-all
setup: .venv/installed

# torch comes first, because building sam2 needs it at hand; without isolation it is not downloaded a second time.
.venv/installed: requirements.txt tests/requirements.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip setuptools wheel
	$(BIN)/python -m pip install --quiet "torch>=2.5" "torchvision>=0.20"
	SAM2_BUILD_CUDA=0 $(BIN)/python -m pip install --quiet --no-build-isolation -r requirements.txt -r tests/requirements.txt
	touch $@

run: q2 q1

q1: setup
	mkdir -p "$(OUT)"
	$(PAPERMILL) q1.ipynb "$(OUT)/q1.ipynb" $(Q1)
	@echo "executed notebook: $(OUT)/q1.ipynb, its files: $(OUT)/q1/"

q2: setup
	mkdir -p "$(OUT)"
	@$(if $(filter full,$(MODELS)),$(BIN)/python -m helpers.segment.weights)
	$(PAPERMILL) q2.ipynb "$(OUT)/q2.ipynb" $(Q2)
	@echo "executed notebook: $(OUT)/q2.ipynb, its files: $(OUT)/q2/"

lab: setup
	$(BIN)/python -m pip install --quiet jupyterlab
	$(BIN)/jupyter lab

test test-all: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest $(if $(filter test,$@),-m "not slow")
