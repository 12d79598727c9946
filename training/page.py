"""An evaluation as one HTML page that needs nothing beside it."""

import base64
from collections.abc import Iterable, Sequence
from pathlib import Path

from harec_deploy.decode import choose
from harec_deploy.errors import VideoError
from harec_deploy.files import atomic_write
from harec_deploy.label.page import bar, section, text
from harec_deploy.label.pictures import jpeg
from training.metrics import Confused, Evaluation
from training.plots import THUMBNAIL

MAX_PAIRS = 12
MAX_GROUPS = 50
PICTURES = {
    "confusion.png": "Rows are the truth, the best recognised class first; shares are of the row.",
    "reliability.png": "How often labels are right, by their score.",
    "contact_sheet.png": "Videos with label and score; wrong ones come first.",
    "curves.png": "Loss and accuracy of training.",
}
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
h1, h2 { line-height: 1.2; } .soft { color: #666; margin-top: -0.6rem; } img { max-width: 100%; }
table { border-collapse: collapse; } td, th { padding: 0.15rem 0.8rem; text-align: right; }
td:first-child, th:first-child { text-align: left; } tr:nth-child(even) { background: #f5f5f5; }
.tiles { display: flex; flex-wrap: wrap; gap: 1rem; list-style: none; padding: 0; }
.tiles li { background: #f5f5f5; padding: 0.6rem 1rem; } .tiles b { display: block; font-size: 1.5rem; }
.track { display: inline-block; width: 8rem; height: 0.6rem; background: #e3e3e3; }
.track span { display: block; height: 100%; background: #1b7f4d; } figure { display: inline-block; margin: 0.3rem; }
figcaption { font-size: 12px; color: #666; }
"""


def write_page(evaluation: Evaluation, title: str, folder: Path) -> None:
    """Write evaluation.html into ``folder``, with the pictures that lie there inside it."""
    parts = [
        _tiles(evaluation),
        *(_picture(folder / name, told) for name, told in PICTURES.items() if (folder / name).exists()),
        _classes(evaluation),
        _groups(evaluation),
        _pairs(evaluation.most_confused(MAX_PAIRS)),
    ]
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        f"<title>{text(title)}</title><style>{STYLE}</style></head><body><h1>{text(title)}</h1>{''.join(parts)}"
        "</body></html>\n"
    )
    with atomic_write(folder / "evaluation.html") as stream:
        stream.write(page.encode())


def _tiles(evaluation: Evaluation) -> str:
    low, high = evaluation.interval()
    after, top_5 = evaluation.reliability(), evaluation.top_5
    told = {
        f"accuracy, 95 % between {low:.1%} and {high:.1%}": f"{evaluation.accuracy:.1%}",
        "in the best five": "unknown" if top_5 is None else f"{top_5:.1%}",
        "F1, mean over classes": f"{evaluation.macro().f1:.3f}",
        "F1, weighted by videos": f"{evaluation.weighted().f1:.3f}",
        "expected calibration error": f"{after.ece:.1%}" if after else "unknown",
        "videos": f"{len(evaluation.predictions):,}",
    }
    return f'<ul class="tiles">{"".join(f"<li><b>{value}</b>{name}</li>" for name, value in told.items())}</ul>'


def _picture(path: Path, told: str) -> str:
    data = base64.b64encode(path.read_bytes()).decode()
    name = path.stem.replace("_", " ")
    return section(path.stem, name.capitalize(), told, f'<img alt="{name}" src="data:image/png;base64,{data}">')


def _classes(evaluation: Evaluation) -> str:
    rows = [
        (text(score.name), f"{score.precision:.3f}", f"{score.recall:.3f}", f"{score.f1:.3f}", f"{score.count:,}")
        for score in evaluation.by_class()
    ]
    return section("classes", "By class", "", _table(("class", "precision", "recall", "F1", "videos"), rows))


def _groups(evaluation: Evaluation) -> str:
    groups = evaluation.by_group()
    if not groups:
        return ""
    note = f"The worst first; the interval of the accuracy comes from drawing the {len(groups)} groups anew."
    rows = [
        (text(group.name), bar(group.correct / group.count), f"{group.correct} of {group.count}")
        for group in groups[:MAX_GROUPS]
    ]
    return section("groups", "By group", note, _table(("group", "", "right"), rows))


def _pairs(pairs: Sequence[Confused]) -> str:
    told = "".join(
        f"<h3>{text(pair.truth)} taken for {text(pair.label)}: {pair.count}, {pair.share:.0%} of the class</h3>"
        + "".join(map(_thumbnail, pair.examples))
        for pair in pairs
    )
    return section("confused", "Most confused", "Classes and some of their videos.", told or "<p>Nothing.</p>")


def _thumbnail(path: Path) -> str:
    caption = f"<figcaption>{text(path.name)}</figcaption>"
    try:
        frames = choose().frames(path, lambda info: [info.duration_s / 2], THUMBNAIL)
    except VideoError as error:
        return f"<figure>{error.kind}{caption}</figure>"
    return f'<figure><img alt="" src="{jpeg(frames.pixels[0])}">{caption}</figure>'


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table of cells that are HTML already."""
    head = "".join(f'<th scope="col">{name}</th>' for name in columns)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
