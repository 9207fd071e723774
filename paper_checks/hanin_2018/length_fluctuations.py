"""Lengths behind a ReLU network of widths n fluctuate: E|h|^4 / (E|h|^2)^2 is the product of 1 + 5/n."""

from ..contract import Claim, Evidence, Setting, Verdict
from ..draws import five_sigma
from ..tolerances import nearest, sampling
from .lengths import squares_of_lengths

CLAIM = Claim(
    id="length_fluctuations",
    title="lengths fluctuate",
    statement="Behind ReLU layers of widths n_1, n_2, ... the squared length has E|h|^4 / (E|h|^2)^2 = product of "
    "(1 + 5/n_l): exponential in the sum of reciprocal widths.",
    source="Theorem 1, with the constants of its proof",
    scope="Fully connected ReLU networks without biases, Gaussian weights of variance 2 / fan-in.",
    formula=r"\frac{\mathbb{E}|h|^4}{(\mathbb{E}|h|^2)^2} = \prod_l \left(1 + \frac{5}{n_l}\right)",
    recorded=Verdict.HOLDS,
    summary="True, and exact: of n units half are on, and each has a fourth moment of 3.",
)
THEORY = 5.0
WRONG = {"2/n, as of linear layers": 2.0, "3/n: every unit is on": 3.0, "no fluctuations": 0.0}
WIDTHS = ((30,) * 5, (16, 16, 64))


def check(setting: Setting, theory: float = THEORY) -> Evidence:
    """Draws networks of equal and of unequal widths."""
    evidence = Evidence()
    draws = setting.size(20_000, 400_000)

    def product(constant: float, widths: tuple[int, ...]) -> float:
        found = 1.0
        for width in widths:
            found *= 1 + constant / width
        return found

    for widths in WIDTHS:
        found = squares_of_lengths((20, *widths), draws, setting.seed)
        evidence.stated(
            "E|h|^4 / (E|h|^2)^2",
            expected=product(theory, widths),
            measured=found.mean,
            tolerance=sampling(five_sigma(draws) * found.error, f"5 sigma of {draws} networks", draws),
            rival=nearest(product(theory, widths), (product(one, widths) for one in (THEORY, *WRONG.values()))),
            condition=f"widths {', '.join(map(str, widths))}",
        )
    return evidence
