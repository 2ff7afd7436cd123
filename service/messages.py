"""What crosses the queues between the API process and the worker. Light: importing it must not import torch."""

from dataclasses import dataclass
from typing import NamedTuple

from adapters.reference import AdapterId
from engine.rows import Answer, Outcome, Row


class Job(NamedTuple):
    """One request's rows, answered together.

    Attributes:
        id: unique in the API process that sent it.
        deadline_s: on the monotonic clock, which all processes of a machine share; nobody waits after it.
        shadow: reads every row along, in the same forward pass, where there is room.
    """

    id: int
    deadline_s: float
    rows: tuple[Row, ...]
    shadow: AdapterId | None = None


class Withdrawal(NamedTuple):
    """Nobody waits for a job any more: its client hung up."""

    job_id: int


class Timings(NamedTuple):
    """Where a job's time went: waiting for its batch (and its adapter), and in that batch's stages.

    Attributes:
        batch_s: when its batch began, on the monotonic clock; 0 if it never came into one.
    """

    queue_s: float
    tokenise_s: float
    forward_s: float
    batch_s: float = 0.0


class Reply(NamedTuple):
    """One outcome a row of the job, in its order.

    Attributes:
        shadows: what the shadow said of each row, None where it was shed or failed; empty without a shadow.
    """

    job_id: int
    outcomes: tuple[Outcome, ...]
    timings: Timings
    shadows: tuple[Answer | None, ...] = ()


@dataclass(frozen=True, slots=True)
class Envelope:
    """One message on LitServe's request queue, taken apart.

    Attributes:
        response_queue_id: which API process waits.
        sent_s: on the monotonic clock.
    """

    response_queue_id: int
    sent_s: float
    jobs: tuple[Job | Withdrawal, ...]
