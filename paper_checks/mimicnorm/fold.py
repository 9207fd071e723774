"""App. C: centering needs no back-propagation of its own, and the residual scalar folds into the convolution."""

from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ntk_analysis import activations, data
from ntk_analysis.layers import Activation, Conv, Dense, Layer, Residual, Serial
from ntk_analysis.layers.base import Params
from ntk_analysis.training.centering import center, selected

from ..contract import Claim, Evidence, Setting, Verdict
from ..tolerances import rounding

Theory: TypeAlias = Callable[[Any], Any]

WIDTH, IMAGES, STEPS, RATE = 64, 64, 200, 0.05
GAIN = 1.2  # a constant factor of the weights in the forward pass, as the paper's 1/sqrt(1 - 1/pi)
EPS = float(np.finfo(np.float64).eps)
ROUNDINGS = 1000  # of the runs' own sensitivity to a last bit: 3 orders of magnitude below the smallest true difference

CLAIM = Claim(
    id="fold",
    title="projecting is reparametrising",
    statement="Subtracting the mean weight after each step, training $V$ with $W = V P$ by back-propagation through "
    "the centering, and projecting the gradient are the same training; a residual branch's scalar folds into its last "
    "convolution.",
    source="Appendix C",
    scope="Training by SGD with momentum and weight decay from centered weights.",
    formula=r"(W_t - \eta\,\nabla L(W_t))\,P = W_t - \eta\,\nabla_V L(V P)\,P, \quad P = I - \tfrac{1}{n} 1 1^T",
    recorded=Verdict.HOLDS,
    summary="To rounding under SGD, momentum, Nesterov and weight decay, given a centered start, with or without "
    "biases. Not under Adam, AdamW or clipping by norm, and not from a start that is not centered.",
)


def theory(params: Params) -> Params:
    """Changes the weights after a step: subtracts the mean of each unit over its fan-in."""
    return center(params, selected(min_fan_in=1))


def over_units(params: Params) -> Params:
    """Subtracts the mean over the units in place of the mean over the fan-in."""
    return jax.tree.map(lambda w: w - w.mean(axis=-1, keepdims=True) if w.ndim > 1 else w, params)


def after_half(params: Params) -> Params:
    """Subtracts half of the mean, as if centering were a decay."""
    return jax.tree.map(lambda w, projected: (w + projected) / 2, params, theory(params))


THEORY: Theory = theory
WRONG: dict[str, Theory] = {"the mean over the units": over_units, "half of the mean": after_half}

OPTIMIZERS: dict[str, optax.GradientTransformation] = {
    "SGD": optax.sgd(RATE),
    "momentum": optax.sgd(RATE, momentum=0.9),
    "Nesterov": optax.sgd(RATE, momentum=0.9, nesterov=True),
    "momentum, weight decay": optax.chain(optax.add_decayed_weights(5e-4), optax.sgd(RATE, momentum=0.9)),
}
QUICK = ("SGD", "momentum, weight decay")
OTHERS: dict[str, optax.GradientTransformation] = {
    "Adam": optax.adam(0.01),
    "AdamW": optax.adamw(0.01),
    "clipping by norm": optax.chain(optax.clip_by_global_norm(0.01), optax.sgd(RATE)),
}


def network(*, centered: bool, b_var: float = 0.0) -> Layer:
    """Two hidden ReLU layers and a read-out of stable gain and centered fan-in; `centered`: in the forward pass."""
    gain = activations.relu.stable_gain(centered=True)
    if not centered:
        gain *= WIDTH / (WIDTH - 1)  # what a centered layer divides by

    def dense(units: int) -> Dense:
        return Dense(units, gain, b_var, center=centered)

    relu = Activation("relu")
    return Serial(Dense(WIDTH, 1.0, b_var), relu, dense(WIDTH), relu, dense(10))


def behind_first(project: Theory) -> Theory:
    """Projects all layers but the first, which is not centered."""
    return lambda params: (params[0], *project(params[1:]))


def train(
    f: Callable[[Any, jax.Array], jax.Array],
    params: Params,
    x: jax.Array,
    y: jax.Array,
    optimizer: optax.GradientTransformation,
    project: Theory,
    gradient: Theory,
) -> Params:
    """Returns the parameters after full-batch steps on the mean squared error."""

    def loss(params: Any) -> jax.Array:
        return jnp.mean((f(params, x) - y) ** 2)

    def step(carry: Any, _: Any) -> tuple[Any, None]:
        params, state = carry
        updates, state = optimizer.update(gradient(jax.grad(loss)(params)), state, params)
        return (project(optax.apply_updates(params, updates)), state), None

    return jax.lax.scan(step, (params, optimizer.init(params)), length=STEPS)[0][0]


def distance(left: Params, right: Params) -> float:
    """Returns the largest difference of two parameter sets, relative to the largest entry."""
    lefts, rights = (list(map(np.asarray, jax.tree.leaves(params))) for params in (left, right))
    apart = max(float(np.max(np.abs(a - b))) for a, b in zip(lefts, rights, strict=True))
    return apart / max(float(np.max(np.abs(a))) for a in lefts)


def same(params: Params) -> Params:
    """Returns the parameters as they are: no projection."""
    return params


def check(setting: Setting, theory: Theory = THEORY) -> Evidence:
    """Takes 200 steps on digits in float64, three ways, with each optimizer; then checks a residual branch's scalar."""
    evidence = Evidence()
    images = data.load_digits().subset(IMAGES, setting.seed)
    inputs = data.preprocess(images.images, image_centering="dataset")
    labels = np.eye(10)[np.asarray(images.labels)]
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):  # optax's Adam adds an integer to a float
        _compare_training(evidence, setting, jnp.asarray(inputs), jnp.asarray(labels), theory)
        _fold_scalar(evidence, setting.seed)
    return evidence


def _compare_training(evidence: Evidence, setting: Setting, x: jax.Array, y: jax.Array, theory: Theory) -> None:
    project = behind_first(theory)
    because = f"{ROUNDINGS} times what the last bit of the inputs changes"

    def three_ways(optimizer: Any, b_var: float = 0.0, *, centered_start: bool = True) -> tuple[float, float, float]:
        raw, reparametrised = network(centered=False, b_var=b_var), network(centered=True, b_var=b_var)
        start = raw.init(jax.random.key(setting.seed), x.shape)[1]
        start = behind_first(THEORY)(start) if centered_start else start

        @jax.jit
        def runs(x: jax.Array) -> tuple[Any, Any, Any]:
            trained = train(reparametrised.apply, start, x, y, optimizer, same, same)
            return (
                behind_first(THEORY)(trained),
                train(raw.apply, start, x, y, optimizer, project, same),
                train(raw.apply, start, x, y, optimizer, same, project),
            )

        through, after, gradient = runs(x)
        control = runs(x * (1 + EPS))[0]
        return distance(through, after), distance(through, gradient), ROUNDINGS * distance(through, control)

    optimizers = {name: OPTIMIZERS[name] for name in setting.size(QUICK, OPTIMIZERS)}
    for name, optimizer in setting.track(list(optimizers.items()), "fold: optimizers"):
        after, gradient, tolerance = three_ways(optimizer)
        condition = f"{name}, {STEPS} steps, centered start"
        evidence.stated(
            "weights, projection against W = V P",
            expected=0,
            measured=after,
            tolerance=rounding(tolerance, because),
            condition=condition,
        )
        evidence.stated(
            "weights, projected gradient against W = V P",
            expected=0,
            measured=gradient,
            tolerance=rounding(tolerance, because),
            condition=condition,
        )
    after, _, tolerance = three_ways(OPTIMIZERS["momentum"], 0.1)
    evidence.varied(
        "weights, projection against W = V P",
        expected=0,
        measured=after,
        tolerance=rounding(tolerance, because),
        condition="momentum, biases",
    )
    evidence.varied(
        "weights, gain g in the forward pass and rate / g^2 against neither",
        expected=0,
        measured=_gain_against_rate(x, y, setting.seed),
        tolerance=rounding(tolerance, because),
        condition=f"momentum, g = {GAIN}",
    )
    for name, optimizer in setting.track(list(OTHERS.items()), "fold: other optimizers"):
        after, _, tolerance = three_ways(optimizer)
        evidence.varied(
            "weights, projection against W = V P",
            expected=0,
            measured=after,
            tolerance=rounding(tolerance, because),
            condition=name,
        )
    after, _, tolerance = three_ways(OPTIMIZERS["SGD"], centered_start=False)
    evidence.varied(
        "weights, projection against W = V P",
        expected=0,
        measured=after,
        tolerance=rounding(tolerance, because),
        condition="SGD, start not centered",
    )


def _gain_against_rate(x: jax.Array, y: jax.Array, seed: int) -> float:
    """Compares effective weights with a gain of all layers and without, at rates g^2 apart."""
    plain = network(centered=True)
    start = plain.init(jax.random.key(seed), x.shape)[1]

    def times(gain: float, params: Any) -> Any:
        return jax.tree.map(lambda w: gain * w, params)

    @jax.jit
    def runs() -> tuple[Any, Any]:
        inside = train(
            lambda params, x: plain.apply(times(GAIN, params), x),
            times(1 / GAIN, start),
            x,
            y,
            optax.sgd(RATE / GAIN**2, momentum=0.9),
            same,
            same,
        )
        return times(GAIN, inside), train(plain.apply, start, x, y, OPTIMIZERS["momentum"], same, same)

    return distance(*runs())


def _fold_scalar(evidence: Evidence, seed: int) -> None:
    """Checks that x + s conv(W, x) is x + conv(s W, x)."""
    scalar, channels = 1 / np.sqrt(3), 4
    conv = Conv(channels, w_var=2.0)
    key, x_key = jax.random.split(jax.random.key(seed))
    x = jax.random.normal(x_key, (2, 5, 5, channels))
    params = Residual(conv).init(key, x.shape)[1]
    folded = jax.tree.map(lambda w: scalar * w, params)
    branch = Residual(conv, scale=scalar).apply(params, x)
    inside = Residual(conv).apply(folded, x)
    size = float(jnp.max(jnp.abs(branch)))
    evidence.stated(
        "outputs, scalar on the branch against scalar in its convolution",
        expected=0,
        measured=float(jnp.max(jnp.abs(branch - inside))) / size,
        tolerance=rounding(64 * EPS, f"rounding of sums over {9 * channels} weights"),
        condition="residual block, 3 x 3 convolution",
    )
