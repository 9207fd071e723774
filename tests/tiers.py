"""Which cases of a parametrisation run by default, and which beside them in CI (`-m full`)."""

import pytest


def full(*cases):
    """These cases run in the tier `full` only: they repeat, in another combination, what the default tier shows."""
    return [pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=pytest.mark.full) for case in cases]
