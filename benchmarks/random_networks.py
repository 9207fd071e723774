"""Random networks by neural-tangents' names: their kernels by this library and by neural-tangents itself.

    uv run python benchmarks/random_networks.py --networks 300

writes benchmarks/results/random_networks.json: how many agree, and the ones that differ most. A network is a Python
expression of `stax`, which is evaluated with either library; so the program runs by changing the import line. Both
kernels are float64, of inputs with others and with themselves. Inputs are random, so that no two nearly coincide.
"""

import argparse
import time
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
from timing import header, write

from ntk_analysis import infinite_kernel, reference
from ntk_analysis.compat.neural_tangents import stax as ours
from ntk_analysis.reference.comparison import as_neural_tangents_expects

INPUTS = {"vectors": (4,), "sequences": (5, 2), "images": (3, 4, 2)}
ACTIVATIONS = (
    *("Relu()", "Erf()", "Abs()", "Gelu()", "Sin()", "LeakyRelu(0.2)", "ABRelu(-0.3, 1.2)", "Erf(0.7, 1.3, 0.2)"),
    *(
        "Sin(0.9, 1.1, 0.3)",
        "Cos(1.2, 0.8, 0.1)",
        "Gaussian(1.1, -0.7)",
        "Exp(0.6, 0.3)",
        "Sigmoid_like()",
        "Monomial(2)",
    ),
    *("Polynomial((0.3, 0.8, 0.2))",),
)
ROUNDING = 1e-11  # of both sides, of the largest entry: some layers of float64
DIAGONAL = 1e-6  # of neural-tangents, whose angle of an input with itself is an arc cosine near 1
KEPT = 10  # networks that are told


@dataclass
class Network:
    """A network that is being drawn, from its inputs to where it has come.

    Attributes:
        random: source of every choice.
        positions: sizes of the axes of positions that are left.
        parts: expressions of its layers.
        weights: whether the last layer that mixes units has weights, so that units are Gaussian.
    """

    random: np.random.Generator
    positions: list[int]
    parts: list[str] = field(default_factory=list)
    weights: bool = False

    def choice(self, *options: Any) -> Any:
        """Returns one of the options."""
        return options[int(self.random.integers(len(options)))]

    def number(self, low: float, high: float) -> float:
        """Returns a number of two digits."""
        return round(float(self.random.uniform(low, high)), 2)

    def weighted(self, keep: bool = False) -> str:
        """Returns a layer of weights; `keep` leaves the positions as they are."""
        w, b = self.number(0.7, 1.7), self.choice(None, self.number(0.05, 0.6))
        if not self.positions:
            return f"stax.Dense(8, {w}, {b})"
        padding = self.choice("SAME", "CIRCULAR") if keep else self.choice("SAME", "CIRCULAR", "VALID")
        filters = [int(self.random.integers(1, min(3, size) + 1)) for size in self.positions]
        strides = [1 if keep else int(self.random.integers(1, 3)) for _ in self.positions]
        if not keep:
            counts = zip(self.positions, filters, strides, strict=True)
            self.positions = [-(-(n - (f - 1) * (padding == "VALID")) // s) for n, f, s in counts]
        return f"stax.Conv(8, {tuple(filters)}, {tuple(strides)}, {padding!r}, {w}, {b})"

    def layer(self) -> None:
        """Adds a layer, or a block of layers."""
        if not self.weights:
            self.parts.append(self.weighted())
            self.weights = True
            return
        kind = self.choice("activation", "activation", "activation", "residual", "norm", "product", "pool")
        activation = f"stax.{self.choice(*ACTIVATIONS)}"
        if kind == "residual":
            branch = f"stax.serial({activation}, {self.weighted(keep=True)})"
            self.parts += ["stax.FanOut(2)", f"stax.parallel({branch}, stax.Identity())", "stax.FanInSum()"]
            return
        if kind == "product":
            left, right = (f"stax.serial({self.weighted(keep=True)})" for _ in range(2))
            self.parts += ["stax.FanOut(2)", f"stax.parallel({left}, {right})", "stax.FanInProd()"]
        elif kind == "norm":
            self.parts.append("stax.LayerNorm()")
        elif kind == "pool" and self.positions:
            window = tuple(min(2, size) for size in self.positions)
            self.positions = [-(-size // 2) for size in self.positions]
            self.parts += [activation, f"stax.{self.choice('AvgPool', 'SumPool')}({window}, {window}, 'SAME')"]
        else:
            self.parts.append(activation)
        self.weights = False

    def closed(self) -> str:
        """Returns the whole network, with a read-out."""
        if self.positions:
            self.parts.append(self.choice("stax.Flatten()", "stax.GlobalAvgPool()", "stax.GlobalSumPool()"))
        return f"stax.serial({', '.join([*self.parts, f'stax.Dense(1, {self.number(0.7, 1.7)})'])})"


def drawn(seed: int) -> tuple[str, str]:
    """Returns the kind of the inputs, and the expression of a network on them."""
    random = np.random.default_rng(seed)
    kind = str(random.choice(list(INPUTS)))
    network = Network(random, list(INPUTS[kind][:-1]))
    for _ in range(int(random.integers(3, 9))):
        network.layer()
    return kind, network.closed()


def compared(seed: int, theirs: Any) -> dict[str, Any]:
    """Returns by how much both kernels of a network differ, over the error that may be between them."""
    kind, text = drawn(seed)
    random = np.random.default_rng([seed, 1])
    x1, x2 = (random.standard_normal((n, *INPUTS[kind])) for n in (3, 2))
    found: dict[str, Any] = {"seed": seed, "inputs": kind, "network": text, "ratio": 0.0}
    mine, other = (eval(text, {"stax": stax}) for stax in (ours, theirs))
    for second in (x2, None):
        try:
            kernel = infinite_kernel(mine.layer, x1, second)
        except (ValueError, NotImplementedError) as error:
            return found | {"refused": str(error)}
        wanted = other[2](x1, second, ("nngp", "ntk"))
        distance, stated = np.asarray(kernel.distance), float(kernel.relative_error)
        for name in ("nngp", "ntk"):
            here, there = (np.asarray(getattr(one, name)) for one in (kernel, wanted))
            apart = np.abs(here - there) / np.abs(here).max()
            allowed = stated * np.minimum(distance, 1) + ROUNDING
            if second is None:
                allowed = allowed + DIAGONAL * np.eye(len(x1))
            found["ratio"] = max(found["ratio"], float(np.nan_to_num(apart / allowed, nan=np.inf).max()))
    return found


def main(networks: int, first: int) -> None:
    """Compares as many networks, and writes the result."""
    start, found = time.perf_counter(), []
    with as_neural_tangents_expects():
        theirs = reference.load().stax
        for seed in range(first, first + networks):
            jax.clear_caches()  # programs take maps of memory, of which a process has a limited number
            try:
                found.append(compared(seed, theirs))
            except Exception as error:  # either library may raise anything: that is a result
                kind, text = drawn(seed)
                found.append(
                    {"seed": seed, "inputs": kind, "network": text, "error": f"{type(error).__name__}: {error}"[:300]}
                )
            if found[-1].get("ratio", 2.0) > 1 or "refused" in found[-1]:
                print(found[-1], flush=True)
            print(f"{len(found)} of {networks}", end="\r", flush=True)
    same = [one for one in found if "ratio" in one and "refused" not in one]
    result = header("random networks by neural-tangents' names, kernels by both libraries, float64", 1) | {
        "networks": networks,
        "compared": len(same),
        "within the errors": sum(one["ratio"] <= 1 for one in same),
        "largest ratio of difference to error": max((one["ratio"] for one in same), default=0.0),
        "refused here": [one for one in found if "refused" in one],
        "raised": [one for one in found if "error" in one],
        "farthest": sorted(same, key=lambda one: -one["ratio"])[:KEPT],
        "seconds": round(time.perf_counter() - start),
    }
    print(
        {
            name: result[name]
            for name in ("compared", "within the errors", "largest ratio of difference to error", "seconds")
        }
    )
    write("random_networks", result)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", type=int, default=300)
    parser.add_argument("--first", type=int, default=0, help="seed of the first network")
    arguments = parser.parse_args()
    main(arguments.networks, arguments.first)
