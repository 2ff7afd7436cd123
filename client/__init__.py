"""A typed client of the HTTP API, blocking and asynchronous. Imports no other room, so that it runs without torch.

    arguments -> call -> attempts (send, wait) -> reply -> answer or error

`calls.py` and `attempts.py` are pure; `client.py` and `async_client.py` do what they say, each on its own httpx client.
"""

from client.answers import (
    AdapterEntry,
    AdapterList,
    AdapterState,
    AdapterVersion,
    Arm,
    ArmResult,
    Classification,
    Decision,
    Difference,
    Experiment,
    ExperimentList,
    ExperimentResult,
    Item,
    ItemError,
    Problem,
    ShadowResult,
    Standing,
)
from client.async_client import AsyncClient
from client.client import Client
from client.errors import (
    AdapterRefused,
    Conflict,
    ConnectionFailed,
    DeadlineExceeded,
    InvalidAnswer,
    InvalidArgument,
    InvalidRequest,
    NotFound,
    Overloaded,
    ProblemError,
    TonearmClientError,
    TooLarge,
    Unauthorized,
    Unavailable,
    UnknownAdapter,
)

__all__ = [
    "AdapterEntry",
    "AdapterList",
    "AdapterRefused",
    "AdapterState",
    "AdapterVersion",
    "Arm",
    "ArmResult",
    "AsyncClient",
    "Classification",
    "Client",
    "Conflict",
    "ConnectionFailed",
    "DeadlineExceeded",
    "Decision",
    "Difference",
    "Experiment",
    "ExperimentList",
    "ExperimentResult",
    "InvalidAnswer",
    "InvalidArgument",
    "InvalidRequest",
    "Item",
    "ItemError",
    "NotFound",
    "Overloaded",
    "Problem",
    "ProblemError",
    "ShadowResult",
    "Standing",
    "TonearmClientError",
    "TooLarge",
    "Unauthorized",
    "Unavailable",
    "UnknownAdapter",
]
