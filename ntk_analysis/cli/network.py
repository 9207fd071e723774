"""A network of the user's own."""

import json
from pathlib import Path
from typing import Annotated, Any

from typer import Argument, Option

from ntk_analysis.cli.effects import refuse_idle
from ntk_analysis.cli.progress import progress


def diagnose(
    network: Annotated[
        str,
        Argument(
            metavar="MODULE:FUNCTION",
            help="A function without arguments that returns (f, params, x), or (module, x) with a module of PyTorch, "
            "Equinox or Flax NNX, in a module importable from here or in a .py file, such as "
            "examples/hand_written.py:network; or the folder of a run of `train`, whose checkpoints are measured.",
        ),
    ],
    *,
    count: Annotated[
        int | None, Option(help="Use this many of the inputs, chosen with --seed; default: all, up to 256.")
    ] = None,
    memory: Annotated[
        str | None,
        Option(help="Memory that a tile of the kernel may take, such as 4GiB; default: half of what is free."),
    ] = None,
    shuffles: Annotated[
        int,
        Option(
            help="Number of networks with the same weights in another order. They tell how much chance changes, and "
            "more of them make the error smaller.",
            min=2,
        ),
    ] = 8,
    seed: Annotated[
        int, Option(help="Seed of all random choices: inputs, shuffles, and vectors that probe derivatives.", min=0)
    ] = 0,
    data: Annotated[
        str | None,
        Option(help="For the folder of a run: its data set, if not found by the name on record.", show_default=False),
    ] = None,
    out: Annotated[Path | None, Option(help="File for the report, .json.")] = None,
) -> None:
    """Examines your own network: its NTK's conditioning, its largest stable learning rate, and its phase.

    The phase is ordered, critical or chaotic. f(params, x) is a pure JAX function, or f is a network of
    ntk_analysis.layers; params is any tree of float arrays; x holds float inputs, of shape (n, ...).

    Of a run of `train` it shows, epoch by epoch, how far the tangent kernel has turned, the sharpness against the edge
    of stability, the effective learning rate of scale-invariant weights, and how alike activations are.
    """
    from ntk_analysis.common.files import require_result
    from ntk_analysis.diagnosis import diagnose as diagnosed
    from ntk_analysis.diagnosis import load_network

    if out is not None:
        require_result(out, (".json",))
    if Path(network).is_dir():
        given = {"seed": seed, "shuffles": shuffles - 8}
        refuse_idle((name for name, value in given.items() if value), "on a run, which draws nothing at random")
        return _diagnose_run(Path(network), data, count, memory, out)
    refuse_idle(["data"] if data else [], "on MODULE:FUNCTION, which has inputs of its own")
    f, params, x = load_network(network)
    with progress(transient=True) as track:
        found = diagnosed(f, params, x, count=count, memory=memory, seed=seed, shuffles=shuffles, track=track)
    print(found.summary())
    _write(out, {"network": network, **found.record()})


def _diagnose_run(folder: Path, data: str | None, count: int | None, memory: str | None, out: Path | None) -> None:
    """Prints and writes what training did to the network of a run."""
    from ntk_analysis.training import diagnose_run, load_dataset
    from ntk_analysis.training.along import COUNT

    dataset = None if data is None else load_dataset(data)
    found = diagnose_run(folder, dataset=dataset, count=COUNT if count is None else count, memory=memory)
    print(found.summary())
    if found.invariant:
        print(f"effective rate: of {', '.join(found.invariant)}, on whose length no output depends")
    _write(out, {"run": str(folder), **found.record()})


def _write(out: Path | None, record: dict[str, Any]) -> None:
    """Writes a record as JSON, if a file is wanted, and says so."""
    from ntk_analysis.common.files import write_whole

    if out is not None:
        text = json.dumps(record, indent=2, allow_nan=False) + "\n"
        write_whole(out, lambda temporary: temporary.write_text(text, encoding="utf-8"))
        print(f"written to {out}")
