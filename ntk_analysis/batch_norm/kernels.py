"""NNGP and tangent kernels behind a batch normalisation: the public functions, their checks and their precision."""

from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from ntk_analysis import activations
from ntk_analysis.activations import Activation, PiecewiseLinear
from ntk_analysis.batch_norm.checks import (
    NNGP,
    TANGENT,
    WITH_EPS,
    Needed,
    check_apart,
    check_covariance,
    check_eps,
    check_rank,
    checked,
    checked_weights,
    effective_rank,
    modes_of,
    rounding_of,
)
from ntk_analysis.batch_norm.integrals import (
    Propagated,
    nngp_integral,
    propagate_integrals,
    pull_integral,
    push_integral,
)
from ntk_analysis.batch_norm.rules import AnyRule, automatic
from ntk_analysis.common.precision import AnyArray, HeldArray, float_array, is_traced, numpy_in_float64
from ntk_analysis.common.pytrees import Number, is_known

Square: TypeAlias = Float[AnyArray, "B B"]
HeldSquare: TypeAlias = Float[HeldArray, "B B"]
Weights: TypeAlias = Float[AnyArray, " B"]
Compute: TypeAlias = Callable[..., Any]


def nngp(
    sigma: Square,
    activation: str | Activation = "relu",
    eps: float = 0.0,
    *,
    weights: Weights | None = None,
    rule: AnyRule | None = None,
) -> HeldSquare:
    """NNGP kernel E[phi(BN(x)) phi(BN(x))^T] of a batch x ~ N(0, sigma) (Yang et al. 2019, 1902.08129), exact.

    At eps = 0 it does not change when sigma is scaled, and its trace is (a^2 + b^2) B for phi(x) = a x + b |x| and
    equal weights.

    Args:
        sigma: covariance (B, B) of the pre-activations over the batch; symmetric, positive semi-definite.
        activation: name or `Activation`, piecewise linear with a kink at 0 at most.
        eps: number added to the biased batch variance.
        weights: shares p (B,) of the samples in the batch's mean and variance, at least 0 and of sum 1: 0 for new
            points behind the statistics of a training batch. None: 1/B each. They are constants of derivatives.
        rule: quadrature rule; None chooses it by the rank r of the centered covariance of the samples with a weight,
            less 2 if others lie outside of their span. Under a trace r is taken as their number less 1, or as small
            where the weights are traced, too. `rule_error` gives the relative error to expect, 1e-11 at most;
            `quadrature_error` measures it. LARGE_BATCH, three nodes of `FewNodes`, takes about a quarter of the time.

    Raises:
        NotImplementedError: the activation is not positively homogeneous.
        ValueError: sigma is not a covariance matrix, or all inputs coincide; weights are no weights, a positive one is
            below 1.5e-8 of the largest, or only one sample has some; at eps = 0, a sample without a weight is outside
            of the span of the others, and their centered covariance has a rank below 3.
    """
    return _dispatch(nngp_integral, {"sigma": sigma}, activation, eps, weights, rule, needed=NNGP)


def push(
    sigma: Square,
    theta: Square,
    activation: str | Activation = "relu",
    eps: float = 0.0,
    *,
    weights: Weights | None = None,
    rule: AnyRule | None = None,
) -> HeldSquare:
    """Tangent kernel behind BN and phi: E[J theta J^T], J = d phi(BN(x)) / dx, x ~ N(0, sigma); linear in theta.

    At eps = 0, push(c sigma, theta) = push(sigma, theta) / c, and rank(G sigma G) >= 3 is needed, because E[1/|G x|^2]
    is infinite otherwise. So B must be at least 4; duplicated inputs are legal if the rank suffices. With `weights`,
    samples without a weight need rank 5 of the others, that is 6 of them, unless they lie in the span of these.

    Args:
        sigma: covariance (B, B) of the pre-activations over the batch; symmetric, positive semi-definite.
        theta: tangent kernel (B, B) of the pre-activations; symmetric.
        activation: name or `Activation`, as for `nngp`.
        eps: number added to the biased batch variance.
        weights: shares of the samples in the batch's statistics, as for `nngp`.
        rule: quadrature rule, as for `nngp`.

    Raises:
        NotImplementedError: the activation is not positively homogeneous.
        ValueError: sigma is not a covariance matrix or is of too small a rank, theta or weights do not fit, or an input
            lies at the mean of the batch, on the kink of phi.
    """
    return _dispatch(push_integral, {"sigma": sigma, "theta": theta}, activation, eps, weights, rule, needed=TANGENT)


def propagate(
    sigma: Square,
    theta: Square,
    activation: str | Activation = "relu",
    eps: Number = 0.0,
    *,
    apart: Square | None = None,
    weights: Weights | None = None,
    rule: AnyRule | None = None,
) -> Propagated:
    """`nngp` and `push` in one pass, with the mean and the slope that a network's recursion needs besides.

    Args:
        sigma: covariance (B, B) of the pre-activations over the batch; symmetric, positive semi-definite.
        theta: tangent kernel (B, B) of the pre-activations; symmetric.
        activation: name or `Activation`, as for `nngp`.
        eps: number added to the biased batch variance.
        apart: variances Var[x_i - x_j], (B, B), if they are known better than sigma_ii + sigma_jj - 2 sigma_ij: to a
            rounding of sqrt(apart sigma_ii), as from differences of vectors. Batch normalisation depends on nothing
            else, so everything but rounding errors is then computed from `apart`, and near-duplicates keep their
            digits.
        weights: shares of the samples in the batch's statistics, as for `nngp`.
        rule: quadrature rule, as for `nngp`.

    Returns:
        `Propagated`. Under a trace `pushed` is NaN where `push` would raise an error, all but it and `slope` where
        `nngp` would, `slope` where an input is the mean of its batch, on the kink of phi, and everything where all
        inputs coincide.

    Raises:
        NotImplementedError: the activation is not positively homogeneous.
        ValueError: an argument is refused, as by `push`, or apart contradicts sigma.
    """
    arrays = {"sigma": sigma, "theta": theta, "apart": apart}
    return _dispatch(propagate_integrals, arrays, activation, eps, weights, rule, needed=TANGENT)


def pull(
    sigma: Square,
    cotangent: Square,
    activation: str | Activation = "relu",
    eps: float = 0.0,
    *,
    weights: Weights | None = None,
    rule: AnyRule | None = None,
) -> HeldSquare:
    """Adjoint of `push` in theta: <push(sigma, theta), M> = <theta, pull(sigma, M)> for symmetric M, in one pass.

    With D = M o E + diag_i(sum_j M_ij N_ij / kappa_ii) and the symbols of the package's head:
        pull(M) = c H^T Int delta { M o E + W (<M, V> kappa + 2 kappa D kappa) W / 2 - W kappa D - D kappa W } ds H,
    where the term kappa D kappa already stands in units of s^2. Arguments and errors are those of `push`.
    """
    arrays = {"sigma": sigma, "cotangent": cotangent}
    return _dispatch(pull_integral, arrays, activation, eps, weights, rule, needed=TANGENT)


def quadrature_error(
    sigma: Square,
    theta: Square | None = None,
    activation: str | Activation = "relu",
    eps: float = 0.0,
    *,
    weights: Weights | None = None,
    rule: AnyRule | None = None,
) -> float:
    """Measured quadrature error of `nngp`, or of `push` if theta is given, relative to the largest entry.

    It is the largest change of an entry under a rule whose own error is far below: half the step and a longer reach, or
    one node more for `FewNodes`. It can be measured outside JAX transformations only.
    """
    array = checked(sigma, "sigma")
    w = _weights(weights, len(array))
    chosen = rule or automatic(effective_rank(modes_of(array, w, rounding_of(np.asarray(sigma)))))
    pair = [
        nngp(sigma, activation, eps, weights=weights, rule=r)
        if theta is None
        else push(sigma, theta, activation, eps, weights=weights, rule=r)
        for r in (chosen, chosen.finer)
    ]
    return float(np.max(np.abs(pair[0] - pair[1])) / np.max(np.abs(pair[1])))


def _dispatch(
    compute: Compute,
    arrays: dict[str, Any],
    activation: str | Activation,
    eps: Number,
    weights: Any,
    rule: AnyRule | None,
    needed: Needed,
) -> Any:
    """Makes the checks that the trace allows and calls `compute`, in the ambient dtype under a trace, else in float64.

    `arrays` holds the arguments of `compute` by name, sigma first; None stands for one that is not given.
    """
    phi = activations.get(activation)
    if not isinstance(phi, PiecewiseLinear):
        raise NotImplementedError(
            f"batch normalisation before {phi.name!r} has no one-dimensional integral: use a positively homogeneous "
            "activation (relu, leaky_relu, abs, identity), or large_batch_nngp for the NNGP at large batches"
        )
    check_eps(eps)
    # the integrals themselves ask for these ranks where eps turns out to be 0, too
    surely = needed if is_known(eps) and eps == 0 else WITH_EPS
    if is_traced(arrays, weights, eps, phi):
        traced: dict[str, Any] = {name: None if array is None else float_array(array) for name, array in arrays.items()}
        B, dtype = len(traced["sigma"]), traced["sigma"].dtype
        w, rank = _traced_weights(weights, B, surely)
        w = None if w is None else w.astype(dtype)
        rounding = rounding_of(traced["sigma"])
        return compute(*traced.values(), w=w, eps=eps, rounding=rounding, phi=phi, rule=rule or automatic(rank))
    held: dict[str, Any] = {name: None if array is None else checked(array, name) for name, array in arrays.items()}
    sigma, apart, rounding = held["sigma"], held.get("apart"), rounding_of(np.asarray(arrays["sigma"]))
    for name, array in held.items():
        if array is not None and array.shape != sigma.shape:
            raise ValueError(f"sigma has shape {sigma.shape}, {name} {array.shape}: they must be the same")
    if apart is not None:
        check_apart(sigma, apart, rounding)
    w = _weights(weights, len(sigma))
    found = check_covariance(sigma, surely, rounding, w=w, kink=len(held) > 1 and phi.bent != 0, apart=apart)
    rule = rule or automatic(effective_rank(found))
    return numpy_in_float64(compute)(*held.values(), w=w, eps=eps, rounding=rounding, phi=phi, rule=rule)


def _weights(weights: Any, B: int) -> np.ndarray | None:
    """Checked weights in units of the largest; None for equal ones."""
    return None if weights is None else checked_weights(weights, B)


def _traced_weights(weights: Any, B: int, needed: Needed) -> tuple[Any, int]:
    """Weights in units of the largest, and the rank to choose the rule by; checked where they are no tracer."""
    if isinstance(weights, jax.core.Tracer):
        p = float_array(weights, "weights")
        if p.shape != (B,):
            raise ValueError(f"weights have shape {p.shape}, expected ({B},): one for each sample of the batch")
        return p / jnp.max(p), 0
    w = _weights(weights, B)
    count = B if w is None else int(np.sum(w > 0))
    check_rank(count - 1, count, needed.within, others=B - count)
    return w, count - 1 - 2 * (count < B)
