"""Equation 7: the NTK as a sum over layers. Its product starts one layer late, which only the limit forgives."""

from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from ntk_analysis.meanfield import MeanField, analyse
from ntk_analysis.networks import fully_connected

from ..by_depth import common_correlation, critical_terms, fitted, infinite_kernels
from ..contract import Claim, Evidence, Setting, Verdict
from ..tolerances import extrapolation, rounding, sampling

Theory: TypeAlias = Callable[[np.ndarray, np.ndarray], Any]

CLAIM = Claim(
    id="eq7",
    title="the NTK as a sum over layers",
    statement="The NTK is the sum over layers of the kernel of each, times the product of the derivatives of the "
    "transition at the layers from the next one on.",
    source="Equation 7",
    scope="A fully connected ReLU network in NTK parametrisation, of infinite width, on inputs of norm 1; any depth L.",
    formula=r"\Theta = \sum_{l=1}^{L} K^l \prod_{r=l+1}^{L} T'(K^r)",
    recorded=Verdict.FAILS,
    summary="The product has to run "
    "over r = l to L - 1: as printed, off-diagonal over diagonal entry is .338 in place of .324 behind 9 hidden layers "
    "(inputs of correlation .1, critical line). In the limit of depth, which is all the paper uses it for, both agree.",
    figures=("condition_number",),
)
EPS = float(np.finfo(np.float64).eps)
RHO = 0.1


def from_its_own_layer(covariances: np.ndarray, slopes: np.ndarray) -> np.ndarray:
    """Returns sum_l K^l prod_{r = l}^{L - 1} T'(K^r), of K^1 ... K^L and T'(K^1) ... T'(K^L) along the first axis."""
    return _summed(covariances, slopes[:-1])


def from_the_next_layer(covariances: np.ndarray, slopes: np.ndarray) -> np.ndarray:
    """Returns the printed formula, sum_l K^l prod_{r = l + 1}^{L} T'(K^r)."""
    return _summed(covariances, slopes[1:])


def _summed(covariances: np.ndarray, factors: np.ndarray) -> Any:
    products = np.cumprod(factors[::-1], axis=0)[::-1]
    return np.sum(covariances[:-1] * products, axis=0) + covariances[-1]


THEORY: Theory = from_its_own_layer
WRONG: dict[str, Theory] = {
    "the product as printed, one layer late": from_the_next_layer,
    "one factor too many": lambda covariances, slopes: np.sum(
        covariances * np.cumprod(slopes[::-1], axis=0)[::-1], axis=0
    ),
    "no product": lambda covariances, slopes: np.sum(covariances, axis=0),
}


class Layers:
    """K^l and T'(K^l) of two inputs, from the mean-field map of one block: columns are (pair, one input)."""

    def __init__(self, field: MeanField, rho: float, count: int) -> None:
        correlations = np.stack([field.trajectory(rho, count - 1), np.ones(count)], axis=1)
        assert field.q_star is not None
        derivative = np.asarray(field.activation.derivative_dual(field.q_star, field.q_star, correlations))
        self.covariances, self.slopes = field.q_star * correlations, field.w_var * derivative

    def ratio(self, formula: Theory, depth: int) -> float:
        """Returns off-diagonal over diagonal entry of the NTK behind `depth` hidden layers: `depth` + 1 kernels."""
        pair, single = formula(self.covariances[: depth + 1], self.slopes[: depth + 1])
        return float(pair / single)


def exact_ratios(
    layers: int, normalization: str, activation: str = "relu", w_var: float | None = None, b_var: float = 0.0
) -> np.ndarray:
    """Returns off-diagonal over diagonal entry of the library's NTK after 1 to `layers` hidden layers."""
    x = np.sqrt(1 - b_var) * common_correlation(2, (RHO - b_var) / (1 - b_var))  # K^1 has variance 1, correlation RHO
    _, ntk = infinite_kernels(x, layers, normalization, activation, w_var, b_var)
    ratios: np.ndarray = ntk[:, 0, 1] / ntk[:, 0, 0]
    return ratios


def check_limits(evidence: Evidence, layers: dict[str, Layers], exact: dict[str, np.ndarray]) -> None:
    """Checks the printed formula against the exact kernel, in the limit of depth of each phase."""
    depths = np.unique(np.geomspace(60, len(exact["critical"]), 24).round().astype(int))
    printed = np.array([layers["critical"].ratio(from_the_next_layer, int(depth)) for depth in depths])
    limits = [fitted(values, *critical_terms(depths)) for values in (exact["critical"][depths - 1], printed)]
    (expected, expected_error), (measured, measured_error) = ((c[0], error[0]) for c, error in limits)
    evidence.varied(
        "off-diagonal / diagonal NTK entry, depth to infinity",
        expected=expected,
        measured=measured,
        tolerance=extrapolation(expected_error + measured_error, "fit errors of the two limits in log(L)/L and 1/L"),
        condition="ReLU, critical",
    )
    for phase in ("ordered", "chaotic"):
        depth = len(exact[phase])
        evidence.varied(
            "off-diagonal / diagonal NTK entry, depth to infinity",
            expected=exact[phase][-1],
            measured=layers[phase].ratio(from_the_next_layer, depth),
            tolerance=rounding(
                20 * depth * EPS, f"rounding of {depth} layers, behind which the approach itself is below it"
            ),
            condition=f"ReLU, {phase}",
        )


def mean_network_ratio(rho: float, width: int, draws: int, key: jax.Array) -> tuple[np.ndarray, np.ndarray]:
    """Returns NTK entries (pair, one input) of straight networks of one hidden layer by autodiff: mean, standard error.

    With one hidden layer the mean over networks is the infinite-width kernel at every width.
    """
    network = fully_connected(1, width)
    inputs = np.sqrt(2) * np.array([[1.0, 0.0], [rho, np.sqrt(1 - rho**2)]], np.float32)

    @jax.jit
    def one(key: jax.Array) -> jax.Array:
        params = network.init(key, (-1, 2))[1]
        jacobian = jax.jacobian(lambda params: network.apply(params, jnp.asarray(inputs))[:, 0])(params)
        rows = jnp.concatenate([leaf.reshape(2, -1) for leaf in jax.tree.leaves(jacobian)], axis=1)
        return jnp.stack([rows[0] @ rows[1], rows[0] @ rows[0]])

    values = np.asarray(jax.lax.map(one, jax.random.split(key, draws), batch_size=100), np.float64)
    return values.mean(axis=0), values.std(axis=0, ddof=1) / np.sqrt(draws)


def check(setting: Setting, theory: Theory = THEORY) -> Evidence:
    """Checks limits in the three phases, finite depths, and the right order, by the library and by autodiff."""
    evidence = Evidence()
    deep = setting.size(1000, 8000)
    arguments: dict[str, tuple[int, dict[str, Any]]] = {
        "critical": (deep, {"normalization": "none"}),
        "ordered": (300, {"normalization": "none", "w_var": 1.5, "b_var": 0.25}),
        "chaotic": (300, {"normalization": "weight_mean"}),
    }
    fields = {phase: analyse("relu", **options) for phase, (_, options) in arguments.items()}
    layers = {phase: Layers(fields[phase], RHO, count + 1) for phase, (count, _) in arguments.items()}
    exact = {phase: exact_ratios(count, **options) for phase, (count, options) in arguments.items()}
    check_limits(evidence, layers, exact)
    shown = (1, 2, 9, 50)
    for phase, ratios in exact.items():
        for name, row, formula in (
            ("as printed", evidence.stated, from_the_next_layer),
            ("from r = l on", evidence.corrected, theory),
        ):
            row(
                f"off-diagonal / diagonal NTK entry, product {name}",
                expected=[ratios[depth - 1] for depth in shown],
                measured=[layers[phase].ratio(formula, depth) for depth in shown],
                tolerance=rounding(20 * max(shown) * EPS, f"rounding of {max(shown)} layers"),
                condition=f"ReLU, {phase}, 1 to 50 hidden layers",
            )
    check_networks(evidence, theory, fields["critical"], setting)
    search_depth(evidence, layers["critical"], exact["critical"])
    return evidence


def check_networks(evidence: Evidence, theory: Theory, field: MeanField, setting: Setting) -> None:
    """Checks the right order against the autodiff NTK of finite networks."""
    draws, rho = setting.size(2000, 100_000), 0.5
    mean, error = mean_network_ratio(rho, 64, draws, jax.random.key(setting.seed))
    pair = Layers(field, rho, 2)
    evidence.corrected(
        "NTK entries, product from r = l on",
        expected=theory(pair.covariances, pair.slopes),
        measured=mean,
        tolerance=sampling(5 * error, f"5 standard errors of {draws} networks"),
        condition=f"ReLU, critical, autodiff, 1 hidden layer of 64, correlation {rho}",
    )


def search_depth(evidence: Evidence, layers: Layers, exact: np.ndarray) -> None:
    """Finds the depth from which the printed formula is good to 1 %."""
    depths = np.arange(1, min(len(exact), 1000) + 1)
    printed = np.array([layers.ratio(from_the_next_layer, int(depth)) for depth in depths])
    error = np.abs(printed / exact[: len(depths)] - 1)
    wrong = depths[error > 0.01]
    evidence.edge(
        "hidden layers",
        float(wrong[-1]),
        f"up to here the printed product is off by more than 1 % (most, {error.max():.1%}, at {depths[error.argmax()]} "
        f"hidden layers), critical ReLU, correlation {RHO}; searched 1 to {depths[-1]}",
    )
