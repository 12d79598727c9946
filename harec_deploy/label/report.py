"""The report: one HTML page about a labelling run, with everything that it shows inside it.

Nothing in a journal is trusted: names and labels come from files that somebody else made. So every text of it goes
through ``text``, every number through a format, and the page's own policy forbids the network and any other script.
"""

import base64
import hashlib
import html
import math
import re
import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path

import numpy as np

from harec_deploy import __version__
from harec_deploy.errors import VIDEO_ERRORS, OutputError, UsageError
from harec_deploy.label.journal import Header, Key, Row, read_header, read_rows
from harec_deploy.label.page import stages, videos
from harec_deploy.label.pictures import Shots, least_certain, most_certain, score_of, take_all
from harec_deploy.page import POLICY, bar, facts, head, section, style, text, tiles, unit, write

MAX_TABLE_ROWS = 2000
MAX_TIMELINES = 24
MAX_SEGMENTS = 400  # rectangles in one timeline
EXAMPLES = 5
OPEN_BARS = 30  # classes whose bars are seen before a click
BINS = 20
COLOURS = "#2f6fde #d9730d #1a7f4b #b5489a #7a5cd6 #0f8b8d #bf2c2c #8a6d1a".split()
COLUMNS = "video label score: status seconds: size: frames/s: frames: codec".split()  # a colon: numbers, to the right


def write_report(
    journal: Path,
    out: Path,
    *,
    root: Path = Path(),
    thumbnails: int = 6,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Write one self-contained HTML page about a labelling run.

    Args:
        journal: what ``harec-deploy label`` wrote.
        out: the page; it appears whole or not at all.
        root: where relative paths of the journal begin. A video that is gone is shown as not found.
        thumbnails: videos shown of each class, the most certain first; 0 makes a page without pictures.
        progress: called with (videos done, videos in all) while pictures are taken from the videos.

    Raises:
        UsageError: there is no journal, or an argument is not allowed.
        OutputError: the file is no journal, a line in its middle is damaged, or ``out`` cannot be written.
    """
    _check(journal, out, root, thumbnails)
    header = read_header(journal)
    if header is None:
        raise OutputError(f"{journal} is no journal of harec-deploy: it has no whole line")
    rows = list(read_rows(journal).values())
    galleries = most_certain(rows, thumbnails)
    uncertain = least_certain(rows)
    shots: dict[Key, Shots] = {}
    if thumbnails:
        certain = [row for shown in galleries.values() for row in shown]
        shots = take_all(uncertain, certain, root, progress)
    write(out, _page(journal, header, rows, galleries, uncertain, shots))


def _check(journal: Path, out: Path, root: Path, thumbnails: int) -> None:
    if not journal.exists():
        raise UsageError(f"{journal}: no such journal; make it with harec-deploy label")
    if not journal.is_file():  # a FIFO would be waited for
        raise OutputError(f"{journal} is no journal of harec-deploy: it is no regular file")
    if out.exists() and out.samefile(journal):
        raise UsageError(f"--out {out} is the journal itself; name another file")
    if not out.parent.is_dir():
        raise UsageError(f"--out {out}: there is no folder {out.parent}")
    if not root.is_dir():
        raise UsageError(f"--root {root}: no such folder")
    if thumbnails < 0:
        raise UsageError(f"--max-thumbnails {thumbnails}: allowed are 0 and more")


def _page(
    journal: Path,
    header: Header,
    rows: list[Row],
    galleries: dict[str, list[Row]],
    uncertain: list[Row],
    shots: dict[Key, Shots],
) -> str:
    template = resources.files("harec_deploy.label").joinpath("report.html").read_text("utf-8")
    script = template.partition("<script>")[2].partition("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    first = f"The first {MAX_TABLE_ROWS:,} rows; {len(rows) - MAX_TABLE_ROWS:,} more are in the journal."
    pictures = _gallery_section(galleries, shots) if shots else ""
    parts = {
        "policy": html.escape(f"{POLICY}; script-src 'sha256-{digest}'", quote=False),
        "style": style(),
        "title": text(journal.name),
        "facts": _facts(header),
        "tiles": _tiles(rows),
        "classes": _class_bars(rows, set(galleries) if shots else set()),
        "scores": _histogram([score_of(row) for row in rows if row.score is not None]),
        "sections": stages(journal)
        + _failures(rows)
        + _uncertain_cards(uncertain, shots)
        + _timelines(rows)
        + pictures,
        "table_note": first if len(rows) > MAX_TABLE_ROWS else f"{videos(rows)}.",
        "columns": head(COLUMNS),
        "rows": "\n".join(_table_row(row) for row in rows[:MAX_TABLE_ROWS]),
        "version": text(__version__),
    }
    # In one pass, so that a name which looks like a place of the template stays a name.
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], template)


def _facts(header: Header) -> str:
    told = {name: getattr(header, name) for name in ("variant", "runner", "precision", "decoder")}
    if header.windows:
        told["windows"] = f"{header.windows.window_s:g} s every {header.windows.stride_s:g} s"
    return facts(told | {"bundle": header.bundle[:16], "harec-deploy": header.harec_deploy})


def _tiles(rows: list[Row]) -> str:
    statuses = Counter(row.status for row in rows)
    length_s = math.fsum(unit((row.duration_s or 0) / 1e9) * 1e9 for row in rows)
    length = f"{length_s / 3600:,.1f} h" if length_s >= 3600 else f"{length_s / 60:.1f} min"
    told = [("", f"{len(rows):,}", "rows" if len(rows) != 1 else "row")]
    told += [(status, f"{statuses[status]:,}", status) for status in ("ok", "partial", "failed")]
    told += [("", f"{len({row.label for row in rows} - {None}):,}", "classes seen"), ("", length, "of video")]
    return tiles(told)


def _class_bars(rows: list[Row], linked: set[str]) -> str:
    counts = Counter(row.label for row in rows if row.label is not None)
    if not counts:
        return "<p>No video has a label.</p>"
    most, total = max(counts.values()), sum(counts.values())
    items = []
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))  # as in most_certain, whose places are linked
    for place, (name, count) in enumerate(ranked):
        shown = f'<a href="#class-{place}">{text(name)}</a>' if name in linked else f"<span>{text(name)}</span>"
        items.append(f"<li>{shown}{bar(count / most)}<span>{count:,} ({count / total:.1%})</span></li>")
    bars = f'<ul class="bars">{"".join(items[:OPEN_BARS])}</ul>'
    if more := items[OPEN_BARS:]:
        bars += f'<details><summary>{len(more):,} more classes</summary><ul class="bars">{"".join(more)}</ul></details>'
    return bars


def _histogram(scores: list[float]) -> str:
    if not scores:
        return "<p>No video has a score.</p>"
    counts = np.histogram(scores, bins=BINS, range=(0, 1))[0].tolist()
    most, low = max(counts), sum(score < 0.5 for score in scores)
    told = f"Median {statistics.median(scores):.3f}; {low:,} of {videos(scores)} below 0.5."
    width, height = 440 / BINS, 140
    bars = []
    for place, count in enumerate(counts):
        tall = max(height * count / most, 1.5 if count else 0)
        box = f'x="{30 + place * width:.1f}" y="{20 + height - tall:.1f}" width="{width - 2:.1f}" height="{tall:.1f}"'
        title = f"<title>{place / BINS:.2f} to {(place + 1) / BINS:.2f}: {count:,}</title>"
        bars.append(f'<rect class="bar" rx="2" {box}>{title}</rect>')
    ticks = "".join(f'<text x="{30 + 440 * t / 4:.0f}" y="180" text-anchor="middle">{t / 4:g}</text>' for t in range(5))
    bars.append(f'<line class="axis" x1="28" x2="472" y1="160.5" y2="160.5"></line><text x="30" y="14">{most:,}</text>')
    drawn = f'<svg class="chart" viewBox="0 0 500 188" role="img" aria-label="Histogram of scores. {told}">'
    return f'<p class="soft">{told}</p>{drawn}{"".join(bars)}{ticks}</svg>'


def _failures(rows: list[Row]) -> str:
    by_code: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        if row.error is not None:
            by_code[row.error.get("code", "unknown")].append(row)
    partial = sum(row.status == "partial" for row in rows)
    note = f"{partial:,} partial: labelled by what could be decoded, because packets are missing or were refused."
    items = []
    for code, failed in sorted(by_code.items(), key=lambda item: (-len(item[1]), item[0])):
        meaning = VIDEO_ERRORS.get(code, "a code that this version does not know")
        told = {row.key: (row.error or {}).get("message", meaning) for row in failed[:EXAMPLES]}
        examples = "".join(
            f'<li class="name">{text(row.path)}{": " + text(told[row.key]) if told[row.key] != meaning else ""}</li>'
            for row in failed[:EXAMPLES]
        )
        more = f'<li class="soft">and {len(failed) - EXAMPLES:,} more</li>' if len(failed) > EXAMPLES else ""
        title = f"<h3><code>{text(code)}</code>: {videos(failed)}</h3><p>{meaning}</p>"
        items.append(f"<li>{title}<ul>{examples}{more}</ul></li>")
    failures = f'<ul class="failures">{"".join(items)}</ul>' if items else "<p>No video failed.</p>"
    return section("failures", "Failures", note, failures) if items or partial else ""


def _pictures(row: Row, shots: Shots, what: Sequence[str]) -> str:
    if shots.missing:
        return f'<div class="gone">{text(shots.missing)}</div>'
    name = text(row.path)
    return "".join(f'<img src="{uri}" alt="{of} of {name}">' for uri, of in zip(shots.images, what, strict=True))


def _uncertain_cards(rows: list[Row], shots: dict[Key, Shots]) -> str:
    cards = []
    for row in rows:
        seen = ""
        if row.key in shots:
            parts = ("Frame near the beginning", "Frame in the middle", "Frame near the end")
            seen = f'<div class="frames">{_pictures(row, shots[row.key], parts)}</div>'
        top = row.top[:3] or [(row.label or "", score_of(row))]
        bars = "".join(
            f"<li><span>{text(name)}</span>{bar(score)}<span>{unit(score):.3f}</span></li>" for name, score in top
        )
        cards.append(f'<li class="card"><p class="name">{text(row.path)}</p>{seen}<ul class="bars">{bars}</ul></li>')
    note = "The videos whose first class has the lowest score: what to look at first."
    return section("uncertain", "Least certain", note, f'<ul class="cards">{"".join(cards)}</ul>') if cards else ""


def _gallery_section(galleries: dict[str, list[Row]], shots: dict[Key, Shots]) -> str:
    parts = []
    for place, (name, rows) in enumerate(galleries.items()):
        figures = []
        for row in rows:
            taken = shots[row.key]
            middle = Shots(taken.images[len(taken.images) // 2 :][:1], taken.missing)
            caption = f'<figcaption class="name">{score_of(row):.3f} {text(row.path)}</figcaption>'
            figures.append(f"<figure>{_pictures(row, middle, ['Middle frame'])}{caption}</figure>")
        parts.append(f'<h3 id="class-{place}">{text(name)}</h3><div class="gallery">{"".join(figures)}</div>')
    note = "The middle frame of the most certain videos of each class."
    return section("galleries", "Most certain", note, "".join(parts)) if parts else ""


def _timelines(rows: list[Row]) -> str:
    with_segments = [row for row in rows if row.segments]
    strips = []
    for row in with_segments[:MAX_TIMELINES]:
        end_s = max([segment[1] for segment in row.segments] + [row.duration_s or 0, 1e-3])
        seconds: dict[str, float] = defaultdict(float)
        for start, end, name, _ in row.segments:
            seconds[name] += end - start
        colours = {name: COLOURS[place % len(COLOURS)] for place, name in enumerate(seconds)}
        boxes = "".join(
            f'<rect x="{1000 * unit(start / end_s):.1f}" y="0" height="10" fill="{colours[name]}" '
            f'width="{1000 * max(unit(end / end_s) - unit(start / end_s), 0.001):.1f}">'
            f"<title>{start:.1f} to {end:.1f} s: {text(name)}, {unit(score):.3f}</title></rect>"
            for start, end, name, score in row.segments[:MAX_SEGMENTS]
        )
        drawn = '<svg class="strip" viewBox="0 0 1000 10" preserveAspectRatio="none" role="img" aria-label="Timeline">'
        square = '<svg viewBox="0 0 1 1" aria-hidden="true"><rect width="1" height="1" fill="{}"></rect></svg>'
        legend = "".join(
            f"<li>{square.format(colours[name])}{text(name)}, {total:.1f} s</li>" for name, total in seconds.items()
        )
        drawn = f'<h3 class="name">{text(row.path)}, {end_s:.1f} s</h3>{drawn}{boxes}</svg>'
        strips.append(f'{drawn}<ul class="legend">{legend}</ul>')
    note = f"{videos(with_segments)} with segments; {len(strips)} drawn."
    return section("timelines", "Timelines", note, "".join(strips)) if strips else ""


def _table_row(row: Row) -> str:
    width, height, decoded, expected = row.width, row.height, row.frames_decoded, row.frames_expected
    status = row.error.get("code", row.status) if row.error else row.status
    kind = row.status if row.status in ("ok", "partial", "failed") else ""
    cells = (
        f'<td class="label">{text(row.label or "")}</td>',
        _number(None if row.score is None else unit(row.score), ".3f"),
        f'<td class="{kind}">{text(status)}</td>',
        _number(row.duration_s, ".1f"),
        _number(width * height, "d", f"{width}x{height}") if width and height else "<td></td>",
        _number(row.fps, ".4g"),
        _number(decoded, "d", "" if expected in (None, decoded) else f"{decoded} of {expected}"),
        f"<td>{text(row.codec or '')}</td>",
    )
    return f'<tr data-status="{kind}"><th scope="row">{text(row.path)}</th>{"".join(cells)}</tr>'


def _number(value: float | None, form: str, shown: str = "") -> str:
    """Return a cell that sorts by ``value``; the limits keep a number that is no measurement from filling the page."""
    if value is None:
        return "<td></td>"
    value = min(max(value, -(10**12)), 10**12)
    return f'<td class="number" data-v="{value}">{(shown or format(value, form))[:30]}</td>'
