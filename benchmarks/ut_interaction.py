"""Accuracy on real clips, from folder to journal: UT-Interaction, sequences held out, several seeds.

    python benchmarks/ut_interaction.py CLIPS --encoder-weights mobilenet_v2.pth --json OUT.json

CLIPS is a class-per-folder tree whose names carry the filmed sequence, set1_<id>_<sequence>_<class>.avi. Every seed
trains one model a fold on a frozen MobileNetV2 and tests it on sequences that it has not seen: by ``evaluate``
(PyTorch), by ``evaluate --test-views 6``, and by the journal that ``harec-deploy label`` writes with the exported
bundle. All steps are the commands of README.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
from pathlib import Path

FOLDS = 5
RECIPE = (
    "--architecture mobilenet_v2_lstm --frames 8 --span 0.5 --hidden 128 --pool max --dropout 0.5 "
    "--epochs 40 --learning-rate 3e-3"
).split()


def run(*command: str | Path, log: Path) -> None:
    """Run one command of the project; its words go to ``log``."""
    with log.open("a") as stream:
        stream.write(f"$ {' '.join(map(str, command))}\n")
        stream.flush()
        subprocess.run([sys.executable, "-m", *map(str, command)], stdout=stream, stderr=stream, check=True)


def correct(folder: Path) -> tuple[int, int]:
    """Return (right, videos) of an evaluation."""
    facts = json.loads((folder / "metrics.json").read_text())
    return facts["correct"], facts["videos"]


def one_seed(seed: int, manifest: Path, weights: Path, out: Path) -> dict[str, list[tuple[int, int]]]:
    """Train, export, label and evaluate every fold; return (right, videos) of each, by way of measuring."""
    runs = out / f"seed-{seed}"
    log = out / f"seed-{seed}.log"
    fit = ("training", "fit", manifest, "-o", runs, "--encoder-weights", weights, "--folds", str(FOLDS))
    run(*fit, "--seed", str(seed), *RECIPE, "--restart", log=log)
    figures: dict[str, list[tuple[int, int]]] = {"evaluate": [], "test_views": [], "journal": []}
    for fold in range(FOLDS):
        folder = runs / f"fold-{fold}"
        for name, more in (("evaluate", ()), ("test_views", ("--test-views", "6"))):
            run("training", "evaluate", folder, "-o", folder / name, *more, log=log)
            figures[name].append(correct(folder / name))
        run("harec_deploy", "export", folder / "bundle", log=log)
        journal = out / f"seed-{seed}-fold-{fold}.jsonl"
        bundle = folder / "bundle"
        run("harec_deploy", "label", f"@{folder / 'test.txt'}", "-b", bundle, "-o", journal, "--restart", log=log)
        run("training", "evaluate", folder, "--journal", journal, "-o", folder / "journal", log=log)
        figures["journal"].append(correct(folder / "journal"))
    return figures


def main() -> None:
    """Run every seed and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clips", type=Path)
    parser.add_argument("--encoder-weights", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/ut_interaction"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    manifest = options.out / "manifest.csv"
    regex = r"set\d_\d+_(\d+)_"
    log = options.out / "prepare.log"
    run("training", "prepare", options.clips, "-o", manifest, "--group-regex", regex, log=log)
    seeds = [one_seed(seed, manifest, options.encoder_weights, options.out) for seed in range(options.seeds)]
    result: dict[str, object] = {"recipe": " ".join(RECIPE), "folds": FOLDS, "python": platform.python_version()}
    for name in seeds[0]:
        shares = [sum(right for right, _ in s[name]) / sum(videos for _, videos in s[name]) for s in seeds]
        spread = statistics.stdev(shares) if len(shares) > 1 else 0.0
        result[name] = {"by_seed": shares, "mean": statistics.mean(shares), "stdev": spread}
        print(f"{name:10s} {statistics.mean(shares):.3f} +- {spread:.3f}  {[round(share, 3) for share in shares]}")
    apart = [abs(a[0] - b[0]) for s in seeds for a, b in zip(s["evaluate"], s["journal"], strict=True)]
    result["most_clips_apart_in_a_fold"] = max(apart)
    print(f"journal and evaluate differ by at most {max(apart)} clip(s) in any fold")
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
