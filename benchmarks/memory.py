"""Temporaries of a training step's gradient as XLA compiles it for this device, by network and normalisation.

Nothing runs: the compiler's own report is read (`compiled.memory_analysis()`), so that any batch can be asked for.
Rows of other networks and batches stay in results/memory.json.
"""

import argparse
import json
from typing import Any

from timing import RESULTS, header, write

from ntk_analysis.training.memory import account

NETWORKS = ("vgg11", "vgg16", "resnet18", "squeezenet1_0", "shufflenet_v2_x1_0")
NORMALIZATIONS = ("batch_norm", "mimic_norm", "weight_mean", "none")
MIB = 2**20


def temporaries(network: str, batch: int) -> dict[str, Any]:
    """MiB of temporaries by normalisation, and percent that MimicNorm saves of batch norm's."""
    found = {}
    for name in NORMALIZATIONS:
        measured = account(network, name, batch=batch, compiled=True).temporaries
        if measured is None:
            raise RuntimeError("this device's compiler does not report its temporaries")
        found[name] = measured / MIB
    saved = 100 * (1 - found["mimic_norm"] / found["batch_norm"])
    return {
        "network": network,
        "batch": batch,
        "temporaries_mib": {name: round(size, 1) for name, size in found.items()},
        "mimic_norm_saves_percent": round(saved, 1),
    }


def main() -> None:
    """Renews rows of results/memory.json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=256, help="number of images in a step")
    parser.add_argument("networks", nargs="*", default=NETWORKS, help="names of networks at CIFAR size")
    options = parser.parse_args()
    found = header("temporaries of a step's gradient, float32, by the compiler's report", 0)
    rows = [temporaries(network, options.batch) for network in options.networks]
    path, new = RESULTS / "memory.json", [(row["network"], row["batch"]) for row in rows]
    before = json.loads(path.read_text())["rows"] if path.exists() else []
    kept = [row for row in before if (row["network"], row["batch"]) not in new]
    write("memory", found | {"rows": sorted(kept + rows, key=lambda row: row["batch"])})


if __name__ == "__main__":
    main()
