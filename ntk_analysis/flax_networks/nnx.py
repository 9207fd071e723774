"""A Flax NNX model as f(params, x)."""

from dataclasses import dataclass, field
from typing import Any

import jax
from flax import nnx

from ntk_analysis.common.precision import as_wide_as
from ntk_analysis.common.pytrees import Tree
from ntk_analysis.flax_networks.modes import Seen, arguments, check_obeyed, flags
from ntk_analysis.layers.base import Params


@dataclass(frozen=True, eq=False)
class NNXFunction:
    """f(params, x) of an NNX model; what the model writes into itself is lost.

    Attributes:
        graph: the model without its arrays.
        state: all `nnx.Variable`s other than `nnx.Param`s: statistics, caches, random keys.
        arguments: further arguments of the model's call, after x.
        shapes: shapes of the parameters.
        mode: mode of the model, "eval" or "train".
    """

    graph: Any = field(repr=False)
    state: Any = field(repr=False)
    shapes: Any = field(repr=False)
    arguments: dict[str, Any]
    mode: str

    def __call__(self, params: Params, x: Tree) -> Tree:
        """The model's output."""
        return self.applied(self.model(params, x), x)

    @property
    def module(self) -> nnx.Module:
        """The model, with shapes in place of its parameters."""
        return nnx.merge(self.graph, self.shapes, self.state, copy=True)

    def model(self, params: Params, x: Tree) -> Any:
        """A model with these parameters that may be written into, under every transformation of JAX."""
        return nnx.merge(self.graph, params, as_wide_as((params, x), self.state), copy=True)

    def applied(self, model: Any, x: Tree) -> Tree:
        """The output of such a model."""
        return model(x, **nnx.clone(self.arguments))


def from_nnx(module: object, x: Tree, mode: str, given: dict[str, Any]) -> tuple[NNXFunction, Params, Any]:
    """See `networks.from_nnx`."""
    if not isinstance(module, nnx.Module):
        raise TypeError(f"got {type(module).__name__}, expected a module of flax.nnx: from_linen takes those of linen")
    wanted, said = flags(mode), arguments(type(module).__call__, mode, given)
    model = nnx.clone(module)  # the given module's training goes on without f
    for _, part in nnx.iter_modules(model):
        for name, value in wanted.items():
            if isinstance(vars(part).get(name, 0), bool | None):
                setattr(part, name, value)
    graph, params, state = nnx.split(model, nnx.Param, ...)  # type: ignore[misc]
    f = NNXFunction(graph, state, jax.eval_shape(lambda: params), said, mode)
    check_obeyed(mode, _try(f, params, x))
    return f, params, x


def _try(f: NNXFunction, params: Params, x: Any) -> list[Seen]:
    """The layers with a mode, and whether one call wrote into their statistics or drew from their keys."""
    seen: list[Seen] = []

    def watch(params: Params, x: Any) -> Any:
        model = f.model(params, x)
        watched = [
            (f"{type(part).__name__} {'/'.join(map(str, path))}".strip(), variable, variable.get_value())
            for path, part in nnx.iter_modules(model)
            if (variable := _written_in_training(part)) is not None
        ]
        y = f.applied(model, x)
        seen.extend(Seen(name, variable.get_value() is not before) for name, variable, before in watched)
        return y

    jax.eval_shape(watch, params, x)
    return sorted(seen)


def _written_in_training(part: nnx.Module) -> nnx.Variable[Any] | None:
    if isinstance(part, nnx.BatchNorm):
        return part.mean
    if isinstance(part, nnx.Dropout) and part.rate != 0 and part.rngs is not None:
        return part.rngs.count
    return None
