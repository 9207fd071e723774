"""The application: its commands in the order of --help, and its one-line errors."""

import functools
import os
import sys
import warnings
from collections.abc import Callable
from typing import Annotated, NoReturn

import typer
from typer import Option

from ntk_analysis.cli.check import check
from ntk_analysis.cli.ctrl_c_ends import INTERRUPTED, came
from ntk_analysis.cli.empirical import empirical
from ntk_analysis.cli.figures import figures
from ntk_analysis.cli.groups import GroupedCommand, grouped
from ntk_analysis.cli.kernels import compare, kernel
from ntk_analysis.cli.memory import memory
from ntk_analysis.cli.network import diagnose
from ntk_analysis.cli.progress import Interrupted
from ntk_analysis.cli.reproduce import reproduce
from ntk_analysis.cli.spectrum import spectrum
from ntk_analysis.cli.sweep import sweep
from ntk_analysis.cli.theory import meanfield, phase
from ntk_analysis.cli.train import train
from ntk_analysis.common.messages import one_line

TRACEBACK = "NTK_ANALYSIS_TRACEBACK"
HINT = f"{TRACEBACK}=1 shows where"

app = typer.Typer(
    help="What normalisation does to the neural tangent kernel: theory, measurement, figures.",
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def keeping_programs(command: Callable[..., None]) -> Callable[..., None]:
    """The command, such that the programs that JAX compiles in it are kept for the next start."""

    @functools.wraps(command)
    def run(*arguments: object, **options: object) -> None:
        from ntk_analysis import compilation_cache

        compilation_cache.use()
        command(*arguments, **options)

    return run


for command in (
    figures,
    kernel,
    compare,
    empirical,
    meanfield,
    phase,
    diagnose,
    spectrum,
    check,
    train,
    sweep,
    reproduce,
    memory,
):
    app.command(cls=GroupedCommand)(keeping_programs(grouped(command)))


def show_version(wanted: bool) -> bool:
    """Prints the version and ends the program, where that is wanted."""
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


def main() -> None:
    """Runs the command line; every error is one line on stderr and exit status 2, never a traceback.

    With NTK_ANALYSIS_TRACEBACK=1 it is a traceback, for whoever looks for the cause.
    """
    warnings.showwarning = lambda message, *_args, **_kwargs: print(f"warning: {one_line(message)}", file=sys.stderr)
    try:
        status = app(sys.argv[1:] or ["--help"], standalone_mode=False)
    except typer.TyperException as error:
        fail(usage(error))
    except Interrupted as told:
        interrupted(told)
    except (KeyboardInterrupt, typer.Abort):
        status = INTERRUPTED
    except Exception as error:  # libraries and a user's functions raise whatever they like
        if not came():
            if os.environ.get(TRACEBACK):
                raise
            fail(unavailable_platform() or described(error))
        status = INTERRUPTED
    if status == INTERRUPTED:  # typer turns Ctrl-C into this status
        interrupted("nothing half-written")
    sys.exit(status)


def usage(error: typer.TyperException) -> str:
    """What is wrong with the arguments, and where help is."""
    message = getattr(error, "format_message", lambda: str(error))()
    context = getattr(error, "ctx", None)
    return f"{message.rstrip('.')} (see {context.command_path} --help)" if context else message


def described(error: Exception) -> str:
    """One line on an error; of a type that our own refusals do not have, with its name and how to see where it was."""
    ours = isinstance(
        error, ArithmeticError | ImportError | MemoryError | NotImplementedError | OSError | TypeError | ValueError
    )
    if ours and str(error):
        return one_line(error)
    words = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return f"{one_line(words)}; {HINT}"


def unavailable_platform() -> str:
    """Says that JAX has no device of the kind that JAX_PLATFORMS asks for; empty if it has, or nothing asks."""
    wanted = os.environ.get("JAX_PLATFORMS")
    if not wanted or "jax" not in sys.modules:
        return ""
    try:
        sys.modules["jax"].devices()
    except Exception:
        return f"JAX finds no device for JAX_PLATFORMS={wanted}: install JAX for it, or unset the variable"
    return ""


def fail(message: object) -> NoReturn:
    """Ends the program with an error of one line."""
    print(f"error: {one_line(message)}", file=sys.stderr)
    sys.exit(2)


def interrupted(message: object) -> NoReturn:
    """Ends the program after Ctrl-C, with one line on what is kept."""
    print(f"interrupted: {one_line(message)}", file=sys.stderr)
    sys.exit(INTERRUPTED)
