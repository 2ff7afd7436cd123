"""What crosses the queues between the API process and the worker. Light: importing it must not import torch."""

from dataclasses import dataclass
from typing import NamedTuple

from engine.rows import Outcome, Row


class Job(NamedTuple):
    """One request's rows, answered together.

    Attributes:
        id: unique in the API process that sent it.
        deadline_s: on the monotonic clock, which all processes of a machine share; nobody waits after it.
    """

    id: int
    deadline_s: float
    rows: tuple[Row, ...]


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
    """One outcome a row of the job, in its order."""

    job_id: int
    outcomes: tuple[Outcome, ...]
    timings: Timings


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
