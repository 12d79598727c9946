"""What is made of measured values: outputs compared, ratios with their spread, lines of code."""

import ast
import io
import statistics
import tokenize
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

LAYOUT = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)


def code_lines(path: Path) -> int:
    """Count a Python file's lines that hold code: not those that are blank, comment or docstring only."""
    source = path.read_text()
    used = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in LAYOUT:
            used.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                used.difference_update(range(first.lineno, (first.end_lineno or first.lineno) + 1))
    return len(used)


def compare(
    rows: Sequence[Mapping[str, Any]], names: Sequence[str], classes: Sequence[str], wanted: NDArray[np.float32]
) -> dict[str, Any]:
    """Hold a program's rows against the reference.

    rows: path, label and score of each video. names: the videos that were asked for, with the probabilities of each
    in ``wanted``, float32 (N, C). The difference is that of the label's probability, the only one that is told.
    """
    by_name = {Path(row["path"]).name: row for row in rows}
    other, missing, apart = [], [], [0.0]
    for name, probabilities in zip(names, wanted, strict=True):
        row = by_name.get(name)
        if row is None:
            missing.append(name)
            continue
        if row["label"] != classes[int(probabilities.argmax())]:
            other.append(name)
        apart.append(abs(float(row["score"]) - float(probabilities[list(classes).index(row["label"])])))
    doubled = len(rows) - len(by_name)
    return {
        "videos": len(names),
        "other_labels": other,
        "missing": missing,
        "doubled": doubled,
        "max_abs_dp": round(max(apart), 5),
        "right": not (other or missing or doubled),
    }


def ratio(own: Sequence[float], other: Sequence[float]) -> dict[str, float]:
    """Return how many times ``other`` its ``own`` is, round by round: the median, the lowest and the highest."""
    ratios = [a / b for a, b in zip(own, other, strict=True)]
    return {"median": statistics.median(ratios), "lowest": min(ratios), "highest": max(ratios)}


def middle(values: Sequence[float]) -> dict[str, float]:
    """Return median, lowest and highest of the rounds."""
    return {"median": statistics.median(values), "lowest": min(values), "highest": max(values)}
