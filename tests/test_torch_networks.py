"""PyTorch's modules as (f, params, x): the kernels of torch.func, in both modes and both dtypes.

A group of its own, for PyTorch is large: `uv run --extra torch pytest -m torch`.
"""

import functools
import pickle

import jax
import numpy as np
import pytest

from ntk_analysis.alignment import alignment
from ntk_analysis.diagnosis import load_network
from ntk_analysis.empirical import empirical_ntk
from ntk_analysis.empirical.coupling import coupling
from ntk_analysis.networks import from_torch
from ntk_analysis.paper_checks.subject import Subject
from ntk_analysis.regression import KernelClassifier
from ntk_analysis.spectrum import eigenvalues, matrix_free
from ntk_analysis.training.fan_in import FanIn
from ntk_analysis.training.module_axes import axes_of

torch = pytest.importorskip("torch", reason="PyTorch is not installed: uv run --extra torch pytest -m torch")
torchvision = pytest.importorskip("torchvision")
pytest.importorskip("torchax")
nn = torch.nn

pytestmark = [pytest.mark.torch, pytest.mark.filterwarnings("default")]  # PyTorch's and torchax's own


@pytest.fixture(autouse=True)
def as_a_user_has_it():
    """JAX's own defaults: the strictness of these tests is not torchax's.

    PyTorch's threads wait for one another by spinning, which takes minutes for seconds where others use the cores too.
    """
    torch.set_num_threads(1)
    with jax.enable_x64(False), jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


class Patches(nn.Module):
    """A transformer block on the patches of an image."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Conv2d(3, 32, 8, stride=8)
        self.block = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True)
        self.out = nn.Linear(32, 10)

    def forward(self, x):
        return self.out(self.block(self.embed(x).flatten(2).transpose(1, 2)).mean(1))


def vgg16_bn():
    """torchvision's convolutions; its classifier has 120 million parameters for 7 x 7 positions, this is for 1 x 1."""
    network = torchvision.models.vgg16_bn()
    network.avgpool, network.classifier = nn.Identity(), nn.Linear(512, 10)
    return network


def vit():
    return torchvision.models.VisionTransformer(32, 8, 3, 4, 32, 64, num_classes=10)


NETWORKS = {
    "transformer block": Patches,
    "vit": vit,
    "resnet18": lambda: torchvision.models.resnet18(num_classes=10),
    "vgg16_bn": vgg16_bn,
}


CONVOLUTIONAL = ("resnet18", "vgg16_bn")  # whose batch norms couple the batch


def drawn(make, dtype, count=4):
    """A network whose running statistics, scales and shifts are not those at the start, and inputs for it."""
    torch.manual_seed(0)
    network, generator = make(), torch.Generator().manual_seed(1)
    for name, tensor in network.state_dict().items():
        if tensor.ndim == 1 and tensor.is_floating_point():
            size = (0.5, 1.5) if name.endswith(("weight", "running_var")) else (-0.2, 0.2)
            tensor.copy_(torch.empty(tensor.shape).uniform_(*size, generator=generator))
        elif name == "heads.head.weight":  # torchvision begins with zeros, and a kernel of the read-out alone
            tensor.copy_(torch.randn(tensor.shape, generator=generator) / tensor.shape[1] ** 0.5)
    return network.to(dtype), torch.randn(count, 3, 32, 32, generator=generator).to(dtype)


def torch_kernel(network, x, mode):
    """torch.func's NTK, entries [a, b, c, d], summed over the parameters in float64."""
    network = network.train(mode == "train")
    params = {name: p.detach() for name, p in network.named_parameters()}
    buffers = {name: b.clone() for name, b in network.named_buffers()}

    def outputs(params):
        # BatchNorm writes into what it is given
        return torch.func.functional_call(network, ({name: b.clone() for name, b in buffers.items()}, params), (x,))

    y, pull = torch.func.vjp(outputs, params)
    units = torch.eye(y.numel(), dtype=y.dtype).reshape(-1, *y.shape)
    gradients = [{name: leaf.numpy() for name, leaf in pull(unit)[0].items()} for unit in units]
    return kernel_of(gradients, y.shape)


def jax_kernel(f, params, x):
    """The same of f, a gradient at a time: XLA takes minutes for those of a whole batch of convolutions together."""
    with jax.enable_x64(x.dtype == np.float64):
        shape = jax.eval_shape(f, params, x).shape
        gradient = jax.jit(lambda params, x, unit: jax.vjp(lambda params: f(params, x), params)[1](unit)[0])
        units = np.eye(np.prod(shape), dtype=x.dtype).reshape(-1, *shape)
        gradients = [{name: np.asarray(leaf) for name, leaf in gradient(params, x, unit).items()} for unit in units]
    return kernel_of(gradients, shape)


def kernel_of(gradients, shape):
    """The NTK of outputs (n, C) with these gradients, output by output and input by input."""
    total = np.zeros((len(gradients), len(gradients)))
    for name in gradients[0]:
        rows = np.stack([one[name].ravel() for one in gradients]).astype(np.float64)
        total += rows @ rows.T
    return total.reshape(*shape, *shape).transpose(0, 2, 1, 3)


def relative(kernel, expected):
    return np.max(np.abs(kernel - expected)) / np.max(np.abs(expected))


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-8), (torch.float32, 1e-4)], ids=["float64", "float32"]
)
@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("name", NETWORKS)
def test_the_kernel_is_torch_func_s(name, mode, dtype, tolerance):
    """Relative to the largest entry.

    Batch norms over four positions amplify the rounding of float32, in PyTorch's kernel and in JAX's. There both are
    compared with PyTorch's in float64: rounding in another order, of the same size within a factor of ten (on two and
    four images with torchvision's first parameters, it was 0.5 and 2.6 times PyTorch's).
    """
    network, x = drawn(NETWORKS[name], dtype)
    f, params, inputs = from_torch(network, x, mode)
    assert {name: leaf.shape for name, leaf in params.items()} == {
        name: tuple(p.shape) for name, p in network.named_parameters()
    }
    assert {str(leaf.dtype) for leaf in params.values()} == {str(dtype).removeprefix("torch.")}
    if name in CONVOLUTIONAL:
        with jax.enable_x64(dtype == torch.float64):
            coupled = bool(coupling(f, params, inputs))
        found = jax_kernel(f, params, inputs)
    else:
        kernel = empirical_ntk(f, params, inputs)
        found, coupled = kernel.ntk, kernel.coupled
        assert kernel.ntk.dtype == inputs.dtype
    assert coupled == (mode == "train" and name in CONVOLUTIONAL)
    expected = torch_kernel(network, x, mode)
    if coupled and dtype == torch.float32:
        exact = torch_kernel(network.double(), x.double(), mode)
        tolerance, expected = max(tolerance, 10 * relative(expected, exact)), exact
    apart = relative(found, expected)
    print(f"{name}, {mode}, {dtype}: {apart:.1e} apart, expected {tolerance:.1e}")
    assert apart < tolerance


class Small(nn.Module):
    """Two uses of one weight, a frozen one, a table that is no buffer, and a batch norm that counts its calls."""

    def __init__(self):
        super().__init__()
        self.embed, self.norm, self.out = nn.Linear(5, 5, bias=False), nn.BatchNorm1d(5), nn.Linear(5, 5, bias=False)
        self.out.weight = self.embed.weight
        self.last = nn.Linear(5, 2).requires_grad_(False)
        self.table = torch.linspace(0.5, 1.5, 5)

    def forward(self, x):
        return self.last(self.out(torch.tanh(self.norm(self.embed(x))) * self.table))


X = np.random.default_rng(0).standard_normal((6, 5)).astype(np.float32)


def test_what_trains_is_a_parameter_and_nothing_is_remembered():
    torch.manual_seed(0)
    network = Small()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    f, params, x = from_torch(network, torch.as_tensor(X), "train")
    assert [*params] == ["embed.weight", "norm.weight", "norm.bias"]
    assert isinstance(x, np.ndarray)
    found = empirical_ntk(f, params, x, method="jacobian")
    named = dict(network.named_parameters())
    constants = {name: tensor for name, tensor in network.state_dict().items() if "last" in name or "norm." in name}

    def outputs(trained):
        copies = {name: tensor.clone() for name, tensor in constants.items()}
        return torch.func.functional_call(network, {**copies, **trained}, (torch.as_tensor(X),))

    jacobian = torch.func.jacrev(outputs)({name: named[name].detach() for name in params})
    rows = torch.cat([leaf.reshape(6, 2, -1) for leaf in jacobian.values()], -1).double()
    expected = torch.einsum("acp,bdp->abcd", rows, rows).numpy()
    np.testing.assert_allclose(found.ntk, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())  # float32 sums
    assert found.coupled
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert network.training
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(f))(params, x), f(params, x))
    assert repr(f) == "TorchFunction(mode='train')"


def test_units_come_first():
    """Centering and scale invariance of `check --network` need the fan-in."""
    f, params, x = from_torch(Patches(), torch.randn(2, 3, 32, 32))
    axes = axes_of(f, x)
    found = {name: axes((name,), leaf) for name, leaf in params.items() if leaf.ndim > 1}
    assert found.pop("embed.weight") == FanIn((1, 2, 3), True)
    assert set(found) == {f"block.{name}.weight" for name in ("self_attn.out_proj", "linear1", "linear2")} | {
        "block.self_attn.in_proj_weight",
        "out.weight",
    }
    assert set(found.values()) == {FanIn((1,))}
    assert axes(("embed.bias",), params["embed.bias"]) == FanIn(())


def test_the_command_line_takes_the_module(tmp_path):
    file = tmp_path / "user.py"
    file.write_text(
        "import torch\ndef network():\n    return torch.nn.Linear(3, 2), torch.ones(4, 3)\n"
        "def whole():\n    m = torch.nn.Linear(3, 2)\n    return m, dict(m.named_parameters()), torch.ones(4, 3)\n"
    )
    f, params, x = load_network(f"{file}:network")
    np.testing.assert_allclose(f(params, x), x @ params["weight"].T + params["bias"], rtol=1e-6)
    with pytest.raises(TypeError, match=r"f is the PyTorch module Linear, .*networks\.from_torch\(module, x\) gives"):
        load_network(f"{file}:whole")


class Drawing(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.inner = nn.Linear(5, 5), nn.Sequential(nn.Linear(5, 5), nn.Dropout(0.3))

    def forward(self, x):
        return nn.functional.dropout(self.inner(self.first(x)), training=self.training)


class Two(nn.Linear):
    def forward(self, x):
        return super().forward(x), x


@torch.library.custom_op("ntk_analysis_tests::doubled", mutates_args=())
def doubled(x: torch.Tensor) -> torch.Tensor:
    """An operation that JAX cannot know."""
    return 2 * x


class Custom(nn.Linear):
    def forward(self, x):
        return doubled(super().forward(x))


def test_refusals():
    linear = nn.Linear(5, 2)
    with pytest.raises(TypeError, match=r"got function, expected a torch.nn.Module"):
        from_torch(lambda x: x, X)
    with pytest.raises(ValueError, match="unknown mode 'test': choose one of eval, train"):
        from_torch(linear, X, "test")
    with pytest.raises(ValueError, match=r"Drawing draws random numbers in mode 'train' \(inner.1 Dropout\): set"):
        from_torch(Drawing(), X, "train")
    drawing, state = Drawing(), torch.get_rng_state()
    from_torch(drawing, X, "eval")
    assert torch.equal(state, torch.get_rng_state())
    with pytest.raises(ValueError, match=r"Linear cannot be called with x \(6, 4\) torch.float32 in mode 'eval'"):
        from_torch(linear, X[:, :4])
    with pytest.raises(ValueError, match=r"Linear cannot be called with x .* torch.float64 in mode"):
        from_torch(linear, X.astype(np.float64))
    with pytest.raises(TypeError, match="Two returned tuple, expected one tensor"):
        from_torch(Two(5, 2), X)
    with pytest.raises(ValueError, match="Linear has no parameters that require a gradient"):
        from_torch(nn.Linear(5, 2).requires_grad_(False), X)
    with pytest.raises(ValueError, match=r"torchax \S+ on torch \S+ cannot compute Custom in JAX: "):
        from_torch(Custom(5, 2), X)


def test_a_bridge_that_computes_something_else_is_found_out(monkeypatch):
    from ntk_analysis import torch_networks

    network = nn.Sequential(nn.Linear(5, 2), nn.GELU())
    call = torch_networks.TorchFunction.__call__
    monkeypatch.setattr(torch_networks.TorchFunction, "__call__", lambda f, p, x: 1.001 * call(f, p, x))
    with pytest.raises(ValueError, match=r"gives outputs of Sequential that are .* off PyTorch's, of size"):
        from_torch(network, X)


def test_bfloat16_and_tokens():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Embedding(7, 4), nn.Flatten(), nn.Linear(12, 2)).bfloat16()
    f, params, x = from_torch(network, torch.randint(7, (5, 3)))
    assert x.dtype == np.int64
    assert {leaf.dtype.name for leaf in params.values()} == {"bfloat16"}
    assert empirical_ntk(f, params, x).ntk.shape == (5, 5, 2, 2)


def test_commands_and_models_take_the_module(tmp_path):
    """What `spectrum` and `check --network` compute, and alignment and estimators, of a module from a user's file."""
    file = tmp_path / "user.py"
    file.write_text(
        "import torch\nfrom torch import nn\ndef network():\n    torch.manual_seed(0)\n"
        "    inner = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU())\n"
        "    return nn.Sequential(nn.Linear(5, 8), nn.ReLU(), inner, nn.Linear(8, 3)), torch.randn(6, 5)\n"
    )
    f, params, x = load_network(f"{file}:network")
    full, trace = empirical_ntk(f, params, x), empirical_ntk(f, params, x, layout="trace")
    fan_ins = Subject(f, f, params, x, None, axes_of(f, x)).fan_ins
    assert {name: fan_in.axes for name, fan_in in fan_ins.items()} == dict.fromkeys(
        ("0.weight", "2.0.weight", "3.weight"), (1,)
    )
    found = matrix_free(f, params, x, steps=6, probes=2, probe_steps=2)
    assert found.largest == pytest.approx(eigenvalues(full)[0], abs=found.largest_error)
    assert alignment(trace, np.einsum("abcc->ab", full.ntk)) == pytest.approx(1, abs=1e-6)
    source = functools.partial(empirical_ntk, f, params)
    model = KernelClassifier(source, loss="cross_entropy", time=50.0).fit(x, [0, 1, 2, 0, 1, 2])
    np.testing.assert_array_equal(model.predict(x), [0, 1, 2, 0, 1, 2])
