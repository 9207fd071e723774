"""An infinite kernel by tiles, each a kernel of some inputs with others: what devices and workers compute for a store.

A tile is computed at once, or block by block where little fits into memory; what is said of tiles here holds of blocks.
Of a batch with itself a tile on the diagonal is the kernel of its inputs with themselves, and every other one of two
sets of inputs. Tiles of one kind are one program on arrays of one shape, so that a tile has the same bits whoever
computes it, and whichever tiles were computed before. What the program depends on is fixed when the job is made: the
size of the tiles, and the function of the angle, which is fitted once and sent along.
"""

import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import zip_longest
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ntk_analysis.infinite.angle_series import AngularFunction
from ntk_analysis.infinite.compute import Task, kernel_of, require_sound, through
from ntk_analysis.infinite.kernel import HasKernel, Kernel
from ntk_analysis.infinite.store_plan import PAIRS, StorePlan, joined, values_of
from ntk_analysis.stores.grid import Tile, Values, padded_rows
from ntk_analysis.stores.runs import Job


@dataclass(frozen=True, eq=False)
class InfiniteJob(Job):
    """A kernel to be computed by tiles.

    Attributes:
        task: the whole kernel; its inputs are NumPy arrays.
        function: the function of the angle that it is, or None.
        plan: plan of the tiles.
        float64: whether JAX computes in float64, which depends on the caller.
    """

    task: Task
    function: AngularFunction | None
    plan: StorePlan
    float64: bool

    facts = ("way", "law", "training", "symmetric", "dtype", "n1", "n2")

    @property
    def description(self) -> str:
        return f"infinite kernel {self.plan.n1} x {self.plan.n2}"

    @property
    def arrays(self) -> dict[str, Any]:
        return {"x1": self.task.x1, "x2": self.task.x2}

    @property
    def made_by(self) -> dict[str, str]:
        """The digest of the function of the angle, if the kernel is one."""
        if self.function is None:
            return {}
        digest = hashlib.sha256()
        for name, value in sorted(vars(self.function).items()):
            digest.update(name.encode() + (value.tobytes() if isinstance(value, np.ndarray) else repr(value).encode()))
        return {"series of the angle": digest.hexdigest()[:16]}

    def identity(self) -> dict[str, Any]:
        """The network as text, the values of functions in it at some points, and the options of the call."""
        at = np.linspace(-3, 3, 13)
        with jax.enable_x64(True):
            values = [np.asarray(phi(jnp.asarray(at))).tolist() for phi in _functions(self.task.network)]
        name = re.sub(r" at 0x[0-9a-f]+", "", repr(self.task.network))
        return {"name": name, "values": values, "exact": self.task.exact, "nodes": self.task.nodes}

    def difference(self, found: dict[str, Any], wanted: dict[str, Any], *, same_jax: bool) -> str:
        del same_jax
        if found["name"] != wanted["name"]:
            return f"the network is {_shortened(found['name'], wanted['name'])}"
        told = [f"{name} is {found[name]} there and {wanted[name]} here" for name in ("exact", "nodes")]
        told = [text for text, name in zip(told, ("exact", "nodes"), strict=True) if found[name] != wanted[name]]
        if not told and not np.allclose(found["values"], wanted["values"], rtol=1e-9, atol=1e-12, equal_nan=True):
            told = ["a function in the network has other values"]
        return "; ".join(told)

    def tiles(self) -> Callable[[int, int], Values]:
        with jax.enable_x64(self.float64):
            whole = self._on_device()

        def tile(i: int, j: int) -> Values:
            with jax.enable_x64(self.float64):
                if self.plan.count == 1:
                    return values_of(kernel_of(whole), self.plan.n1, self.plan.n2)
                return self._joined(i, j, [self.computed(*at) for at in self.plan.blocks(i, j)])

        return tile

    def several(self, todo: Sequence[Tile], devices: Sequence[jax.Device]) -> Iterator[tuple[Tile, Values]]:
        # the program of one device on each, not one program over all of them: that would round in another way
        for start in range(0, len(todo), len(devices)):
            batch = todo[start : start + len(devices)]
            blocks, found = [self.plan.blocks(*tile) for tile in batch], [list[Values]() for _ in batch]
            with jax.enable_x64(self.float64):
                for one_each in zip_longest(*blocks):
                    of_devices = [
                        (values, at, on) for values, at, on in zip(found, one_each, devices, strict=False) if at
                    ]
                    begun = [self._begun(rows, columns, on) for _, (rows, columns), on in of_devices]
                    for (values, (rows, columns), _), kernel in zip(of_devices, begun, strict=True):
                        values.append(self._finished(rows, columns, kernel))
                for tile, values in zip(batch, found, strict=True):
                    yield tile, self._joined(*tile, values)

    def computed(self, rows: slice, columns: slice) -> Values:
        """What a store keeps of a block."""
        return self._finished(rows, columns, self._begun(rows, columns))

    def _begun(self, rows: slice, columns: slice, device: jax.Device | None = None) -> Kernel:
        """The kernel of a block, which a device goes on to compute while this process goes on."""
        first, second = (x if x is None else jax.device_put(x, device) for x in self.inputs(rows, columns))
        assert first is not None, "a block has first inputs"
        return tile_kernel(self.task.network, self.function, first, second)

    def on_host(self) -> "InfiniteJob":
        return self

    def _on_device(self) -> Task:
        if self.plan.count > 1:  # then the inputs of a tile are sent when they are needed
            return self.task
        x2 = None if self.task.x2 is None else jnp.asarray(self.task.x2)
        return self.task._replace(x1=jnp.asarray(self.task.x1), x2=x2)

    def inputs(self, rows: slice, columns: slice) -> tuple[np.ndarray, np.ndarray | None]:
        """The inputs of a block, filled up; where they are some inputs with themselves none twice and no second."""
        x1 = np.asarray(self.task.x1)
        if self._on_diagonal(rows, columns):
            return x1[rows], None
        x2 = x1 if self.task.x2 is None else np.asarray(self.task.x2)
        first, second = (
            padded_rows(start // size, size, n)
            for start, size, n in zip((rows.start, columns.start), self.plan.block, self.plan.shape, strict=True)
        )
        return x1[first], x2[second]

    def _on_diagonal(self, rows: slice, columns: slice) -> bool:
        return self.plan.symmetric and rows == columns

    def _finished(self, rows: slice, columns: slice, kernel: Kernel) -> Values:
        """What a store keeps of a block, which is finite, without its padding."""
        first, second = self.inputs(rows, columns)
        require_sound(self.task.network, kernel, first, second, corner=(rows.start, columns.start))
        return values_of(kernel, rows.stop - rows.start, columns.stop - columns.start)

    def _joined(self, i: int, j: int, blocks: Sequence[Values]) -> Values:
        """What a store keeps of a tile, of its blocks; symmetric ones are so to the last bit."""
        rows, columns = self.plan.slices(i, j)
        places = [
            (slice(r.start - rows.start, r.stop - rows.start), slice(c.start - columns.start, c.stop - columns.start))
            for r, c in self.plan.blocks(i, j)
        ]
        found = joined(blocks, places)
        if self._on_diagonal(rows, columns):
            found |= {name: np.triu(found[name]) + np.triu(found[name], 1).T for name in PAIRS}
        return found


@partial(jax.jit, static_argnums=(0, 1))
def tile_kernel(network: HasKernel, function: AngularFunction | None, x1: jax.Array, x2: jax.Array | None) -> Kernel:
    """The kernel of the inputs of a tile; the same bits for the same inputs, function, machine and versions."""
    return through(network, function, x1, x2)


def _functions(part: Any) -> Iterator[Callable[..., Any]]:
    """The functions that a network holds, layer by layer."""
    yield from (value for value in vars(part).values() if callable(value) and not hasattr(value, "kernel"))
    for inner in getattr(part, "parts", ()):
        yield from _functions(inner)


def _shortened(there: str, here: str, length: int = 60) -> str:
    """Two long names from where they begin to differ."""
    start = max(0, next((k for k, (a, b) in enumerate(zip(there, here, strict=False)) if a != b), 0) - length // 2)
    before, end = "..." * (start > 0), start + length
    parts = [f"{before}{name[start:end]}{'...' * (len(name) > end)}" for name in (there, here)]
    return f"{parts[0]} there and {parts[1]} here"
