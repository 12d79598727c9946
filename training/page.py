"""An evaluation as one HTML page that needs nothing beside it."""

import base64
from collections.abc import Sequence
from pathlib import Path

from harec_deploy.decode import choose
from harec_deploy.errors import VideoError
from harec_deploy.label.pictures import jpeg
from harec_deploy.page import bar, page, section, table, text, tiles, write
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


def write_page(evaluation: Evaluation, title: str, folder: Path) -> None:
    """Write evaluation.html into ``folder``, with the pictures that lie there inside it."""
    parts = [
        f'<p class="soft">{text(evaluation.about)}</p>',
        _tiles(evaluation),
        *(_picture(folder / name, told) for name, told in PICTURES.items() if (folder / name).exists()),
        _pairs(evaluation.most_confused(MAX_PAIRS)),
        _groups(evaluation),
        _classes(evaluation),
    ]
    write(folder / "evaluation.html", page(title, parts))


def _by_group(evaluation: Evaluation) -> tuple[float, float] | None:
    """Return the interval over groups, None where they are too few, or all alike: then drawing them tells nothing."""
    interval = evaluation.interval()
    return interval if interval and interval[0] < interval[1] else None


def _tiles(evaluation: Evaluation) -> str:
    low, high = _by_group(evaluation) or evaluation.wilson()
    after, before, top_5 = evaluation.reliability(), evaluation.reliability(calibrated=False), evaluation.top_5
    at_1 = f"; {before.ece:.1%} at temperature 1" if before else ""
    told = {
        f"accuracy, 95 % between {low:.1%} and {high:.1%}": f"{evaluation.accuracy:.1%}",
        "in the best five": "unknown" if top_5 is None else f"{top_5:.1%}",
        "F1, mean over classes": f"{evaluation.macro().f1:.3f}",
        "F1, weighted by videos": f"{evaluation.weighted().f1:.3f}",
        f"expected calibration error{at_1}": f"{after.ece:.1%}" if after else "unknown",
        "videos": f"{len(evaluation.predictions):,}",
    }
    return tiles(("", value, name) for name, value in told.items())


def _picture(path: Path, told: str) -> str:
    data, name = base64.b64encode(path.read_bytes()).decode(), path.stem.replace("_", " ")
    image = f'<div class="plot"><img alt="{name}" src="data:image/png;base64,{data}"></div>'
    return section(path.stem, name.capitalize(), told, image)


def _classes(evaluation: Evaluation) -> str:
    rows = [
        (text(score.name), f"{score.precision:.3f}", f"{score.recall:.3f}", f"{score.f1:.3f}", f"{score.count:,}")
        for score in evaluation.by_class()
    ]
    return section("classes", "By class", "", table(("class", "precision:", "recall:", "F1:", "videos:"), rows))


def _groups(evaluation: Evaluation) -> str:
    groups = evaluation.by_group()
    if not groups:
        return ""
    note = "The worst first; the interval of the accuracy comes from "
    drawn = f"drawing the {len(groups)} groups anew."
    note += drawn if _by_group(evaluation) else "videos: groups are too few, or all alike."
    rows = [
        (text(group.name), bar(group.correct / group.count), f"{group.correct} of {group.count}")
        for group in groups[:MAX_GROUPS]
    ]
    return section("groups", "By group", note, table(("group", "", "right:"), rows))


def _pairs(pairs: Sequence[Confused]) -> str:
    told = "".join(
        f"<h3>{text(pair.truth)} taken for {text(pair.label)}: {pair.count}, {pair.share:.0%} of the class</h3>"
        + f'<div class="gallery">{"".join(map(_thumbnail, pair.examples))}</div>'
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
