"""Averages over some draws as a job for devices and workers, and its place in memory."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ntk_analysis.common.finite import require_finite
from ntk_analysis.common.memory import gib
from ntk_analysis.empirical.functions import Side, name_of, shortened
from ntk_analysis.empirical.identity import identity, same_function
from ntk_analysis.empirical.plans import Call, TilePlan
from ntk_analysis.layers.base import Shape
from ntk_analysis.monte_carlo.ensemble import Ensemble, Sums, draw_program, sums_program
from ntk_analysis.stores.grid import Grid, Part, Tile, Values, padded_rows
from ntk_analysis.stores.manifest import Manifest, fields_of
from ntk_analysis.stores.runs import Job, Sink

AT_ONCE = 256  # draws that one program sums; sums of more are added up in float64
ARRAYS = ("nngp", "ntk", "nngp_spread", "ntk_spread")


@dataclass(frozen=True)
class DrawsPlan(Grid):
    """The cut of a kernel (n1, n2), summed over some draws, into tiles.

    Attributes:
        n1: number of inputs of the rows.
        n2: number of inputs of the columns.
        symmetric: whether the second inputs are the first ones.
        dtype: dtype of the networks; sums are float64.
        seed: seed of all draws.
        first: number of the first draw.
        last: number behind that of the last draw.
        method: name of the method that computes the NTK, as in `empirical_ntk`.
        coupled: whether the network couples the batch.
        rows: number of inputs in the rows of a tile; the last tile is padded.
        columns: number of inputs in the columns of a tile.
        memory_bytes: the most bytes that one tile takes on the device at one time.
    """

    kind = "monte carlo"

    n1: int
    n2: int
    symmetric: bool
    dtype: np.dtype
    seed: int
    first: int
    last: int
    method: str
    coupled: bool
    rows: int
    columns: int
    memory_bytes: int

    @classmethod
    def of(cls, found: Manifest) -> "DrawsPlan":
        """The plan that the manifest of a store describes."""
        return cls(**fields_of(found, tuple(field.name for field in fields(cls))))

    @property
    def parts(self) -> tuple[Part, ...]:
        """The arrays: means of NNGP and NTK, and the sums of squared deviations from them."""
        wide = np.dtype(np.float64)
        return tuple(Part(name, (self.n1, self.n2), (self.rows, self.columns), wide) for name in ARRAYS)

    def summary(self) -> str:
        """The plan as one line of text."""
        return (
            f"nngp and ntk ({self.n1}, {self.n2}) of draws {self.first} to {self.last - 1} by {self.method}: "
            f"{self.count} tiles of {self.rows} x {self.columns}, {gib(self.memory_bytes)} each"
        )


@dataclass(frozen=True, eq=False)
class MonteCarloJob(Job):
    """Sums over draws, by tiles; tile (i, j) goes through all draws.

    Attributes:
        ensemble: networks to draw.
        x1: inputs of the rows, NumPy.
        x2: inputs of the columns; None if they are those of the rows.
        plan: plan of the tiles.
        outputs: number of outputs of a network.
        float64: whether JAX computes in float64, which depends on the caller.
    """

    ensemble: Ensemble
    x1: np.ndarray
    x2: np.ndarray | None
    plan: DrawsPlan
    outputs: int
    float64: bool

    facts = ("seed", "first", "last", "method", "coupled", "symmetric", "dtype", "n1", "n2")

    @property
    def description(self) -> str:
        return f"Monte Carlo kernel {self.plan.n1} x {self.plan.n2}, {self.plan.last} draws"

    @property
    def arrays(self) -> dict[str, Any]:
        return {"x1": self.x1, "x2": self.x2}

    @property
    def shape(self) -> Shape:
        """Shape of the inputs, with the batch axis."""
        return self.x1.shape

    def identity(self) -> dict[str, Any]:
        """The description of the first draw as a function, which a change of `init` or of `apply` changes."""
        with jax.enable_x64(self.float64):
            params = draw_program(self.ensemble, self.shape)(jax.random.key(self.plan.seed), jnp.int32(self.plan.first))
        known = {name: getattr(self.plan, name) for name in ("n1", "n2", "method", "coupled", "symmetric", "dtype")}
        cut = {name: getattr(self.plan, name) for name in ("rows", "columns", "memory_bytes")}
        plan = TilePlan(
            **known, **cut, outputs=self.outputs, layout="trace", which="ntk", flops=0.0, budget_bytes=0, coupling=""
        )
        return identity(Call(self.ensemble.f, params, self.x1, self.x2, plan, self.float64))

    def difference(self, found: dict[str, Any], wanted: dict[str, Any], *, same_jax: bool) -> str:
        if same_function(found, wanted, same_jax=same_jax):
            return ""
        return f"the network is another one ({found['name']} there, {wanted['name']} here)"

    def tiles(self) -> Callable[[int, int], Values]:
        return lambda i, j: self._finished(i, j, self._begun(i, j))

    def several(self, todo: Sequence[Tile], devices: Sequence[jax.Device]) -> Iterator[tuple[Tile, Values]]:
        for start in range(0, len(todo), len(devices)):
            batch = list(zip(todo[start : start + len(devices)], devices, strict=False))
            begun = [self._begun(*tile, device) for tile, device in batch]
            for (tile, _), sums in zip(batch, begun, strict=True):
                yield tile, self._finished(*tile, sums)

    def on_host(self) -> "MonteCarloJob":
        return self

    def _begun(self, i: int, j: int, device: jax.Device | None = None) -> list[tuple[int, Sums]]:
        """The sums over at most 256 draws each, with their numbers, which a device goes on to compute."""
        plan, program = self.plan, sums_program(self.ensemble, self.shape, self.plan.method)
        x2 = self.x1 if self.x2 is None else self.x2
        with jax.enable_x64(self.float64):
            left = jax.device_put(self._side(self.x1, i, plan.rows), device)
            right = None
            if not (plan.symmetric and i == j):
                right = jax.device_put(self._side(x2, j, plan.columns), device)
            key, starts = jax.random.key(plan.seed), range(plan.first, plan.last, AT_ONCE)
            ends = [min(start + AT_ONCE, plan.last) for start in starts]
            return [
                (end - start, program(key, jnp.int32(start), jnp.int32(end), left, right))
                for start, end in zip(starts, ends, strict=True)
            ]

    def _finished(self, i: int, j: int, begun: list[tuple[int, Sums]]) -> Values:
        count, total = 0, Sums(np.zeros(()), np.zeros(()))
        for draws, sums in begun:
            wide = Sums(*(np.asarray(part, np.float64) for part in sums))
            count, total = count + draws, added(count, total, draws, wide)
        rows, columns = self.plan.slices(i, j)
        cut = [part[:, : rows.stop - rows.start, : columns.stop - columns.start] for part in total]
        if self.plan.symmetric and i == j:
            cut = [(part + part.swapaxes(1, 2)) / 2 for part in cut]
        found = dict(zip(ARRAYS, (*cut[0], *cut[1]), strict=True))
        for name in ARRAYS:
            what = f"the mean {name.partition('_')[0].upper()} of {shortened(name_of(self.ensemble.f))} over draws"
            require_finite(found[name], what, rows=rows.start, columns=columns.start)
        return found

    def _side(self, x: np.ndarray, index: int, size: int) -> Side:
        rows = padded_rows(index, size, len(x))
        if self.plan.coupled:
            return Side(jnp.asarray(x), jnp.asarray(rows, jnp.int32))
        return Side(jnp.asarray(x[rows]))


@dataclass(frozen=True)
class Held(Sink):
    """The sums in the host's memory, as a place for their tiles."""

    values: Values
    plan: DrawsPlan

    @classmethod
    def room(cls, plan: DrawsPlan) -> "Held":
        """Room for all arrays of the plan."""
        return cls({part.name: np.empty(part.shape, part.dtype) for part in plan.parts}, plan)

    def write(self, i: int, j: int, tile: Values) -> None:
        for name, values in tile.items():
            self.plan.place(self.values[name], i, j, values)


def added(count: int, sums: Sums, more: int, others: Sums) -> Sums:
    """The sums over `count` + `more` draws of those over each (Chan, Golub & LeVeque 1983, Am. Stat. 37, 242)."""
    off, share = others.mean - sums.mean, more / (count + more)
    return Sums(sums.mean + share * off, sums.spread + others.spread + count * share * off**2)
