"""Are the weights centered over their fan-in, and does it matter how they are kept so?"""

import math
from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ntk_analysis.training.centering import Mask, center, center_weights
from ntk_analysis.training.fan_in import Path

from ...contract import Claim, Evidence, Setting
from ...subject import Subject
from ...tolerances import rounding

STEPS = 10
Change: TypeAlias = Callable[[Any], Any]

CLAIM = Claim(
    id="centering",
    title="one centering, three ways",
    statement="Centering weights after each step, projecting the gradient, and training $V$ with $W = V P$ are the "
    "same training for this network, given a centered start and plain gradient descent.",
    source="Appendix C",
    formula=r"(W_t - \eta\,\nabla L(W_t))\,P = W_t - \eta\,\nabla L(W_t)\,P, \quad P = I - \tfrac{1}{n} 1 1^T",
    recorded=None,
    summary="",
)


def check(setting: Setting, subject: Subject) -> Evidence:
    """Takes ten steps three ways: from a centered start as stated, then with momentum, Adam and its own start."""
    evidence = Evidence()
    unknown = [f"{name} {leaf.shape}" for name, leaf in subject.weights.items() if subject.fan_ins[name] is None]
    if unknown:
        evidence.note(
            f"Left as they are, as their fan-in is not known: {', '.join(unknown)}. --axes END=AXES states it."
        )
    summed = {name: read for name, read in subject.fan_ins.items() if read and read.size(subject.weights[name]) > 1}
    if not summed:
        evidence.open = "no array of two or more axes with a known fan-in above 1: there is nothing to center"
        return evidence
    with subject.precision, jax.numpy_dtype_promotion("standard"):  # optax's Adam adds an integer to a float
        _compare_training(evidence, subject, setting)
    for name, fan_in in summed.items():
        values = np.asarray(subject.weights[name], np.float64)
        means = values.mean(axis=fan_in.axes)
        evidence.varied(
            "largest mean of a unit's weights / their root mean square",
            expected=0,
            measured=float(np.abs(means).max() / np.sqrt(np.mean(values**2))) if values.any() else 0.0,
            tolerance=rounding(subject.rounding, "rounding of a mean"),
            condition=f"as given, {name} {values.shape}",
        )
    return evidence


def _of_sums(subject: Subject) -> Mask:
    """Returns a mask of every array whose fan-in is known and more than one weight."""

    def mask(path: Path, leaf: Any) -> bool:
        fan_in = subject.axes(path, leaf)
        return fan_in is not None and fan_in.size(leaf) > 1

    return mask


def _compare_training(evidence: Evidence, subject: Subject, setting: Setting) -> None:
    rate = subject.found.spectrum.learning_rate / 2
    own = jax.tree.map(jnp.asarray, subject.params)
    centered = center(own, _of_sums(subject), axes=subject.axes)
    size = float(np.sqrt(np.mean(np.concatenate([np.ravel(w) for w in subject.weights.values()]) ** 2)))
    momentum, adam = optax.sgd(rate / 4, momentum=0.9), optax.adam(1e-2 * size)
    cases = [
        (evidence.stated, "gradient descent, centered start", optax.sgd(rate), centered),
        (evidence.varied, "momentum 0.9, centered start", momentum, centered),
        (evidence.varied, "Adam, centered start", adam, centered),
        (evidence.varied, "gradient descent, the network's own start", optax.sgd(rate), own),
    ]
    roundings = STEPS * max(subject.found.products, 1) * math.sqrt(subject.longest_sum)
    because = f"what the last bit of the inputs changes, times {roundings:.0f} roundings of {STEPS} steps"
    for row, condition, optimizer, start in setting.track(cases, "centering: optimizers"):
        after, gradient, through, control = _three_ways(subject, optimizer, start, setting.seed)
        moved = _distance(after, start)
        eps = float(jnp.finfo(jnp.result_type(*jax.tree.leaves(start))).eps)
        tolerance = roundings * max(_distance(after, control), eps * _distance(start, None)) / moved
        for way, other in (("projected gradient", gradient), ("W = V P", through)):
            row(
                f"weights, centering after the step against {way}, / distance moved",
                expected=0,
                measured=_distance(after, other) / moved,
                tolerance=rounding(tolerance, because),
                condition=condition,
            )


def _three_ways(subject: Subject, optimizer: Any, start: Any, seed: int) -> tuple[Any, Any, Any, Any]:
    """Trains by centering after each step, by the projected gradient, through W = V P, and by centering once more with
    the inputs' last bits changed; returns the four sets of weights."""
    x = jnp.asarray(subject.x)
    bits, targets = jax.random.split(jax.random.key(seed))
    y = subject.f(start, x)
    y = y + jnp.sqrt(jnp.mean(y**2)) * jax.random.normal(targets, y.shape, y.dtype)
    last_bit = jnp.finfo(x.dtype).eps * jax.random.rademacher(bits, x.shape, x.dtype)

    mask, axes = _of_sums(subject), subject.axes

    def same(params: Any) -> Any:
        return params

    def projected(params: Any) -> Any:
        return center(params, mask, axes=axes)

    @jax.jit
    def runs(start: Any) -> tuple[Any, Any, Any, Any]:
        after = optax.chain(optimizer, center_weights(mask, axes=axes))
        return (
            _train(subject, after, start, x, y, same, same),
            _train(subject, optimizer, start, x, y, same, projected),
            projected(_train(subject, optimizer, start, x, y, projected, same)),
            _train(subject, after, start, x * (1 + last_bit), y, same, same),
        )

    return runs(start)


def _train(
    subject: Subject, optimizer: Any, start: Any, x: jax.Array, y: jax.Array, forward: Change, gradient: Change
) -> Any:
    """Returns the parameters after full-batch steps on 1/2 sum |f - y|^2."""

    def loss(params: Any) -> jax.Array:
        return jnp.sum((subject.f(forward(params), x) - y) ** 2) / 2

    def step(carry: Any, _: Any) -> tuple[Any, None]:
        params, state = carry
        updates, state = optimizer.update(gradient(jax.grad(loss)(params)), state, params)
        return (optax.apply_updates(params, updates), state), None

    return jax.lax.scan(step, (start, optimizer.init(start)), length=STEPS)[0][0]


def _distance(left: Any, right: Any) -> float:
    """Returns the root of the summed squares of all differences, or for None of `left` itself."""
    difference = left if right is None else jax.tree.map(lambda a, b: np.float64(a) - np.float64(b), left, right)
    return math.sqrt(sum(float(np.sum(np.float64(leaf) ** 2)) for leaf in jax.tree.leaves(difference)))
