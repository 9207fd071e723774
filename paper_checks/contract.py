"""What a check is: a claim in words, and the evidence that a run of it collects.

A folder of this package is a paper, with `PAPER`, and a module of that folder checks one claim. It has
    CLAIM                            what the paper says, where, and the verdict on record
    check(setting, theory=THEORY)    computes both sides with the library and returns the Evidence
    WRONG                            named wrong theories, each of which must change the verdict
A check never says what its verdict is: `judge` reads it off the rows.
"""

import math
import sys
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, TypeVar

import numpy as np
from numpy.typing import ArrayLike

from ntk_analysis.common.progress import Track, untracked

from .tolerances import Source, Tolerance

PACKAGE = Path(__file__).resolve().parent
GIVEN = "given_papers."
"""What the name of a module begins with whose paper was given by its path."""

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

    STATED = "as stated"  # the claim, within the setting that the paper gives
    VARIED = "beyond the claim"  # the same relation where the claim says nothing: where it fails is an edge
    CORRECTED = "corrected"  # what is true instead; must be confirmed, or nothing is decided


class Outcome(StrEnum):
    """What a comparison says about the relation that it tests."""

    CONFIRMED = "confirmed"
    REFUTED = "refuted"
    UNRESOLVED = "unresolved"  # the error is too large to tell


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
        authors: their names, as a list of references has them.
        year: year in which it appeared.
        venue: journal or conference; "" where there is none.
        url: address of a page that has it, where arXiv has not.
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
    authors: str = ""
    year: int | None = None
    venue: str = ""
    url: str = ""


class Published(NamedTuple):
    """A number that the paper prints.

    Attributes:
        what: what it is a number of, with its unit if it has one.
        value: the number.
        uncertainty: the uncertainty that the paper prints beside it; 0 where it prints none.
        where: table, figure or equation.
    """

    what: str
    value: float
    where: str
    uncertainty: float = 0.0


@dataclass(frozen=True)
class Claim:
    """A claim of a paper, or a question of ours about it.

    Attributes:
        id: name of the module that checks it, and of its row in the table of claims.
        title: a few words.
        statement: the claim in our words.
        formula: LaTeX of its formula without dollar signs; "" where it has none.
        source: equation, theorem, figure or section.
        scope: the setting in which the paper makes the claim. Rows outside it are not as stated.
        recorded: the verdict on record: a run that comes to another one fails. None where nothing is on record: a claim
            about a network of the user's own.
        summary: what was found, in a sentence or two; "" where nothing is on record.
        figures: names of the figures that show it.
        published: numbers that the paper prints for it.
        question: whether the paper does not say so: a question of ours, which is reported in a section of its own.
    """

    id: str
    title: str
    statement: str
    source: str
    recorded: Verdict | None
    summary: str
    scope: str = ""
    formula: str = ""
    figures: tuple[str, ...] = ()
    published: tuple[Published, ...] = ()
    question: bool = False


class Line(NamedTuple):
    """A line of the source of a check; the file is named from this package's folder, or by its module elsewhere."""

    file: str
    number: int


@dataclass(frozen=True)
class Row:
    """One comparison.

    Attributes:
        quantity: what is compared, with its unit if it has one.
        condition: the conditions of the comparison; "" where there is nothing to say.
        kind: whether the row is the claim as stated, beyond it, or corrected.
        part: the part of the claim that the row tests; "" where the claim says one thing only.
        relation: how the measured value has to stand to the expected one.
        expected: value that the claim (of a corrected row: the correction) says.
        measured: value that was found.
        tolerance: the error of the comparison, > 0, in the units of the values.
        source: where the error comes from.
        because: how the error was computed.
        rival: the value that the nearest wrong theory says in place of the expected one; None where it is not needed,
            because the error is a bound.
        draws: the number of independent draws behind an error of sampling; 0 where it is not known or not such one.
        entries: number of comparisons of which this is the one that says most against the claim.
        line: line of the source that made the row.
    """

    quantity: str
    condition: str
    kind: Kind
    part: str
    relation: Relation
    expected: float
    measured: float
    tolerance: float
    source: Source
    because: str
    rival: float | None
    draws: int
    entries: int
    line: Line

    @property
    def miss(self) -> float:
        """The number of tolerances by which the relation is missed; 0 where an inequality is met."""
        return float(_miss(self.relation, self.expected, self.measured, self.tolerance))

    @property
    def outcome(self) -> Outcome:
        """Confirmed, refuted or unresolved, as the error's interval says.

        A relation is refuted where it is missed by more than the error. Where it is not, a bound on the error confirms
        it. An error that is an estimate confirms an inequality only if all of its interval meets it, and an equality
        only if it is smaller than the distance to the nearest wrong theory: noise never helps a claim.
        """
        return _outcome(self.relation, self.expected, self.measured, self.tolerance, self.rival, self.source.bounds)

    @property
    def draws_needed(self) -> int | None:
        """The number of draws at which the error would decide, if the values stayed; None where that is not known.

        The error of sampling falls with the square root of the number of draws.
        """
        if self.outcome is not Outcome.UNRESOLVED or not self.draws:
            return None
        other = self.rival if self.relation is Relation.EQUAL and self.rival is not None else self.measured
        apart = other - self.expected
        if apart == 0:
            return None
        return math.ceil(self.draws * (self.tolerance / apart) ** 2) + 1


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


AGAINST = (Outcome.CONFIRMED, Outcome.UNRESOLVED, Outcome.REFUTED)
"""Outcomes, the one that says most against a claim last."""


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
        self,
        quantity: str,
        *,
        expected: Numbers,
        measured: Numbers,
        tolerance: Tolerance,
        condition: str = "",
        relation: Relation = Relation.EQUAL,
        rival: Numbers = None,
        part: str = "",
    ) -> Row:
        """Adds a row for the claim as the paper states it, in the setting that the paper gives; see `Row`.

        Raises:
            ValueError: NaN or infinite values, a tolerance that is not positive, no reason for it, or an equality
                within an estimated error without the value of a rival.
        """
        return self._row(
            Kind.STATED, quantity, expected, measured, tolerance, condition, relation, rival=rival, part=part
        )

    def varied(
        self,
        quantity: str,
        *,
        expected: Numbers,
        measured: Numbers,
        tolerance: Tolerance,
        condition: str = "",
        relation: Relation = Relation.EQUAL,
        rival: Numbers = None,
    ) -> Row:
        """Adds a row for what the claim would say under conditions of which it does not speak; see `stated`."""
        return self._row(Kind.VARIED, quantity, expected, measured, tolerance, condition, relation, rival=rival)

    def corrected(
        self,
        quantity: str,
        *,
        expected: Numbers,
        measured: Numbers,
        tolerance: Tolerance,
        condition: str = "",
        relation: Relation = Relation.EQUAL,
        rival: Numbers = None,
    ) -> Row:
        """Adds a row for what is true where the claim is not; see `stated`."""
        return self._row(Kind.CORRECTED, quantity, expected, measured, tolerance, condition, relation, rival=rival)

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
        expected: Numbers,
        measured: Numbers,
        tolerance: Tolerance,
        condition: str,
        relation: Relation,
        *,
        rival: Numbers,
        part: str = "",
    ) -> Row:
        """Adds the comparison of two values; of two arrays, the comparison that says most against the claim."""
        needs_rival = kind is Kind.STATED and relation is Relation.EQUAL and not tolerance.source.bounds
        if needs_rival and rival is None:
            raise ValueError(
                f"{quantity}: an equality within an error of {tolerance.source} needs the value of a rival"
            )
        given = (expected, measured, tolerance.size, np.nan if rival is None else rival)
        arrays = np.broadcast_arrays(*(np.asarray(value, np.float64) for value in given))
        says, found, allowed, other = (array.ravel() for array in arrays)
        if not (np.isfinite(says).all() and np.isfinite(found).all()) or says.size == 0:
            raise ValueError(f"{quantity} ({condition}): expected {says}, measured {found}: not finite numbers")
        if not (np.isfinite(allowed).all() and (allowed > 0).all() and tolerance.reason):
            raise ValueError(
                f"{quantity}: got tolerance {allowed} because of {tolerance.reason!r}: every row needs its error"
            )
        caller = sys._getframe(2)  # of stated, varied or corrected
        line = Line(
            _label(Path(caller.f_code.co_filename), caller.f_globals.get("__name__", "__main__")), caller.f_lineno
        )

        def row(index: int) -> Row:
            return Row(
                quantity,
                condition,
                kind,
                part,
                relation,
                expected=float(says[index]),
                measured=float(found[index]),
                tolerance=float(allowed[index]),
                source=tolerance.source,
                because=tolerance.reason,
                rival=None if np.isnan(other[index]) else float(other[index]),
                draws=tolerance.draws,
                entries=says.size,
                line=line,
            )

        worst = max(map(row, range(says.size)), key=lambda one: (AGAINST.index(one.outcome), one.miss))
        self.rows.append(worst)
        return worst


def source_of(label: str) -> Path | None:
    """Returns the file of a line's label; None where it is not here any more."""
    inside = PACKAGE / label
    if inside.is_file():
        return inside
    module = label.removesuffix(".py").replace("/", ".")
    loaded = sys.modules.get(GIVEN + module) or sys.modules.get(module)
    file = None if loaded is None else loaded.__file__
    return None if file is None else Path(file)


def _label(file: Path, module: str) -> str:
    """Returns the path from this package's folder; of a file elsewhere its module's name, written as a path."""
    if file.resolve().is_relative_to(PACKAGE):
        return file.resolve().relative_to(PACKAGE).as_posix()
    return module.removeprefix(GIVEN).replace(".", "/") + ".py"


def _miss(relation: Relation, expected: Any, measured: Any, tolerance: Any) -> Any:
    """Returns by how many tolerances a relation is missed."""
    excess = np.subtract(measured, expected) / tolerance
    if relation is Relation.EQUAL:
        return np.abs(excess)
    return np.maximum(excess if relation is Relation.AT_MOST else -excess, 0)


def _outcome(
    relation: Relation, expected: float, measured: float, error: float, rival: float | None, bounded: bool
) -> Outcome:
    if relation is Relation.EQUAL:
        if abs(measured - expected) > error:
            return Outcome.REFUTED
        return Outcome.CONFIRMED if rival is None or error < abs(rival - expected) else Outcome.UNRESOLVED
    short = measured - expected if relation is Relation.AT_MOST else expected - measured
    if short > error:
        return Outcome.REFUTED
    return Outcome.CONFIRMED if bounded or short <= -error else Outcome.UNRESOLVED
