"""What a check is: a claim in words, and the evidence that a run of it collects.

A folder of this package is a paper, with `PAPER`, and a module of that folder checks one claim. It has
    CLAIM                            what the paper says, where, and the verdict on record
    check(setting, theory=THEORY)    computes both sides with the library and returns the Evidence
    WRONG                            named wrong theories, each of which must change the verdict
A check never says what its verdict is: `judge` reads it off the rows.
"""

import sys
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, TypeVar

import numpy as np
from numpy.typing import ArrayLike

from ntk_analysis.common.progress import Track, untracked

T = TypeVar("T")
Numbers: TypeAlias = ArrayLike | None
"""A number or an array of them; None, where theory has no number, is refused by every row."""


class Verdict(StrEnum):
    """The verdict of a run on a claim."""

    HOLDS = "holds"
    CONDITIONS = "holds under conditions"
    FAILS = "does not hold"
    OPEN = "not decidable here"


class Kind(StrEnum):
    """What a row of evidence is about."""

    STATED = "as stated"  # the claim, under the paper's own conditions
    VARIED = "other conditions"  # the claim where the paper did not look
    CORRECTED = "corrected"  # what is true instead; must be confirmed, or nothing is decided


class Relation(StrEnum):
    """The way in which the measured value has to stand to the expected one."""

    EQUAL = "="
    AT_MOST = "<="
    AT_LEAST = ">="


@dataclass(frozen=True)
class Setting:
    """The sizes and the seed of a run.

    Attributes:
        seed: seed of every random draw.
        full: the sizes of the committed results in place of the quick ones.
        track: draws progress bars.
    """

    seed: int = 0
    full: bool = False
    track: Track = untracked

    def size(self, quick: T, full: T) -> T:
        """Returns the quick or the full size."""
        return full if self.full else quick


@dataclass(frozen=True)
class Paper:
    """A paper whose claims are checked.

    Attributes:
        name: the name by which a report calls it.
        title: title in full.
        arxiv: number on arXiv, such as 2010.01234; "" where it has none.
        claims: ids of its claims, which are the names of the modules that check them, in the order of the report.
        network_claims: ids of the claims that may be put to a user's own network, modules of its `own_network`: their
            `check` takes a `Subject` in the place of a theory.
        slow: ids of those claims whose quick check takes longest: only the full tests run it.
    """

    name: str
    title: str
    arxiv: str
    claims: tuple[str, ...]
    network_claims: tuple[str, ...] = ()
    slow: tuple[str, ...] = ()


@dataclass(frozen=True)
class Claim:
    """A claim of a paper.

    Attributes:
        id: name of the module that checks it, and of its row in the table of claims.
        title: a few words.
        statement: the claim in our words.
        formula: LaTeX of its formula without dollar signs; "" where it has none.
        source: equation, theorem, figure or section.
        recorded: the verdict on record: a run that comes to another one fails. None where nothing is on record: a claim
            about a network of the user's own.
        summary: what was found, in a sentence or two; "" where nothing is on record.
        figures: names of the figures that show it.
    """

    id: str
    title: str
    statement: str
    source: str
    recorded: Verdict | None
    summary: str
    formula: str = ""
    figures: tuple[str, ...] = ()


class Line(NamedTuple):
    """A line of the source of a check; the file is named from this package's folder."""

    file: str
    number: int


@dataclass(frozen=True)
class Row:
    """One comparison.

    Attributes:
        quantity: what is compared, with its unit if it has one.
        condition: the conditions of the comparison; "" where there is nothing to say.
        kind: whether the row is the claim as stated, under other conditions, or corrected.
        relation: how the measured value has to stand to the expected one.
        expected: value that the claim (of a corrected row: the correction) says.
        measured: value that was found.
        tolerance: how far the relation may be missed, > 0, in the units of the values.
        because: where the tolerance comes from.
        entries: number of comparisons of which this is the worst.
        line: line of the source that made the row.
    """

    quantity: str
    condition: str
    kind: Kind
    relation: Relation
    expected: float
    measured: float
    tolerance: float
    because: str
    entries: int
    line: Line

    @property
    def miss(self) -> float:
        """The number of tolerances by which the relation is missed; 0 where an inequality is met."""
        return float(_miss(self.relation, self.expected, self.measured, self.tolerance))

    @property
    def held(self) -> bool:
        """Whether the relation holds within the tolerance."""
        return self.miss <= 1


class Edge(NamedTuple):
    """A place where a claim stops being true.

    Attributes:
        variable: what was varied, such as depth / width.
        at: the value at which the claim breaks; None if it did not within the range searched.
        meaning: what happens there, and the range searched.
    """

    variable: str
    at: float | None
    meaning: str


@dataclass
class Evidence:
    """The evidence that a check collects.

    Attributes:
        rows: comparisons, in the order of the argument.
        edges: where the claim was found to break.
        notes: facts that are no comparisons.
        open: why the claim cannot be decided here; "" if it can.
    """

    rows: list[Row] = field(default_factory=list)
    edges: list[Edge] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    open: str = ""

    def stated(
        self, quantity: str, expected: Numbers, measured: Numbers, tolerance: Numbers, because: str, **more: Any
    ) -> Row:
        """Adds a row for the claim as the paper states it; `more` is condition="..." and relation=..., see `_row`."""
        return self._row(Kind.STATED, quantity, expected, measured, tolerance, because, **more)

    def varied(
        self, quantity: str, expected: Numbers, measured: Numbers, tolerance: Numbers, because: str, **more: Any
    ) -> Row:
        """Adds a row for the claim under conditions that the paper did not state."""
        return self._row(Kind.VARIED, quantity, expected, measured, tolerance, because, **more)

    def corrected(
        self, quantity: str, expected: Numbers, measured: Numbers, tolerance: Numbers, because: str, **more: Any
    ) -> Row:
        """Adds a row for what is true where the claim is not."""
        return self._row(Kind.CORRECTED, quantity, expected, measured, tolerance, because, **more)

    def edge(self, variable: str, at: float | None, meaning: str) -> None:
        """Adds a place where the claim breaks."""
        self.edges.append(Edge(variable, at, meaning))

    def note(self, text: str) -> None:
        """Adds a fact that is no comparison."""
        self.notes.append(text)

    def _row(
        self,
        kind: Kind,
        quantity: str,
        expected: Any,
        measured: Any,
        tolerance: Any,
        because: str,
        *,
        condition: str = "",
        relation: Relation = Relation.EQUAL,
    ) -> Row:
        """Adds the comparison of two values; of two arrays, the comparison of the entry that misses by most tolerances.

        Raises:
            ValueError: NaN or infinite values, a tolerance that is not positive, or none said where it comes from.
        """
        arrays = np.broadcast_arrays(*(np.asarray(value, np.float64) for value in (expected, measured, tolerance)))
        expected, measured, tolerance = (array.ravel() for array in arrays)
        if not (np.isfinite(expected).all() and np.isfinite(measured).all()) or expected.size == 0:
            raise ValueError(f"{quantity} ({condition}): expected {expected}, measured {measured}: not finite numbers")
        if not (np.isfinite(tolerance).all() and (tolerance > 0).all() and because):
            raise ValueError(f"{quantity}: got tolerance {tolerance} because of {because!r}: every row needs its error")
        worst = int(np.argmax(_miss(relation, expected, measured, tolerance)))
        caller = sys._getframe(2)  # of stated, varied or corrected
        line = Line(_from_package(Path(caller.f_code.co_filename)), caller.f_lineno)
        said, found, allowed = (float(array[worst]) for array in (expected, measured, tolerance))
        row = Row(quantity, condition, kind, relation, said, found, allowed, because, expected.size, line)
        self.rows.append(row)
        return row


def _from_package(file: Path) -> str:
    """Returns the path from this package's folder, or the bare name of a file that is not in it."""
    package = Path(__file__).resolve().parent
    return file.resolve().relative_to(package).as_posix() if file.resolve().is_relative_to(package) else file.name


def _miss(relation: Relation, expected: Any, measured: Any, tolerance: Any) -> Any:
    excess = np.subtract(measured, expected) / tolerance
    if relation is Relation.EQUAL:
        return np.abs(excess)
    return np.maximum(excess if relation is Relation.AT_MOST else -excess, 0)
