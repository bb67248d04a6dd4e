"""What a report says, as plain data: the one set of numbers behind every format.

Every printed figure carries its exact value and the text that is printed, so that HTML,
PDF, JSON and the terminal cannot differ. Over 400 lines, so that all of report.json is
read in one place. Imports nothing else of ours but the cost model, which is data too.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from bench.ledger import CostModel
from bench.steps import Step

FORMAT = 2
"""Of report.json. 1: first version. 2: bands of distributions; series with their lines in
samples.csv; definitions, published, threats, gaps; several runs joined; costs and
the steps they follow from."""


@dataclass(frozen=True)
class Arm:
    """One arm as the report names it; `label` carries the accelerator."""

    name: str
    label: str
    title: str
    kind: str
    reason: str
    emulated: bool
    version: str
    style: int


@dataclass(frozen=True)
class Workload:
    """One workload in a line."""

    name: str
    title: str
    image: str
    command: str
    ready: str
    until: str
    limits: str
    network: str


@dataclass(frozen=True)
class Metric:
    """What a number means, and the margin its verdicts use."""

    name: str
    title: str
    unit: str
    scale: str
    better: str
    family: str
    definition: str
    margin: float | None
    margin_text: str
    resolution_text: str


@dataclass(frozen=True)
class Summary:
    """One arm's values of one metric and workload; None where nothing was measured.

    `low` and `high` are the order-statistic interval of the median (at least 95 %),
    None where n is too small for one.
    """

    metric: str
    workload: str
    arm: str
    n: int
    failed: int
    timeout: int
    refused: int
    median: float | None
    low: float | None
    high: float | None
    minimum: float | None
    maximum: float | None
    text: str
    interval_text: str
    range_text: str


@dataclass(frozen=True)
class Effect:
    """An estimate with its interval on one scale, and as printed."""

    scale: str
    estimate: float | None
    low: float | None
    high: float | None
    text: str


@dataclass(frozen=True)
class Comparison:
    """One arm against one baseline: effect on the metric's scale, on the other, verdict.

    `effect` is None when nothing can be said about its size; its numbers are None where
    they are not finite (the text says what is known). `needed` is the number of blocks
    an undecided comparison would need.
    """

    id: str
    metric: str
    workload: str
    arm: str
    baseline: str
    title: str
    pair: str
    family: str
    effect: Effect | None
    other: Effect | None
    margin_text: str
    verdict: str
    verdict_text: str
    reason: str
    n: int
    planned: int
    needed: int | None
    failed: int
    timeouts: int
    p: float | None
    p_adjusted: float | None
    p_text: str
    failure_p: float | None
    primary: bool
    judged: bool
    sentence: str


@dataclass(frozen=True)
class Distribution:
    """Values of one arm for drawing, in run order; thinned to what a picture can show.

    `values` are distinct values in ascending order (all of them where there are few), `shares`
    the part of all trials at or below each, `low` and `high` its 95 % limits, `order` pairs of
    block and value in the order they ran. `n` values were measured, `censored` timed out.
    """

    metric: str
    workload: str
    arm: str
    n: int
    censored: int
    values: tuple[float, ...]
    shares: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    order: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Series:
    """The samples behind one arm's figure: where they stand in samples.csv, and as printed.

    `first_line` and `last_line` count from 1, the header included. `values` is "" where there
    are too many to print.
    """

    metric: str
    workload: str
    arm: str
    n: int
    unit: str
    values: str
    first_line: int
    last_line: int


@dataclass(frozen=True)
class DefinedStart:
    """Start-up of one workload as one definition counts it; None where an arm has no such thing.

    `levels` and `texts` follow the order of the run's arms.
    """

    workload: str
    definition: str
    levels: tuple[float | None, ...]
    texts: tuple[str, ...]


@dataclass(frozen=True)
class Definition:
    """What one study called start-up time, and which of our events stand for its two ends."""

    key: str
    study: str
    theirs: str
    ours: str


@dataclass(frozen=True)
class Published:
    """A published figure, and ours by the same definition; "" where ours was emulated."""

    study: str
    what: str
    platform: str
    figure: str
    definition: str
    arm: str
    ours: str
    differs: str
    source: str


@dataclass(frozen=True)
class Threat:
    """What could make a conclusion wrong, by the kind of validity that it threatens."""

    kind: str
    text: str
    code: str


@dataclass(frozen=True)
class Phase:
    """Median time of one event since the request, and of the phase that ends with it."""

    workload: str
    arm: str
    event: str
    n: int
    at_s: float
    length_s: float
    at_text: str
    length_text: str


@dataclass(frozen=True)
class Failure:
    """A trial that did not end well."""

    block: int
    position: int
    arm: str
    workload: str
    outcome: str
    error: str


@dataclass(frozen=True)
class Reading:
    """A disturbance as seen during one arm's trials."""

    name: str
    title: str
    arm: str
    n: int
    median: float
    maximum: float
    text: str


@dataclass(frozen=True)
class Answer:
    """One of the questions that the first page answers."""

    question: str
    lines: tuple[str, ...]


@dataclass(frozen=True)
class Headline:
    """A sentence about one comparison."""

    comparison: str
    verdict: str
    primary: bool
    text: str


@dataclass(frozen=True)
class RunReport:
    """Everything a report says about one run."""

    id: str
    created: str
    ended: str
    seed: str
    version: str
    command: str
    digests: dict[str, str]
    plan: dict[str, Any]
    host: dict[str, Any]
    host_line: str
    images: dict[str, Any]
    arms: tuple[Arm, ...]
    pairs: tuple[tuple[str, str, str], ...]
    workloads: tuple[Workload, ...]
    metrics: tuple[Metric, ...]
    families: tuple[tuple[str, str], ...]
    banner_head: str
    banner: str
    judged_emulation: bool
    family_size: int
    answers: tuple[Answer, ...]
    headlines: tuple[Headline, ...]
    comparisons: tuple[Comparison, ...]
    summaries: tuple[Summary, ...]
    distributions: tuple[Distribution, ...]
    phases: tuple[Phase, ...]
    counts: dict[str, int]
    outcomes: tuple[dict[str, Any], ...]
    failures: tuple[Failure, ...]
    disturbances: tuple[Reading, ...]
    identity: dict[str, Any]
    fairness: tuple[tuple[str, str], ...]
    findings: tuple[dict[str, str], ...]
    robustness: dict[str, Any]
    registration: dict[str, Any]
    descriptions: dict[str, Any]
    resolution_s: dict[str, float]
    series: tuple[Series, ...]
    definitions: tuple[Definition, ...]
    defined: tuple[DefinedStart, ...]
    published: tuple[Published, ...]
    threats: tuple[Threat, ...]
    gaps: tuple[str, ...]
    costs: CostModel | None
    steps: tuple[Step, ...]

    @property
    def crowded(self) -> bool:
        """Whether its arms are too many for a column each, and for lines of their own."""
        return len(self.arms) > 6 or len(self.arms) + len(self.pairs) > 14

    def arm(self, name: str) -> Arm:
        """The arm of this name."""
        return next(arm for arm in self.arms if arm.name == name)

    def workload(self, name: str) -> Workload:
        """The workload of this name."""
        return next(item for item in self.workloads if item.name == name)


@dataclass(frozen=True)
class JointCell:
    """One run's answer to a question that several runs were asked; "" where it has none."""

    run: str
    comparison: str
    text: str
    estimate: float | None
    low: float | None
    high: float | None
    verdict: str


@dataclass(frozen=True)
class JointRow:
    """One metric of one workload in one pair of arms, run by run."""

    metric: str
    workload: str
    arm: str
    baseline: str
    title: str
    scale: str
    cells: tuple[JointCell, ...]
    summary: str


@dataclass(frozen=True)
class MergedRow:
    """One judged comparison over several runs (or hosts), each of which is one value.

    `between` and `within` are standard deviations on the test's scale (logs for a ratio)
    of the merged units, and of what is inside them; None for fewer than two units of two.
    """

    metric: str
    workload: str
    arm: str
    baseline: str
    title: str
    n: int
    blocks: int
    estimate: float | None
    low: float | None
    high: float | None
    text: str
    verdict: str
    judged: bool
    reason: str
    needed: int | None
    between: float | None
    within: float | None
    spread_text: str
    advice: str


@dataclass(frozen=True)
class Merged:
    """Like runs as one statement, `scope` saying of what."""

    scope: str
    units: str
    members: tuple[str, ...]
    note: str
    rows: tuple[MergedRow, ...]


@dataclass(frozen=True)
class ReportData:
    """The whole report: one run, or several side by side, `joint` row by row."""

    title: str
    runs: tuple[RunReport, ...]
    joint: tuple[JointRow, ...]
    agreement: str
    likeness: tuple[str, ...]
    merged: tuple[Merged, ...]
    method: tuple[tuple[str, str], ...]
    glossary: tuple[tuple[str, str], ...]
    format: int = FORMAT

    def as_json(self) -> dict[str, Any]:
        """The same as JSON values; `format` first."""
        return {"format": self.format, **dataclasses.asdict(self)}
