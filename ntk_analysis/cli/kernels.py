"""Kernels of infinitely wide networks on images, and the same by neural-tangents."""

from pathlib import Path
from typing import Annotated, Literal

from typer import Argument, Option

from ntk_analysis.cli.effects import refuse_idle
from ntk_analysis.cli.options import ClusterOptions, ImageOptions, NetworkOptions, refuse
from ntk_analysis.cli.progress import stages


def kernel(
    path: Annotated[Path, Argument(help="Images: a .npy, .npz or IDX file, or a folder of MNIST or CIFAR files.")],
    *,
    out: Annotated[
        Path | None,
        Option(help="File for the result: .npz for kernels and spectra, .json for spectra only.", show_default=False),
    ] = None,
    store: Annotated[
        Path | None,
        Option(
            help="Folder for the kernel, tile by tile. If it has a part of this kernel, only the rest is computed.",
            show_default=False,
        ),
    ] = None,
    memory: Annotated[
        str | None,
        Option(help="With --store: memory that a tile may take, such as 4GiB; default: half of what is free."),
    ] = None,
    seed: Annotated[int, Option(help="Seed that chooses the images of --count.", min=0)] = 0,
    batch_norm: Annotated[
        Literal["exact", "large_batch"],
        Option(
            help="How batch norms are integrated: exact, or large_batch for many images, by few nodes, with the "
            "measured error."
        ),
    ] = "exact",
    plan: Annotated[bool, Option("--plan", help="Show memory and time that the kernel takes, and stop there.")] = False,
    layers: NetworkOptions,
    images: ImageOptions,
    cluster: ClusterOptions,
) -> None:
    """Computes NNGP and NTK of a fully connected network on images, in float64, with their spectra.

    The kernel is computed in memory, and --out writes it with its spectra. Into the folder of --store it goes tile by
    tile, also of more images than fit into memory: a command that was stopped goes on where it was when it is given
    again.
    """
    from ntk_analysis import infinite
    from ntk_analysis.cli.output import kernel_record, write_kernel
    from ntk_analysis.common.files import require_result, write_whole

    if out is None and store is None:
        raise ValueError("give --out FILE for kernel and spectra, or --store DIR for the kernel on disk")
    if out is not None:
        require_result(out, (".npz", ".json"), [path])
    if store is None:
        given = cluster.given() | ({} if memory is None else {"memory": memory})
        refuse(set(given), "is for --store, a kernel that is computed by tiles")
    if images.count is None:
        refuse_idle({"seed"} if seed else (), "without --count, which chooses images with it")
    network = layers.network()
    if network.couples_batch is False:
        refuse_idle({"batch_norm"} if batch_norm != "exact" else (), f"with --normalization {layers.normalization}")
    name, x = images.read(path, seed)
    if store is not None:
        from ntk_analysis.cli import tiles

        on = tiles.runner(cluster, None)
        if plan:
            print(f"{tiles.plan_infinite(network, x, on, memory)}\n{tiles.state(store)}")
            return
        stored = tiles.compute_infinite(network, x, store, on=on, memory=memory)
    elif plan:
        print(infinite.plan(network, x, batch_norm=batch_norm).summary())
        return
    if out is None:
        return
    with stages(3) as begin:
        begin(f"kernel of {len(x):,} images")
        found = infinite.infinite_kernel(network, x, batch_norm=batch_norm) if store is None else stored[:]
        record, arrays = kernel_record(found, begin)
    record |= {
        "data": name,
        "images": len(x),
        "network": repr(network),
        "scaling": "raw" if images.raw else images.image_centering,
    }
    write_whole(out, lambda temporary: write_kernel(temporary, record, arrays))
    print(record["summary"])
    if batch_norm == "large_batch":
        print(f"measured error of the kernel: {found.approximation_error:.1g}, relative to its largest entry")
    print(f"written to {out}")


def compare(
    path: Annotated[
        Path | None, Argument(help="Images, as for `kernel`; default: the shipped digits.", show_default=False)
    ] = None,
    *,
    count: Annotated[int, Option(help="Use at most this many images, chosen with the seed.", min=1)] = 50,
    seed: Annotated[int, Option(help="Seed that chooses the images of --count.", min=0)] = 0,
    layers: NetworkOptions,
) -> None:
    """Compares NNGP and NTK with those of neural-tangents, and shows their largest relative differences.

    Both are computed in float64, on images scaled to |x|^2 = d. The command needs neural-tangents (extra `reference`,
    installed by uv), which has no batch norm. Expect 1e-14 per kernel, and on the NTK's diagonal 5e-9 per ReLU layer:
    neural-tangents' rounding of the angle of an input with itself.
    """
    from importlib.metadata import version

    from ntk_analysis import data, reference

    network = layers.network()
    images = data.load_digits() if path is None else data.read_images(path)
    images = images.subset(min(count, len(images.images)), seed)
    with stages(1) as begin:
        begin("kernels of both libraries")
        result = reference.compare(network, data.preprocess(images.images))
    print(f"network   {network!r}")
    print(f"images    {len(images.images)} of {images.name}")
    print(f"NNGP      {result.nngp:.1e} largest relative difference")
    print(f"NTK       {result.ntk:.1e} largest relative difference, {result.ntk_off_diagonal:.1e} off the diagonal")
    print("versions  " + ", ".join(f"{name} {version(name)}" for name in ("ntk-analysis", "neural-tangents", "jax")))
