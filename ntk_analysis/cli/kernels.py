"""Kernels of infinitely wide networks on images, and the same by neural-tangents."""

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from ntk_analysis.cli.options import (
    Activation,
    BiasVariance,
    Center,
    Centering,
    Count,
    Eps,
    NormalizationName,
    Raw,
    WeightVariance,
    read_inputs,
)


def kernel(
    path: Annotated[Path, Argument(help="Images: .npy, .npz, an IDX file, or a folder of MNIST or CIFAR files.")],
    out: Annotated[Path, Option(help="File for the result: .npz (kernels and spectrum) or .json (spectrum).")],
    depth: Annotated[int, Option(help="Number of hidden layers.")] = 10,
    activation: Activation = "relu",
    normalization: NormalizationName = "none",
    w_var: WeightVariance = None,
    b_var: BiasVariance = 0.0,
    eps: Eps = 0.0,
    count: Count = None,
    center: Center = Centering.none,
    raw: Raw = False,
    seed: Annotated[int, Option(help="Seed of the subset.", min=0)] = 0,
) -> None:
    """NNGP and NTK of a fully connected network on images, float64, with the NTK's spectrum."""
    from ntk_analysis.cli.output import kernel_record, write_kernel
    from ntk_analysis.common.files import require_suffix, write_whole
    from ntk_analysis.infinite import infinite_kernel
    from ntk_analysis.networks import fully_connected

    require_suffix(out, (".npz", ".json"))
    network = fully_connected(depth, 1, normalization, activation, w_var=w_var, b_var=b_var, eps=eps)
    name, x = read_inputs(path, count, seed, center, raw)
    record, arrays = kernel_record(infinite_kernel(network, x))
    record |= {
        "data": name,
        "images": len(x),
        "network": repr(network),
        "scaling": "raw" if raw else center.value,
    }
    write_whole(out, lambda temporary: write_kernel(temporary, record, arrays))
    print(record["summary"])
    print(f"written to {out}")


def compare(
    path: Annotated[
        Path | None, Argument(help="Images, as for `kernel`; default: the shipped digits.", show_default=False)
    ] = None,
    depth: Annotated[int, Option(help="Number of hidden layers.")] = 10,
    activation: Activation = "relu",
    normalization: NormalizationName = "none",
    w_var: WeightVariance = None,
    b_var: BiasVariance = 0.0,
    eps: Eps = 0.0,
    count: Annotated[int, Option(help="Use at most this many images, chosen with the seed.", min=1)] = 50,
    seed: Annotated[int, Option(help="Seed of the subset.", min=0)] = 0,
) -> None:
    """NNGP and NTK against neural-tangents: their largest relative differences.

    Both are computed in float64, on images scaled to |x|^2 = d. The command needs neural-tangents (extra `reference`,
    installed by uv), which has no batch norm. Expect 1e-14 per kernel, and on the NTK's diagonal 5e-9 per ReLU layer:
    neural-tangents' rounding of the angle of an input with itself.
    """
    from importlib.metadata import version

    from ntk_analysis import data, reference
    from ntk_analysis.networks import fully_connected

    network = fully_connected(depth, 1, normalization, activation, w_var=w_var, b_var=b_var, eps=eps)
    images = data.load_digits() if path is None else data.read_images(path)
    images = images.subset(min(count, len(images.images)), seed)
    result = reference.compare(network, data.preprocess(images.images, center="none"))
    print(f"network   {network!r}")
    print(f"images    {len(images.images)} of {images.name}")
    print(f"NNGP      {result.nngp:.1e} largest relative difference")
    print(f"NTK       {result.ntk:.1e} largest relative difference, {result.ntk_off_diagonal:.1e} off the diagonal")
    print("versions  " + ", ".join(f"{name} {version(name)}" for name in ("ntk-analysis", "neural-tangents", "jax")))
