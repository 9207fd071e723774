"""An empirical kernel as a job for devices and workers, and its place in memory."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from ntk_analysis.empirical.identity import identity, same_function
from ntk_analysis.empirical.plans import KERNEL, Call, TilePlan
from ntk_analysis.empirical.sharded import ShardedTiles
from ntk_analysis.empirical.tiles import Tiles
from ntk_analysis.stores.grid import Tile, Values
from ntk_analysis.stores.runs import Job, Sink


@dataclass(frozen=True, eq=False)
class EmpiricalJob(Job):
    """The tiles of a call."""

    call: Call

    facts = ("which", "layout", "method", "coupled", "symmetric", "dtype", "n1", "n2", "outputs")

    @property
    def plan(self) -> TilePlan:  # type: ignore[override]
        """The plan of the call."""
        return self.call.plan

    @property
    def description(self) -> str:
        return f"empirical {self.plan.which} {self.plan.n1} x {self.plan.n2}"

    @property
    def arrays(self) -> dict[str, Any]:
        return {"params": self.call.params, "x1": self.call.x1, "x2": self.call.x2}

    def identity(self) -> dict[str, Any]:
        return identity(self.call)

    def difference(self, found: dict[str, Any], wanted: dict[str, Any], *, same_jax: bool) -> str:
        if same_function(found, wanted, same_jax=same_jax):
            return ""
        return f"f is another function ({found['name']} there, {wanted['name']} here)"

    def tiles(self) -> Callable[[int, int], Values]:
        tiles = Tiles(**self.call._asdict())
        return lambda i, j: {KERNEL: tiles(i, j)}

    def several(self, todo: Sequence[Tile], devices: Sequence[jax.Device]) -> Iterator[tuple[Tile, Values]]:
        return ((tile, {KERNEL: values}) for tile, values in ShardedTiles(self.call, devices).several(todo))

    def on_host(self) -> "EmpiricalJob":
        params, x1, x2 = jax.tree.map(np.asarray, (self.call.params, self.call.x1, self.call.x2))
        return EmpiricalJob(self.call._replace(params=params, x1=x1, x2=x2))


@dataclass(frozen=True)
class Held(Sink):
    """A kernel in the host's memory, as a place for its tiles."""

    values: np.ndarray
    plan: TilePlan

    def write(self, i: int, j: int, tile: Values) -> None:
        self.plan.place(self.values, i, j, tile[KERNEL])
