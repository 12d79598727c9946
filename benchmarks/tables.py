"""Prints the tables of README from the measured figures in benchmarks/results.

python benchmarks/tables.py
"""

import json
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
DECODERS = ("PyAV sequential", "harec-deploy", "torchcodec approximate", "decord", "OpenCV grab/retrieve")
WAYS = {
    "evaluate": "`evaluate`: PyTorch, whole clips",
    "journal": "`label` with the exported bundle, from its journal",
    "test_views": "`evaluate --test-views 6`",
}


def decode_table() -> str:
    """Return milliseconds a video by decoder, with the right frames where not all 16 were."""
    rows = ["| 16 uniform frames to 224x224, ms a video | " + " | ".join(DECODERS) + " |", "|---" * 6 + "|"]
    for video in json.loads((RESULTS / "decode.json").read_text())["results"]:
        cells = [_cell(video["decoders"].get(name, {})) for name in DECODERS]
        rows.append(f"| {Path(video['video']).stem.replace('_', ' ')} | {' | '.join(cells)} |")
    return "\n".join(rows)


def _cell(figures: dict[str, float]) -> str:
    if "median_ms" not in figures:
        return "-"
    wrong = "" if figures["right"] == 16 else f", {figures['right']} of 16 right"
    return f"{figures['median_ms']:.0f} ({figures['ratio']:.2f}{wrong})"


def accuracy_table() -> str:
    """Return the accuracy on real clips, mean and standard deviation over seeds."""
    facts = json.loads((RESULTS / "ut_interaction.json").read_text())
    rows = [f"| measured by | accuracy, {len(facts['evaluate']['by_seed'])} seeds |", "|---|---|"]
    for name, told in WAYS.items():
        rows.append(f"| {told} | {facts[name]['mean']:.3f} ± {facts[name]['stdev']:.3f} |")
    return "\n".join(rows)


if __name__ == "__main__":
    print(decode_table(), accuracy_table(), sep="\n\n")
