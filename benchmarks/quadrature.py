"""How true the stated errors of the quadrature are: 1,000 drawn expectations against closed forms in 40 digits.

`uv run python benchmarks/quadrature.py` writes benchmarks/results/quadrature.json: by function the worst ratio of true
to stated error, the cases that were refused and the largest error stated.
"""

import json
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from exact_duals import EXACT, drawn, judged  # noqa: E402

CASES = 100

if __name__ == "__main__":
    record = {}
    for name in EXACT:
        found = judged(name, drawn(CASES))
        record[name] = {
            "worst ratio of true to stated error": round(float(found.ratio), 4),
            "refused": found.refused,
            "largest error stated": float(f"{found.stated:.2g}"),
            "cases": CASES,
        }
    (ROOT / "benchmarks" / "results" / "quadrature.json").write_text(json.dumps(record, indent=2) + "\n")
