"""What a network's tangent kernel and its phase say about training it: for any pure function f(params, x).

The phase in mean-field theory (Poole et al. 2016; Schoenholz et al. 2017) is the sign of chi_1 - 1, chi_1 being the
factor by which the square of an infinitesimal difference of two inputs grows per layer, at the variance that the layers
settle at. Ordered: differences die, all inputs come to the same output. Chaotic: they grow until outputs have forgotten
how alike their inputs were. The tangent kernel follows (Xiao et al. 2020): ordered, it tends to one number times 11^T,
an outlier that leaves the rest behind; chaotic, its diagonal outgrows all else, condition number 1; critical, entries
off the diagonal tend to a fraction of it (1/3 for smooth activations, 1/4 for ReLU).

A given function has no layers to look into, so this is measured end to end, over N inputs of d features:
    gain G = (|J|_F^2 / sum |f|^2) (sum |x|^2 / (N d)),     J the Jacobian of the outputs by the inputs,
which is the growth of a small perturbation's square relative to that of the signal itself, whatever the units of inputs
and outputs; 1 for a linear map. Layers are counted on the program: the longest chain of matrix products and
convolutions that the input passes through, of which the first is no layer of mean-field theory, for no activation
stands before it. The estimate of ln chi_1 is ln G / layers.

Its error is that of the draw: networks with the same weights in another order (each array of parameters shuffled) are
new draws where weights are independent and alike, as at initialisation. Where the network's own ln G is one of theirs,
the estimate is the mean over all of them; where it is not, it is the network's own, with the deviation of one draw.
`verdict_of` states the rule and its thresholds.

Limits: a finite depth (what happens once, at the first or last layer or while the variance settles, counts like a
factor of 2), one draw, these inputs. Without biases a homogeneous activation (ReLU) keeps correlations' fate whatever
its gain: it is critical here, while chi_1 = w_var/2 counts the signal's own vanishing, reported beside it. Residual
networks have a chi_1 that tends to 1 with depth. In a trained network the shuffles say how much chance would move a
network of such weights, and the report says where the network itself stands outside of that.
"""

import importlib
import importlib.util
import math
import sys
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal
from jaxtyping import Float64

from ntk_analysis import meanfield, spectrum
from ntk_analysis.correlation import random_pairs
from ntk_analysis.correlation.pairs import cosine
from ntk_analysis.empirical import EmpiricalKernel, empirical_ntk, plan
from ntk_analysis.empirical.functions import Flat, check_inputs, check_params, count_outputs, flattened
from ntk_analysis.empirical.tiles import Network
from ntk_analysis.layers import Activation, BatchNorm, Conv, Dense, Layer, LayerNorm, Repeat, Serial
from ntk_analysis.layers.base import Params, as_params_dtype
from ntk_analysis.meanfield import BatchNormField, MeanField
from ntk_analysis.precision import wants_float64
from ntk_analysis.spectrum import Spectrum

LARGEST_COUNT = 256  # inputs taken unless asked for more
PERTURBED = 64  # inputs whose perturbations are followed, unless the batch is coupled
PAIRS = 1000  # of inputs whose correlation is followed by layer
SHUFFLES = 8  # networks of the same weights in another order
QUANTILE = 2.365  # Student's t, SHUFFLES - 1 degrees of freedom, 95 %
PROBES = 4  # random vectors that estimate |J|_F^2
THRESHOLD = 0.1  # of |ln chi_1| per layer: "critical" is a correlation length of at least 10 layers
ENDS = math.log(2)  # what first layer, read-out and a variance that settles may do to ln G
FULL_SIZE, FULL_FLOPS = 2048, 1e12  # rows and cost of a full kernel that is computed besides the trace: some 10 s
PRODUCTS = ("dot_general", "conv_general_dilated")
VERDICTS = ("ordered", "critical", "chaotic", "not decidable")


class Growth(NamedTuple):
    """How outputs answer to changes of the inputs.

    Attributes:
        log_gain: ln G of the network; inf where its derivatives overflow.
        error: standard deviation of ln G from one shuffled network to the next.
        shuffled: mean ln G of the shuffled networks.
        scale: mean square of outputs / mean square of inputs.
        inputs: how alike inputs are, mean x.x' / mean |x|^2 over pairs.
        outputs: the same of the outputs.
        outputs_error: its standard deviation over shuffled networks.
    """

    log_gain: float
    error: float
    shuffled: float
    scale: float
    inputs: float
    outputs: float
    outputs_error: float

    @property
    def typical(self) -> bool:
        """Whether the network's gain is one that its shuffled weights give by chance too, at 95 % and up to `ENDS`."""
        return abs(self.log_gain - self.shuffled) <= QUANTILE * self.error * math.sqrt(1 + 1 / SHUFFLES) + ENDS

    @property
    def estimate(self) -> tuple[float, float]:
        """ln G and its standard error: of all draws where the network is a typical one, else of itself alone."""
        if not self.typical:
            return self.log_gain, self.error
        draws = SHUFFLES + 1
        return (self.log_gain + SHUFFLES * self.shuffled) / draws, self.error / math.sqrt(draws)


class Verdict(NamedTuple):
    """One of VERDICTS, and why."""

    phase: str
    reason: str


class LayerCorrelations(NamedTuple):
    """Mean correlation of pairs of inputs at each activation of one of our networks.

    Attributes:
        measured: (depth,) mean cosine of pre-activations, over channels.
        predicted: (depth,) mean of the mean-field map iterated from the inputs' correlations; None without such a map.
    """

    measured: Float64[np.ndarray, " depth"]
    predicted: Float64[np.ndarray, " depth"] | None


@dataclass(frozen=True, eq=False)
class Diagnosis:
    """What was measured on one network, and the verdict.

    Attributes:
        inputs: N.
        outputs: C.
        parameters: how many numbers the network is trained by.
        method: by which the kernel was computed.
        coupled: whether an output depends on the other inputs of its batch.
        trace: spectrum of the tangent kernel averaged over outputs, (N, N).
        full: spectrum of the whole kernel, (N C, N C); None where it was too large.
        ntk_ratio: mean entry off the diagonal / mean entry on it, of the averaged kernel.
        products: longest chain of matrix products and convolutions.
        growth: of perturbations, end to end.
        layers: correlations by layer; None for a function that is none of our networks.
        field: mean-field theory of the network's block; None where there is no such block.
        field_reason: why there is none.
        verdict: ordered, critical, chaotic or not decidable.
    """

    inputs: int
    outputs: int
    parameters: int
    method: str
    coupled: bool
    trace: Spectrum
    full: Spectrum | None
    ntk_ratio: float
    products: int
    growth: Growth
    layers: LayerCorrelations | None
    field: MeanField | BatchNormField | None
    field_reason: str
    verdict: Verdict

    @property
    def spectrum(self) -> Spectrum:
        """The full kernel's where there is one, which is what gradient descent sees; else the averaged one's."""
        return self.trace if self.full is None else self.full

    @property
    def learning_rate_convention(self) -> str:
        """Loss and parametrisation of `spectrum.learning_rate`, and whether it is exact."""
        bound = " (an upper bound of it: the kernel is averaged over outputs)" if self._averaged else ""
        return f"loss 1/2 sum |f - y|^2 over inputs and outputs, full-batch, params as f takes them{bound}"

    @property
    def log_chi(self) -> float:
        """The estimate of ln chi_1, ln G per layer; NaN for a network of fewer than two products."""
        return self.growth.estimate[0] / (self.products - 1) if self.products > 1 else math.nan

    @property
    def _averaged(self) -> bool:
        return self.full is None and self.outputs > 1

    def record(self) -> dict[str, Any]:
        """Everything as a dict that JSON can hold (infinite numbers and NaN as null)."""
        spectra = {"trace": self.trace} | ({} if self.full is None else {"full": self.full})
        record: dict[str, Any] = {
            "inputs": self.inputs,
            "outputs": self.outputs,
            "parameters": self.parameters,
            "ntk_method": self.method,
            "dtype": str(self.trace.input_dtype),
            "coupled": self.coupled,
            "ntk": {name: _spectrum_record(found) for name, found in spectra.items()},
            "largest_stable_learning_rate": _finite(self.spectrum.learning_rate),
            "learning_rate_convention": self.learning_rate_convention,
            "ntk_off_diagonal_ratio": _finite(self.ntk_ratio),
            "products": self.products,
            "growth": {name: _finite(value) for name, value in self.growth._asdict().items()},
            "log_chi": _finite(self.log_chi),
            "verdict": self.verdict._asdict(),
            "mean_field": _field_record(self.field) if self.field else {"reason": self.field_reason},
        }
        if self.layers is not None:
            record["layers"] = {
                name: None if values is None else [_finite(float(value)) for value in values]
                for name, values in self.layers._asdict().items()
            }
        return record

    def summary(self) -> str:
        """The report as text, one fact a line."""
        rows = {
            "network": f"{self.parameters:,} parameters, {self.outputs} outputs, {self.products} products in a row",
            "batch": f"{self.inputs} inputs, " + ("coupled, as by batch norm" if self.coupled else "not coupled"),
            "NTK": f"{self.trace.input_dtype}, by {self.method}",
        }
        for name, found in (("mean over outputs", self.trace), ("all outputs", self.full)):
            if found is not None:
                rows[f"  {name}"] = _spectrum_line(found)
        growth = self.growth
        rows |= {
            "learning rate": f"< {self.spectrum.learning_rate:.4g} ({self.learning_rate_convention})",
            "evidence": "",
            "  perturbations": f"squares grow {_power(growth.log_gain)} relative to the signal, ln = "
            f"{growth.log_gain:.3g} +- {growth.error:.2g} (one draw)" + self._per_layer(),
            "  outputs alike": f"{growth.outputs:.3f} +- {growth.outputs_error:.3f}, inputs {growth.inputs:.3f} "
            "(mean over pairs; ordered: 1)",
            "  NTK": f"off-diagonal / diagonal {self.ntk_ratio:.3f} (ordered: 1, chaotic: to 0)",
            "  signal": f"outputs' mean square is {growth.scale:.3g} times the inputs'",
            "  mean field": _field_line(self.field) if self.field else self.field_reason,
            "  by layer": self._layers_line(),
            "verdict": f"{self.verdict.phase}: {self.verdict.reason}",
        }
        if not growth.typical:
            rows["note"] = (
                f"with the same weights shuffled they grow {_power(growth.shuffled)}: trained or structured, no random "
                "network"
            )
        width = max(map(len, rows))
        return "\n".join(f"{name:<{width}}  {text}".rstrip() for name, text in rows.items())

    __str__ = summary

    def _per_layer(self) -> str:
        return f", chi_1 = {_power(self.log_chi)} per layer" if self.products > 1 else ""

    def _layers_line(self) -> str:
        if self.layers is None:
            return "not available: a plain function shows its outputs only"
        measured, predicted = self.layers
        if len(measured) == 0:
            return "no activation in the network"
        shown = sorted({*np.geomspace(1, len(measured), 6).astype(int).tolist()})
        parts = [
            f"{layer}: {measured[layer - 1]:.3f}" + (f" ({predicted[layer - 1]:.3f})" if predicted is not None else "")
            for layer in shown
        ]
        return "correlation" + (" (predicted) " if predicted is not None else " ") + ", ".join(parts)


def diagnose(
    f: Network,
    params: Params,
    x: Any,
    *,
    count: int | None = None,
    memory: str | int | None = None,
    seed: int = 0,
    threshold: float = THRESHOLD,
) -> Diagnosis:
    """Conditioning, stable learning rate and phase of a network: see the module for the theory and its limits.

    NumPy float64 parameters and inputs are computed in float64, whatever JAX's flag.

    Args:
        f: a network of layers, or a pure JAX function f(params, x) -> (n, ...) floats.
        params: any tree of float arrays.
        x: (n, ...) inputs, floats, at least 2.
        count: how many of them, drawn with the seed; None is all up to 256.
        memory: what a tile of the kernel may take, as for `empirical_ntk`.
        seed: of the inputs drawn, of shuffles and probes.
        threshold: of |ln chi_1| per layer, below which a network counts as critical.

    Raises:
        TypeError: x or params of integers; f that returns no single array of floats.
        ValueError: NaN or infinite parameters, inputs or outputs; outputs or a kernel of zeros; too few inputs; f
            raises (the message says what).
        MemoryError: one pair of inputs needs more than `memory`.
    """
    if not 0 < threshold < math.inf:
        raise ValueError(f"got threshold={threshold}, expected a positive number: |ln chi_1| per layer")
    x = _chosen_inputs(x, count, seed)
    with _precision_of(params, x):
        flat = _checked_function(f, params, x)
        kernel, trace, full = _spectra(f, params, x, memory)
        few = x if kernel.coupled else x[:PERTURBED]
        growth = _growth(flat, params, jnp.asarray(few), seed)
        products = products_in_a_row(flat, params, jnp.asarray(few))
        field, reason = _field_of(f, len(x))
        layers = _layer_correlations(f, params, few, field, seed) if isinstance(f, Layer) else None
    averaged = np.asarray(_trace_of(kernel), np.float64)
    diagonal = float(np.mean(np.diag(averaged)))
    ratio = float((averaged.sum() - np.trace(averaged)) / (len(x) * (len(x) - 1))) / diagonal
    return Diagnosis(
        inputs=len(x),
        outputs=kernel.plan.features,
        parameters=sum(int(np.size(leaf)) for leaf in jax.tree.leaves(params)),
        method=kernel.method,
        coupled=kernel.coupled,
        trace=trace,
        full=full,
        ntk_ratio=ratio,
        products=products,
        growth=growth,
        layers=layers,
        field=field,
        field_reason=reason,
        verdict=verdict_of(growth, products, ratio, threshold=threshold),
    )


def load_network(target: str) -> tuple[Any, Params, Any]:
    """(f, params, x) from MODULE:FUNCTION: a module importable from the current folder, or the path of a .py file.

    Raises:
        ValueError: not of this form, no such function, or one that does not return (f, params, x); whatever else the
            user's code raises, by its name.
        ImportError: no such module.
        FileNotFoundError: no such file.
    """
    name, colon, function = target.rpartition(":")
    if not colon or not name or not function.isidentifier():
        raise ValueError(f"got {target!r}, expected MODULE:FUNCTION or FILE.py:FUNCTION, as in mynet.py:network")
    with _importing_from(Path(name).parent if name.endswith(".py") else Path()):
        maker = getattr(_user_module(name), function, None)
        if not callable(maker):
            raise ValueError(f"{name} has no function {function!r}: write one that returns (f, params, x)")
        try:
            made = maker()
        except (Exception, SystemExit) as error:  # whatever a user's function may raise
            raise ValueError(f"{target} raised {type(error).__name__}: {first_line(error)}") from error
    if not isinstance(made, tuple) or len(made) != 3:
        got = f"a tuple of {len(made)}" if isinstance(made, tuple) else type(made).__name__
        raise ValueError(f"{target} returned {got}, expected the tuple (f, params, x)")
    f, params, x = made
    if not isinstance(f, Layer) and not callable(f):
        raise TypeError(f"{target} returned f of type {type(f).__name__}, expected a function of (params, x)")
    if not hasattr(x, "shape") or not hasattr(x, "dtype"):
        raise TypeError(f"{target} returned x of type {type(x).__name__}, expected an array (n, ...)")
    return f, params, x


@contextmanager
def _importing_from(folder: Path) -> Iterator[None]:
    path = str(folder.resolve())
    sys.path.insert(0, path)
    try:
        yield
    finally:
        sys.path.remove(path)


def _user_module(name: str) -> ModuleType:
    try:
        return _module_of_file(Path(name)) if name.endswith(".py") else importlib.import_module(name)
    except FileNotFoundError:
        raise
    except ModuleNotFoundError as error:
        if error.name and (name == error.name or name.startswith(f"{error.name}.")):
            raise ImportError(f"no module {name!r} can be imported from here: a file is FILE.py:FUNCTION") from error
        raise ImportError(f"{name} cannot be imported: {first_line(error)}") from error
    except (Exception, SystemExit) as error:  # whatever a user's module may raise
        raise ImportError(f"importing {name} raised {type(error).__name__}: {first_line(error)}") from error


def _module_of_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    spec = importlib.util.spec_from_file_location(f"_diagnosed_{path.stem}", path)  # shadows no module of that name
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module.__name__] = module  # where dataclasses and pickles look for it
    spec.loader.exec_module(module)
    return module


def verdict_of(growth: Growth, products: int, ntk_ratio: float, *, threshold: float = THRESHOLD) -> Verdict:
    """The phase, from an interval of ln chi_1 = ln G / layers, with layers = products - 1.

    Half the interval's width is (t error + ln 2) / layers: the standard error of `Growth.estimate` at Student's 95 %
    quantile t, and a factor of 2 for what happens once and not per layer. All of it below -threshold is ordered,
    above threshold chaotic, between the two critical; otherwise it is not decidable, and so it is where the
    other evidence contradicts: ordered with outputs less alike than inputs or an NTK that is nearly diagonal (ratio
    below 1/4), chaotic with outputs all alike (above 0.95) or an NTK near rank one (ratio above 3/4).
    """
    layers = products - 1
    if layers < 1:
        return Verdict("not decidable", f"{products} matrix products in a row have no layer between them: too shallow")
    gain, error = growth.estimate
    center, half = gain / layers, (QUANTILE * error + ENDS) / layers
    low, high = center - half, center + half
    interval = f"ln chi_1 in [{low:.3g}, {high:.3g}] over {layers} layers"
    if high < -threshold:
        against = "outputs are less alike than inputs" if growth.outputs < growth.inputs - growth.outputs_error else ""
        against = against or ("the NTK is nearly diagonal" if ntk_ratio < 0.25 else "")
        return _unless(against, Verdict("ordered", f"{interval}, below -{threshold:g}: differences die"))
    if low > threshold:
        against = "outputs are all alike" if growth.outputs > 0.95 else ""
        against = against or ("the NTK is nearly of rank one" if ntk_ratio > 0.75 else "")
        return _unless(against, Verdict("chaotic", f"{interval}, above {threshold:g}: differences grow"))
    if -threshold <= low and high <= threshold:
        return Verdict("critical", f"{interval}, within +-{threshold:g}: differences neither die nor grow")
    shallow = f": too shallow for +-{threshold:g}" if ENDS / layers > threshold else f", which contains +-{threshold:g}"
    return Verdict("not decidable", f"{interval}{shallow}" if half > threshold else f"{interval}, across a boundary")


def _unless(against: str, verdict: Verdict) -> Verdict:
    return Verdict("not decidable", f"{verdict.reason}, but {against}") if against else verdict


def products_in_a_row(f: Flat, params: Params, x: jax.Array) -> int:
    """The longest chain of matrix products and convolutions from x to f(params, x), counted on the program.

    Loops of known length count with it, a `while_loop` as one pass, a `cond` as its longest branch.
    """
    program = jax.make_jaxpr(f)(params, x)
    fixed = len(jax.tree.leaves(params))
    found = _chain(program.jaxpr, [None] * fixed + [0] * (len(program.jaxpr.invars) - fixed))
    return max((depth for depth in found if depth is not None), default=0)


def _chain(program: Jaxpr, depths: list[int | None]) -> list[int | None]:
    """Products behind each result, from those behind each argument; None is independent of the inputs."""
    known = {var: depth for var, depth in zip(program.invars, depths, strict=True) if depth is not None}
    for eqn in program.eqns:
        arguments = [None if isinstance(var, Literal) else known.get(var) for var in eqn.invars]
        reached = [depth for depth in arguments if depth is not None]
        if not reached:
            continue
        depth = max(reached) + (eqn.primitive.name in PRODUCTS)
        depth += eqn.params.get("length", 1) * max((_body_depth(body, arguments) for body in _bodies(eqn)), default=0)
        known |= dict.fromkeys(eqn.outvars, depth)
    return [None if isinstance(var, Literal) else known.get(var) for var in program.outvars]


def _body_depth(body: Jaxpr, arguments: list[int | None]) -> int:
    match = len(arguments) == len(body.invars)  # a cond has its index first, a while loop the constants of its test
    starts: list[int | None] = (
        [None if depth is None else 0 for depth in arguments] if match else [0] * len(body.invars)
    )
    return max((depth for depth in _chain(body, starts) if depth is not None), default=0)


def _bodies(eqn: Any) -> Iterator[Jaxpr]:
    for value in eqn.params.values():
        for body in value if isinstance(value, tuple | list) else (value,):
            if isinstance(body, ClosedJaxpr | Jaxpr):
                yield body.jaxpr if isinstance(body, ClosedJaxpr) else body


def _chosen_inputs(x: Any, count: int | None, seed: int) -> np.ndarray:
    array = np.asarray(x)
    try:
        check_inputs(array, None)
    except ValueError as error:
        raise ValueError(str(error).replace("x1", "x", 1)) from error
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise TypeError(f"x has dtype {array.dtype}, expected floats: perturbations of integers are not small")
    wanted = min(len(array), LARGEST_COUNT) if count is None else count
    if not 2 <= wanted <= len(array):
        raise ValueError(f"got {wanted} of {len(array)} inputs, expected at least 2 and no more than there are")
    if wanted == len(array):
        return array
    return array[np.sort(np.random.default_rng(seed).choice(len(array), wanted, replace=False))]


def _precision_of(params: Params, x: np.ndarray) -> AbstractContextManager[Any]:
    return jax.enable_x64(True) if wants_float64(params, x) else nullcontext()


def _checked_function(f: Network, params: Params, x: np.ndarray) -> Flat:
    """f with its outputs flattened, after one call of it that must give finite numbers, not all of them zero."""
    if not isinstance(f, Layer) and not callable(f):
        raise TypeError(f"f must be a function of (params, x) or a network of layers, got {type(f).__name__}")
    check_params(params)
    try:
        y: Any = (f.apply if isinstance(f, Layer) else f)(params, jnp.asarray(x))
    except Exception as error:  # whatever a user's function may raise
        raise ValueError(f"f(params, x) raised {type(error).__name__}: {first_line(error)}") from error
    count_outputs(lambda *_: y, params, jax.eval_shape(lambda: jnp.asarray(x)))
    outputs = np.asarray(y, np.float64)
    bad = np.flatnonzero(~np.isfinite(outputs.reshape(len(x), -1)).all(axis=1))
    if bad.size:
        raise ValueError(f"f returned NaN or infinite values for {bad.size} of {len(x)} inputs, first for {bad[0]}")
    if not outputs.any():
        raise ValueError("f returned zero for all inputs: nothing can be said of a network that is off")
    return flattened(f)


def first_line(error: BaseException, longest: int = 300) -> str:
    """The first line of an exception's message: those of JAX have many."""
    return (str(error).strip().splitlines() or ["(no message)"])[0][:longest]


def _spectra(
    f: Network, params: Params, x: np.ndarray, memory: str | int | None
) -> tuple[EmpiricalKernel, Spectrum, Spectrum | None]:
    """The kernel, the spectrum of its mean over outputs, and that of all of it where that is cheap enough."""
    options: dict[str, Any] = {"memory": memory, "outputs": "trace"}
    found = plan(f, params, x, **options)
    options["coupled"] = found.coupled
    if found.features * len(x) <= FULL_SIZE and _cheap(f, params, x, options):
        options["outputs"] = "full"
    kernel = empirical_ntk(f, params, x, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", spectrum.UnresolvedSpectrumWarning)  # the report says ">="
        trace = spectrum.analyse(_trace_of(kernel))
        if kernel.outputs == "trace":
            return kernel, trace, None
        return kernel, trace, spectrum.analyse(kernel.matrix())


def _cheap(f: Network, params: Params, x: np.ndarray, options: dict[str, Any]) -> bool:
    try:
        return plan(f, params, x, **options | {"outputs": "full"}).flops <= FULL_FLOPS
    except MemoryError:
        return False


def _trace_of(kernel: EmpiricalKernel) -> np.ndarray:
    """(N, N), the MEAN over outputs."""
    trace = kernel.ntk if kernel.outputs == "trace" else np.einsum("abcc->ab", kernel.ntk)
    return trace / np.asarray(kernel.plan.features, trace.dtype)


def _growth(f: Flat, params: Params, x: jax.Array, seed: int) -> Growth:
    """Gains and likenesses of the network and of shuffled ones; probes are drawn anew for each."""

    @jax.jit
    def pulled(params: Params, x: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        y, pull = jax.vjp(lambda x: f(params, x), x)

        def probe(key: jax.Array) -> jax.Array:  # E |J^T u|^2 = |J|_F^2
            slope = pull(jax.random.rademacher(key, y.shape, y.dtype))[0]
            return jnp.sum(slope.astype(jnp.float64 if slope.dtype == jnp.float64 else jnp.float32) ** 2)

        return y, jnp.mean(jax.lax.map(probe, jax.random.split(key, PROBES)))

    generator = np.random.default_rng(seed)
    inputs = np.asarray(x, np.float64)
    gains, alike, scale = [], [], math.nan
    for number, key in enumerate(jax.random.split(jax.random.key(seed), SHUFFLES + 1)):
        drawn = jax.tree.map(lambda leaf: jnp.asarray(_shuffled(leaf, generator)), params) if number else params
        y, jacobian = (np.asarray(value, np.float64) for value in pulled(drawn, x, key))
        with np.errstate(all="ignore"):
            ratio = float(np.mean(y**2) / np.mean(inputs**2)) if number == 0 else scale
            gains.append(float(np.log(jacobian / np.sum(y**2) * np.mean(inputs**2))))
            alike.append(_likeness(y))
        scale = ratio
    gain, others = gains[0], np.asarray(gains[1:])
    if math.isnan(gain) or not math.isfinite(_likeness(inputs)):
        raise ValueError("derivatives of f by its inputs are NaN, or all inputs are zero: no phase can be measured")
    others, likes = others[np.isfinite(others)], np.asarray(alike[1:])[np.isfinite(alike[1:])]
    error = float(others.std(ddof=1)) if len(others) > 1 else 0.0
    likes_error = float(likes.std(ddof=1)) if len(likes) > 1 else 0.0
    shuffled = float(others.mean()) if len(others) else gain
    return Growth(gain, error, shuffled, scale, _likeness(inputs), alike[0], likes_error)


def _shuffled(leaf: Any, generator: np.random.Generator) -> np.ndarray:
    array = np.asarray(leaf)
    return generator.permutation(array.ravel()).reshape(array.shape)


def _likeness(values: np.ndarray) -> float:
    """Mean x.x' over pairs of different rows / mean |x|^2: 1 where all rows are the same."""
    rows = values.reshape(len(values), -1)
    squares = np.sum(rows**2)
    with np.errstate(all="ignore"):
        return float((np.sum(rows.sum(axis=0) ** 2) - squares) / ((len(rows) - 1) * squares))


def _field_of(f: Network, batch_size: int) -> tuple[MeanField | BatchNormField | None, str]:
    """Mean-field theory of the one block that a chain of our layers repeats, or why there is none."""
    if not isinstance(f, Layer):
        return None, "not available: a plain function does not say what it is made of"
    singles = list(_singles(f))
    behind = [index for index, layer in enumerate(singles) if isinstance(layer, Activation)]
    weights = {
        (layer.w_var, layer.b_var, layer.center or layer.standardize)
        for layer in singles[min(behind, default=0) :]
        if isinstance(layer, Dense | Conv)
    }
    functions = {layer.activation for layer in singles if isinstance(layer, Activation)}
    others = [layer for layer in singles if not isinstance(layer, Dense | Conv | Activation | BatchNorm)]
    if (
        len(weights) != 1
        or len(functions) != 1
        or any(isinstance(layer, Layer) and _composed(layer) for layer in others)
    ):
        return None, "not available: the network is no chain of one repeated block"
    if any(isinstance(layer, LayerNorm) for layer in others):
        return None, "not available with layer normalisation"
    ((w_var, b_var, centered),), (phi,) = weights, functions
    batch = any(isinstance(layer, BatchNorm) for layer in singles)
    normalization = "batch" if batch else "weight_mean" if centered else "none"
    size = {"batch_size": batch_size} if batch else {}
    try:
        return meanfield.analyse(phi, normalization=normalization, w_var=w_var, b_var=b_var, **size), ""
    except (NotImplementedError, ValueError) as refusal:
        return None, f"not available: {refusal}"


def _singles(network: Layer) -> Iterator[Layer]:
    """The layers of a chain, those of a `Repeat` once; what else is composed comes whole."""
    if isinstance(network, Serial):
        for layer in network.layers:
            yield from _singles(layer)
    elif isinstance(network, Repeat):
        yield from _singles(network.block)
    else:
        yield network


def _layer_correlations(
    network: Layer, params: Params, x: np.ndarray, field: MeanField | BatchNormField | None, seed: int
) -> LayerCorrelations:
    """Mean cosine of pairs at the input of every activation, beside its mean-field prediction."""
    pairs = jnp.asarray(random_pairs(len(x), min(PAIRS, len(x) * (len(x) - 1) // 2), seed), jnp.int32)

    def of_pairs(y: Any) -> np.ndarray:
        return np.asarray(cosine(jnp.asarray(y).reshape(len(x), -1), pairs), np.float64)

    measured: list[float] = []
    array = as_params_dtype(params, x)
    last: Any = array
    for layer, output in network.walk(network.activations(params, array)):
        if isinstance(layer, Activation):
            measured.append(float(np.nanmean(of_pairs(last))))
        last = output
    predicted = None
    if isinstance(field, MeanField) and field.q_star is not None and measured:
        start = (of_pairs(array) * _mean_square(x) + field.b_var) / (_mean_square(x) + field.b_var)
        predicted = np.nanmean(field.trajectory(np.clip(start, -1, 1), len(measured) - 1), axis=1)
    return LayerCorrelations(np.asarray(measured, np.float64), predicted)


def _mean_square(x: np.ndarray) -> float:
    return float(np.mean(np.asarray(x, np.float64) ** 2))


def _field_line(field: MeanField | BatchNormField) -> str:
    if field.chi_1 is None:
        return f"variance without bound: {field.reason}" if isinstance(field, MeanField) else "none"
    line = f"chi_1 = {field.chi_1:.4g} per layer ({field.phase})"
    shrinks = isinstance(field, MeanField) and field.q_star == 0 and field.variance_slope
    if shrinks:
        line += f", and the signal's square times {shrinks:.4g}: relative to it {field.chi_1 / shrinks:.4g}"
    return line


def _field_record(field: MeanField | BatchNormField) -> dict[str, Any]:
    return {"chi_1": field.chi_1, "phase": field.phase, "normalization": field.normalization}


def _spectrum_line(found: Spectrum) -> str:
    at_least = "> " if found.condition_number_is_lower_bound else ""
    return (
        f"condition number {at_least}{found.condition_number:.4g}, outlier ratio {found.outlier_ratio:.4g}, effective "
        f"rank {found.effective_rank:.4g} of {len(found.eigenvalues_scaled)}"
    )


def _spectrum_record(found: Spectrum) -> dict[str, Any]:
    return {
        "condition_number": _finite(found.condition_number),
        "condition_number_is_lower_bound": found.condition_number_is_lower_bound,
        "outlier_ratio": _finite(found.outlier_ratio),
        "effective_rank": _finite(found.effective_rank),
        "largest_eigenvalue": _finite(found.largest),
        "smallest_eigenvalue": _finite(found.smallest),
        "eigenvalues": found.eigenvalues.tolist(),
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _power(log: float) -> str:
    """exp(log) as a factor, also where float64 cannot hold it."""
    return f"{math.exp(log):.3g}-fold" if abs(log) < 300 else f"10^{log / math.log(10):.0f}-fold"
