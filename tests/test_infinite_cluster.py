"""A pooled network's kernel on two workers of a cluster, one of which is killed: the bits of one process."""

import os
import signal

import numpy as np
import pytest
from distributed import LocalCluster

from ntk_analysis import infinite_kernel, networks
from ntk_analysis.empirical import Cluster

ARRAYS = ("distance", "ntk_scaled", "variance1", "mean2")


@pytest.fixture(scope="module")
def cluster():
    with LocalCluster(n_workers=2, threads_per_worker=1, host="127.0.0.1", dashboard_address="127.0.0.1:0") as started:
        yield started


def on_two_workers_of_which_one_is_killed(cluster, count, folder, memory):
    """Checks the kernel of this many images of 5 x 5 against that of one process."""
    network = networks.convolutional(2, 1, readout="pool")
    x = np.random.default_rng(0).standard_normal((count, 5, 5, 3)).astype(np.float32)
    before = {nanny.pid for nanny in cluster.workers.values()}
    killed = []

    def track(steps, description):
        for number, step in enumerate(steps):
            if number == len(steps) // 3:
                victim = next(pid for nanny in cluster.workers.values() if (pid := nanny.pid) in before)
                os.kill(victim, signal.SIGKILL)
                killed.append(victim)
            yield step

    found = infinite_kernel(network, x, memory=memory, store=folder / "two", on=Cluster(cluster), track=track)
    assert killed
    wanted = infinite_kernel(network, x, memory=memory, store=folder / "one")
    assert found.plan.count >= 8
    assert found.plan.rows == wanted.plan.rows
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(found[:], name), getattr(wanted[:], name))
    few = slice(None, 8)
    np.testing.assert_allclose(found[few, few].ntk, infinite_kernel(network, x[few]).ntk, rtol=2e-5)


@pytest.mark.full
def test_two_workers_of_which_one_is_killed_compute_the_bits_of_one_process(cluster, tmp_path):
    on_two_workers_of_which_one_is_killed(cluster, 20, tmp_path, "2MB")


@pytest.mark.slow
def test_so_they_do_of_500_images(cluster, tmp_path):
    on_two_workers_of_which_one_is_killed(cluster, 500, tmp_path, "14MB")
