"""XLA's flags for many small programs: compiling them takes more time than running them."""

from importlib.metadata import version

WITHOUT_OPTIMIZER = "--xla_backend_optimization_level=0"
OLD_EMITTERS = "--xla_cpu_use_fusion_emitters=false"
WITH_OLD_EMITTERS = "0.10."
"""Start of the jaxlib versions whose XLA has the old emitters; others end the process at a flag they do not know."""


def flags() -> str:
    """Value of XLA_FLAGS with which compilation on a CPU takes about half of its time, with the same results."""
    return (
        f"{WITHOUT_OPTIMIZER} {OLD_EMITTERS}" if version("jaxlib").startswith(WITH_OLD_EMITTERS) else WITHOUT_OPTIMIZER
    )
