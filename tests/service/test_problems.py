"""The table of errors covers the whole tree, and every error survives the way through a queue."""

import pickle

import pytest

from adapters import errors
from adapters.errors import TonearmError
from service.problems import TABLE, kind_of, problem, problem_response

EXAMPLES: list[TonearmError] = [
    errors.InvalidReference("A B"),
    errors.UnknownAdapter("movis", ["movies"]),
    errors.VerificationError("movies@1", "rank", "at most 64", "128"),
    errors.TextTooLong(700, 512, "movies@1"),
    errors.TooManyTexts(2000, 1024),
    errors.Unauthorized("no key"),
    errors.Forbidden("not you"),
    errors.Overloaded(10, 10, 300, 1000, 3),
    errors.NotReady("starting"),
    errors.WorkerLost("gone"),
    errors.BankFull(64),
    errors.InvalidText("half a character"),
    errors.InferenceFailed("broke"),
    errors.DeadlineExceeded(30.0),
    errors.TooManyTokens(10_000, 1000),
    errors.CallerGone("hung up"),
    errors.UnknownRequest("r", 0),
    errors.UnknownExperiment("nothing"),
    errors.StoreUnavailable("gone"),
]
STATUSES = [400, 404, 409, 413, 413, 401, 403, 429, 503, 503, 503, 422, 500, 504, 413, 499, 404, 404, 503]


def leaves(error: type[TonearmError]) -> set[type[TonearmError]]:
    below = error.__subclasses__()
    return set().union(*map(leaves, below)) if below else {error}


def test_every_error_of_a_request_has_its_own_entry() -> None:
    assert leaves(errors.RequestError) <= TABLE.keys()
    assert {errors.InvalidReference, errors.UnknownAdapter, errors.VerificationError} <= TABLE.keys()
    assert {type(error) for error in EXAMPLES} == TABLE.keys() - {TonearmError}


@pytest.mark.parametrize(("error", "status"), zip(EXAMPLES, STATUSES, strict=True), ids=lambda value: str(value)[:30])
def test_status_and_pickle(error: TonearmError, status: int) -> None:
    assert kind_of(error).status == status
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error) and problem(again, "r") == problem(error, "r")
    assert problem_response(error, "r").media_type == "application/problem+json"


def test_an_unforeseen_error_tells_the_caller_nothing() -> None:
    document = problem(errors.DataError("/secret/path"), "r-1")
    assert document["status"] == 500
    assert "/secret/path" not in str(document)


def test_retry_after() -> None:
    assert problem_response(errors.Overloaded(10, 10, 300, 1000, 7), "r").headers["Retry-After"] == "7"
    assert problem_response(errors.WorkerLost("x"), "r").headers["Retry-After"] == "3"
