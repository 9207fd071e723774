"""A network of the user's own."""

import json
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from ntk_analysis.cli.progress import progress


def diagnose(
    network: Annotated[
        str,
        Argument(
            metavar="MODULE:FUNCTION",
            help="A function without arguments that returns (f, params, x), in a module importable from here or in a "
            ".py file, such as examples/hand_written.py:network.",
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
    out: Annotated[Path | None, Option(help="File for the report, .json.")] = None,
) -> None:
    """Examines your own network: its NTK's conditioning, its largest stable learning rate, and its phase.

    The phase is ordered, critical or chaotic. f(params, x) is a pure JAX function, or f is a network of
    ntk_analysis.layers; params is any tree of float arrays; x holds float inputs, of shape (n, ...).
    """
    from ntk_analysis.common.files import require_result, write_whole
    from ntk_analysis.diagnosis import diagnose as diagnosed
    from ntk_analysis.diagnosis import load_network

    if out is not None:
        require_result(out, (".json",))
    f, params, x = load_network(network)
    with progress(transient=True) as track:
        found = diagnosed(f, params, x, count=count, memory=memory, seed=seed, shuffles=shuffles, track=track)
    print(found.summary())
    if out is not None:
        text = json.dumps({"network": network, **found.record()}, indent=2, allow_nan=False) + "\n"
        write_whole(out, lambda temporary: temporary.write_text(text, encoding="utf-8"))
        print(f"written to {out}")
