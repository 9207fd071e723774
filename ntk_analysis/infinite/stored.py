"""An infinite kernel on disk, read where it is indexed."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Float

from ntk_analysis.common.memory import require_memory
from ntk_analysis.infinite.kernel import Kernel
from ntk_analysis.infinite.store_plan import OF_FIRST, OF_SECOND, OF_TILES, SCALES, StorePlan
from ntk_analysis.stores.store import KernelStore, Stored

ARRAYS = 3  # of the kernel's size that are in memory at once when its NNGP or NTK is made of what is stored


@dataclass(frozen=True, repr=False)
class StoredKernel:
    """NNGP and NTK of an infinitely wide network in a store, with the numbers of the tiles that were computed.

    `kernel[rows]` and `kernel[rows, columns]` read a part, as a `Kernel` in memory; `kernel[:]` reads all of it. Every
    analysis takes a stored kernel as it takes a `Kernel`. To read what is damaged raises ValueError.

    Attributes:
        store: store of the kernel.
    """

    store: KernelStore

    @property
    def plan(self) -> StorePlan:
        """The plan with tiles and cost."""
        assert isinstance(self.store.plan, StorePlan), "the store is of an infinite kernel"
        return self.store.plan

    @property
    def shape(self) -> tuple[int, int]:
        """Numbers of first and second inputs."""
        return self.plan.shape

    @property
    def dtype(self) -> np.dtype:
        """Dtype of the kernel."""
        return self.plan.dtype

    @property
    def distance(self) -> Stored:
        """The cosine distances (n1, n2), as in `Kernel`, read where they are indexed."""
        return self.store.arrays["distance"]

    @property
    def log_scale(self) -> np.floating:
        """Logarithm of the scale of the NTK: the largest of all tiles."""
        return self.dtype.type(self._of_tiles["log_scale"].max())

    @property
    def relative_error(self) -> np.floating:
        """Largest relative error of a distance, as in `Kernel`."""
        return self.dtype.type(self._of_tiles["relative_error"].max())

    @property
    def approximation_error(self) -> float:
        """Largest error as a function of the angle, as in `Kernel`."""
        return float(self._of_tiles["approximation_error"].max())

    @property
    def ntk_scaled(self) -> Float[np.ndarray, "n1 n2"]:
        """The whole NTK times exp(-log_scale), in memory."""
        self._require_memory()
        return self.scaled(slice(None), slice(None))

    @property
    def ntk(self) -> Float[np.ndarray, "n1 n2"]:
        """The whole NTK, in memory; errors as `Kernel.ntk`."""
        return np.asarray(self[:].ntk)

    @property
    def nngp(self) -> Float[np.ndarray, "n1 n2"]:
        """The whole NNGP, in memory."""
        return np.asarray(self[:].nngp)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.ntk, dtype=dtype, copy=copy)

    def __len__(self) -> int:
        return self.plan.n1

    def __getitem__(self, inputs: Any) -> Kernel:
        """The kernel of some inputs, in memory: kernel[rows] or kernel[rows, columns], by slices or arrays.

        Arrays are read as what lies between their smallest and largest number.

        Raises:
            TypeError: as `Kernel.__getitem__`.
            MemoryError: the part does not fit.
        """
        rows, columns = inputs if isinstance(inputs, tuple) and len(inputs) == 2 else (inputs, slice(None))
        for index in (rows, columns):
            if isinstance(index, tuple) or not (isinstance(index, slice) or np.ndim(index) == 1):
                raise TypeError(
                    f"got kernel[{inputs}], expected kernel[rows] or kernel[rows, columns] of slices or arrays: one "
                    "input is a slice, kernel[3:4]"
                )
        first, second = np.arange(self.plan.n1)[rows], np.arange(self.plan.n2)[columns]
        self._require_memory(len(first), len(second))
        box = (_from_to(first), _from_to(second))
        inner = np.ix_(first - box[0].start, second - box[1].start)
        known: dict[str, Any] = {name: self._sides[name][first] for name in OF_FIRST}
        known |= {name: self._sides[name][second] for name in OF_SECOND}
        known |= {"distance": self.distance[box][inner], "ntk_scaled": self.scaled(*box)[inner]}
        known |= {"log_scale": self.log_scale, "relative_error": self.relative_error}
        whole = self.plan.training if (len(first), len(second)) == self.shape else None
        return Kernel(
            **known,
            law=self.plan.law,  # type: ignore[arg-type]
            joint=self.plan.symmetric and np.array_equal(first, second),
            training=whole,
            approximation_error=self.approximation_error,
        )

    @property
    def train(self) -> Kernel:
        """The kernel of the training inputs with themselves, as `Kernel.train`."""
        return self[:].train

    @property
    def cross(self) -> Kernel:
        """The kernel of the new points with the training inputs, as `Kernel.cross`."""
        return self[:].cross

    @property
    def test(self) -> Kernel:
        """The kernel of the new points with themselves, as `Kernel.test`."""
        return self[:].test

    def scaled(self, rows: slice, columns: slice) -> Float[np.ndarray, "m1 m2"]:
        """The NTK of these rows and columns, times exp(-log_scale)."""
        values = self.store.arrays["ntk_scaled"][rows, columns]
        logs = self._of_tiles["log_scale"]
        if (logs == logs[0, 0]).all():
            return values
        factors = np.exp(logs - logs.max()).astype(self.dtype)
        n1, n2 = self.shape
        tiles = (np.arange(n1)[rows] // self.plan.rows, np.arange(n2)[columns] // self.plan.columns)
        return values * factors[np.ix_(*tiles)]

    def summary(self) -> str:
        """The plan as one line of text."""
        return f"infinite {self.plan.summary()}"

    def __repr__(self) -> str:
        return f"<{self.summary()}, in {self.store.path}>"

    @cached_property
    def _of_tiles(self) -> dict[str, np.ndarray]:
        """The numbers of each tile, by name."""
        return dict(zip(OF_TILES, np.moveaxis(np.asarray(self.store.arrays[SCALES]), -1, 0), strict=True))

    @cached_property
    def _sides(self) -> dict[str, np.ndarray]:
        """The arrays of single inputs, by name."""
        return {name: np.asarray(self.store.arrays[name]) for name in (*OF_FIRST, *OF_SECOND)}

    def _require_memory(self, rows: int | None = None, columns: int | None = None) -> None:
        n1, n2 = (n if asked is None else asked for n, asked in zip(self.shape, (rows, columns), strict=True))
        needed = ARRAYS * n1 * n2 * self.dtype.itemsize
        require_memory(needed, f"{n1} x {n2} of the kernel in {self.store.path}", "read a part, as in kernel[:1000]")


def _from_to(numbers: np.ndarray) -> slice:
    """The slice from the smallest to the largest number."""
    return slice(int(numbers.min()), int(numbers.max()) + 1) if len(numbers) else slice(0, 0)
