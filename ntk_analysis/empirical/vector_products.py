"""Products of a network's tangent kernel with vectors: the kernel of any size is never formed.

With the Jacobian J (N C, P) of the outputs by the parameters, the kernel is J J^T, and a product with a vector is
    J (J^T v),
one reverse-mode derivative, whose result has the shape of the parameters, and one forward-mode derivative along it
(Pearlmutter 1994; Novak et al. 2022, 2206.08720). It costs some six passes through the network, and no memory beyond
theirs.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float64

from ntk_analysis.common.cost import described, program_cost
from ntk_analysis.common.finite import all_finite
from ntk_analysis.common.memory import gib, memory_budget
from ntk_analysis.common.precision import AnyArray, numpy_in_float64
from ntk_analysis.common.pytrees import Tree
from ntk_analysis.empirical.coupling import coupling
from ntk_analysis.empirical.functions import Flat, Network, count_outputs, flattened, name_of, precise, shortened
from ntk_analysis.empirical.methods import forward_mode
from ntk_analysis.empirical.roundings import one_rounding_off, program_rounding
from ntk_analysis.empirical.tiles import AS_STATED, checked_call, computes_in_float64
from ntk_analysis.layers.base import Params
from ntk_analysis.stores.grid import padded_rows

Vector: TypeAlias = Float64[np.ndarray, " m"]
"""Numbers of all outputs on all inputs, (N C,), input by input."""


class Programs(NamedTuple):
    """Compiled derivatives of a network on a chunk of inputs.

    Attributes:
        outputs: function (params, x) -> (n, C).
        backward: function (params, x, v, total) -> total + J^T v, a tree like params.
        forward: function (params, x, u) -> J u, (n, C).
        memory_bytes: the most bytes that one of the two derivatives takes, arguments and results included, as the
            compiler reports it.
    """

    outputs: Callable[..., jax.Array]
    backward: Callable[..., Tree]
    forward: Callable[..., jax.Array]
    memory_bytes: int


@dataclass(frozen=True, eq=False)
class VectorProducts:
    """The tangent kernel of a network on N inputs, as a function of vectors (N C,); `vector_products` makes it.

    Attributes:
        f: the network.
        params: parameters, on the device.
        x: inputs (N, ...), on the host.
        outputs: number C of outputs.
        dtype: dtype of the network's outputs, in which it computes.
        coupling: text that says what couples the outputs of the batch; empty if nothing does.
        rows: number of inputs that go through the network at once: all of them where the batch is coupled.
        programs: compiled derivatives for so many inputs.
        float64: whether it computes with JAX's flag for float64 on.
    """

    f: Network
    params: Params
    x: np.ndarray
    outputs: int
    dtype: np.dtype
    coupling: str
    rows: int
    programs: Programs
    float64: bool

    @property
    def size(self) -> int:
        """The number N C of rows of the kernel."""
        return len(self.x) * self.outputs

    @property
    def memory_bytes(self) -> int:
        """The most bytes that a product takes on the device, as the compiler reports it."""
        return self.programs.memory_bytes

    def __call__(self, v: Vector) -> Vector:
        """The kernel times v, (N C,), in float64 with the digits of `dtype`.

        Raises:
            ValueError: the product is NaN or infinite.
        """
        return self.forward(self.backward(v))

    def backward(self, v: Vector) -> Tree:
        """J^T v, a tree like params, on the device."""
        with jax.enable_x64(self.float64):
            total = jax.tree.map(jnp.zeros_like, self.params)
            for rows, kept in self._chunks():
                cotangent = np.zeros((self.rows, self.outputs), self.dtype)
                cotangent[: kept.stop - kept.start] = np.reshape(v, (-1, self.outputs))[kept]
                total = self.programs.backward(self.params, self.x[rows], cotangent, total)
        return total

    def forward(self, u: Tree) -> Vector:
        """J u for a direction u of the parameters, (N C,).

        Raises:
            ValueError: the result is NaN or infinite.
        """
        found = np.empty((len(self.x), self.outputs))
        with jax.enable_x64(self.float64):
            for rows, kept in self._chunks():
                found[kept] = self.programs.forward(self.params, self.x[rows], u)[: kept.stop - kept.start]
        if not all_finite(found):
            raise ValueError(
                f"a product with the tangent kernel of {shortened(name_of(self.f))} is NaN or infinite: check "
                "parameters and inputs, or compute in float64"
            )
        return found.reshape(-1)

    def values(self) -> Float64[np.ndarray, "n C"]:
        """The network's outputs."""
        found = np.empty((len(self.x), self.outputs))
        with jax.enable_x64(self.float64):
            for rows, kept in self._chunks():
                found[kept] = self.programs.outputs(self.params, self.x[rows])[: kept.stop - kept.start]
        return found

    def one_rounding_off(self, seed: int = 0) -> "VectorProducts":
        """The products of parameters and inputs that are changed by one rounding, which show what becomes of it."""
        with jax.enable_x64(self.float64):
            eps = program_rounding(flattened(self.f), self.params, self.x[: self.rows])
            params, x = one_rounding_off((self.params, self.x), eps, seed)
            return replace(self, params=jax.tree.map(jnp.asarray, params), x=x)

    def _chunks(self) -> Iterator[tuple[np.ndarray, slice]]:
        """The numbers of the inputs of each chunk, of which the last repeats its last one, and the rows they fill."""
        n = len(self.x)
        for index, start in enumerate(range(0, n, self.rows)):
            yield padded_rows(index, self.rows, n), slice(start, min(start + self.rows, n))


@numpy_in_float64
def vector_products(
    f: Network, params: Params, x: AnyArray, *, coupled: bool | str = "detect", memory: str | int | None = None
) -> VectorProducts:
    """Compiles the products of a network's tangent kernel with vectors.

    Inputs go through the network in chunks that fit into the memory. A batch that is coupled goes through as a whole.
    Then the reverse mode keeps the results of matrix products and convolutions only, and computes what lies between
    them again; compilers for CPUs undo that, and for a ResNet18 of 1,000 CIFAR images need no more without it.

    Args:
        f: a network of layers, or a pure JAX function f(params, x) -> (n, ...) floats.
        params: tree of float arrays; the kernel is taken over all of them.
        x: inputs (N, ...).
        coupled: whether an output depends on the other inputs of its batch: True, False or "detect", as for
            `empirical_ntk`.
        memory: memory that a product may take: bytes, "4GiB", or None for half of what is free.

    Raises:
        TypeError, ValueError: an argument is refused, as by `empirical_ntk`.
        MemoryError: the whole batch if it is coupled, or else a single input, needs more than the memory.
    """
    inputs, _ = checked_call(f, params, x, None, coupled=coupled)
    if any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves((params, inputs))):
        raise TypeError("params or x are descriptions of arrays (ShapeDtypeStruct), expected the arrays themselves")
    budget, n = memory_budget(memory), len(inputs)
    outputs, dtype = count_outputs(f, params, _described(inputs, n))
    why = coupling(f, params, inputs, budget=budget) if coupled == "detect" else AS_STATED if coupled else ""
    flat = precise(flattened(f))
    if why:
        flat, rows = _rematerialised(flat), n
    else:
        chunk = _largest_chunk(flat, params, inputs, outputs, dtype, budget)
        rows = -(-n // -(-n // chunk))  # chunks of about the same size
    params = jax.tree.map(jnp.asarray, params)
    programs = _compiled(flat, params, _described(inputs, rows), outputs, dtype)
    if programs.memory_bytes > budget:
        what = f"the batch of {n} inputs, coupled ({why})," if why else f"{rows} inputs at once"
        raise MemoryError(
            f"a product with the tangent kernel on {what} needs {gib(programs.memory_bytes)}, {gib(budget)} are "
            f"allowed: give memory=, fewer inputs{', or evaluation mode' if why else ''}"
        )
    return VectorProducts(f, params, inputs, outputs, dtype, why, rows, programs, computes_in_float64(params, inputs))


def _compiled(flat: Flat, params: Params, x: Any, outputs: int, dtype: np.dtype) -> Programs:
    v = described((x.shape[0], outputs), dtype)
    backward = _program(partial(_backward, flat), params, x, v, params)
    try:
        with forward_mode():
            forward = _program(partial(_forward, flat), params, x, params)
    except NotImplementedError:
        forward = _program(partial(_reverse_twice, flat), params, x, params)
    return Programs(_program(flat, params, x), backward, forward, max(_memory(backward), _memory(forward)))


def _program(function: Callable[..., Any], *arguments: Any) -> Any:
    return jax.jit(function).lower(*arguments).compile()


def _backward(flat: Flat, params: Params, x: Any, v: jax.Array, total: Tree) -> Tree:
    _, pull = jax.vjp(lambda params: flat(params, x), params)
    return jax.tree.map(jnp.add, total, pull(v)[0])


def _forward(flat: Flat, params: Params, x: Any, u: Tree) -> jax.Array:
    return jax.jvp(lambda params: flat(params, x), (params,), (u,))[1]


def _reverse_twice(flat: Flat, params: Params, x: Any, u: Tree) -> jax.Array:
    """J u as the derivative of <J^T v, u> by v: for functions without forward mode."""
    y, pull = jax.vjp(lambda params: flat(params, x), params)
    return jax.vjp(lambda v: pull(v)[0], jnp.zeros_like(y))[1](u)[0]


def _rematerialised(flat: Flat) -> Flat:
    def keeps(primitive: Any, *_: Any, **__: Any) -> bool:
        return primitive.name in ("conv_general_dilated", "dot_general")

    return lambda params, x: jax.checkpoint(lambda params: flat(params, x), policy=keeps)(params)


def _largest_chunk(flat: Flat, params: Params, x: np.ndarray, outputs: int, dtype: np.dtype, budget: int) -> int:
    """The most inputs whose reverse mode fits into the budget, counted on the program, which needs less once compiled.

    Raises:
        MemoryError: not even one does.
    """
    one, two = (
        program_cost(partial(_backward, flat), params, _described(x, rows), described((rows, outputs), dtype), params)[
            0
        ].memory_bytes
        for rows in (1, 2)
    )
    each = max(two - one, 1)
    if one > budget:
        raise MemoryError(
            f"a product with the tangent kernel on one input needs {gib(one)}, {gib(budget)} are allowed: give memory="
        )
    return min(len(x), 1 + (budget - one) // each)


def _memory(program: Any) -> int:
    """Bytes of a compiled program's arguments, results and intermediate arrays."""
    told = program.memory_analysis()
    return int(told.temp_size_in_bytes + told.argument_size_in_bytes + told.output_size_in_bytes)


def _described(x: np.ndarray, rows: int) -> jax.ShapeDtypeStruct:
    return described((rows, *x.shape[1:]), jax.dtypes.canonicalize_dtype(x.dtype))
