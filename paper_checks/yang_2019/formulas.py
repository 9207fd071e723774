"""The paper's rate of gradient explosion, from the arc-cosine kernel."""

import math


def relu_rate(batch: int) -> float:
    """Returns ((B - 1 + J'(c)) / (1 - J(c)) - 1) / (B - 3) at c = -1/(B - 1), J being the normalised kernel of ReLU."""
    c = -1 / (batch - 1)
    slope = (math.pi - math.acos(c)) / math.pi
    kernel = (math.sqrt(1 - c**2) + (math.pi - math.acos(c)) * c) / math.pi
    return ((batch - 1 + slope) / (1 - kernel) - 1) / (batch - 3)


def linear_rate(batch: int) -> float:
    """Returns (B - 2) / (B - 3)."""
    return (batch - 2) / (batch - 3)
