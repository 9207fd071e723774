"""An infinite kernel by tiles, each a kernel of some inputs with others: what devices and workers compute for a store.

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
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ntk_analysis.infinite.angle_series import AngularFunction
from ntk_analysis.infinite.compute import Task, kernel_of, require_sound, through
from ntk_analysis.infinite.kernel import HasKernel, Kernel
from ntk_analysis.infinite.store_plan import PAIRS, StorePlan, values_of
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

        def computed(i: int, j: int) -> Values:
            with jax.enable_x64(self.float64):
                if self.plan.count == 1:
                    return values_of(kernel_of(whole), self.plan.n1, self.plan.n2)
                return self._finished(i, j, self._begun(i, j))

        return computed

    def several(self, todo: Sequence[Tile], devices: Sequence[jax.Device]) -> Iterator[tuple[Tile, Values]]:
        # the program of one device on each, not one program over all of them: that would round in another way
        for start in range(0, len(todo), len(devices)):
            batch = list(zip(todo[start : start + len(devices)], devices, strict=False))
            with jax.enable_x64(self.float64):
                begun = [self._begun(*tile, device) for tile, device in batch]
                for (tile, _), kernel in zip(batch, begun, strict=True):
                    yield tile, self._finished(*tile, kernel)

    def _begun(self, i: int, j: int, device: jax.Device | None = None) -> Kernel:
        """The kernel of a tile, which a device goes on to compute while this process goes on."""
        first, second = (x if x is None else jax.device_put(x, device) for x in self.inputs(i, j))
        assert first is not None, "a tile has first inputs"
        return tile_kernel(self.task.network, self.function, first, second)

    def on_host(self) -> "InfiniteJob":
        return self

    def _on_device(self) -> Task:
        if self.plan.count > 1:  # then the inputs of a tile are sent when they are needed
            return self.task
        x2 = None if self.task.x2 is None else jnp.asarray(self.task.x2)
        return self.task._replace(x1=jnp.asarray(self.task.x1), x2=x2)

    def _on_diagonal(self, i: int, j: int) -> bool:
        return self.plan.symmetric and i == j

    def inputs(self, i: int, j: int) -> tuple[np.ndarray, np.ndarray | None]:
        """The inputs of a tile, filled up; on the diagonal of inputs with themselves none twice, and no second ones."""
        x1 = np.asarray(self.task.x1)
        if self._on_diagonal(i, j):
            return x1[self.plan.slices(i, j)[0]], None
        x2 = x1 if self.task.x2 is None else np.asarray(self.task.x2)
        return x1[padded_rows(i, self.plan.rows, len(x1))], x2[padded_rows(j, self.plan.columns, len(x2))]

    def _finished(self, i: int, j: int, kernel: Kernel) -> Values:
        """What a store keeps of a tile, which is finite, without its padding; symmetric ones are so to the last bit."""
        rows, columns = self.plan.slices(i, j)
        first, second = self.inputs(i, j)
        corner = (rows.start, columns.start)
        require_sound(self.task.network, kernel, first, second, corner=corner)
        found = values_of(kernel, rows.stop - rows.start, columns.stop - columns.start)
        if self._on_diagonal(i, j):
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
