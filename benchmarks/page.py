"""Writes benchmarks/README.md from what was measured: PYTHONPATH=. python benchmarks/page.py.

Every figure and every sentence about who is ahead comes from benchmarks/results; a test holds the page to them.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.roster import OWN_COMMANDS, PEERS
from benchmarks.standing import MEASURES, Program, duels, fastest_own, own_in, programs
from benchmarks.tables import decode_cell, folders_table, lengths_table

HERE = Path(__file__).parent
RESULTS = HERE / "results"
FRAMES = 16  # that decode.py asks for

GROWTH = {  # of growth.py: what grows, which figure is shown, and its words
    "videos": ("Videos in a folder, lrcn, a small model", "ms_a_video", "ms a video once the model is loaded"),
    "lengths_s": (
        "Seconds of one video, a clip of the whole, lrcn",
        "whole_s",
        "s from the program's start to the label",
    ),
    "classes": ("Classes, lrcn", "ms_a_video", "ms a video once the model is loaded"),
    "frames": ("Frames of a clip, ResNet-50 + LSTM", "ms_a_video", "ms a video once the model is loaded"),
    "windows_s": (
        "Seconds of one video, windows of 4 s every second, which no peer has, lrcn",
        "whole_s",
        "s from start to end",
    ),
}

INTRO = """# harec-deploy beside its peers

    make bench

makes an environment of its own, measures what is on this page but the soak ({minutes:.0f} minutes for the programs when
these figures were taken), and writes the page. Parts of it are had with `PYTHONPATH=. python benchmarks/NAME.py`:
side_by_side (`--only notebook,ray --rounds 1 --videos 4 --json /tmp/peers.json`), decode, growth, soak, charts, page.
torchcodec and the pipe need FFmpeg on the machine (`apt install ffmpeg`); without it they are left out and named.

Every program labels the same {videos} clips (320x240, Xvid in AVI as UCF-101 has them, 5 to 9 s) with the same
ResNet-50 + LSTM, {frames} frames of a clip, 101 classes, weights that know the clips by heart. Each of
[benchmarks/peers](peers) is a program as a user of that library would write it, tuned: no gradients, channels last
where it helps, decoding beside the model where the library can. Each is started anew {rounds} times, in turn with all
others, and measured from outside. Before a time counts, labels are held against PyTorch in fp32 on the frames of
harec-deploy's decoder.

Measured on: {machine}.
"""


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def figure(value: float) -> str:
    """Return a figure with the digits that it can carry."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def spread(values: dict[str, float]) -> str:
    return f"{figure(values['median'])} ({figure(values['lowest'])} to {figure(values['highest'])})"


def named(program: Program) -> str:
    return f"**{program.name}**" if program.own else program.name


def machine_words(about: dict[str, Any]) -> str:
    cpu = about["cpu"]
    versions = ", ".join(f"{name} {number}" for name, number in sorted(about["versions"].items()))
    words = f"{cpu['model']}, {cpu['cores_allowed']:g} cores, Python {about['python']}, load before {about['load']:g}"
    return f"{words}; {versions}"


def times_as_fast(own: Program | None, each: Program) -> str:
    if own is None or each.own:
        return ""
    return spread(own.ratio(each, "videos_per_s")) if each.right else "other labels"


def speed_section(found: list[Program]) -> str:
    best = fastest_own(found)
    head = [
        "",
        "precision",
        "videos/s",
        "frames/s",
        "with start-up, videos/s",
        "harec-deploy, same precision: times as fast",
    ]
    head += [f"{best.name}: times as fast"] if best else []
    rows = []
    for each in found:
        cells = [each.precision, spread(each.middle("videos_per_s")), figure(each.middle("frames_per_s")["median"])]
        cells.append(figure(each.middle("whole_videos_per_s")["median"]))
        cells.append(times_as_fast(own_in(found, each.precision), each))
        cells += [times_as_fast(best, each)] if best else []
        rows.append([named(each), *cells])
    note = "Median of the rounds, in brackets the lowest and the highest; ratios are taken round by round. "
    note += "Programs whose labels are not the reference's are not compared."
    return f"## Speed\n\n![Videos a second](results/peers.png)\n\n{table(head, rows)}\n\n{note}\n"


def cost_section(found: list[Program]) -> str:
    head = ["", "model loaded, s", "first label, s", "processor s a video", "peak memory, MiB", "lines of code"]
    measures = ("ready_s", "first_label_s", "cpu_s_per_video", "peak_mib")
    rows = [[named(e), *(figure(e.middle(m)["median"]) for m in measures), str(e.facts["lines"])] for e in found]
    told = (
        "Processor time is that of the whole run, start-up included, and so is memory: the proportional set size of "
        "the program and all its children. Lines are those of the program without blanks, comments and docstrings, and "
        "without [what all share](peers/trained.py), its options included; harec-deploy's are commands: "
    )
    own = " and ".join(f"`{command}`" for command in OWN_COMMANDS)
    return f"## What else it costs\n\n{table(head, rows)}\n\n{told}{own}; int8 has its precision in both.\n"


def outputs_section(facts: dict[str, Any], found: list[Program]) -> str:
    head = ["", "what it is", "other labels", "largest change of the label's probability", "right frames"]
    rows = []
    for each in found:
        frames = each.facts["frames"]
        cells = [f"{each.other_labels} of {len(facts['videos'])}", f"{each.max_abs_dp:.4f}"]
        cells.append(f"{frames['right']} of {frames['of']}")
        rows.append([named(each), each.facts["about"], *cells])
    flagged = [each.name for each in found if not each.right]
    strays = [each.name for each in found if not each.right_frames]
    told = [f"Labels differ from the reference's: {', '.join(flagged) or 'nobody'}."]
    told.append(f"Other frames than those shown at the model's times: {', '.join(strays) or 'nobody'}.")
    return f"## Outputs, compared first\n\n{table(head, rows)}\n\n{' '.join(told)}\n"


def duel_words(duel: dict[str, Any]) -> str:
    words, _ = MEASURES[duel["measure"]]
    times = duel["times"]
    better = {key: 1 / value for key, value in times.items()} if times["median"] < 1 else times
    low, high = sorted((better["lowest"], better["highest"]))
    sure = "" if duel["certain"] else ", the rounds disagree"
    return f"{words}: {better['median']:.2f} times better ({low:.2f} to {high:.2f}{sure})"


def losses_section(found: list[Program]) -> str:
    """Tell, peer by peer, in what it is ahead of harec-deploy in the same precision; then how often it is not."""
    fought = duels(found)
    lost = [duel for duel in fought if duel["times"]["median"] < 1]
    lines = ["## Where harec-deploy loses", ""]
    for peer in dict.fromkeys(duel["peer"].name for duel in lost):
        told = "; ".join(duel_words(duel) for duel in lost if duel["peer"].name == peer)
        lines.append(f"- **{peer}** beats it in {told}.")
    lines += [] if lost else ["In nothing that was measured here."]
    lines += ["", "## Where it wins", ""]
    for measure, (words, _) in MEASURES.items():
        own = [duel for duel in fought if duel["measure"] == measure]
        if not own:
            continue
        won = [duel for duel in own if duel["times"]["lowest"] > 1]
        values = sorted(duel["times"]["median"] for duel in own)
        told = (
            f"ahead of {len(won)} of {len(own)} peers in every round; {values[0]:.2f} to {values[-1]:.2f} times as good"
        )
        lines.append(f"- {words}: {told}.")
    lines.append("")
    lines.append("Each peer is compared with harec-deploy in the same precision; int8 has no peer here.")
    return "\n".join(lines) + "\n"


def not_run_section(facts: dict[str, Any]) -> str:
    if not facts["not_run"]:
        return ""
    lines = [f"- {name}: {reason}" for name, reason in facts["not_run"].items()]
    return "## What does not run here\n\n" + "\n".join(lines) + "\n"


def growth_table(kind: str, by_name: dict[str, list[dict[str, Any]]]) -> str:
    """Return what was measured of one kind: programs down, values across, with the peak of memory in brackets."""
    title, measure, words = GROWTH[kind]
    values = list(dict.fromkeys(row["value"] for rows in by_name.values() for row in rows))
    lines = []
    for name, rows in by_name.items():
        told = {row["value"]: f"{figure(row[measure]['median'])} ({figure(row['peak_mib'])})" for row in rows}
        own = name.startswith("harec-deploy")
        lines.append([f"**{name}**" if own else name, *(told.get(value, "-") for value in values)])
    shown = table(["", *(f"{value:,}" for value in values)], lines)
    return f"{title}: {words} (peak memory, MiB)\n\n{shown}\n\n{ahead(measure, by_name)}".strip()


def ahead(measure: str, by_name: dict[str, list[dict[str, Any]]]) -> str:
    """Return who is quicker than harec-deploy, and who takes less memory, at which values."""
    (own, *_), told = by_name.values(), []
    for words, of in (("quicker", lambda row: row[measure]["median"]), ("smaller", lambda row: row["peak_mib"])):
        limits = {row["value"]: of(row) for row in own}
        for name, rows in by_name.items():
            if at := [f"{row['value']:,}" for row in rows if of(row) < limits[row["value"]]]:
                told.append(f"{name} is {words} at {', '.join(at)}")
    return f"Ahead of harec-deploy: {'; '.join(told) or 'nobody'}." if len(by_name) > 1 else ""


def growth_section(growth: dict[str, Any] | None) -> str:
    parts = ["## How the cost grows"]
    if growth:
        rounds = max(len(row["every_round_ms"]) for row in growth["frames"]["harec-deploy fp32"])
        parts += [
            f"`PYTHONPATH=. python benchmarks/growth.py --rounds {rounds}`, fp32, medians of the rounds. PyTorchVideo "
            "holds all frames of a video in memory, so longer ones were left out; the plain loops were not taken to "
            "10,000 videos.",
            "![Cost by number and length of videos and by frames of a clip](results/growth.png)",
            *(growth_table(kind, growth[kind]) for kind in GROWTH if kind in growth),
        ]
    parts += ["`PYTHONPATH=. python benchmarks/soak.py`, a small model:", folders_table(), lengths_table()]
    return "\n\n".join(parts) + "\n"


def quicker(video: dict[str, Any]) -> list[str]:
    """Return who decodes a video faster than harec-deploy, with all frames right."""
    rows = {name: row for name, row in video["decoders"].items() if row.get("right") == FRAMES}
    own = rows.get("harec-deploy")
    return [name for name, row in rows.items() if own and row["median_ms"] < own["median_ms"]]


def decode_section(decode: dict[str, Any]) -> str:
    names = list(dict.fromkeys(name for video in decode["results"] for name in video["decoders"]))
    rows = []
    for video in decode["results"]:
        cells = [decode_cell(video["decoders"].get(name, {})) for name in names]
        rows.append([Path(video["video"]).stem.replace("_", " "), *cells])
    beaten = [
        f"{Path(video['video']).stem} ({', '.join(quicker(video))})" for video in decode["results"] if quicker(video)
    ]
    lost = f"\nAhead of harec-deploy's decoder with all frames right: {'; '.join(beaten) or 'nobody'}.\n"
    missing = "".join(f"\n{name} is left out: {reason}\n" for name, reason in decode["not_installed"].items())
    told = (
        "`python benchmarks/decode.py`, one thread each, ms a video of 16 frames to 224x224; in brackets the ratio to a"
    )
    told += " plain PyAV loop, and how many frames are right where not all are."
    return f"## Decoding\n\n{told}\n\n{table(['', *names], rows)}\n{lost}{missing}"


def page(peers: dict[str, Any], decode: dict[str, Any], growth: dict[str, Any] | None) -> str:
    """Return the page by the contents of peers.json, decode.json and growth.json."""
    found = programs(peers)
    intro = INTRO.format(
        minutes=peers.get("minutes", 0),
        videos=len(peers["videos"]),
        frames=peers["frames"],
        rounds=max((len(each.rounds) for each in found), default=0),
        machine=machine_words(peers["machine"]),
    )
    left_out = [peer.name for peer in PEERS if peer.name not in peers["peers"] and peer.name not in peers["not_run"]]
    cut = f"Not measured in this run: {', '.join(left_out)}.\n" if left_out else ""
    sections = [intro, cut, speed_section(found), losses_section(found), cost_section(found)]
    sections += [outputs_section(peers, found), not_run_section(peers), growth_section(growth)]
    sections.append(decode_section(decode))
    return "\n".join(section for section in sections if section)


def from_results(folder: Path = RESULTS) -> str:
    """Return the page by what lies in a folder of results."""
    read = {path.stem: json.loads(path.read_text()) for path in folder.glob("*.json")}
    return page(read["peers"], read["decode"], read.get("growth"))


if __name__ == "__main__":
    (HERE / "README.md").write_text(from_results())
