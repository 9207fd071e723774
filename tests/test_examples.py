"""The examples run, and their networks are what `diagnose` takes."""

import runpy
from pathlib import Path

import numpy as np
import pytest

from ntk_analysis.diagnosis import diagnose, load_network
from ntk_analysis.empirical import empirical_ntk

ALL = sorted((Path(__file__).parent.parent / "examples").glob("*.py"))
EXAMPLES = [path for path in ALL if path.stem != "torchvision_resnet18"]  # which `test_torch_networks` runs


@pytest.fixture(autouse=True)
def as_a_user_has_it(monkeypatch):
    """JAX's own defaults: the strictness of these tests is not Flax's."""
    import jax

    with jax.enable_x64(False), jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def test_there_are_six():
    assert [path.name for path in ALL] == [
        "flax_linen.py",
        "flax_nnx.py",
        "hand_written.py",
        "phases.py",
        "pytorch_weights.py",
        "torchvision_resnet18.py",
    ]


@pytest.mark.full
@pytest.mark.filterwarnings("default")  # Flax's own
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_the_example_prints_a_condition_number(path, capsys):
    assert len(path.read_text().splitlines()) <= 50
    runpy.run_path(str(path), run_name="__main__")
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("empirical ntk (32, 32, 10, 10) float32 (full)")
    assert float(printed[1].removeprefix("condition number ")) > 1


@pytest.mark.full
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_all_parameters_are_in_its_kernel(path):
    """The trace of the kernel is |J|_F^2 by the leaves of the parameters as Flax holds them."""
    import jax
    import jax.numpy as jnp

    f, params, x = load_network(f"{path}:network")
    f = f if callable(f) else f.apply
    kernel = empirical_ntk(f, params, x[:2], layout="trace").ntk
    jacobian = jax.jacrev(lambda p: f(p, x[:2]))(params)
    squares = sum(float(jnp.sum(leaf[0].astype(jnp.float32) ** 2)) for leaf in jax.tree.leaves(jacobian))
    np.testing.assert_allclose(kernel[0, 0], squares, rtol=1e-5)  # float32 sums of some 1e5 squares


@pytest.mark.full
@pytest.mark.parametrize("phase", ["ordered", "critical", "chaotic"])
def test_the_phases_are_found_in_twelve_layers(phase):
    f, params, x = load_network(f"{EXAMPLES[0].parent / 'phases.py'}:{phase}")
    found = diagnose(f, params, x)
    assert found.field is not None
    assert found.verdict.phase == found.field.phase == phase
