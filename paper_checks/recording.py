"""Keeps what a run of `ntk-analysis check --report DIR` found, in the folder of each paper, for the site to show.

    python -m ntk_analysis.paper_checks.recording DIR/claims.json

writes `record/CLAIM.json` beside the claims of each paper. A claim that the run did not check keeps its record.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from .papers import chosen, claim_checks
from .report.record import Record


def places() -> dict[str, Path]:
    """Returns the file of each claim's record, by the claim's id, in the order in which claims are shown."""
    return {
        name: Path(str(check.load().__file__)).parent / "record" / f"{name}.json"
        for name, check in claim_checks().items()
    }


def keep(records: Sequence[Record]) -> list[Path]:
    """Writes each record into the folder of its paper, and returns the files.

    Raises:
        ValueError: a record is of a claim that is not here.
    """
    files = places()
    written = [files[name] for name in chosen([record["id"] for record in records], claim_checks())]
    for record in records:
        path = files[record["id"]]
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(record, ensure_ascii=False, allow_nan=False, indent=1) + "\n", encoding="utf-8")
    return written


def kept() -> list[Record]:
    """Reads all records that are kept, in the order in which claims are shown."""
    return [json.loads(path.read_text(encoding="utf-8")) for path in places().values() if path.exists()]


if __name__ == "__main__":
    for file in keep(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))):
        print(file)
