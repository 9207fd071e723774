"""Stated errors of the quadrature against true ones: drawn expectations of 15 functions, to many digits.

`uv run python benchmarks/quadrature.py` writes benchmarks/results/quadrature.json: by function the worst ratio of true
to stated error, the largest error stated, the cases and how many of them were refused.
"""

import json
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from tests.exact_duals import CATALOGUE, judged  # noqa: E402

if __name__ == "__main__":
    record = {}
    for name in CATALOGUE:
        found = judged(name)
        record[name] = {
            "worst ratio of true to stated error": round(float(found.ratio), 4),
            "largest error stated": float(f"{found.stated:.2g}"),
            "cases": found.cases,
            "refused": found.refused,
        }
        print(name, found, flush=True)
    (ROOT / "benchmarks" / "results" / "quadrature.json").write_text(json.dumps(record, indent=2) + "\n")
