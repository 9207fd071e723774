"""Tiles on all devices of this machine: one tile for each at a time, by JAX's own sharding.

Tiles are stacked along a new first axis, which is sharded over a mesh of the devices. So each device runs the program
that a single one would run, on arrays of the same shapes: the tiles do not depend on how many devices there are, and
neither does the plan.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache, partial
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ntk_analysis.empirical.functions import Network, Side
from ntk_analysis.empirical.layouts import Layout
from ntk_analysis.empirical.methods import Method
from ntk_analysis.empirical.plans import Call
from ntk_analysis.empirical.tiles import NETWORKS, Tiles, tile_programs
from ntk_analysis.stores.grid import Tile, padded_rows

EACH, ALL = PartitionSpec("tiles"), PartitionSpec()


class ShardedTiles(Tiles):
    """The tiles of a plan, computed as many at a time as there are devices."""

    def __init__(self, call: Call, devices: Sequence[jax.Device]) -> None:
        super().__init__(**call._asdict())
        self._mesh = Mesh(np.array(devices), ("tiles",))
        self._sharded = _sharded(call.f, call.plan.method, call.plan.layout, self._mesh, call.plan.coupled)
        with jax.enable_x64(self._float64):
            self._params = jax.device_put(self._params, NamedSharding(self._mesh, ALL))

    def several(self, todo: Sequence[Tile]) -> Iterator[tuple[Tile, np.ndarray]]:
        """Yields each of these tiles with its values, without padding.

        Every device takes consecutive tiles: as long as it can, it stays in its row, which it holds prepared.
        """
        devices = self._mesh.size
        rounds = -(-len(todo) // devices)
        rows, lefts = None, None
        for step in range(rounds):
            # devices that are done repeat the last tile
            batch = [todo[min(device * rounds + step, len(todo) - 1)] for device in range(devices)]
            with jax.enable_x64(self._float64):
                if rows != [i for i, _ in batch]:
                    rows, lefts = [i for i, _ in batch], None  # frees the old rows before the new ones are prepared
                    lefts = self._prepared(self._x1, rows, self.plan.rows)
                rights = self._prepared(self._x2, [j for _, j in batch], self.plan.columns)
                values = np.asarray(self._sharded.contract(self._params, lefts, rights))
            for device, (i, j) in enumerate(batch):
                if device * rounds + step < len(todo):
                    yield (i, j), self.finished(i, j, values[device])

    def _prepared(self, x: np.ndarray, indices: list[int], size: int) -> Any:
        rows = np.stack([padded_rows(index, size, len(x)) for index in indices])
        each = NamedSharding(self._mesh, EACH)
        if self.plan.coupled:
            batch = jax.device_put(x, NamedSharding(self._mesh, ALL))
            side = Side(batch, jax.device_put(rows.astype(np.int32), each))
        else:
            side = Side(jax.device_put(x[rows], each))
        return self._sharded.prepare(self._params, side)


@lru_cache(maxsize=NETWORKS)
def _sharded(f: Network, name: str, layout: Layout, mesh: Mesh, coupled: bool) -> Method:
    """The method applied to stacks of tiles, each device computing its own."""
    method = tile_programs(f, name, layout)
    side = Side(ALL, EACH) if coupled else Side(EACH)
    shard: Callable[..., Any] = partial(jax.shard_map, mesh=mesh, out_specs=EACH, check_vma=False)

    def prepare(params: Any, stacked: Side) -> Any:
        mine = Side(stacked.x, stacked.rows[0]) if coupled else Side(stacked.x[0])
        return jax.tree.map(lambda leaf: leaf[None], method.prepare(params, mine))

    def contract(params: Any, left: Any, right: Any) -> jax.Array:
        return method.contract(params, *jax.tree.map(lambda leaf: leaf[0], (left, right)))[None]

    return Method(
        name,
        jax.jit(shard(prepare, in_specs=(ALL, side))),
        jax.jit(shard(contract, in_specs=(ALL, EACH, EACH))),
    )
