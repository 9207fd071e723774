"""The last batch normalisation: its exact Jacobian, and what it makes of a tangent kernel.

Without affine parameters, biased variance over the batch of B inputs, for each output c by itself:
    fhat_c = (f_c - mean f_c) / s_c,   s_c = sqrt(var f_c + eps)
    d fhat_c / d f_c = P_c / s_c,      P_c = I - 11^T/B - fhat_c fhat_c^T/B
    Theta_hat[c, d] = P_c Theta[c, d] P_d / (s_c s_d)
(MimicNorm, 2010.09278, puts it behind the read-out; Karakida et al. 2019, 1906.02926, find that normalising the last
layer removes the outlier eigenvalues of the Fisher information). Exact at every width and eps. P_c and s_c depend on
the outputs and move with them: this is the kernel of one instant of training, even at infinite width.

At eps = 0, P_c is a projector of rank B - 2: an output moves neither along 1, its mean, nor along fhat_c, its scale. At
eps > 0 its eigenvalue on fhat_c is eps / (var f_c + eps), and Theta_hat has the square of that there.

In evaluation mode the statistics are those of a training batch, for new points too: `weights` p, 0 for new points, give
    P_c = I - 1 p^T - fhat_c (p o fhat_c)^T,   mean f_c = p.f_c,   var f_c = p.(f_c - mean f_c)^2,
with which new points move as the training outputs do. With the statistics held fixed instead, as numbers that no longer
move, Theta_hat[c, d] is Theta[c, d] / (s_c s_d).

The condition number is that of the range, see `null_space`, and there are two:
    theta_hat = last_batch_norm.ntk(theta, outputs)
    condition_number(theta_hat[:, :, c, c], without=null_space(outputs[:, [c]]))      of output c
    condition_number(as_matrix(theta_hat), without=null_space(outputs))               of all outputs together
The first does not depend on s_c: it is what is left of theta's spectrum over inputs, the one to compare with theory.
The second is what gradient descent with one learning rate for all outputs sees. It is at least the first of every
output, and holds max s_c^2 / min s_c^2 besides, which says how the outputs were drawn, not how inputs are told apart.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Float64

from ntk_analysis.any_kernel import AnyKernel, as_array, output_by_output
from ntk_analysis.batch_norm.checks import check_eps, checked_weights
from ntk_analysis.common.arrays import real_array
from ntk_analysis.common.norms import norm
from ntk_analysis.common.precision import AnyArray, HeldArray, Real, float_array, is_traced, numpy_in_float64
from ntk_analysis.spectrum.conditioning import from_eigenvalues
from ntk_analysis.spectrum.matrix import as_matrix as checked_matrix

ROUNDINGS = 8  # an output that varies by at most this many roundings of its size is constant
RESOLVED = 0.1  # error of a kernel, as a share of it, from which on no digit is known


@numpy_in_float64
def jacobian(outputs: AnyArray, eps: float = 0.0, *, weights: AnyArray | None = None) -> Float[HeldArray, "C B B"]:
    """Derivative of the batch-normalised outputs by the outputs, d fhat_c / d f_c = P_c / s_c.

    Outputs c do not mix, so these C blocks are the whole derivative. For NumPy float64 the result is NumPy float64,
    whatever JAX's x64 flag says; JAX arrays keep their dtype. Under jit, grad and vmap values cannot be checked: there,
    an output that is constant over the batch gives NaN at eps = 0.

    Args:
        outputs: outputs (B, C) of the network before the batch normalisation.
        eps: number added to the variance.
        weights: shares (B,) of the inputs in mean and variance, at least 0 and of sum 1: 0 for new points behind the
            statistics of a training batch. None: 1/B each.

    Raises:
        ValueError: outputs are not (B, C), or are NaN or infinite; eps is negative; weights are no weights; at eps = 0,
            there are fewer than 3 inputs with a weight (nothing is left to move) or an output is constant over them, up
            to rounding; a variance overflows.
    """
    return _jacobian(*_standardised(outputs, eps, weights))


@numpy_in_float64
def ntk(
    theta: AnyKernel, outputs: AnyArray, eps: float = 0.0, *, weights: AnyArray | None = None
) -> Float[HeldArray, "B B C C"]:
    """Tangent kernel behind the last batch normalisation, Theta_hat[c, d] = P_c Theta[c, d] P_d / (s_c s_d).

    It is linear in theta, so that a `Kernel`'s ntk_scaled may take the place of its ntk. At eps = 0, outputs k times as
    large make it k^2 times smaller. Dtypes, transformations and errors are those of `jacobian`.

    Args:
        theta: any kernel of the same batch: (B, B, C, C), entry [a, b, c, d] = <d f_c(x_a), d f_d(x_b)>; or (B, B),
            meaning that times the identity over outputs, as of a `Kernel`.
        outputs: outputs (B, C) before the batch normalisation, of the same dtype.
        eps: number added to the variance.
        weights: shares of the inputs in the statistics, as for `jacobian`: then theta is that of training inputs and
            new points together.

    Returns:
        Kernel (B, B, C, C), laid out as theta; it is block diagonal over outputs if theta is (B, B).

    Raises:
        ValueError: an argument is refused, as by `jacobian`; theta does not fit the outputs, is NaN or infinite, or is
            so nearly the same for all inputs that what is left of it is rounding.
        OverflowError: the result leaves the dtype.
    """
    standard, deviation, w = _standardised(outputs, eps, weights)
    kernel = _checked_theta(as_array(theta), standard)
    found = _ntk(kernel, standard, deviation, w)
    _check_resolved(kernel, found, deviation)
    return found


def as_matrix(theta: AnyArray) -> Float[HeldArray, "BC BC"]:
    """A kernel (B, B, C, C) as the symmetric matrix (B C, B C) over inputs and outputs that `spectrum` takes.

    The order is output by output: row c B + a is output c on input a, so that a kernel without cross terms is block
    diagonal. `outputs.T.ravel()` brings outputs into the same order.

    Raises:
        ValueError: theta is not (B, B, C, C).
    """
    kernel: Any = real_array(theta, "theta")  # in its own dtype, from which `spectrum` knows its rounding
    if kernel.ndim != 4 or kernel.shape[0] != kernel.shape[1] or kernel.shape[2] != kernel.shape[3]:
        raise ValueError(f"theta has shape {kernel.shape}, expected (B, B, C, C): see ntk")
    return output_by_output(kernel)


@numpy_in_float64
def null_space(outputs: AnyArray, eps: float = 0.0, *, weights: AnyArray | None = None) -> Float[HeldArray, "BC k"]:
    """Vectors along which every kernel behind the last batch normalisation is 0, in the order of `as_matrix`.

    For each output they are the vector of ones and, at eps = 0, also fhat_c. All are orthogonal to one another: (B C, 2
    C) at eps = 0 and (B C, C) at eps > 0; for one output, outputs[:, [c]], (B, 2) and (B, 1). Give them to `without` of
    `spectrum`. With weights p they are p and p o fhat_c in their place.

    At eps > 0 the kernel on fhat_c is small but not zero, and the condition number, about (var f_c / eps)^2, shows
    nothing else: to leave out fhat_c there, too, take the null space at eps = 0.

    Raises:
        ValueError: an argument is refused, as by `jacobian`.
    """
    standard, _, w = _standardised(outputs, eps, weights)
    modes = [jnp.ones_like(standard)] + ([standard] if eps == 0 else [])
    modes = [mode * w[:, None] for mode in modes]
    return jnp.concatenate([jax.scipy.linalg.block_diag(*mode.T[:, :, None]) for mode in modes], axis=1)


def sample_outputs(kernel: AnyKernel, count: int, seed: int = 0) -> Float64[np.ndarray, "B C"]:
    """Outputs of an infinitely wide network at initialisation: columns drawn from N(0, NNGP), independent of the NTK.

    They are drawn by the symmetric square root of the NNGP, which does not depend on the choice of eigenvectors.
    Eigenvalues below the kernel's rounding count as 0, so that duplicated inputs have the same outputs to 1e-15. The
    result is NumPy float64, outside JAX's transformations.

    Args:
        kernel: `Kernel` of one batch with itself, or its NNGP (B, B).
        count: number C of outputs, at least 1.
        seed: seed of the draw.

    Raises:
        ValueError: the NNGP is not a covariance (see `spectrum.analyse`), or C < 1.
    """
    if count < 1:
        raise ValueError(f"got count={count}, expected at least 1: the number of columns to draw")
    matrix = checked_matrix(kernel, "nngp")
    values, vectors = np.linalg.eigh(matrix.entries)
    resolved = values > from_eigenvalues(values, matrix, "nngp", "sum").rounding
    root = (vectors * np.sqrt(np.where(resolved, values, 0))) @ vectors.T
    drawn: np.ndarray = root @ np.random.default_rng(seed).standard_normal((len(values), count))
    return drawn


@jax.jit
def _jacobian(standard: jax.Array, deviation: jax.Array, w: jax.Array) -> jax.Array:
    identity = jnp.eye(len(standard), dtype=standard.dtype)
    return jax.vmap(_rows, in_axes=(None, 1, 0, None))(identity, standard, deviation, w)


@jax.jit
def _ntk(theta: jax.Array, standard: jax.Array, deviation: jax.Array, w: jax.Array) -> jax.Array:
    if theta.ndim == 2:
        each = jax.vmap(_rows_and_columns, in_axes=(None, 1, 0, 1, 0, None), out_axes=2)
        blocks = each(theta, standard, deviation, standard, deviation, w)
        return jnp.where(jnp.eye(len(deviation), dtype=bool)[None, None], blocks[..., None], 0)
    pairs = jax.vmap(_rows_and_columns, in_axes=(2, None, None, 1, 0, None), out_axes=2)  # over d, then over c
    pairs = jax.vmap(pairs, in_axes=(2, 1, 0, None, None, None), out_axes=2)
    return pairs(theta, standard, deviation, standard, deviation, w)


def _rows(matrix: jax.Array, standard: jax.Array, deviation: jax.Array, w: jax.Array) -> jax.Array:
    """P A / s for one output, without P's matrix; the mean is removed first, as it may be far larger than the rest."""
    centered = matrix - jnp.average(matrix, axis=0, weights=w, keepdims=True)
    along = jnp.matmul(standard * w, centered, precision="highest") / jnp.sum(w)
    return (centered - standard[:, None] * along[None, :]) / deviation


def _rows_and_columns(
    theta: jax.Array,
    standard1: jax.Array,
    deviation1: jax.Array,
    standard2: jax.Array,
    deviation2: jax.Array,
    w: jax.Array,
) -> jax.Array:
    """P_c theta P_d^T / (s_c s_d) for one pair of outputs."""
    return _rows(_rows(theta, standard1, deviation1, w).T, standard2, deviation2, w).T


def _standardised(
    outputs: AnyArray, eps: float, weights: AnyArray | None
) -> tuple[Float[jax.Array, "B C"], Float[jax.Array, " C"], Float[jax.Array, " B"]]:
    """Checked fhat, s and weights in units of the largest; under a trace they are NaN where there are none."""
    check_eps(eps)
    f = float_array(outputs, "outputs")
    B = len(f) if f.ndim else 0
    shares = np.ones(B) if weights is None else checked_weights(weights, B)
    _check_outputs(f, eps, int(np.sum(shares > 0)))
    w = jnp.asarray(shares, f.dtype)
    standard, deviation = _standardise(f, w, eps)
    if not is_traced(deviation) and np.isnan(deviation).any():
        raise ValueError(
            f"output {int(np.argmax(np.isnan(deviation)))} has no deviation to divide by, it is constant over the "
            f"batch or its variance leaves {f.dtype}'s range: leave it out or rescale it, or use eps > 0"
        )
    return standard, deviation, w


@jax.jit
def _standardise(f: jax.Array, w: jax.Array, eps: Real) -> tuple[jax.Array, jax.Array]:
    """fhat and s; NaN where s is zero, infinite or nothing but rounding."""
    centered = f - jnp.average(f, axis=0, weights=w, keepdims=True)
    deviation = jnp.sqrt(jnp.average(centered**2, axis=0, weights=w) + eps)
    # not s == 0: the mean of equal numbers may round to another number, which would then count as a deviation
    inside, member = w[:, None] > 0, f[jnp.argmax(w)][None, :]
    f = jnp.where(inside, f, member)
    spread = jnp.max(f, axis=0) - jnp.min(f, axis=0)
    constant = spread <= ROUNDINGS * float(np.finfo(f.dtype).eps) * jnp.max(jnp.abs(f), axis=0)
    usable = (deviation > 0) & (deviation < jnp.inf) & ~(constant & (eps == 0))
    deviation = jnp.where(usable, deviation, jnp.nan)
    return centered / deviation[None, :], deviation


def _check_outputs(f: jax.Array, eps: float, batch: int) -> None:
    if f.ndim != 2 or 0 in f.shape:
        raise ValueError(f"outputs have shape {f.shape}, expected (B, C): one row per input, one column per output")
    needed = 3 if eps == 0 else 2
    if batch < needed:
        raise ValueError(
            f"got a batch of {batch}, on which the last batch normalisation leaves nothing to learn at eps={eps}: "
            f"use at least {needed} inputs{', or eps > 0' if eps == 0 else ''}"
        )
    _check_finite(f, "outputs")


def _checked_theta(theta: AnyArray, outputs: jax.Array) -> jax.Array:
    kernel = float_array(theta, "theta")
    B, C = outputs.shape
    if kernel.shape not in ((B, B), (B, B, C, C)):
        raise ValueError(
            f"theta has shape {kernel.shape}, expected ({B}, {B}) or ({B}, {B}, {C}, {C}) for outputs of shape "
            f"{outputs.shape}: take the kernel of the same batch against itself"
        )
    if kernel.dtype != outputs.dtype:
        raise ValueError(f"theta is {kernel.dtype} and outputs are {outputs.dtype}, expected one dtype: convert one")
    _check_finite(kernel, "theta")
    return kernel


def _check_resolved(theta: jax.Array, found: jax.Array, deviation: jax.Array) -> None:
    """Raises ValueError where P theta P is hardly longer than P E P may be, E the rounding of theta's entries.

    E is taken as 8 roundings of the largest entry, or half the asymmetry where that is more; P lengthens nothing.
    """
    if is_traced(found):
        return
    if not np.isfinite(found).all():
        raise OverflowError(
            f"the kernel behind the last batch normalisation leaves {found.dtype}: rescale outputs or theta"
        )
    given = np.asarray(theta, np.float64)
    largest = float(np.max(np.abs(given)))
    if largest == 0:
        return
    given = given / largest
    mirrored = given.T if given.ndim == 2 else given.transpose(1, 0, 3, 2)
    rounding = max(ROUNDINGS * float(np.finfo(theta.dtype).eps), float(np.max(np.abs(given - mirrored))) / 2)
    scales = np.asarray(deviation, np.float64)
    left = norm(np.asarray(found, np.float64) / largest * scales[:, None] * scales)
    error = rounding * math.sqrt(given.size * (found.shape[2] if given.ndim == 2 else 1))
    if error > RESOLVED * left:
        raise ValueError(
            f"theta is nearly the same for all inputs: the last batch normalisation leaves {left / error:.1g} times "
            f"its rounding in {theta.dtype}, which has no digit; take inputs that it tells apart, or float64"
        )


def _check_finite(array: jax.Array, name: str) -> None:
    if not is_traced(array) and not np.isfinite(array).all():
        raise ValueError(f"NaN or infinite values in {name}, expected finite numbers: check how it was computed")
