"""The files of a report, all of them or none."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from ntk_analysis.common.files import write_together

from ..contract import Setting
from ..judge import Judged
from .html import page
from .markdown import markdown
from .record import record, run_facts

PAGE = "report.html"


def prepare_folder(folder: Path) -> None:
    """Makes the folder and tries to write there, before anything is computed.

    Raises:
        OSError: it cannot be made or written to.
    """
    _write(folder, {})


def write_report(folder: Path, judged: Sequence[Judged], setting: Setting, network: str = "") -> Path:
    """Writes report.html, claims.json and claims.md into `folder`, which is made if needed; returns the page's path.

    A report that was there before stays whole until all three are written.

    Args:
        folder: folder of the report.
        judged: the claims, in the order in which they are shown.
        setting: the setting that they were checked with.
        network: the user's own network, as it was named; "" for the claims of papers.

    Raises:
        OSError: the folder cannot be made or written to.
    """
    run = run_facts(setting, network)
    records = [record(one, run) for one in judged]
    texts = {
        PAGE: page(records, run),
        "claims.json": json.dumps(records, indent=2, ensure_ascii=False, allow_nan=False) + "\n",
        "claims.md": markdown(records, run),
    }
    _write(folder, texts)
    return folder / PAGE


def _write(folder: Path, texts: dict[str, str]) -> None:
    def writer(text: str) -> Callable[[Path], object]:
        return lambda path: path.write_text(text, encoding="utf-8")

    try:
        write_together(folder, {name: writer(text) for name, text in texts.items()})
    except OSError as error:
        reason = error.strerror or error
        raise OSError(
            f"--report {folder}: the report cannot be written there ({reason}); name another folder"
        ) from error
