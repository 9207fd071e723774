"""Numbers as a reader wants them."""

import math

MOST_DIGITS = 8


def compared(expected: float, measured: float, tolerance: float) -> tuple[str, str, str]:
    """Returns expected, measured and tolerance, the first two with the digits that show how they differ."""
    scale = max(tolerance, abs(expected - measured))
    return _down_to(scale, expected), _down_to(scale, measured), plain(tolerance, 2)


def _down_to(scale: float, value: float) -> str:
    """Returns a value with digits down to a hundredth of a scale, at least three and at most `MOST_DIGITS`."""
    if value == 0 or not 0 < scale < math.inf:
        return plain(value)
    digits = math.ceil(math.log10(abs(value)) - math.log10(scale)) + 2
    return plain(value, min(max(digits, 3), MOST_DIGITS))


def plain(value: float, digits: int = 3) -> str:
    """Returns a value in significant digits without trailing zeros; powers of ten as 1.2e-7, not e-07."""
    text = f"{value:.{digits}g}"
    mantissa, e, exponent = text.partition("e")
    return f"{mantissa}e{int(exponent)}" if e else text


def misses(miss: float | None) -> str:
    """Returns the number of tolerances of a miss, in words that fit a table."""
    if miss is None:
        return "> 1e300"
    if miss == 0:
        return "0"
    return plain(miss, 2) if miss >= 0.01 else "< 0.01"


def bar(miss: float | None) -> float:
    """Returns the length of a miss from 0 to 1: linear up to one tolerance, at 1/2, then logarithmic to a million."""
    if miss is None:
        return 1.0
    return miss / 2 if miss <= 1 else 0.5 + min(math.log10(miss) / 12, 0.5)
