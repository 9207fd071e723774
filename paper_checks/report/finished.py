"""Claims that a run has finished, kept until its report is written: a run that is stopped loses none of them."""

import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from ntk_analysis.common.files import write_whole

from ..judge import Judged
from ..papers import Check
from .record import Record, judged_of, record

FOLDER = "unfinished"
"""Folder in the report's that holds one record for each finished claim while a run is not at its end."""


def keep(folder: Path, judged: Judged, run: Record) -> None:
    """Keeps a claim in the folder of the report; one whose check raised is not kept, so it is tried again.

    Raises:
        OSError: the record cannot be written.
    """
    if judged.error:
        return
    text = json.dumps(record(judged, run), ensure_ascii=False, allow_nan=False)
    (folder / FOLDER).mkdir(exist_ok=True)
    write_whole(folder / FOLDER / f"{judged.claim.id}.json", lambda path: path.write_text(text, encoding="utf-8"))


def kept(folder: Path, checks: Mapping[str, Check], run: Record) -> dict[str, Judged]:
    """Returns the claims that are kept in the folder of a report, by their ids.

    Args:
        folder: folder of the report.
        checks: the claims that are looked for, by their ids.
        run: facts of the run. Claims of a run with another seed, other sizes or other versions are left out.
    """
    found = {}
    for name, check in checks.items():
        path = folder / FOLDER / f"{name}.json"
        one = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
        if one is not None and one["run"] == run and one["paper"]["name"] == check.paper.name:
            found[name] = judged_of(one, check.paper, check.load().CLAIM)
    return found


def number_kept(folder: Path) -> int:
    """Returns how many claims are kept in the folder of a report."""
    return len(list((folder / FOLDER).glob("*.json")))


def forget(folder: Path, names: Iterable[str]) -> None:
    """Removes the claims of these ids from what is kept in the folder of a report, which has them now."""
    for name in names:
        (folder / FOLDER / f"{name}.json").unlink(missing_ok=True)
    with suppress(OSError):  # other claims are kept there, or nothing was
        (folder / FOLDER).rmdir()
