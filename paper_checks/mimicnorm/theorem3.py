"""What the two halves of Theorem 3 share: one block of finite width, drawn many times."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ntk_analysis.layers import Activation, Dense, Serial
from ntk_analysis.meanfield import MeanField

from ..contract import Evidence
from ..draws import Average, average, pairs_of, samples
from ..tolerances import nearest, quadrature, resolution, sampling

FAN_INS = (4, 64)
OUTPUTS = 32
CORRELATIONS = (-0.5, 0.0, 0.3, 0.6, 0.9)
HALF = 3  # index of the one of CORRELATIONS whose scatter is measured
SOLVED = 1e-12  # error of fixed points: solved for to some 1e-15, where T - rho crosses 0 at an angle


class Theory(NamedTuple):
    """The theorem's numbers for one block.

    Attributes:
        gain: weight variance by fan-in that keeps the variance of the pre-activations.
        transition: T(rho).
        chi_1: growth of a perturbation per layer.
        stable: the stable fixed point of T in [0, 1].
        fixed_points: number of fixed points of T there.
    """

    gain: Callable[[int], float]
    transition: Callable[[Any], Any]
    chi_1: float
    stable: float
    fixed_points: int


class Block(NamedTuple):
    """Measurements at one fan-in, with the scatter of one draw about their mean.

    Attributes:
        gain: gain that keeps q, where weights have variance gain / fan-in before centering.
        transition: T at each of CORRELATIONS.
        chi_1: mean square of a unit perturbation, at the stable gain.
        scatter: root mean square deviation of one draw's map at CORRELATIONS[HALF].
    """

    gain: Average
    transition: Average
    chi_1: Average
    scatter: float


@functools.cache  # measured once for all theories
def measure(center: bool, draws: int, seed: int) -> list[Block]:
    """Measures blocks of ReLU and dense layer at every fan-in of FAN_INS, from one program."""
    # a centered layer of the library divides by n - 1; the theorem's by n, with the n/(n - 1) in its gain
    networks = [
        Serial(Dense(n), Activation("relu"), Dense(OUTPUTS, (n - 1) / n if center else 1.0, center=center))
        for n in FAN_INS
    ]
    inputs = pairs_of(CORRELATIONS)
    sideways = np.asarray(np.sqrt(2) * np.eye(2)[[1]].repeat(len(inputs), axis=0), np.float32)

    def moments(network: Serial, key: jax.Array) -> jax.Array:
        params = network.init(key, inputs.shape)[1]
        dtype = params[0]["w"].dtype
        y, moved = jax.jvp(lambda x: network.apply(params, x), (inputs.astype(dtype),), (sideways.astype(dtype),))
        return jnp.concatenate([jnp.mean(y[:1] * y, axis=1), jnp.mean(moved[:1] ** 2, axis=1)])

    def both(key: jax.Array) -> jax.Array:
        return jnp.stack([moments(network, key) for network in networks])

    values = samples(both, draws, jax.random.key(seed))
    return [_block(values[:, i]) for i in range(len(networks))]


def _block(values: np.ndarray) -> Block:
    """Makes a `Block` of moments by draw, E[y y], E[y y'] at each correlation and E[dy dy], by the delta method."""
    own, products, moved = values[:, :1], values[:, 1:-1], values[:, -1:]
    kept = own.mean()
    gain = 1 / kept
    slopes = _ratio(moved, own)
    maps = _ratio(products, own)
    scatter = float(np.std(products[:, HALF] / kept))
    spread = average(own)
    return Block(Average(np.array([gain]), spread.error * gain**2, spread.deviation * gain**2), maps, slopes, scatter)


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> Average:
    ratio = numerator.mean(axis=0) / denominator.mean()
    rest = average((numerator - ratio * denominator) / denominator.mean())
    return Average(ratio, rest.error, rest.deviation)


def compare(
    evidence: Evidence,
    theory: Theory,
    rivals: Sequence[Theory],
    blocks: Sequence[Block],
    field: MeanField,
    draws: int,
) -> None:
    """Compares the theorem's numbers with finite blocks, its fixed points with those of the library's map."""
    because = f"5 standard errors of {draws} blocks"
    for fan_in, block in zip(FAN_INS, blocks, strict=True):
        condition = f"fan-in {fan_in}, averaged over W"
        for name, found, values in (
            ("gain that keeps the variance", block.gain, [one.gain(fan_in) for one in (theory, *rivals)]),
            ("T(rho)", block.transition, [one.transition(np.array(CORRELATIONS)) for one in (theory, *rivals)]),
            ("chi_1", block.chi_1, [one.chi_1 for one in (theory, *rivals)]),
        ):
            evidence.stated(
                name,
                expected=values[0],
                measured=found.mean,
                tolerance=sampling(5 * found.error, because, draws),
                rival=nearest(values[0], values[1:]),
                condition=condition,
            )
    points = [point for point in field.fixed_points if point.correlation > -SOLVED]
    stable = [point.correlation for point in points if point.stable]
    evidence.stated(
        "stable fixed point of T",
        expected=theory.stable,
        measured=stable,
        tolerance=quadrature(SOLVED, "the root is solved for to 1e-12"),
    )
    evidence.stated(
        "fixed points of T in [0, 1]",
        expected=theory.fixed_points,
        measured=len(points),
        tolerance=resolution(0.5, "a count"),
    )
    one_draw = blocks[-1]
    evidence.varied(
        f"root mean square of T({CORRELATIONS[HALF]}) - its mean",
        expected=0,
        measured=one_draw.scatter,
        tolerance=sampling(
            5 * one_draw.transition.error[HALF], f"the mean itself is only known to 5 standard errors of {draws} blocks"
        ),
        condition=f"one draw of W, fan-in {FAN_INS[-1]}, {OUTPUTS} outputs",
    )
