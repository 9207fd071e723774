"""What a store of kernels refuses, in one line and with nothing lost: another kernel, a path, a disk too small."""

import errno
import functools
import json
import shutil
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntk_analysis.common.checksums import sealed, unsealed
from ntk_analysis.empirical import empirical_nngp, empirical_ntk, open_kernel, plan
from ntk_analysis.empirical.identity import identity, same_function
from ntk_analysis.empirical.plans import Call

from .test_empirical_store import OPTIONS, PARAMS, SMALL, Stop, X, interrupted, net, stop_after
from .tiers import full


def other_net(params, x):
    return jnp.sin(x @ params["in"]) @ params["out"]


def stopped_net(params, x):
    return jax.lax.stop_gradient(jnp.tanh(x @ params["in"])) @ params["out"]


OTHER_CALLS = {
    "params": ({"params": PARAMS | {"out": PARAMS["out"] + 1e-15}}, "params has other values"),
    "inputs": ({"x1": X + 1e-15}, "x1 has other values"),
    "fewer inputs": ({"x1": X[:8]}, "n1 is 11 there and 8 here; n2 is 11 there and 8 here"),
    "second inputs": ({"x2": X}, "symmetric is True there and False here"),
    "layout": ({"layout": "diagonal"}, "layout is trace there and diagonal here"),
    "method": ({"method": "products"}, "method is jacobian there and products here"),
    "dtype": ({"params": jax.tree.map(np.float32, PARAMS), "x1": X.astype(np.float32)}, "dtype is float64 there and"),
    "function": ({"f": other_net}, r"f is another function \(.*:net there, .*:other_net here\)"),
    "stopped gradient": ({"f": stopped_net}, "f is another function"),
}


def adapted(params, x, *, trained=("bias", "down", "up", "scale"), constant=None, clip=50.0):
    """A network with parameters that are zero: a bias, an adapter down @ up, the scale of a branch."""
    p = {name: leaf if name in trained else jax.lax.stop_gradient(leaf) for name, leaf in params.items()}
    weights = p["in"] + p["down"] @ p["up"]
    hidden = jnp.tanh(x @ jax.lax.stop_gradient(weights - weights) + x @ weights + p["bias"][None])
    hidden = hidden + p["scale"] * jnp.sin(hidden)
    if constant is not None:
        hidden = hidden * constant
    return jnp.clip(hidden @ p["out"], -clip, clip)


ADAPTED = PARAMS | {
    "bias": np.zeros(5), "down": np.random.default_rng(4).standard_normal((3, 2)), "up": np.zeros((2, 5)),
    "scale": np.zeros(()),
}  # fmt: skip
TRAINED = ("in", "out", "bias", "down", "up", "scale")
BEGUN = functools.partial(adapted, trained=TRAINED)
ALTERED = {
    "frozen zero bias": functools.partial(adapted, trained=[name for name in TRAINED if name != "bias"]),
    "frozen adapter": functools.partial(adapted, trained=[name for name in TRAINED if name != "up"]),
    "frozen zero scale": functools.partial(adapted, trained=[name for name in TRAINED if name != "scale"]),
    "another size of a zero": lambda p, x: BEGUN(p | {"bias": 1.001 * p["bias"]}, x),
    "a little": lambda p, x: BEGUN(p, x) * (1 + 1e-10),
    "one input of another value": lambda p, x: BEGUN(p, x) * jnp.where(x[:, :1] == X[10, 0], 1.01, 1.0),
    "one output": lambda p, x: BEGUN(p, x) * jnp.array([[1.0, 1.0 + 1e-9]]),
    "a bound that is not reached": functools.partial(adapted, trained=TRAINED, clip=51.0),
    "a constant": functools.partial(adapted, trained=TRAINED, constant=np.ones((1, 5))),
}


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """A store that is half done and one that is finished."""
    folder = tmp_path_factory.mktemp("stores")
    with pytest.raises(Stop):
        empirical_ntk(BEGUN, ADAPTED, X, store=folder / "half", track=stop_after(5), **SMALL)
    empirical_ntk(BEGUN, ADAPTED, X, store=folder / "done", **SMALL)
    return folder


SHOWN = ("frozen zero bias",)


@pytest.mark.parametrize("name", [*SHOWN, *full(*(name for name in ALTERED if name not in SHOWN))])
def test_a_function_that_changed_is_another_one(begun, name):
    """Where it changed derivatives by parameters that are zero, or state of any kind, and hardly any number."""
    for store in ("half", "done"):
        with pytest.raises(ValueError, match="f is another function"):
            empirical_ntk(ALTERED[name], ADAPTED, X, store=begun / store, **SMALL)


@pytest.mark.full
def test_the_same_function_made_anew_is_the_same(begun):
    again = functools.partial(lambda p, x: adapted(p, x, trained=TRAINED))
    found = empirical_ntk(again, ADAPTED, X, store=begun / "done", track=stop_after(0), **SMALL)
    np.testing.assert_array_equal(found.ntk, empirical_ntk(BEGUN, ADAPTED, X, **SMALL).ntk)


def closing_over(state):
    def f(params, x):
        far = (x[:, 0] > 1e9).astype(int) * 40
        return net(params, x) * state["scale"] + jnp.asarray(state["table"])[far]

    return f


@pytest.mark.parametrize("change", ["a number", *full("an entry of no use", "in place")])
def test_state_that_changed_is_another_function(tmp_path, change):
    state: dict[str, Any] = {"scale": 1.0, "table": np.zeros((50, 2))}
    f = closing_over(state)
    empirical_ntk(f, PARAMS, X, store=tmp_path / "k", **SMALL)
    if change == "a number":
        state["scale"] = 1 + 1e-9
    elif change == "an entry of no use":
        state["table"] = np.where(np.arange(50)[:, None] == 40, 1e-9, state["table"])
    else:
        state["table"][40, 1] = 1
    with pytest.raises(ValueError, match="f is another function"):
        empirical_ntk(f, PARAMS, X, store=tmp_path / "k", **SMALL)
    found = empirical_ntk(f, PARAMS, X, store=tmp_path / "new", **SMALL)
    expected = empirical_ntk(closing_over(state), PARAMS, X, **SMALL)
    np.testing.assert_array_equal(found.ntk, expected.ntk)


@pytest.mark.full
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_rounding_is_not_another_function(begun, tmp_path, dtype):
    """The same sums in another order, as other devices and versions compute them."""
    params, x = jax.tree.map(lambda leaf: leaf.astype(dtype), (ADAPTED, X))
    order = np.array([2, 0, 1])

    def reordered(p, x):
        return BEGUN(p | {"in": p["in"][order], "down": p["down"][order]}, x[:, order])

    job = functools.partial(Call, params=params, x1=x, x2=None, float64=dtype == np.float64)
    cut = plan(BEGUN, params, x, **SMALL)
    one, other, third = (identity(job(f, plan=cut)) for f in (BEGUN, reordered, ALTERED["frozen adapter"]))
    assert same_function(one, other | {"name": one["name"]}, same_jax=False)
    assert not same_function(one, third | {"name": one["name"]}, same_jax=False)


@pytest.mark.parametrize("name", OTHER_CALLS)
def test_another_kernel_is_refused(tmp_path, name):
    changed, message = OTHER_CALLS[name]
    done = interrupted(tmp_path / "k")
    before = (tmp_path / "k" / "manifest.json").read_bytes()
    call = {"f": net, "params": PARAMS, "x1": X} | SMALL | {"memory": "1GiB"} | changed
    with pytest.raises(ValueError, match=message) as caught:
        empirical_ntk(**call, store=tmp_path / "k")
    assert "\n" not in str(caught.value)
    assert (tmp_path / "k" / "manifest.json").read_bytes() == before
    assert len(list((tmp_path / "k" / "done").iterdir())) == done


def test_nngp_does_not_continue_an_ntk(tmp_path):
    interrupted(tmp_path / "k")
    with pytest.raises(ValueError, match="which is ntk there and nngp here"):
        empirical_nngp(net, PARAMS, X, store=tmp_path / "k", layout="trace")


def test_other_versions_are_told(tmp_path):
    interrupted(tmp_path / "k")
    manifest = tmp_path / "k" / "manifest.json"
    changed = unsealed(json.loads(manifest.read_text()))
    changed["made by"]["jax"] = "0.1"
    manifest.write_text(json.dumps(sealed(changed)))
    with pytest.warns(UserWarning, match=r"jax 0\.1 -> .*to rounding"):
        empirical_ntk(net, PARAMS, X, store=tmp_path / "k", **SMALL)


def test_paths_that_are_no_stores(tmp_path):
    (tmp_path / "file").write_text("text")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "thesis.tex").write_text("text")
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "manifest.json").write_text("[1]")
    for name, message in (("file", "is a file"), ("folder", "is not a store"), ("foreign", "is not a store")):
        with pytest.raises(FileExistsError, match=message) as caught:
            empirical_ntk(net, PARAMS, X, store=tmp_path / name)
        assert "\n" not in str(caught.value)
        with pytest.raises((ValueError, FileExistsError), match=r"no \.npz file" if name == "file" else message):
            open_kernel(tmp_path / name)
    assert (tmp_path / "folder" / "thesis.tex").read_text() == "text"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["file", "folder", "foreign"]
    with pytest.raises(FileNotFoundError, match="no kernel"):
        open_kernel(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    empirical_ntk(net, PARAMS, X, store=tmp_path / "empty", **OPTIONS)


def test_disk_too_small(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=11 * 11 * 8))  # 12 x 12 with padding
    with pytest.raises(OSError, match=r"needs .* GiB on disk for 21 tiles, .* are free") as caught:
        empirical_ntk(net, PARAMS, X, store=tmp_path / "k", **SMALL)
    assert caught.value.errno == errno.ENOSPC
    assert not (tmp_path / "k").exists()


def test_memory_too_small_for_a_tile_leaves_no_store(tmp_path):
    with pytest.raises(MemoryError, match="1 x 1 inputs"):
        empirical_ntk(net, PARAMS, X, store=tmp_path / "k", memory=10)
    assert not (tmp_path / "k").exists()


def test_bfloat16_of_which_zarr_knows_nothing_is_held_without_loss(tmp_path):
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.bfloat16), PARAMS)
    x = jnp.asarray(X, jnp.bfloat16)
    wanted = empirical_ntk(net, params, x, **SMALL).ntk
    for _ in range(2):  # computed, then read again
        stored = empirical_ntk(net, params, x, store=tmp_path / "k", **SMALL)
        assert stored.ntk.dtype == stored.values[0].dtype == wanted.dtype == jnp.bfloat16
        np.testing.assert_array_equal(stored.ntk, wanted)
