"""What the HTML pages share: one style sheet, one frame that allows no network, and their pieces.

Whatever comes from files or their names goes through ``text``, every number through a format.
"""

import html
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path

from harec_deploy import __version__
from harec_deploy.errors import OutputError
from harec_deploy.files import atomic_write

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


def style() -> str:
    """Return the style sheet of every page."""
    return resources.files("harec_deploy").joinpath("page.css").read_text("utf-8")


def page(title: str, parts: Iterable[str]) -> str:
    """Return a whole page without any script: its heading and its parts, which are HTML already."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{html.escape(POLICY, quote=False)}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{text(title)}</title>\n<style>\n{style()}</style>\n</head>\n<body>\n"
        f"<header>\n<h1>{text(title)}</h1>\n</header>\n<main>\n{''.join(parts)}</main>\n"
        f'<footer class="soft">Made by harec-deploy {text(__version__)}.</footer>\n</body>\n</html>\n'
    )


def write(path: Path, content: str) -> None:
    """Write a page; it appears whole or not at all. Raises OutputError."""
    try:
        with atomic_write(path) as stream:
            stream.write(content.encode())
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror}") from None


def text(words: str) -> str:
    """Return untrusted text for HTML; what cannot be seen, and what turns the direction of writing, as escapes."""
    return html.escape("".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in words))


def unit(value: float) -> float:
    """Return the nearest number from 0 to 1."""
    return min(max(value, 0.0), 1.0)


def bar(part: float) -> str:
    """Return a bar that is filled by this share, which the number beside it tells."""
    return f'<span class="track" aria-hidden="true"><span style="width:{100 * unit(part):.1f}%"></span></span>'


def section(name: str, title: str, note: str, content: str) -> str:
    """Return a section of the page with its heading."""
    opened = f'<section aria-labelledby="{name}"><h2 id="{name}">{title}</h2><p class="soft">{note}</p>'
    return f"{opened}{content}</section>\n"


def facts(told: Mapping[str, str]) -> str:
    """Return names with their values, on a line."""
    items = (f"<div><dt>{text(name)}</dt><dd><code>{text(value)}</code></dd></div>" for name, value in told.items())
    return f'<dl class="facts">{"".join(items)}</dl>\n'


def tiles(told: Iterable[tuple[str, str, str]]) -> str:
    """Return numbers with what they are below: (kind, value, name), kind being ok, partial, failed or none."""
    items = "".join(f'<li class="{kind}"><b>{value}</b>{name}</li>' for kind, value, name in told)
    return f'<ul class="tiles" aria-label="Counts">{items}</ul>\n'


def head(columns: Sequence[str]) -> str:
    """Return the cells of a table's first row; a name that ends in a colon is of numbers, to the right."""
    return "".join(f'<th scope="col" class="{_kind(name)}">{name.rstrip(":")}</th>' for name in columns)


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table of cells that are HTML already; the first of a row names it. See ``head`` for the columns."""
    body = "".join(
        f'<tr><th scope="row">{first}</th>'
        + "".join(f'<td class="{_kind(name)}">{cell}</td>' for name, cell in zip(columns[1:], cells, strict=True))
        + "</tr>"
        for first, *cells in rows
    )
    return f'<div class="scroll"><table><thead><tr>{head(columns)}</tr></thead><tbody>{body}</tbody></table></div>'


def _kind(column: str) -> str:
    return "number" if column.endswith(":") else "words"
