"""The abstract: batch normalisation takes extra floating-point operations."""

import functools
from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from ntk_analysis.training.memory import account
from ntk_analysis.training.recipe import Recipe

from ..contract import Claim, Evidence, Relation, Setting, Verdict
from ..tolerances import resolution, rounding

Theory: TypeAlias = Callable[[str], float]

CLAIM = Claim(
    id="flops",
    title="operations",
    statement="Batch norm takes extra floating-point operations, which MimicNorm does without.",
    source="Abstract",
    scope="The networks of Table 1, as their authors' code builds them, in training, batches of 256.",
    recorded=Verdict.HOLDS,
    summary="It takes 19 operations for each number that is normalised, forwards and backwards: of a step of "
    "training 0.3 to 0.4 % in VGG11, VGG16 and ResNet18, 2.4 % in SqueezeNet and 3.8 % in ShuffleNetV2. MimicNorm "
    "takes 4 for each weight that is centered, and its last batch norm: 0.005 to 0.04 %, but 0.6 % with the authors' "
    "scalars in ShuffleNetV2. So few operations cannot be what batch norm costs in time; seconds of a step on a GPU "
    "were not measured.",
)
BATCH, CLASSES = 256, 100
NETWORKS = ("vgg11", "vgg16", "resnet18", "squeezenet1_0", "shufflenet_v2_x1_0")
QUICK = ("vgg11", "resnet18")
FIRST = NETWORKS[0]
OF_A_CHANNEL = 64  # operations, at most, on what a batch norm keeps of each channel: 16 numbers, 4 operations each


def normalised(name: str) -> float:
    """Returns how many numbers the hidden batch norms of a network normalise: they keep two arrays of that size."""
    return account(name, "batch_norm", batch=BATCH, published=True).by_kind["batch norm"] / 8


THEORY: Theory = normalised
WRONG: dict[str, Theory] = {
    "the same in every network": lambda name: 1.0,
    "as many for each layer": lambda name: {"vgg11": 8.0, "resnet18": 20.0}.get(name, 26.0),
}


def shapes(recipe: Recipe) -> nnx.Module:
    """Returns the network of a recipe with shapes in the place of arrays."""
    return nnx.eval_shape(lambda: recipe.build(nnx.Rngs(0), classes=CLASSES, inputs=3))


def channels(name: str) -> int:
    """Returns how many channels the batch norms of a network have: each keeps a mean and a variance of a channel."""
    kept = nnx.state(shapes(Recipe.cifar100(name, normalization="batch_norm", batch=BATCH)), nnx.BatchStat)
    return sum(array.size for array in jax.tree.leaves(kept)) // 2


@functools.cache
def of_a_step(name: str, normalization: str, *, biased: bool = True) -> float:
    """Returns the operations of one step of training: gradient, SGD with momentum, centering; by XLA, from shapes.

    The authors' ResNets have biases where they have no batch norm; without `biased` they have none.
    """
    changes = {} if biased or not name.startswith("resnet") else {"architecture": "torchvision"}
    recipe = Recipe.cifar100(name, normalization=normalization, batch=BATCH, **changes)
    model = shapes(recipe)
    graph, params, *others = nnx.split(model, nnx.Param, ...)
    (rest,) = others
    chain = recipe.transformation(model)

    def loss(params: Any, rest: Any, x: jax.Array, y: jax.Array) -> tuple[jax.Array, Any]:
        model: Any = nnx.merge(graph, params, rest, copy=True)
        return optax.softmax_cross_entropy_with_integer_labels(model(x), y).mean(), nnx.state(model, nnx.Not(nnx.Param))

    def step(params: Any, rest: Any, moments: Any, x: jax.Array, y: jax.Array) -> Any:
        gradient, rest = jax.grad(loss, has_aux=True)(params, rest, x, y)
        update, moments = chain.update(gradient, moments, params, learning_rate=jnp.float32(0.1))
        return optax.apply_updates(params, update), rest, moments

    x, y = jax.ShapeDtypeStruct((BATCH, 32, 32, 3), jnp.float32), jax.ShapeDtypeStruct((BATCH,), jnp.int32)
    return operations(step, params, rest, jax.eval_shape(chain.init, params), x, y)


def operations(function: Callable[..., Any], *shapes: Any) -> float:
    """Returns the floating-point operations of a program, by XLA's cost analysis before it is optimised."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        found: Any = jax.jit(function).lower(*shapes).cost_analysis()
    return float(found["flops"])


def check(setting: Setting, theory: Theory = THEORY) -> Evidence:
    """Counts the operations of a step with batch norm, with MimicNorm and without either, network by network."""
    evidence, added = Evidence(), {}
    for name in setting.track(setting.size(QUICK, NETWORKS), "flops: networks"):
        none, mimic, norm = (of_a_step(name, kind) for kind in ("none", "mimic_norm", "batch_norm"))
        where = f"{name}, CIFAR size, batch {BATCH}"
        evidence.stated(
            "operations that batch norm adds, over those that MimicNorm adds",
            expected=1.0,
            measured=(norm - none) / (mimic - none),
            tolerance=rounding(1e-6, "counts of up to 1e12, in float64"),
            relation=Relation.AT_LEAST,
            condition=where,
        )
        added[name] = norm - of_a_step(name, "none", biased=False)
        if name != FIRST:
            evidence.corrected(
                f"operations that batch norm adds, over those in {FIRST}",
                expected=theory(name) / theory(FIRST),
                measured=added[name] / added[FIRST],
                tolerance=resolution(
                    added[name]
                    / added[FIRST]
                    * sum(OF_A_CHANNEL * channels(one) / added[one] for one in (name, FIRST)),
                    f"up to {OF_A_CHANNEL} operations on each channel",
                ),
                condition=f"{where}: as many for each number that is normalised, biases aside",
            )
        evidence.varied(
            "operations that batch norm adds, % of a step",
            expected=1.0,
            measured=100 * (norm / none - 1),
            tolerance=resolution(0.05, "the claim gives no number: one percent is taken as much"),
            relation=Relation.AT_LEAST,
            condition=where,
        )
        evidence.note(
            f"{where}: a step takes {none:.4g} operations; batch norm adds {100 * (norm / none - 1):.2f} %, MimicNorm "
            f"{100 * (mimic / none - 1):.3f} %."
        )
    return evidence
