"""Empirical kernels of finite networks, of any size: planned, computed into a store on disk, resumed."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from typer import Argument, Option

from ntk_analysis.cli.effects import refuse_idle
from ntk_analysis.cli.groups import Group
from ntk_analysis.cli.options import ClusterOptions, ImageOptions, NetworkOptions, PlanOptions, refuse


@dataclass(frozen=True)
class KernelOptions(Group, title="Kernel"):
    """What is computed, and how."""

    kernel: Annotated[
        Literal["ntk", "nngp"], Option(help="Kernel to compute: the tangent kernel, or the products of outputs.")
    ] = "ntk"
    layout: Annotated[
        Literal["full", "diagonal", "trace"],
        Option(help="What to keep of C outputs: full (N, N, C, C), diagonal (N, N, C), or trace (N, N), their sum."),
    ] = "full"
    method: Annotated[
        str, Option(help="Method: auto takes the cheapest of jacobian, products, layerwise and last_norm.")
    ] = "auto"
    coupled: Annotated[
        Literal["detect", "yes", "no"],
        Option(help="Whether an output depends on the other inputs of its batch; detect tries it out."),
    ] = "detect"
    float64: Annotated[bool, Option("--float64", help="Compute in float64, with the same weights.")] = False
    memory: Annotated[
        str | None,
        Option(help="Memory that a tile may take on its device, such as 4GiB; default: half of what is free."),
    ] = None

    def arguments(self) -> dict[str, Any]:
        """The arguments of `empirical.plan` that the options state."""
        coupled = "detect" if self.coupled == "detect" else self.coupled == "yes"
        return {
            "which": self.kernel,
            "layout": self.layout,
            "method": self.method,
            "coupled": coupled,
            "memory": self.memory,
        }


@dataclass(frozen=True)
class DrawnOptions(NetworkOptions, title="Network drawn on --images"):
    """A fully connected network of finite width."""

    width: Annotated[int, Option(help="Number of units of a hidden layer.")] = 512
    classes: Annotated[int, Option(help="Number C of outputs.")] = 10


def empirical(
    network: Annotated[
        str | None,
        Argument(
            metavar="MODULE:FUNCTION",
            help="A function that returns (f, params, x), as for `diagnose`; or give --images instead.",
            show_default=False,
        ),
    ] = None,
    *,
    store: Annotated[
        Path | None,
        Option(
            help="Folder for the kernel. If it has a part of this kernel, only the rest is computed.",
            show_default=False,
        ),
    ] = None,
    images: Annotated[
        Path | None,
        Option(
            help="Images, as for `kernel`, for a fully connected network that is drawn at random.", show_default=False
        ),
    ] = None,
    seed: Annotated[
        int, Option(help="Seed that chooses the inputs of --count, and draws the weights for --images.", min=0)
    ] = 0,
    plan: Annotated[
        bool, Option("--plan", help="Show how many tiles, bytes, operations and seconds it takes, and compute nothing.")
    ] = False,
    computed: KernelOptions,
    drawn: DrawnOptions,
    inputs: ImageOptions,
    elsewhere: PlanOptions,
    cluster: ClusterOptions,
) -> None:
    """Computes the tangent kernel of a finite network, and keeps it on disk.

    A command that was stopped goes on where it was when it is given again. The network is your own, MODULE:FUNCTION, or
    a fully connected one for --images, whose weights are drawn in float32. Give --plan with the options under
    "Plan" to see what a large kernel takes on machines that are not at hand.
    """
    from ntk_analysis.cli import tiles

    if (network is None) == (images is None):
        raise ValueError("give the network as MODULE:FUNCTION, or --images PATH to draw one: one of the two")
    if store is None and not plan:
        raise ValueError("give --store DIR, where the kernel is to stand, or --plan, which computes nothing")
    if network is not None:
        of_images = {*drawn.given(), *inputs.given()} - {"count"}
        refuse(of_images, "is for --images; MODULE:FUNCTION has inputs and a network of its own")
        if inputs.count is None:
            refuse_idle({"seed"} if seed else (), "on MODULE:FUNCTION without --count, which chooses inputs with it")
    if not plan:
        refuse(set(elsewhere.given()), "is for --plan")
    elif elsewhere.given():
        refuse_idle(cluster.given(), "beside the options of a plan for other machines")
    if computed.kernel == "nngp":
        refuse({"method"} & {*computed.given()}, "is for the tangent kernel; --kernel nngp has one method only")

    if images is not None:
        made = drawn.network(drawn.width, drawn.classes)
        subject = tiles.drawn_network(made, inputs.read(images, seed)[1], seed, computed.float64)
    else:
        subject = tiles.given_network(str(network), inputs.count, seed, computed.float64)
    on = tiles.runner(cluster, network)
    options = computed.arguments()
    if store is not None and not plan:
        print(tiles.compute(subject, store, on, options))
        return
    print(
        tiles.plan_elsewhere(subject, options, elsewhere)
        if elsewhere.given()
        else tiles.plan_here(subject, on, options)
    )
    if store is not None:
        print(tiles.state(store))
