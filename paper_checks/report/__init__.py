"""The report of a run: `claims.json` for programs, `claims.md` for a terminal, `report.html` for a reader."""

from paper_checks.report.writing import prepare_folder as prepare_folder
from paper_checks.report.writing import write_report as write_report
