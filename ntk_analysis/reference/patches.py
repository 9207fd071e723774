"""What neural-tangents 0.6.5 finds missing in current JAX, and how it gets it."""

import contextlib
import sys
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import jax
import jax.core
import jax.extend.core
import jax.interpreters.ad
import jax.numpy as jnp
import scipy.linalg

from ntk_analysis.reference import derivatives

EXPERIMENTAL = "neural_tangents.experimental"


@contextlib.contextmanager
def patched_for_import() -> Iterator[None]:
    """Lends JAX and `sys.modules` the names that neural-tangents reads while it is imported, and takes them back."""
    moved = {name: getattr(jax.extend.core, name) for name in ("Jaxpr", "JaxprEqn", "Literal", "Primitive", "Var")}
    with contextlib.ExitStack() as lent:
        # __init__ imports .experimental, which needs TensorFlow: an empty module stands in for it
        lent.enter_context(_lent(sys.modules, {EXPERIMENTAL: ModuleType(EXPERIMENTAL)}))
        # jax.util is gone; empirical.py wants these two of it, which are zip and map that check lengths
        util: Any = ModuleType("jax.util")
        util.safe_map, util.safe_zip = derivatives.strict_map, derivatives.strict_zip
        lent.enter_context(_lent(sys.modules, {"jax.util": util}))
        # moved to jax.extend.core
        lent.enter_context(_lent(vars(jax.core), moved))
        # a primitive that no longer exists and that rules.py has a rule for
        lent.enter_context(_lent(vars(jax.interpreters.ad), {"zeros_like_p": jax.extend.core.Primitive("zeros_like")}))
        yield


@contextlib.contextmanager
def _lent(namespace: dict[str, Any], names: dict[str, Any]) -> Iterator[None]:
    missing = {name: value for name, value in names.items() if name not in namespace}
    namespace.update(missing)
    try:
        yield
    finally:
        for name in missing:
            del namespace[name]


def mend(module: ModuleType) -> None:
    """Replaces the names inside neural-tangents that fail when they are called; the replacements stay.

    - empirical.core, empirical.ad: jax.core and jax.interpreters.ad with the names that they have lost;
    - empirical._get_primals_out_and_pullback, empirical._eqn_vjp_fn: structured derivatives, on JAX's public functions;
    - empirical._get_flops: `cost_analysis()` returns a dict, not a list (AUTO counts with it);
    - predict.sp: SciPy 1.14 dropped `eigvalsh(eigvals=...)` (max_learning_rate calls it).
    """
    empirical, predict = sys.modules["neural_tangents._src.empirical"], sys.modules["neural_tangents._src.predict"]
    _replace(
        empirical,
        core=_extended(jax.core, Var=jax.extend.core.Var, DShapedArray=type("DShapedArray", (), {})),
        ad=_extended(
            jax.interpreters.ad,
            source_info_util=SimpleNamespace(transform_name_stack=jax.named_scope),
            config=SimpleNamespace(jax_enable_checks=False),  # its check calls lattice_join, which is gone
        ),
        _get_primals_out_and_pullback=derivatives.linear_program(empirical._backward_pass),
        _eqn_vjp_fn=derivatives.transpose,
        _get_flops=_flops,
    )
    _replace(predict, sp=SimpleNamespace(linalg=SimpleNamespace(eigvalsh=_eigvalsh)))
    vars(module).pop("experimental", None)  # removes the empty module that stood in for it


def _replace(module: ModuleType, **names: Any) -> None:
    for name, value in names.items():
        if not hasattr(module, name):
            raise AttributeError(f"{module.__name__} has no {name} to mend")
        setattr(module, name, value)


def _extended(module: ModuleType, **names: Any) -> SimpleNamespace:
    return SimpleNamespace(**(vars(module) | names))


def _flops(f: Any, optimize: bool, *args: Any, **kwargs: Any) -> float:
    lowered = jax.jit(f).lower(*args, **kwargs)
    analysis: Any = (lowered.compile() if optimize else lowered).cost_analysis()
    return analysis["flops"]


def _eigvalsh(matrix: Any, eigvals: tuple[int, int]) -> Any:
    return scipy.linalg.eigvalsh(jnp.asarray(matrix), subset_by_index=eigvals)
