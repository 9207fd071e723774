"""Which weights may be scaled without changing the network, so that only their direction is learned?"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ...contract import Claim, Evidence, Setting
from ...subject import Subject
from ...tolerances import rounding

CLAIM = Claim(
    id="scaling",
    title="scale invariance",
    statement="Weights before a normalisation have no scale: outputs do not change when an array $W$ is multiplied by "
    "a number, and the gradient of every loss is orthogonal to $W$. As stated, of one array at least; of every array "
    "under other conditions.",
    source="Arora, Li, Lyu 2019; Supp. B.2",
    formula=r"\left\langle W, \frac{\partial L}{\partial W} \right\rangle = 0",
    recorded=None,
    summary="",
)


def check(setting: Setting, subject: Subject) -> Evidence:
    """Checks <W, dL/dW> for a random loss, and W doubled, for every array of two or more axes."""
    evidence = Evidence()
    with subject.precision:
        found = {name: values for name, values in _measured(subject, setting.seed).items() if np.isfinite(values).all()}
    if not found:
        evidence.open = "no array of two or more axes moves the outputs: there are no weights to scale"
        return evidence
    tolerance, because = 4 * subject.rounding, "rounding of two forward and two backward passes"
    for name, (cosine, change) in found.items():
        where = f"{name} {subject.weights[name].shape}"
        evidence.stated(
            "|cos(W, dL/dW)|, random loss",
            expected=0,
            measured=cosine,
            tolerance=rounding(tolerance, because),
            part=name,
            condition=where,
        )
        evidence.stated(
            "relative change of outputs, W doubled",
            expected=0,
            measured=change,
            tolerance=rounding(tolerance, because),
            part=name,
            condition=where,
        )
    free = [name for name, values in found.items() if max(values) <= tolerance]
    fixed = [name for name in found if name not in free]
    evidence.note(f"Scale invariant: {', '.join(free) or 'none'}. Not: {', '.join(fixed) or 'none'}.")
    return evidence


def _measured(subject: Subject, seed: int) -> dict[str, tuple[float, float]]:
    """Returns |cos(W, dL/dW)| and |f(2 W) - f(W)| / |f(W)| by array; NaN for one without a gradient."""
    x = jnp.asarray(subject.x)

    @jax.jit
    def passes(params: Any) -> tuple[jax.Array, Any]:
        y, pull = jax.vjp(lambda params: subject.f(params, x), params)
        return y, pull(jax.random.normal(jax.random.key(seed), y.shape, y.dtype))[0]

    forward = jax.jit(subject.f)
    y, gradient = passes(subject.params)
    leaves, tree = jax.tree.flatten(subject.params)
    slopes = jax.tree.leaves(gradient)
    names = [
        jax.tree_util.keystr(p, simple=True, separator=".")
        for p, _ in jax.tree_util.tree_leaves_with_path(subject.params)
    ]
    found = {}
    for index, name in enumerate(names):
        if name in subject.weights:
            doubled = jax.tree.unflatten(tree, [leaf * 2 if index == at else leaf for at, leaf in enumerate(leaves)])
            found[name] = (_cosine(leaves[index], slopes[index]), _relative(forward(doubled, x), y))
    return found


def _cosine(left: Any, right: Any) -> float:
    a, b = (np.asarray(array, np.float64).ravel() for array in (left, right))
    with np.errstate(invalid="ignore"):
        return float(np.abs(a @ b) / (np.linalg.norm(a) * np.linalg.norm(b)))


def _relative(changed: Any, y: Any) -> float:
    a, b = (np.asarray(array, np.float64) for array in (changed, y))
    with np.errstate(invalid="ignore"):
        return float(np.linalg.norm(a - b) / np.linalg.norm(b))
