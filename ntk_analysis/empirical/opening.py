"""Kernels in files and stores, of any kind."""

from pathlib import Path

from ntk_analysis.empirical.kernels import EmpiricalKernel
from ntk_analysis.empirical.plans import TilePlan
from ntk_analysis.infinite.kernel import Kernel
from ntk_analysis.infinite.store_plan import StorePlan
from ntk_analysis.infinite.stored import StoredKernel
from ntk_analysis.stores.grid import Grid
from ntk_analysis.stores.manifest import Manifest, kind_of
from ntk_analysis.stores.store import KernelStore, find_store

PLANS = {plan.kind: plan for plan in (TilePlan, StorePlan)}


def open_kernel(path: str | Path, *, check: bool = True) -> Kernel | EmpiricalKernel | StoredKernel:
    """The kernel that `Kernel.save` wrote into a file, or the finished one in a store, read where it is indexed.

    Args:
        path: path of the file or store.
        check: whether to read a store from end to end, and find whatever is damaged; else only its files and their
            sizes are looked at, and damage is found where it is read.

    Raises:
        FileNotFoundError: there is nothing.
        FileExistsError: there is a folder that is not a store.
        MemoryError: the kernel in a file needs more memory than is free.
        ValueError: the store is not finished, or damaged, or the file is none of a kernel.
    """
    if Path(path).is_file():
        return Kernel.load(path)
    kept = any_store(Path(path))
    if kept is None:
        raise FileNotFoundError(f"no kernel at {path}: give the file of a saved one, or a store")
    kept.require_whole(read=check)
    if isinstance(kept.plan, StorePlan):
        return StoredKernel(kept)
    assert isinstance(kept.plan, TilePlan), "there are two kinds of stores"
    return EmpiricalKernel(kept.arrays["kernel"], kept.plan)


def any_store(path: Path) -> KernelStore | None:
    """The store of a kernel of any kind, finished or not; None if there is nothing yet. Errors are `find_store`'s."""
    return find_store(path, _plan_of)


def _plan_of(found: Manifest) -> Grid:
    return PLANS[kind_of(found)].of(found)
