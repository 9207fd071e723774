"""A PyTorch module as f(params, x), computed in JAX by torchax. `networks.from_torch` makes it.

Needs the extra `torch`: PyTorch, torchvision and torchax.
"""

import copy
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ntk_analysis.common.extras import how_to_install
from ntk_analysis.common.messages import first_line
from ntk_analysis.common.precision import as_wide_as, wants_float64
from ntk_analysis.common.pytrees import Tree
from ntk_analysis.flax_networks.modes import check_mode
from ntk_analysis.layers.base import Params

try:
    import torch
    import torchax
except ImportError as error:
    raise ImportError(f"PyTorch's modules need PyTorch and torchax ({error}){how_to_install(error)}") from error
except Exception as error:  # torchax reads the inside of PyTorch when it is imported
    versions = f"torchax {version('torchax')} does not work with torch {version('torch')}"
    raise ImportError(f"{versions} ({first_line(error)}): the extra `torch` has versions that do") from error

_ONE_AT_A_TIME = threading.RLock()  # arrays stand in the module in the place of its tensors while it is called


@dataclass(frozen=True, eq=False)
class TorchFunction:
    """f(params, x) of a PyTorch module; what the module writes into its buffers is lost.

    Attributes:
        module: module as it is called, a copy of the given one.
        constants: buffers, parameters that need no gradient, and other tensors of the module, by name.
        mode: mode of the module, "eval" or "train".
    """

    module: torch.nn.Module = field(repr=False)
    constants: Mapping[str, np.ndarray] = field(repr=False)
    mode: str

    def __call__(self, params: Params, x: Tree) -> Tree:
        """The module's output."""
        environment = torchax.default_env()
        arrays = {**as_wide_as((params, x), dict(self.constants)), **params}
        tensors, inputs = environment.j2t_iso(jax.tree.map(jnp.asarray, (arrays, x)))
        with _ONE_AT_A_TIME, environment:
            y = torch.func.functional_call(self.module, tensors, (inputs,))
        return environment.t2j_iso(y)


def from_torch(given: object, x: Any, mode: str) -> tuple[TorchFunction, Params, np.ndarray]:
    """See `networks.from_torch`."""
    if not isinstance(given, torch.nn.Module):
        raise TypeError(f"got {type(given).__name__}, expected a torch.nn.Module")
    check_mode(mode)
    # the given module's training goes on without f
    module: torch.nn.Module = copy.deepcopy(given).cpu().train(mode == "train")
    params = {name: _array(leaf) for name, leaf in module.named_parameters() if leaf.requires_grad}
    if not params:
        raise ValueError(f"{type(module).__name__} has no parameters that require a gradient")
    f = TorchFunction(module, _constants(module, set(params)), mode)
    inputs = torch.as_tensor(x).detach().cpu()
    expected = _tried(module, inputs, mode)
    x = _array(inputs)
    _check_agreement(f, params, x, expected)
    return f, params, x


def _constants(module: torch.nn.Module, params: set[str]) -> dict[str, np.ndarray]:
    found = dict([*module.named_buffers(), *module.named_parameters()])
    for prefix, part in module.named_modules():
        # tensors that were not registered, as tables of positions
        plain = {name: value for name, value in vars(part).items() if isinstance(value, torch.Tensor)}
        found |= {f"{prefix}.{name}".lstrip("."): value for name, value in plain.items()}
    return {name: _array(value) for name, value in found.items() if name not in params}


def _array(tensor: torch.Tensor) -> np.ndarray:
    tensor = tensor.detach().cpu()
    if tensor.dtype == torch.bfloat16:  # NumPy has no such dtype of its own
        return tensor.float().numpy().astype(jnp.bfloat16)
    return tensor.numpy().copy()


def _tried(module: torch.nn.Module, x: torch.Tensor, mode: str) -> np.ndarray:
    """The outputs by PyTorch.

    Raises:
        TypeError: the module does not return one tensor.
        ValueError: the module cannot be called with x, or draws random numbers.
    """
    kind = type(module).__name__
    module = copy.deepcopy(module)  # in training mode it writes into its buffers
    drawing: list[str] = []

    def watch(name: str, part: torch.nn.Module) -> None:
        before: list[torch.Tensor] = []
        part.register_forward_pre_hook(lambda *_: before.append(torch.get_rng_state()))

        def after(*_: Any) -> None:
            inner = any(other.startswith(f"{name}." if name else "") for other in drawing)
            if not torch.equal(before.pop(), torch.get_rng_state()) and not inner:
                drawing.append(f"{name} {type(part).__name__}".strip())

        part.register_forward_hook(after)

    for name, part in module.named_modules():
        watch(name, part)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        try:
            y = module(x)
        except Exception as error:  # a user's module may raise anything
            raise ValueError(
                f"{kind} cannot be called with x {tuple(x.shape)} {x.dtype} in mode {mode!r}: {first_line(error)}"
            ) from error
    if drawing:
        cure = "set their probability to 0 or choose mode='eval'" if mode == "train" else "its kernel is not defined"
        raise ValueError(f"{kind} draws random numbers in mode {mode!r} ({', '.join(drawing)}): {cure}")
    if not isinstance(y, torch.Tensor):
        raise TypeError(
            f"{kind} returned {type(y).__name__}, expected one tensor: wrap it in a module that returns one"
        )
    return _array(y)


def _check_agreement(f: TorchFunction, params: Params, x: np.ndarray, expected: np.ndarray) -> None:
    """Raises ValueError unless f gives the outputs of PyTorch to half of their digits, so that no layer is another."""
    kind, works = type(f.module).__name__, f"torchax {version('torchax')} on torch {version('torch')}"
    try:
        with jax.enable_x64(wants_float64(params, x)):
            found = np.asarray(jax.jit(f)(params, x), np.float64)
    except Exception as error:  # torchax raises its own for operations that it does not have
        raise ValueError(f"{works} cannot compute {kind} in JAX: {first_line(error)}") from error
    scale, apart = np.max(np.abs(expected.astype(np.float64))), np.max(np.abs(found - expected))
    if apart > scale * float(jnp.finfo(expected.dtype).eps) ** 0.5:
        raise ValueError(
            f"{works} gives outputs of {kind} that are {apart:.2g} off PyTorch's, of size {scale:.2g}: in float64, as "
            "module.double() has it, rounding is no reason"
        )
