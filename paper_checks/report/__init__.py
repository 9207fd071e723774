"""The report of a run: `claims.json` for programs, `claims.md` for a terminal, `report.html` for a reader."""

from .writing import prepare_folder as prepare_folder
from .writing import write_report as write_report
