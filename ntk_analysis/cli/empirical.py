"""Empirical kernels of finite networks, of any size: planned, computed into a store on disk, resumed."""

from collections.abc import Callable, Mapping
from enum import StrEnum
from inspect import signature
from pathlib import Path
from typing import Annotated, Any

from typer import Argument, Option

from ntk_analysis.cli.options import (
    Activation,
    BiasVariance,
    Count,
    Eps,
    ImageCentering,
    NormalizationName,
    Raw,
    Scheduler,
    WeightVariance,
    WorkerCount,
    check_workers,
    read_inputs,
)

# options that have a meaning for one way to give a network only, or for planning only
OF_NETWORKS = {"depth", "width", "classes", "activation", "normalization", "w_var", "b_var", "eps"}
OF_IMAGES = OF_NETWORKS | {"image_centering", "raw"}
OF_PLANS = {"for_inputs", "on_devices", "flops_per_second", "writes_per_second"}


class KernelName(StrEnum):
    """The kernels that the command computes."""

    ntk = "ntk"
    nngp = "nngp"


class Coupled(StrEnum):
    """The answers to: do outputs depend on the other inputs of their batch?"""

    detect = "detect"
    yes = "yes"
    no = "no"


def empirical(
    network: Annotated[
        str | None,
        Argument(
            metavar="MODULE:FUNCTION",
            help="A function that returns (f, params, x), as for `diagnose`; or give --images instead.",
            show_default=False,
        ),
    ] = None,
    store: Annotated[
        Path | None, Option(help="Folder for the kernel; a kernel begun there is continued.", show_default=False)
    ] = None,
    layout: Annotated[
        str,
        Option(
            help="Layout of the kernel: full (N, N, C, C); diagonal (N, N, C); or trace (N, N), the sum over outputs."
        ),
    ] = "full",
    kernel: Annotated[KernelName, Option(help="The tangent kernel, or the products of outputs.")] = KernelName.ntk,
    method: Annotated[
        str, Option(help="How to compute it: auto, jacobian, products, layerwise or last_norm.")
    ] = "auto",
    coupled: Annotated[Coupled, Option(help="Do outputs depend on the other inputs of their batch?")] = Coupled.detect,
    images: Annotated[
        Path | None,
        Option(help="Images, as for `kernel`, on which to draw a fully connected network.", show_default=False),
    ] = None,
    depth: Annotated[int, Option(help="Number of hidden layers.")] = 5,
    width: Annotated[int, Option(help="Number of units of a hidden layer.")] = 512,
    classes: Annotated[int, Option(help="Number C of outputs.")] = 10,
    activation: Activation = "relu",
    normalization: NormalizationName = "none",
    w_var: WeightVariance = None,
    b_var: BiasVariance = 0.0,
    eps: Eps = 0.0,
    count: Count = None,
    image_centering: ImageCentering = "none",
    raw: Raw = False,
    seed: Annotated[int, Option(help="Seed of the subset and of the weights drawn.", min=0)] = 0,
    float64: Annotated[bool, Option("--float64", help="Compute the same network in float64.")] = False,
    memory: Annotated[
        str | None, Option(help="Memory a tile may take on its device, such as 4GiB; default: half of what is free.")
    ] = None,
    workers: WorkerCount = None,
    scheduler: Scheduler = None,
    plan: Annotated[bool, Option("--plan", help="Show tiles, bytes, operations and time; compute nothing.")] = False,
    for_inputs: Annotated[int | None, Option(help="--plan: plan for this many inputs like these.", min=1)] = None,
    on_devices: Annotated[
        int | None, Option(help="--plan: plan for this many devices of --memory each.", min=1)
    ] = None,
    flops_per_second: Annotated[
        float | None, Option(help="--plan: operations a second of each device; default: measured here.")
    ] = None,
    writes_per_second: Annotated[
        float | None, Option(help="--plan: bytes a second that the storage takes from all devices.")
    ] = None,
) -> None:
    """Tangent kernel of a finite network, on disk; repeat the command to go on after a kill.

    The network is your own, MODULE:FUNCTION, or a fully connected one on --images, drawn with the seed in float32.
    --plan --layout trace --for-inputs 1000000 --on-devices 64 --memory 80GiB --flops-per-second 1e13
    --writes-per-second 2e9 shows what a large kernel takes on machines that are not at hand.
    """
    changed = changes(empirical, locals())
    from ntk_analysis.cli import tiles
    from ntk_analysis.networks import fully_connected

    if (network is None) == (images is None):
        raise ValueError("give the network as MODULE:FUNCTION, or --images PATH to draw one: one of the two")
    if store is None and not plan:
        raise ValueError("give --store DIR, where the kernel is to stand, or --plan, which computes nothing")
    if network is not None:
        refuse(changed & OF_IMAGES, "is for --images; MODULE:FUNCTION has inputs and a network of its own")
    if not plan:
        refuse(changed & OF_PLANS, "is for --plan")
    if kernel is KernelName.nngp:
        refuse(changed & {"method"}, "is for the tangent kernel; --kernel nngp has one method only")

    check_workers(workers, scheduler)
    if images is not None:
        made = fully_connected(
            depth, width, normalization, activation, outputs=classes, w_var=w_var, b_var=b_var, eps=eps
        )
        subject = tiles.drawn_network(made, read_inputs(images, count, seed, image_centering, raw)[1], seed, float64)
    else:
        subject = tiles.given_network(str(network), count, seed, float64)
    on = tiles.runner(workers, scheduler, network)
    stated = "detect" if coupled is Coupled.detect else coupled is Coupled.yes
    options = {"which": kernel.value, "layout": layout, "method": method, "coupled": stated, "memory": memory}
    if store is not None and not plan:
        print(tiles.compute(subject, store, on, options))
        return
    if any(value is not None for value in (for_inputs, on_devices, flops_per_second, writes_per_second)):
        print(tiles.plan_elsewhere(subject, options, for_inputs, on_devices or 1, flops_per_second, writes_per_second))
    else:
        print(tiles.plan_here(subject, on, options))
    if store is not None:
        print(tiles.state(store))


def changes(command: Callable[..., None], values: Mapping[str, Any]) -> set[str]:
    """Names of the arguments of a command that differ from its defaults."""
    return {name for name, known in signature(command).parameters.items() if values[name] != known.default}


def refuse(names: set[str], reason: str) -> None:
    """Raises ValueError for options that were given where they have no meaning."""
    if names:
        raise ValueError(f"--{min(names).replace('_', '-')} {reason}")
