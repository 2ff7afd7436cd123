"""What the store knows of an experiment, read for the analysis."""

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import sqlalchemy as sa

from service.analysis import ArmData, Label, PairData, UnitSums
from service.routing import Experiment
from service.store import EXPOSURES, FEEDBACK, PAIRS, Store

_ROWS_AT_ONCE = 1000

_exposed, _truth = EXPOSURES.c, FEEDBACK.c
_of_one_text = (_exposed.request_id == _truth.request_id) & (_exposed.text == _truth.text)
_labelled = EXPOSURES.join(FEEDBACK, _of_one_text & _exposed.error.is_(None))
_right = sa.case((_truth.label == _exposed.label, 1), else_=0)


_columns: tuple[sa.ColumnElement[Any], ...] = (
    *(_exposed[name] for name in ("request_id", "text", "at_s", "unit", "arm", "adapter")),
    *(_exposed.label, _exposed.score, _exposed.took_ms, _exposed.error),
    *(_truth.label.label("feedback"), _truth.at_s.label("feedback_at_s")),
)
COLUMNS = tuple(str(column.key) for column in _columns)
"""Of what `rows` gives."""


class Evidence(NamedTuple):
    """How an arm has done since a time.

    Attributes:
        texts: that ended in an answer or in an error.
        slow: that took longer than asked about.
    """

    units: int
    texts: int
    errors: int
    slow: int


def arms(store: Store, experiment: Experiment, since_s: Sequence[float]) -> list[ArmData]:
    """What was answered and said of each arm, in the experiment's order.

    Args:
        since_s: when the experiment began, and each time its weights changed after that, as Unix times.

    Raises:
        StoreUnavailable: the database does not answer.
    """
    began, period = _since(experiment, since_s[0]), _period(since_s)
    tenth = sa.case(*((_exposed.score >= at / 10, at) for at in range(9, 0, -1)), else_=0)
    failed = sa.func.count(_exposed.error)
    queries = (
        sa.select(_exposed.arm, sa.func.count(), failed, sa.func.count(_exposed.unit.distinct()))
        .where(began)
        .group_by(_exposed.arm),
        sa.select(_exposed.arm, sa.func.count(_exposed.unit.distinct()))
        .where(began & (_exposed.at_s >= since_s[-1]))
        .group_by(_exposed.arm),
        sa.select(_exposed.arm, period, _exposed.unit, sa.func.count(), sa.func.sum(_right))
        .select_from(_labelled)
        .where(began)
        .group_by(_exposed.arm, period, _exposed.unit),
        sa.select(_exposed.arm, _exposed.label, _truth.label, sa.func.count())
        .select_from(_labelled)
        .where(began)
        .group_by(_exposed.arm, _exposed.label, _truth.label),
        sa.select(_exposed.arm, tenth, sa.func.count(), sa.func.sum(_right), sa.func.sum(_exposed.score))
        .select_from(_labelled)
        .where(began)
        .group_by(_exposed.arm, tenth),
    )
    with store.reading() as connection:
        totals, split, units, pairs, tenths = (connection.execute(query).all() for query in queries)
        found = {arm: (texts - errors, errors, unit_count) for arm, texts, errors, unit_count in totals}
        took = {
            arm: [_percentile(connection, began & (_exposed.arm == arm), answered, p) for p in (0.5, 0.99)]
            for arm, (answered, _, _) in found.items()
        }
    of_arm = dict(tuple(row) for row in split)
    return [
        ArmData(
            name=arm.name,
            weight=arm.weight,
            texts=found.get(arm.name, (0, 0, 0))[0],
            errors=found.get(arm.name, (0, 0, 0))[1],
            units=found.get(arm.name, (0, 0, 0))[2],
            split=of_arm.get(arm.name, 0),
            sums=[
                UnitSums(count, int(correct), unit, at) for name, at, unit, count, correct in units if name == arm.name
            ],
            confusion={(said, true): count for name, said, true, count in pairs if name == arm.name},
            bins=[(count, int(correct), scores) for name, _, count, correct, scores in tenths if name == arm.name],
            p50_ms=took.get(arm.name, [None, None])[0],
            p99_ms=took.get(arm.name, [None, None])[1],
        )
        for arm in experiment.arms
    ]


def labels(store: Store, experiment: Experiment, since_s: Sequence[float]) -> list[Label]:
    """Every piece of feedback on the experiment's arms, oldest first.

    Args:
        since_s: as of `arms`.

    Raises:
        StoreUnavailable: the database does not answer.
    """
    query = (
        sa.select(_exposed.arm, _period(since_s), _exposed.unit, _truth.at_s, _right)
        .select_from(_labelled)
        .where(_since(experiment, since_s[0]) & _exposed.arm.in_([arm.name for arm in experiment.arms]))
        .order_by(_truth.at_s)
    )
    with store.reading() as connection:
        rows = connection.execute(query).all()
    return [Label(arm, period, unit, at_s, bool(right)) for arm, period, unit, at_s, right in rows]


def shadow_pairs(store: Store, experiment: Experiment, since_s: float) -> PairData:
    """What the experiment's shadow said beside what was answered. It may be of any version that the shadow has had.

    Raises:
        StoreUnavailable: the database does not answer.
    """
    pair = PAIRS.c
    began = (pair.experiment == experiment.name) & (pair.at_s >= since_s)
    same = sa.func.sum(sa.case((pair.label == pair.shadow_label, 1), else_=0))
    shift = sa.func.avg(pair.shadow_score - pair.score)
    labelled = PAIRS.join(FEEDBACK, (pair.request_id == _truth.request_id) & (pair.text == _truth.text))
    arm_right, shadow_right = pair.label == _truth.label, pair.shadow_label == _truth.label
    only_arm = sa.func.sum(sa.case((arm_right & ~shadow_right, 1), else_=0))
    only_shadow = sa.func.sum(sa.case((shadow_right & ~arm_right, 1), else_=0))
    with store.reading() as connection:
        count, agreed, mean_shift = connection.execute(sa.select(sa.func.count(), same, shift).where(began)).one()
        units = connection.execute(
            sa.select(pair.unit, sa.func.count(), only_arm, only_shadow)
            .select_from(labelled)
            .where(began)
            .group_by(pair.unit)
        ).all()
    return PairData(
        pairs=count,
        same=int(agreed or 0),
        mean_shift=None if mean_shift is None else float(mean_shift),
        sums=[UnitSums(texts, int(shadow) - int(arm), unit) for unit, texts, arm, shadow in units],
        only_arm=sum(int(arm) for _, _, arm, _ in units),
        only_shadow=sum(int(shadow) for _, _, _, shadow in units),
    )


def evidence(store: Store, experiment: Experiment, arm: str, since_s: float, slower_than_ms: float) -> Evidence:
    """
    Raises:
        StoreUnavailable: the database does not answer.
    """
    slow = sa.func.sum(sa.case((_exposed.took_ms > slower_than_ms, 1), else_=0))
    query = sa.select(
        sa.func.count(_exposed.unit.distinct()), sa.func.count(), sa.func.count(_exposed.error), slow
    ).where(_since(experiment, since_s) & (_exposed.arm == arm))
    with store.reading() as connection:
        units, texts, errors, slow_texts = connection.execute(query).one()
    return Evidence(units, texts, errors, int(slow_texts or 0))


def rows(store: Store, experiment: Experiment, since_s: float) -> Iterator[list[dict[str, Any]]]:
    """Every exposure of an experiment with its feedback, oldest first, some at a time. Units are hashed.

    Raises:
        StoreUnavailable: the database does not answer.
    """
    query = (
        sa.select(*_columns)
        .select_from(EXPOSURES.outerjoin(FEEDBACK, _of_one_text))
        .where(_since(experiment, since_s))
        .order_by(_exposed.at_s, _exposed.request_id, _exposed.text)
        .execution_options(yield_per=_ROWS_AT_ONCE)
    )
    with store.reading() as connection:
        for part in connection.execute(query).mappings().partitions():
            yield [dict(row) for row in part]


def _since(experiment: Experiment, at_s: float) -> sa.ColumnElement[bool]:
    return (_exposed.experiment == experiment.name) & (_exposed.at_s >= at_s)


def _period(since_s: Sequence[float]) -> sa.ColumnElement[int]:
    """Which time between two changes of the weights an exposure is of, from 0."""
    if len(since_s) == 1:
        return sa.literal(0)
    later = sorted(enumerate(since_s), reverse=True)[:-1]
    return sa.case(*((_exposed.at_s >= at_s, index) for index, at_s in later), else_=0)


def _percentile(connection: sa.Connection, of: sa.ColumnElement[bool], count: int, share: float) -> float | None:
    """The nearest-rank percentile: exact, and the same on every database."""
    if not count:
        return None
    rank = max(0, math.ceil(share * count) - 1)
    query = sa.select(_exposed.took_ms).where(of & _exposed.error.is_(None)).order_by(_exposed.took_ms)
    return connection.execute(query.limit(1).offset(rank)).scalar_one_or_none()
