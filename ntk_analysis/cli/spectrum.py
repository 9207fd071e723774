"""Eigenvalues of a user's own network, of any size."""

import json
import sys
from pathlib import Path
from typing import Annotated, Literal

from typer import Argument, Option

from ntk_analysis.cli.progress import Interrupted, progress


def spectrum(
    network: Annotated[
        str,
        Argument(metavar="MODULE:FUNCTION", help="A function that returns (f, params, x), as for `diagnose`."),
    ],
    *,
    count: Annotated[
        int | None, Option(help="Use this many of the inputs, chosen with --seed; default: all.", min=1)
    ] = None,
    matrix: Annotated[
        Literal["ntk", "fisher", "gauss_newton"],
        Option(
            help="Matrix: the tangent kernel, the Fisher matrix of the squared loss, or the Gauss-Newton matrix of the "
            "cross-entropy."
        ),
    ] = "ntk",
    steps: Annotated[
        int, Option(help="Number of Lanczos steps for the largest eigenvalues: more of them make more known.", min=2)
    ] = 16,
    probes: Annotated[
        int, Option(help="Number of random vectors for trace and density: more of them make errors smaller.", min=2)
    ] = 4,
    probe_steps: Annotated[
        int, Option(help="Number of Lanczos steps of each: more of them resolve the density more finely.", min=1)
    ] = 5,
    coupled: Annotated[
        Literal["detect", "yes", "no"],
        Option(help="Whether an output depends on the other inputs of its batch; detect tries it out."),
    ] = "detect",
    memory: Annotated[
        str | None, Option(help="Memory that a product may take, such as 4GiB; default: half of what is free.")
    ] = None,
    seed: Annotated[int, Option(help="Seed of the random vectors, and of the inputs of --count.", min=0)] = 0,
    store: Annotated[
        Path | None,
        Option(
            help="Folder where products are kept: the same command goes on where it was stopped.", show_default=False
        ),
    ] = None,
    out: Annotated[Path | None, Option(help="File for the results, .json.")] = None,
) -> None:
    """Finds the largest eigenvalues, trace and density of a large network's kernel, which is never formed.

    It is multiplied with vectors, which takes one reverse and one forward derivative each. Once a product is timed, the
    command says how long all of them take. Eigenvalues come with bounds, estimates with their errors at 95 %.
    """
    from ntk_analysis.cli.tiles import given_network
    from ntk_analysis.common.files import require_result, write_whole
    from ntk_analysis.spectrum import matrix_free
    from ntk_analysis.spectrum.kept_products import kept_count

    if out is not None:
        require_result(out, (".json",))
    subject = given_network(network, count, seed, float64=False)
    try:
        with progress(transient=True) as track:
            found = matrix_free(
                *subject,
                matrix=matrix,
                steps=steps,
                probes=probes,
                probe_steps=probe_steps,
                coupled="detect" if coupled == "detect" else coupled == "yes",
                memory=memory,
                seed=seed,
                folder=store,
                tell=lambda line: print(line, file=sys.stderr),
                track=track,
            )
    except KeyboardInterrupt:
        if store is None or not store.exists():
            raise
        raise Interrupted(f"{kept_count(store)} products are in {store}; repeat the command to go on") from None
    print(found.summary())
    if out is not None:
        text = json.dumps({"network": network, **found.record()}, indent=2, allow_nan=False) + "\n"
        write_whole(out, lambda temporary: temporary.write_text(text, encoding="utf-8"))
        print(f"written to {out}")
