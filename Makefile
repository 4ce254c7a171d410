# make run   executes the notebooks into $(OUT)      make test   runs the quick checks, make test-all every check
# All make .venv first, with whatever is missing in it.
PYTHON ?= python3
OUT    ?= outputs
PRESET ?= quick
DATA   ?=
IMAGE  ?=
VIDEO  ?=
PROMPT ?=
MODELS ?=

BIN := .venv/bin
# Nothing is fetched unless DATA=auto asks for it; DATA=path names a CIFAR-10 of the user's own.
Q1 = -r out_dir "$(OUT)/q1" -r preset "$(PRESET)" $(if $(DATA),-r data_root "$(DATA)") $(if $(filter auto,$(DATA)),,-p download False)
# Likewise MODELS=auto or MODELS=full; without it, models in ./weights are used, else the embedded tiny ones.
Q2 = -r OUT_DIR "$(OUT)/q2" -r models "$(or $(MODELS),auto)" $(if $(filter auto full,$(MODELS)),,-p download False) \
     $(if $(IMAGE),-r IMAGE_PATH "$(IMAGE)") $(if $(VIDEO),-r VIDEO_PATH "$(VIDEO)") $(if $(PROMPT),-r TEXT_PROMPT "$(PROMPT)")
PAPERMILL = TQDM_DISABLE=1 $(BIN)/papermill --log-output --no-progress-bar --kernel python3

.PHONY: setup run test test-all
setup: .venv/installed

# torch comes first, because building sam2 needs it at hand; without isolation it is not downloaded a second time.
.venv/installed: requirements.txt tests/requirements.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip setuptools wheel
	$(BIN)/python -m pip install --quiet "torch>=2.5" "torchvision>=0.20"
	SAM2_BUILD_CUDA=0 $(BIN)/python -m pip install --quiet --no-build-isolation -r requirements.txt -r tests/requirements.txt
	touch $@

run: setup
	mkdir -p "$(OUT)"
	$(PAPERMILL) q2.ipynb "$(OUT)/q2.ipynb" $(Q2)
	$(PAPERMILL) q1.ipynb "$(OUT)/q1.ipynb" $(Q1)
	@echo "executed notebooks: $(OUT)/q1.ipynb and $(OUT)/q2.ipynb, their files: $(OUT)/q1/ and $(OUT)/q2/"

test test-all: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest $(if $(filter test,$@),-m "not slow")
