"""What was decided about experiments, by whom and why: written down before it takes effect, and never changed after.

Every replica reads the same decisions, and the number of the next one is its key: of two replicas that decide at once,
one writes and the other reads what it wrote.
"""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import sqlalchemy as sa

from service.routing import Experiment
from service.store import DECISIONS, Store

Kind = Literal["started", "weighted", "stepped", "taken-back", "stopped", "promoted"]

State = Literal["running", "taken-back", "stopped", "promoted"]
"""The last decision, where it ended the experiment."""


class Decision(NamedTuple):
    """One change in how an experiment stands.

    Attributes:
        number: from 1, within one salt of one experiment.
        at_s: Unix time.
        weights: share of the units that each arm has from now on.
    """

    number: int
    at_s: float
    kind: Kind
    weights: dict[str, float]
    reason: str


@dataclass(frozen=True, slots=True)
class Standing:
    """All decisions about an experiment with its present salt, oldest first; the first is its start."""

    decisions: tuple[Decision, ...] = field(default=())

    @property
    def last(self) -> Decision | None:
        return self.decisions[-1] if self.decisions else None

    @property
    def state(self) -> State:
        match self.last:
            case Decision(kind=("taken-back" | "stopped" | "promoted") as end):
                return end
        return "running"

    @property
    def ended(self) -> bool:
        return self.state != "running"

    @property
    def stopped(self) -> bool:
        """It takes no requests any more."""
        return self.state == "stopped"

    @property
    def changes_s(self) -> list[float]:
        """When it began, and when its weights changed after that."""
        return [decision.at_s for decision in self.decisions if decision.kind not in ("stopped",)] or [0.0]

    def next(self, kind: Kind, weights: dict[str, float], reason: str) -> Decision:
        return Decision(len(self.decisions) + 1, time.time(), kind, weights, reason)


Standings = dict[tuple[str, str], Standing]
"""By name and salt of the experiment: another salt begins it anew."""


def read_standings(store: Store, experiments: Sequence[Experiment]) -> Standings:
    """How experiments stand.

    Raises:
        StoreUnavailable: the database does not answer.
    """
    if not experiments:
        return {}
    found = DECISIONS.c
    query = (
        sa.select(found.experiment, found.salt, found.number, found.at_s, found.kind, found.weights, found.reason)
        .where(found.experiment.in_([experiment.name for experiment in experiments]))
        .order_by(found.number)
    )
    with store.reading() as connection:
        rows = connection.execute(query).all()
    by_key: dict[tuple[str, str], list[Decision]] = {}
    for name, salt, number, at_s, kind, weights, reason in rows:
        by_key.setdefault((name, salt), []).append(Decision(number, at_s, kind, json.loads(weights), reason))
    return {each.key: Standing(tuple(by_key.get(each.key, ()))) for each in experiments}


def record(store: Store, experiment: Experiment, decision: Decision) -> bool:
    """Write a decision down, unless another replica was faster.

    Returns:
        whether it is this one that holds.

    Raises:
        StoreUnavailable: the database does not take it.
    """
    row = decision._asdict() | {"weights": json.dumps(decision.weights)}
    return store.insert_new(DECISIONS, row | {"experiment": experiment.name, "salt": experiment.salt})
