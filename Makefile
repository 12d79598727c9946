# make demo   everything from nothing: data, training, export with proof, labels, pictures
# make test   what CI runs: lint, types, tests
# make bench  the peers side by side: needs 2 quiet cores for more than an hour, and FFmpeg (apt install ffmpeg), without
#             which torchcodec is left out; writes benchmarks/README.md
# make gpu-check   on a machine with a GPU, with what is installed there: GPU tests and figures, within 9 minutes
PYTHON ?= python3
BIN := .venv/bin
BENCH := .bench-venv/bin
DEMO := demo
# Both ends of the TensorRT versions that are supported. The bindings alone are small and run without a GPU: tests
# hold every call against them.
TENSORRT := 10.13.3.9 11.4.0.106
STEP = @printf '\n== %s\n'

.PHONY: demo test lint format bench gpu-check clean

.venv/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' || \
	    { echo "Python 3.10 to 3.13 is needed, $(PYTHON) is another: make PYTHON=python3.11 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv --clear .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[train,export,ort,dali,dev]'
	for version in $(TENSORRT); do $(BIN)/pip install --quiet --no-deps --target .venv/tensorrt-$$version \
	    tensorrt-cu13-bindings==$$version || exit 1; done
	@touch $@

demo: .venv/.ready
	$(STEP) "1/8 synthesize: videos of 10 people to learn from, and of 3 more that the model never sees"
	$(BIN)/python -m training synthesize $(DEMO)/videos --actors 10 --clips 4
	$(BIN)/python -m training synthesize $(DEMO)/unseen --actors 3 --clips 2 --seed 1
	$(STEP) "2/8 prepare: a manifest, split so that no person is on two sides"
	$(BIN)/python -m training prepare $(DEMO)/videos
	$(STEP) "3/8 fit: a small CNN+LSTM, from scratch; left and right are classes, so no flips"
	$(BIN)/python -m training fit $(DEMO)/videos/manifest.csv -o $(DEMO)/run --architecture lrcn --no-flip \
	    --epochs 30 --learning-rate 3e-3 --restart
	$(STEP) "4/8 evaluate: accuracy on the test person, curves, confusion matrix"
	$(BIN)/python -m training evaluate $(DEMO)/run
	$(STEP) "5/8 export: ONNX graphs, proved on real clips against PyTorch"
	$(BIN)/harec-deploy export $(DEMO)/run/bundle
	$(STEP) "6/8 inspect: what is in the bundle"
	$(BIN)/harec-deploy inspect $(DEMO)/run/bundle
	$(STEP) "7/8 label: the folder of people it has never seen"
	$(BIN)/harec-deploy label $(DEMO)/unseen --bundle $(DEMO)/run/bundle -o $(DEMO)/labels.csv --table --restart
	$(STEP) "8/8 evaluate those labels: a video's folder is its true class"
	$(BIN)/python -m training evaluate $(DEMO)/run --journal $(DEMO)/labels.jsonl -o $(DEMO)/pictures
	$(STEP) "done: look at $(DEMO)/pictures/contact_sheet.png, confusion.png, curves.png and $(DEMO)/labels.csv"

# Two at a time: tests spend much of their time waiting for what they started. A file stays together, for its fixtures.
test: .venv/.ready lint
	$(BIN)/pytest --numprocesses 2 --dist loadfile

lint: .venv/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: .venv/.ready
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.bench-venv/.ready: pyproject.toml constraints.txt benchmarks/requirements.txt benchmarks/requirements-mmaction2.txt
	$(PYTHON) -m venv --clear .bench-venv
	$(BENCH)/pip install --quiet --constraint constraints.txt --editable '.[train,export,ort]' \
	    --requirement benchmarks/requirements.txt
	-$(BENCH)/pip install --quiet --no-deps --target .bench-venv/mmaction2 \
	    --requirement benchmarks/requirements-mmaction2.txt
	@touch $@

bench: export PYTHONPATH := .
bench: .bench-venv/.ready
	$(STEP) "1/4 side_by_side: labels compared, then speed, memory, start-up"
	$(BENCH)/python benchmarks/side_by_side.py --json benchmarks/results/peers.json
	$(STEP) "2/4 growth: videos, their length, classes, frames of a clip"
	$(BENCH)/python benchmarks/growth.py --rounds 1 --json benchmarks/results/growth.json
	$(STEP) "3/4 decode: speed and right frames of every decoder"
	$(BENCH)/python benchmarks/decode.py --json benchmarks/results/decode.json
	$(STEP) "4/4 charts and benchmarks/README.md"
	$(BENCH)/python benchmarks/charts.py
	$(BENCH)/python benchmarks/page.py

gpu-check:
	$(PYTHON) -m benchmarks.gpu_check

clean:
	rm -rf .venv .bench-venv $(DEMO) .mypy_cache .ruff_cache .pytest_cache .hypothesis
