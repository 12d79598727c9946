"""Real files of many makers, hard ones: each has its row, and the same row whatever ran beside it."""

from pathlib import Path

import msgspec
import pytest

from harec_deploy.label.journal import Row, read_rows
from harec_deploy.label.options import Options
from harec_deploy.label.run import label

pytestmark = pytest.mark.real_clips


def rows(exported: Path, folder: Path, out: Path, workers: int) -> dict[str, Row]:
    options = Options(out=out, runner="openvino", precision="fp32", workers=workers, all_files=True)
    summary = label(exported, [str(folder)], options)
    found = {row.path: row for row in read_rows(out).values()}
    assert len(found) == len(summary.rows) == len([path for path in folder.rglob("*") if path.is_file()])
    return found


def test_every_hard_file_has_the_same_row_with_one_and_four_workers(
    exported: Path, real_clips: Path, tmp_path: Path
) -> None:
    one, four = (rows(exported, real_clips / "hard", tmp_path / f"{n}.jsonl", workers=n) for n in (1, 4))
    assert one.keys() == four.keys()
    for path, row in one.items():
        other = four[path]
        assert msgspec.structs.replace(row, score=None, top=[]) == msgspec.structs.replace(other, score=None, top=[])
        assert dict(row.top) == pytest.approx(dict(other.top), abs=1e-4)
    assert sum(row.status == "ok" for row in one.values()) > len(one) / 2
