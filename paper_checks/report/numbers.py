"""Numbers as a reader wants them."""

import math

MOST_DIGITS = 8
MANY = 1000  # tolerances beyond which nobody wants to know how many
PLAIN = range(-4, 6)  # powers of ten of numbers that are written without one


def compared(expected: float, measured: float, tolerance: float) -> tuple[str, str, str]:
    """Returns expected, measured and tolerance; the first two with as many decimals as show how they differ."""
    scale = max(tolerance, abs(expected - measured))
    return *_alike(expected, measured, scale), plain(tolerance, 2)


def _alike(first: float, second: float, scale: float) -> tuple[str, str]:
    """Returns two values with the same power of ten and the same decimals, down to a tenth of a scale.

    The larger one has at least three digits and at most `MOST_DIGITS`; zeros at the end of both go. An exact 0 is "0",
    and a value that these decimals would show as 0 has its own digits.
    """
    largest = max(abs(first), abs(second))
    if not (0 < scale < math.inf and 0 < largest < math.inf):
        return plain(first), plain(second)
    exponent = math.floor(math.log10(largest))
    digits = min(max(math.ceil(math.log10(largest) - math.log10(scale)) + 1, 3), MOST_DIGITS)
    power = 0 if exponent in PLAIN else exponent
    decimals = max(digits - 1 - exponent + power, 0)
    texts = [f"{value / 10.0**power:.{decimals}f}" for value in (first, second)]
    while decimals and all(text.endswith("0") for text, value in zip(texts, (first, second), strict=True) if value):
        decimals -= 1
        texts = [text[:-1].removesuffix(".") for text in texts]
    behind = f"e{power}" if power else ""
    one, other = (
        plain(value) if value == 0 or float(text) == 0 else text + behind
        for text, value in zip(texts, (first, second), strict=True)
    )
    return one, other


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


def off_by(miss: float) -> str:
    """Returns how far a comparison is off, in words for a terminal: as a part of its tolerance, or beyond it."""
    if miss == 0:
        return "nothing"
    if miss <= 1:
        return f"{plain(miss, 2)} of the tolerance" if miss >= 0.01 else "less than 0.01 of the tolerance"
    return f"{plain(miss, 3)} tolerances" if miss < MANY else f"more than {MANY:,} tolerances"


def bar(miss: float | None) -> float:
    """Returns the length of a miss from 0 to 1: linear up to one tolerance, at 1/2, then logarithmic to a million."""
    if miss is None:
        return 1.0
    return miss / 2 if miss <= 1 else 0.5 + min(math.log10(miss) / 12, 0.5)
