"""Batch norm on new points, in evaluation mode: what its remembered statistics do to their second moment, by depth.

A network of dense layers, batch norm (eps = 0) and phi(x) = a x + b |x|, infinitely wide, at initialisation. In
training each batch of B inputs is normalised by itself; in evaluation new points are by averages over k such batches:
of their means, and of their variances, times B/(B - 1) where the running variance has Bessel's correction (PyTorch), or
as they are (Flax). k = 1 without it is one frozen batch, k -> infinity the end of running averages. Inputs are
orthogonal and of one norm, those of the batches too. With t = 1/(B - 1), J = J(-t) the correlation behind phi (see
`batch`) and r = a^2 + b^2, training points have E[xhat^2] = 1, and behind phi
    v = r (1 - J)                                       variance within a batch, for each of its B - 1 dimensions,
    m = b (B - 1)^(1/2) Gamma((B - 1)/2) / (pi^(1/2) Gamma(B/2))                                           mean,
    Q = r (1 + (B - 1) J) / (k B) + (1 - 1/k) m^2       second moment of the mean over the k batches.
By symmetry a new point less that mean is independent of all deviations within batches, and the remembered variance is
v/f chi^2 with n = k (B - 1) degrees of freedom, f = n or n B/(B - 1). With c_1 = f^(1/2) E[1/chi], c_2 = f E[1/chi^2] =
f/(n - 2) and q_l the second moment of xhat of a new point in layer l,
    q_1 = c_2 (1 + 1/(k B)),   q_{l+1} = (c_2/v) (r q_l - 2 b (2/pi)^(1/2) m c_1 (q_l/c_2)^(1/2) + Q),
so that a large q_l grows by c_2 / (1 - J) a layer. k = 1 is `batch_norm.nngp(..., weights=)` of such inputs.
"""

import math
from dataclasses import dataclass
from typing import SupportsIndex

import numpy as np
from scipy import special

from ntk_analysis import activations
from ntk_analysis.activations import PiecewiseLinear
from ntk_analysis.common.normalizations import RUNNING_VARIANCES
from ntk_analysis.meanfield.analysis import AnyActivation
from ntk_analysis.meanfield.batch import correlation_behind


@dataclass(frozen=True)
class EvaluationMode:
    """Second moments of a new point's xhat, the output of batch norm, by layer; those of training points are 1.

    Attributes:
        batch_size: inputs B of each batch that the statistics come from.
        batches: number k of batches that they are averaged over; None is the limit of many.
        running_variance: "unbiased" or "biased", see `evaluation_mode`.
        first: second moment q_1 in the first layer.
        rate: growth of a large second moment per layer.
        settles_at: the second moment that deep layers tend to; inf where it grows without bound.
        terms: the recursion's numbers (A, C, Q): q_{l+1} = A q_l - C q_l^(1/2) + Q.
    """

    batch_size: int
    batches: int | None
    running_variance: str
    first: float
    rate: float
    settles_at: float
    terms: tuple[float, float, float]

    def second_moments(self, depth: SupportsIndex) -> np.ndarray:
        """The second moments q_1, ..., q_depth, float64 (depth,).

        Raises:
            ValueError: depth is no integer of at least 1, or a second moment is beyond float64.
        """
        square, root, constant = self.terms
        found = np.empty(_integer("depth", depth, 1))
        value = self.first
        for layer in range(len(found)):
            found[layer] = value
            value = square * value - root * math.sqrt(value) + constant
        if not np.isfinite(found).all():
            beyond = int(np.argmin(np.isfinite(found))) + 1
            raise ValueError(f"the second moment is beyond float64 from layer {beyond} on: ask for fewer layers")
        return found


def evaluation_mode(
    activation: AnyActivation = "relu",
    *,
    batch_size: SupportsIndex,
    batches: SupportsIndex | None = None,
    running_variance: str = "unbiased",
) -> EvaluationMode:
    """What batch norm's remembered statistics do to new points by depth, in closed form.

    Args:
        activation: name or `Activation`, piecewise linear with a kink at 0.
        batch_size: inputs per batch, at least 2.
        batches: number of batches whose means and variances are averaged, each with the same weight; None is the limit
            of many.
        running_variance: the variance of a batch that is remembered: "unbiased", with Bessel's correction, as in
            PyTorch, or "biased", as in Flax. With one batch, "biased" is the frozen batch itself.

    Raises:
        NotImplementedError: the activation is not piecewise linear with a kink at 0.
        ValueError: batch_size or batches is no such integer, running_variance is unknown, the batches have fewer than
            three deviations in all (the second moment is infinite), or batches of 2 in front of |x|, which makes both
            the same.
    """
    phi = activations.get(activation)
    if not isinstance(phi, PiecewiseLinear) or phi.bent == 0:
        raise NotImplementedError(
            f"new points in front of {phi.name!r} have no closed form here: use relu, leaky_relu or abs"
        )
    B, k = _integer("batch_size", batch_size, 2), None if batches is None else _integer("batches", batches, 1)
    if running_variance not in RUNNING_VARIANCES:
        raise ValueError(f"unknown running_variance {running_variance!r}: choose one of {', '.join(RUNNING_VARIANCES)}")
    n = math.inf if k is None else float(k * (B - 1))
    if n < 3:
        raise ValueError(
            f"got {k} batches of {B}: the second moment of new points is infinite with fewer than 3 deviations, "
            f"batches * (batch_size - 1) = {n:g}; give more of either"
        )
    r, J = phi.linear**2 + phi.bent**2, correlation_behind(phi, 1 / (B - 1))
    if J >= 1:
        raise ValueError(f"got batch_size=2 with {phi.name!r}: both outputs of a batch are equal, so nothing is left")
    scale = 1.0 if running_variance == "unbiased" else B / (B - 1)  # f/n
    c_2 = scale if k is None else scale * n / (n - 2)
    c_1 = math.sqrt(scale) * (1.0 if k is None else math.sqrt(n / 2) * _gamma_ratio(n))
    mean = phi.bent * math.sqrt((B - 1) / math.pi) * _gamma_ratio(float(B))
    share = 0.0 if k is None else 1 / k
    moment = share * r * (1 + (B - 1) * J) / B + (1 - share) * mean**2
    over_v = c_2 / (r * (1 - J))
    cross = 2 * phi.bent * math.sqrt(2 / math.pi) * mean * c_1 / math.sqrt(c_2)
    terms = over_v * r, over_v * cross, over_v * moment
    first = c_2 * (1 + share / B)
    return EvaluationMode(B, k, running_variance, first, terms[0], _settled(first, *terms), terms)


def _settled(first: float, square: float, root: float, constant: float) -> float:
    """The limit of q -> square q - root q^(1/2) + constant: the smaller fixed point from `first` below the larger."""
    discriminant = root**2 / 4 - (square - 1) * constant
    if discriminant < 0:
        return math.inf
    smaller = constant / (root / 2 + math.sqrt(discriminant))
    if square > 1 and math.sqrt(first) >= (root / 2 + math.sqrt(discriminant)) / (square - 1):
        return math.inf
    return smaller**2


def _gamma_ratio(n: float) -> float:
    """Gamma((n - 1)/2) / Gamma(n/2), to rounding at every n."""
    return float(1 / special.poch((n - 1) / 2, 0.5))


def _integer(name: str, value: SupportsIndex, least: int) -> int:
    if isinstance(value, bool) or not hasattr(value, "__index__") or int(value) < least:
        raise ValueError(f"got {name}={value}, expected an integer of at least {least}")
    return int(value)
