"""Batch normalisation at its fixed point: how fast it makes gradients grow, how slowly it forgets the inputs.

One block is a dense layer, batch normalisation over B inputs (biased variance, eps = 0) and phi(x) = a x + b |x|. It
takes every covariance with equal variances and equal correlations to the same Sigma* in one layer; linearised there,
forwards and backwards, it is Yang et al. 2019, "A Mean Field Theory of Batch Normalization", 1902.08129, whose
integrals over the sphere become second moments of Gaussians because phi is homogeneous. The normalised units have
correlation c = -t, t = 1/(B - 1). With sigma = b^2/(a^2 + b^2), the share of |x|, and the duals of |x| and its slope
    A = (2/pi) (sqrt(1 - c^2) + c arcsin c),   A' = (2/pi) arcsin c,
    J = sigma A + (1 - sigma) c,               J' = sigma A' + 1 - sigma,
J is the correlation behind phi, and with G = I - 11^T/B
    PUSH(G) = chi G + e1 11^T/B,   PUSH(11^T) = 0,   for the tangent push-forward at Sigma* with Sigma*_ii = E[phi^2],
    chi   = (1 - t + t (J' + J)) / ((1 - 2 t) (1 - J)),     e1    = (1 - t - (J' + J)) / ((1 - 2 t) (1 - J)),
    lam_M = (1 + t) / (1 + 2 t) J' / (1 - J),               lam_L = (1 - t) / (1 + 2 t) + t lam_M,
the last two of Sigma -> E[y y^T]; B -> infinity is t = 0. In outline: y does not depend on |G x|, so its powers leave
the integrals as E[1/|G x|^2] = 1/(B - 3), E|G x|^2 = B - 1 and E|G x|^4 = (B - 1)(B + 1) for x of covariance G. That
leaves E[phi'_i phi'_j (G_ij - xhat_i xhat_j / B)] for PUSH, and for the forward map in the direction H the moment
E[phi_i phi_j xhat^T H xhat], by Stein's lemma proportional to J' H_ij + (J - c J') (H_ii + H_jj)/2, to H_ii for i = j.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple, SupportsIndex

from ntk_analysis.activations import Activation, PiecewiseLinear
from ntk_analysis.meanfield.phase import CLOSED_FORM_ERROR, phase_of

SMALLEST_BATCH = 4  # E[1/|G x|^2] needs three dimensions, and G leaves B - 1


class ForwardEigenvalues(NamedTuple):
    """Factors by which Sigma -> E[y y^T], linearised at Sigma*, multiplies deviations of the covariance from Sigma*.

    Attributes:
        scale: factor of deviations a Sigma + u 1^T + 1 u^T, a common scale and anything constant over the batch: 0,
            because batch normalisation undoes them (multiplicity B + 1).
        correlations: factor lam_M of zero-diagonal matrices whose rows sum to 0: unequal correlations (B (B - 3) / 2).
        variances: factor lam_L of diag(u) with sum u = 0, up to deviations of factor 0: unequal variances (B - 1).
    """

    scale: float
    correlations: float
    variances: float


@dataclass(frozen=True)
class BatchNormField:
    """Rates of a block with batch normalisation near its fixed point; neither w_var nor b_var changes any of them.

    Attributes:
        activation: activation phi.
        normalization: name of the normalisation, "batch".
        batch_size: batch size B; None is the limit of large batches.
        chi_1: growth chi(B) per layer of the tangent kernel on the zero-mean space of a batch (and so of the squared
            gradient), the largest eigenvalue of its push-forward.
        e1: eigenvalue of the constant mode that one layer makes of G: PUSH(G) = chi_1 G + e1 11^T/B. It does not grow
            by itself, for PUSH(11^T) = 0: in deep kernels the constant mode has e1/chi_1 times the other eigenvalues.
        c_star: correlation of two inputs after phi, J(-1/(B - 1)).
        eigenvalues: eigenvalues of the linearised forward map, see `ForwardEigenvalues`.
        phase: "chaotic" (chi_1 > 1: gradients explode with depth) or "critical" (identity, B -> infinity).
    """

    activation: Activation
    batch_size: int | None
    chi_1: float
    e1: float
    c_star: float
    eigenvalues: ForwardEigenvalues
    phase: str
    normalization: str = "batch"

    @property
    def condition_number(self) -> float:
        """Condition number chi_1 / e1 of a deep network's NTK on one batch, in the limit of depth; inf if e1 is 0."""
        return self.chi_1 / self.e1 if self.e1 > 0 else math.inf


def batch_norm_field(phi: Activation, batch_size: SupportsIndex | None) -> BatchNormField:
    """Growth rates and eigenvalues at the fixed point, in closed form.

    Raises:
        NotImplementedError: phi is not positively homogeneous, or has more than one kink.
        ValueError: batch_size is not an integer >= 4.
    """
    if not isinstance(phi, PiecewiseLinear):
        raise NotImplementedError(
            f"batch normalisation before {phi.name!r} has no closed form: use a positively homogeneous activation "
            "(relu, leaky_relu, abs, identity)"
        )
    B = None if batch_size is None else _checked(batch_size)
    t = 0.0 if B is None else 1 / (B - 1)
    share, J = share_of_bent(phi), correlation_behind(phi, t)
    A, A_slope = correlation_of_abs(t), -(2 / math.pi) * math.asin(t)
    J_slope = share * A_slope + 1 - share
    scale = (1 - 2 * t) * (1 - J)
    chi = (1 - t + t * (J_slope + J)) / scale
    # equal to 1 - t - (J' + J), but exactly 0 for the identity
    e1 = share * (1 - t - (A_slope + A)) / scale
    lam_M = (1 + t) / (1 + 2 * t) * J_slope / (1 - J)
    eigenvalues = ForwardEigenvalues(0.0, lam_M, (1 - t) / (1 + 2 * t) + t * lam_M)
    return BatchNormField(phi, B, chi, e1, J, eigenvalues, phase_of(chi, CLOSED_FORM_ERROR * chi))


def share_of_bent(phi: PiecewiseLinear) -> float:
    """The share b^2/(a^2 + b^2) of |x| in the second moment of phi(x) = a x + b |x|."""
    return phi.bent**2 / (phi.linear**2 + phi.bent**2)


def correlation_of_abs(t: float) -> float:
    """A(-t): E|u||v| of unit Gaussians of correlation -t."""
    return (2 / math.pi) * (math.sqrt(1 - t**2) + t * math.asin(t))


def correlation_behind(phi: PiecewiseLinear, t: float) -> float:
    """J(-t): the correlation E[phi(u) phi(v)] / E[phi(u)^2] behind phi of unit Gaussians of correlation -t."""
    share = share_of_bent(phi)
    return share * correlation_of_abs(t) - (1 - share) * t


def _checked(batch_size: SupportsIndex) -> int:
    if isinstance(batch_size, bool) or not hasattr(batch_size, "__index__") or int(batch_size) < SMALLEST_BATCH:
        raise ValueError(
            f"got batch_size={batch_size}, expected an integer batch_size >= {SMALLEST_BATCH} (below, the mean square "
            "of the gradient is infinite), or None for the limit of large batches"
        )
    return int(batch_size)
