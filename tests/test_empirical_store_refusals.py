"""What a store of kernels refuses, in one line and with nothing lost: another kernel, a path, a disk too small."""

import errno
import shutil
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_empirical_store import OPTIONS, PARAMS, SMALL, X, interrupted, net

from ntk_analysis.empirical import empirical_nngp, empirical_ntk, open_kernel


def other_net(params, x):
    return jnp.sin(x @ params["in"]) @ params["out"]


def stopped_net(params, x):
    return jax.lax.stop_gradient(jnp.tanh(x @ params["in"])) @ params["out"]


OTHER_CALLS = {
    "params": ({"params": PARAMS | {"out": PARAMS["out"] + 1e-15}}, "params has other values"),
    "inputs": ({"x1": X + 1e-15}, "x1 has other values"),
    "fewer inputs": ({"x1": X[:8]}, "n1 is 11 there and 8 here; n2 is 11 there and 8 here"),
    "second inputs": ({"x2": X}, "symmetric is True there and False here"),
    "layout": ({"outputs": "diagonal"}, "outputs is trace there and diagonal here"),
    "method": ({"method": "products"}, "method is jacobian there and products here"),
    "dtype": ({"params": jax.tree.map(np.float32, PARAMS), "x1": X.astype(np.float32)}, "dtype is float64 there and"),
    "function": ({"f": other_net}, r"f is another function \(.*:net there, .*:other_net here\)"),
    "stopped gradient": ({"f": stopped_net}, "f is another function"),
}


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
        empirical_nngp(net, PARAMS, X, store=tmp_path / "k", outputs="trace")


def test_other_versions_are_told(tmp_path):
    interrupted(tmp_path / "k")
    manifest = tmp_path / "k" / "manifest.json"
    manifest.write_text(manifest.read_text().replace(f'"jax": "{jax.__version__}"', '"jax": "0.1"'))
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
        with pytest.raises(FileExistsError, match=message):
            open_kernel(tmp_path / name)
    assert (tmp_path / "folder" / "thesis.tex").read_text() == "text"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["file", "folder", "foreign"]
    with pytest.raises(FileNotFoundError, match="no store"):
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
