"""What neural-tangents' kernel functions return: both kernels with what belongs to them, or what is asked for."""

from collections import namedtuple
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import numpy as np

from ntk_analysis.common.precision import HeldArray
from ntk_analysis.infinite import Kernel as OwnKernel
from ntk_analysis.layers import Layer

Get: TypeAlias = str | tuple[str, ...] | None
"""Names of what is wanted; None for the whole `Kernel`."""


@dataclass(frozen=True)
class Kernel:
    """The fields of neural-tangents' Kernel that a result has.

    Attributes:
        nngp: NNGP kernel (n1, n2, *pairs of positions); None where it was not asked for.
        ntk: tangent kernel of the same shape; None where it was not asked for.
        cov1: variances (n1, *positions) of the first inputs.
        cov2: variances (n2, *positions) of the second inputs; None for inputs with themselves.
        x1_is_x2: whether the second inputs are the first ones.
        is_gaussian: whether the outputs are Gaussian, as behind a layer of weights.
        shape1: shape of the first inputs.
        shape2: shape of the second inputs.
        origin: the layer and the inputs that it is of, from which a kernel function behind it goes on; None if it was
            changed.
    """

    nngp: HeldArray | None
    ntk: HeldArray | None
    cov1: HeldArray | None
    cov2: HeldArray | None
    x1_is_x2: bool
    is_gaussian: bool
    shape1: tuple[int, ...]
    shape2: tuple[int, ...]
    origin: tuple[Layer, Any, Any] | None = field(default=None, repr=False, compare=False)

    def replace(self, **changes: Any) -> "Kernel":
        """The kernel with other values of these fields."""
        return replace(self, origin=None, **changes)


def as_theirs(kernel: OwnKernel, layer: Layer, x1: Any, x2: Any) -> Kernel:
    """Our kernel of a layer and of these inputs as theirs."""
    shape1 = tuple(np.shape(x1))
    return Kernel(
        nngp=kernel.nngp,
        ntk=kernel.ntk,
        cov1=kernel.variance1,
        cov2=None if x2 is None else kernel.variance2,
        x1_is_x2=x2 is None,
        is_gaussian=kernel.law == "gaussian",
        shape1=shape1,
        shape2=shape1 if x2 is None else tuple(np.shape(x2)),
        origin=(layer, x1, x2),
    )


def taken(kernel: Any, get: Get) -> Any:
    """What `get` names: one field, a named tuple of several, or the whole.

    Raises:
        ValueError: a name is that of no field.
    """
    if get is None:
        return kernel
    names = (get,) if isinstance(get, str) else tuple(get)
    for name in names:
        if name not in vars(kernel):
            raise ValueError(f"got get={get!r}: choose of {', '.join(vars(kernel))}")
    if isinstance(get, str):
        return getattr(kernel, get)
    return namedtuple("Taken", names)(*(getattr(kernel, name) for name in names))
