"""q' = w_var V(q) + b_var: the variance that the layers settle at, reached from q = 1."""

from typing import TypeAlias

import numpy as np
from jaxtyping import Float64
from scipy.optimize.elementwise import find_root

from ntk_analysis.activations import Activation

Vector: TypeAlias = Float64[np.ndarray, " n"]
EPS = float(np.finfo(np.float64).eps)
NOISE = 32 * EPS  # relative rounding error of one evaluation of the variance or of the correlation map
NEARLY_ZERO = 1e-8  # variance used in place of the limit q -> 0: smooth maps are linear there up to 1e-8
DOWNWARD = np.concatenate([np.geomspace(1, 1e-14, 281), [0.0]])
UPWARD = np.concatenate([np.geomspace(1, 1e6, 121), np.geomspace(1e7, 1e150, 144)])


def kept_variance(phi: Activation, centered: bool, q: Vector) -> Vector:
    """Variance V(q); overflow of fast-growing activations, and what is not known, become a huge number."""
    q = np.where(q <= phi.largest_variance, q, np.nan)
    kept = np.asarray(phi.dual.second_moment(q))
    if centered:
        kept = kept - np.asarray(phi.mean(q)) ** 2
    return np.nan_to_num(np.maximum(kept, 0), nan=1e300, posinf=1e300)


def settled_variance(phi: Activation, centered: bool, w: Vector, b: Vector) -> Vector:
    """Fixed points of q' = w V(q) + b that iteration from q = 1 reaches (monotonically, because V increases).

    They are inf where there is none, NaN where it is beyond the activation's `largest_variance`.

    The search takes the first sign change of q' - q on a grid, in the direction of the first step, and refines it.
    Signs below the rounding error do not count: at w_var = 2 and b_var > 0 ReLU would otherwise stop where q + b_var ==
    q.
    """
    up = UPWARD[phi.largest_variance >= UPWARD]
    start = w * kept_variance(phi, centered, np.ones(1)) + b - 1
    q = np.where(np.abs(start) <= NOISE, 1.0, np.inf)
    low, high = np.ones_like(q), np.ones_like(q)
    kept_up, kept_down = kept_variance(phi, centered, up), kept_variance(phi, centered, DOWNWARD)
    for i in np.flatnonzero(start > NOISE):
        with np.errstate(over="ignore"):  # infinite growth is growth
            ends = np.flatnonzero(w[i] * kept_up + b[i] - up < -NOISE * up)
        if ends.size:
            low[i], high[i] = up[ends[0] - 1], up[ends[0]]
        elif len(up) < len(UPWARD) and not (len(up) > 20 and kept_up[-1] / up[-1] >= 0.99 * kept_up[-20] / up[-20]):
            q[i] = np.nan  # V / q still falls where knowledge of the activation ends
    for i in np.flatnonzero(start < -NOISE):
        gain = w[i] * kept_down + b[i] - DOWNWARD
        end = np.flatnonzero(np.append(gain[:-1] > NOISE * DOWNWARD[:-1], True))[0]
        high[i] = DOWNWARD[end - 1]
        low[i] = DOWNWARD[end] or min(
            gain[-1], high[i]
        )  # at q = 0 the variance a layer adds bounds the root from below
    q[low == 0] = 0.0
    todo = (low < high) & (low > 0)
    if todo.any():
        q[todo] = _settled_between(phi, centered, w[todo], b[todo], low[todo], high[todo])
    return q


def _settled_between(phi: Activation, centered: bool, w: Vector, b: Vector, low: Vector, high: Vector) -> Vector:
    """Roots of q' = q, with q' > q > 0 at `low` and q' < q at `high`, to the last digits of q."""

    def gain(q: Vector, w: Vector, b: Vector) -> Vector:
        return np.asarray((w * kept_variance(phi, centered, q) + b) / q - 1)

    root = find_root(gain, (low, high), args=(w, b), tolerances={"xatol": 0, "xrtol": EPS, "fatol": 0, "frtol": 0}).x
    return np.asarray(w * kept_variance(phi, centered, root) + b)


def variance_slope(phi: Activation, centered: bool, w: Vector, q: Vector) -> Vector:
    """Slope w dV/dq by automatic differentiation; at q = 0 its limit, up to 1e-7 for smooth activations."""
    inside = np.where(q > 0, q, 1.0 if phi.homogeneous else NEARLY_ZERO)
    slopes = phi.in_variance(inside)
    slope = slopes.square - 2 * np.asarray(phi.mean(inside)) * slopes.mean if centered else slopes.square
    return np.asarray(w * slope)


def unbounded(phi: Activation, centered: bool, w: float, b: float) -> str:
    """Text that says why the variance has no fixed point, and what would give it one."""
    far = np.array([min(1e12, phi.largest_variance)])
    kept = float(kept_variance(phi, centered, far)[0] / far[0])
    growth = w * kept
    rate = f"a factor {growth:.12g}" if growth > 1 + NOISE else f"b_var = {b:g}"
    cure = f"a w_var below {1 / kept:.6g} keeps it bounded" if kept < 1e6 else "lower w_var, or bound the activation"
    setting = f"{phi} with {'centered weights, ' * centered}w_var={w:.12g}, b_var={b:g}"
    return f"{setting}: the variance grows without bound, by {rate} per layer; {cure}"
