"""Whether a layer keeps what its class states: shapes, coupling of the batch, and its kernel, by finite networks."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ntk_analysis.empirical.coupling import coupling
from ntk_analysis.infinite import infinite_kernel
from ntk_analysis.infinite.kernel import MOST_DIMENSIONS
from ntk_analysis.layers import Activation, Conv, Dense, Flatten, Layer, Serial
from ntk_analysis.layers.base import Shape
from ntk_analysis.monte_carlo.average import monte_carlo_kernel
from ntk_analysis.monte_carlo.comparison import compare

ROUNDINGS = 100  # of float64, by which two ways to compute one output may differ
FEWEST_INPUTS = 3  # with fewer, a norm over the batch is hardly one
PATCH = 3  # side of the convolutions before a layer of images


@dataclass(frozen=True)
class LayerCheck:
    """What was found of a layer.

    Attributes:
        held: statements that hold, as text, in the order in which they were checked.
        failed: statements that do not hold, with what was found.
        left: what could not be checked, and why.
    """

    held: tuple[str, ...]
    failed: tuple[str, ...]
    left: tuple[str, ...]

    def summary(self) -> str:
        """All statements, a line each."""
        marks = (("holds", self.held), ("FAILS", self.failed), ("not checked", self.left))
        return "\n".join(f"{mark}: {line}" for mark, lines in marks for line in lines)

    def __repr__(self) -> str:
        return f"<{len(self.held)} statements hold, {len(self.failed)} fail, {len(self.left)} not checked>"


class Finding(NamedTuple):
    """One statement on a layer.

    Attributes:
        statement: what should hold.
        fault: what was found instead; empty if it holds.
        unknown: why it could not be checked; empty if it could.
    """

    statement: str
    fault: str = ""
    unknown: str = ""


def check_layer(
    layer: Layer | Callable[[int], Layer],
    input_shape: Shape,
    *,
    draws: int = 2000,
    widths: Sequence[int] = (16, 32, 64),
    seed: int = 0,
) -> LayerCheck:
    """Checks what a layer states, for the tests of whoever wrote it: it raises AssertionError if anything fails.

    The finite side is tried out on random inputs: shapes, parameters, hash, `couples_batch`, `homogeneous`. The kernel
    is compared with the average over finite networks, extrapolated to infinite width: behind a dense layer, and behind
    an activation and before a centered layer, which needs the `mean1` and `mean2` of the kernel. On images the layers
    before it are convolutions. A layer without a kernel, or without one behind an activation, is not checked there.

    Args:
        layer: layer, or a function from a width to a layer, for one with a number of units of its own.
        input_shape: shape of its inputs with the batch axis, (n, features) or (n, height, width, channels), or one or
            three axes of positions, n >= 3; the widths take the place of the last axis.
        draws: number of networks of each width.
        widths: numbers of units before the layer, at least two, ascending.
        seed: seed of inputs and draws.

    Raises:
        AssertionError: a statement does not hold; the message has all of them, a line each.
        TypeError: `layer` is none.
        ValueError: the shape is not as above.
    """
    if not 2 <= len(input_shape) <= 2 + MOST_DIMENSIONS or input_shape[0] < FEWEST_INPUTS:
        raise ValueError(
            f"got input_shape={input_shape}, expected (n, features) or (n, *positions, channels) with one to three "
            f"axes of positions and at least {FEWEST_INPUTS} inputs"
        )
    make = (lambda width: layer) if isinstance(layer, Layer) else layer
    one = make(input_shape[-1])
    if not isinstance(one, Layer):
        raise TypeError(f"got {one!r}, expected a layer: a frozen dataclass that is a layers.SingleLayer")
    x = np.random.default_rng(seed).standard_normal(input_shape)
    with jax.enable_x64(True):
        found = [*_finite(one, x, seed)]
        if not any(finding.fault for finding in found):
            found += _kernels(make, x, draws, tuple(widths), seed)
    report = LayerCheck(
        held=tuple(of.statement for of in found if not of.fault and not of.unknown),
        failed=tuple(f"{of.statement}: {of.fault}" for of in found if of.fault),
        left=tuple(f"{of.statement}: {of.unknown}" for of in found if of.unknown),
    )
    if report.failed:
        raise AssertionError(f"{one!r} does not keep what it states\n{report.summary()}")
    return report


def _finite(layer: Layer, x: np.ndarray, seed: int) -> Iterator[Finding]:
    """What can be said of the finite layer on these inputs."""
    key = jax.random.key(seed)
    again = jax.tree.unflatten(*jax.tree.flatten(layer)[::-1])
    same = again == layer and hash(again) == hash(layer)
    yield Finding("it is a frozen dataclass: equal to its copy, and hashable", "" if same else f"its copy is {again!r}")
    shape, params = layer.init(key, x.shape)
    floats = all(jnp.issubdtype(jnp.result_type(leaf), jnp.floating) for leaf in jax.tree.leaves(params))
    yield Finding("its parameters are arrays of floats", "" if floats else "others are among them")
    if not floats:  # inputs take the dtype of the parameters
        return
    y = np.asarray(layer.apply(params, x))
    yield Finding("`init` tells the shape of the output", "" if y.shape == tuple(shape) else f"{shape} is {y.shape}")
    finite = bool(np.isfinite(y).all())
    yield Finding("outputs on normal inputs are finite", "" if finite else "some are NaN or infinite")
    recorded = [output for _, output in layer.walk(layer.activations(params, x))]
    whole = bool(recorded) and np.array_equal(recorded[-1], y)
    yield Finding("the last of its `activations` is its output", "" if whole else "it is another one")
    yield _batch(layer, params, x)
    if layer.homogeneous:
        doubled = np.asarray(layer.apply(params, 2 * x))
        equal = np.allclose(doubled, 2 * y, rtol=ROUNDINGS * np.finfo(float).eps, atol=0)
        yield Finding("it is homogeneous: on 2 x its output is twice that on x", "" if equal else "it is not")


def _batch(layer: Layer, params: object, x: np.ndarray) -> Finding:
    said, statement = layer.couples_batch, f"couples_batch is {layer.couples_batch}"
    if said is None:
        return Finding(statement, unknown="state it: kernels are computed as a whole until then")

    def scaled(params: Any, x: Any) -> jax.Array:  # the trial looks at derivatives, and a layer may have no parameters
        scale, inner = params
        return scale * layer.apply(inner, x)

    told = coupling(scaled, (np.ones(()), params), x)
    return Finding(statement, told if told and not said else "")


def _kernels(
    make: Callable[[int], Layer], x: np.ndarray, draws: int, widths: tuple[int, ...], seed: int
) -> Iterator[Finding]:
    """The layer's kernels, of inputs with themselves and with others, in networks around it."""
    behind: list[tuple[str, list[Layer], bool]] = [
        ("behind a layer of weights", [], False),
        ("behind an activation, before centered weights", [Activation("relu")], True),
    ]
    for place, between, centered in behind:

        def network(width: int, between: list[Layer] = between, centered: bool = centered) -> Serial:
            first = Dense(width, 1.0, 0.1) if x.ndim == 2 else Conv(width, (PATCH,) * (x.ndim - 2), b_var=0.1)
            layer = make(width)
            flat = [] if x.ndim == 2 or layer.ends_positions else [Flatten()]
            return Serial(first, *between, layer, *flat, Dense(2, 1.5, center=centered))

        yield from _kernel_of(network, x, place, draws, widths, seed)


def _kernel_of(
    network: Callable[[int], Serial], x: np.ndarray, place: str, draws: int, widths: tuple[int, ...], seed: int
) -> Iterator[Finding]:
    statement = f"its kernel {place} is that of finite networks"
    few = network(widths[0])
    try:
        theory = infinite_kernel(few, x)
    except NotImplementedError as refusal:
        yield Finding(statement, unknown=str(refusal))
        return
    if few.couples_batch is False:
        half = len(x) // 2
        block, part = infinite_kernel(few, x[:half], x[half:]), theory[:half, half:]
        close = all(np.allclose(getattr(block, name), getattr(part, name), rtol=1e-6) for name in ("nngp", "ntk"))
        told = "" if close else "it is another one"
        yield Finding(f"its kernel {place} of two sets of inputs is a block of that of all", told)
    # on a CPU convolutions are naive loops in float64; float32 rounds far below the errors of the average
    drawn_on = x if x.ndim == 2 else x.astype(np.float32)
    average = monte_carlo_kernel(network, drawn_on, draws=draws, widths=widths, seed=seed)
    comparison = compare(theory, average)
    told = "" if comparison.agrees else "; ".join(comparison.summary().splitlines())
    yield Finding(statement, told)
