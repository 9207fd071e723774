"""The spread of correlations that theory predicts for deep networks of finite width."""

import math

from ntk_analysis import activations
from ntk_analysis.networks.builders import AnyActivation


def predicted_spread(width: int, *, observable: str = "activation", activation: AnyActivation = "relu") -> float:
    """Standard deviation of the correlation of two decorrelated inputs in a deep weight-centered network.

    It is of first order in 1/width and holds for weight centering with its stable gain and no biases. It does not hold
    for batch normalisation, whose band is wider and grows with depth: measure that one. With lam = T_bar'(0), a layer
    of n channels takes r to lam r + noise of variance 1/n, so that at stationarity it is
        activation:     1 / sqrt(n (1 - lam^2))           = 0.085 for ReLU at n = 300
        pre_activation: sqrt((1 + 1/(1 - lam^2)) / n)     = 0.103, one more layer's noise on top.
    The band's center is 0 up to order 1/n (T_bar is convex: about 0.006 for ReLU at n = 300).

    Args:
        width: number n of channels of every hidden layer.
        observable: "activation" or "pre_activation", each Pearson over channels.
        activation: name or elementwise JAX function; its pre-activations have variance 1.

    Raises:
        ValueError: width < 2, the observable is another, or |lam| >= 1 (linear network), where correlations do not
            settle.
    """
    if width < 2:
        raise ValueError(f"got width {width}: a correlation over channels needs at least 2")
    if observable not in ("activation", "pre_activation"):
        raise ValueError(f"no prediction for observable {observable!r}: choose activation or pre_activation")
    phi = activations.get(activation)
    slope = phi.stable_gain(centered=True) * float(phi.derivative_dual(1.0, 1.0, 0.0))
    if not abs(slope) < 1 - 1e-9:
        raise ValueError(f"{phi} has T_bar'(0) = {slope:.6g}: correlations settle at 0 only for a slope below 1")
    stationary = 1 / (1 - slope**2)
    return math.sqrt((stationary if observable == "activation" else 1 + stationary) / width)
