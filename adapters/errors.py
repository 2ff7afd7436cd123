"""Every error that Tonearm raises on purpose, as one tree. `service/problems.py` maps the tree to HTTP.

    TonearmError
    ├── SettingsError          a setting, recipe field or experiments file is wrong
    ├── DataError              training data is wrong
    ├── BaseModelError         the base model cannot be found, read or trusted
    ├── AdapterError
    │   ├── InvalidReference   the text does not name an adapter at all
    │   ├── UnknownAdapter     well formed, but not in the registry
    │   ├── VerificationError  in the registry, but must not be served
    │   ├── PublishError       cannot be put into the registry
    │   └── PullError          cannot be had from where it lies
    │       └── PushError      cannot be sent to where it should lie
    └── RequestError           one request cannot be answered
        ├── InvalidText        not Unicode text
        ├── TextTooLong        over the adapter's limit, and truncation was declined
        ├── TooManyTexts       more texts or adapters than one request may carry
        ├── Unauthorized · Forbidden
        ├── Overloaded         the queue is full
        ├── NotReady           starting or draining
        ├── WorkerLost         the inference worker that held it died
        ├── InferenceFailed    the forward pass failed
        └── DeadlineExceeded   nobody waits for it any more

Errors cross process borders, so every one is rebuilt by pickle from its positional arguments.
"""

from collections.abc import Sequence


class TonearmError(Exception):
    """Root of the tree; `str()` of any of them is a sentence that can be shown to a user."""


class SettingsError(TonearmError):
    """A setting is unusable.

    Args:
        key: the setting, as the user writes it.
        value: what was found.
        expected: what would have been right, in words.
    """

    def __init__(self, key: str, value: object, expected: str) -> None:
        super().__init__(key, value, expected)
        self.key, self.value, self.expected = key, value, expected

    def __str__(self) -> str:
        return f"{self.key} is {self.value!r}, expected {self.expected}"


class DataError(TonearmError):
    """Training data is unusable; the message names the file and the line."""


class TrainingError(TonearmError):
    """A training run could not go on: no space, no memory. Nothing half done is published."""


class BaseModelError(TonearmError):
    """The base model cannot be found, read or trusted."""


class AdapterError(TonearmError):
    """Root of what can be wrong with an adapter."""


class InvalidReference(AdapterError):
    """A text does not have the form of an adapter reference."""

    def __init__(self, reference: str) -> None:
        super().__init__(reference)
        self.reference = reference

    def __str__(self) -> str:
        return (
            f"{self.reference!r} is no adapter reference: expected name, name@3 or name@alias, "
            "where a name matches [a-z0-9][a-z0-9._-]{0,62}"
        )


class UnknownAdapter(AdapterError):
    """A well-formed reference that the registry does not hold.

    Args:
        reference: what was asked for.
        nearest: names in the registry that look like it, best first.
    """

    def __init__(self, reference: str, nearest: Sequence[str] = ()) -> None:
        super().__init__(reference, tuple(nearest))
        self.reference, self.nearest = reference, tuple(nearest)

    def __str__(self) -> str:
        hint = f"; did you mean {' or '.join(self.nearest)}?" if self.nearest else ""
        return f"no adapter {self.reference!r} in the registry{hint}"


class VerificationError(AdapterError):
    """An adapter directory that must not be served.

    Args:
        adapter: `name@version`, or the directory where there is no name yet.
        check: which check refused it, e.g. `golden logits`.
        expected: what the check wanted.
        found: what it saw.
    """

    def __init__(self, adapter: str, check: str, expected: str, found: str) -> None:
        super().__init__(adapter, check, expected, found)
        self.adapter, self.check, self.expected, self.found = adapter, check, expected, found

    @property
    def reason(self) -> str:
        return f"{self.check}: expected {self.expected}, found {self.found}"

    def __str__(self) -> str:
        return f"adapter {self.adapter} is refused by the check {self.reason}"


class PublishError(AdapterError):
    """A directory cannot be put into the registry."""


class PullError(AdapterError):
    """An adapter cannot be had from a remote source.

    Args:
        source: the source, as the user writes it; for the hub with the commit, once that is known.
        problem: what is wrong, as the rest of a sentence about the source.
        remedy: what to do about it.
    """

    def __init__(self, source: str, problem: str, remedy: str) -> None:
        super().__init__(source, problem, remedy)
        self.source, self.problem, self.remedy = source, problem, remedy

    def __str__(self) -> str:
        return f"{self.source}: {self.problem}; {self.remedy}"


class PushError(PullError):
    """An adapter cannot be sent to a remote place."""


class RequestError(TonearmError):
    """Root of what keeps one request from an answer; never touches its neighbours."""


class InvalidText(RequestError):
    """A text that no tokenizer can read."""


class BankFull(RequestError):
    """Every slot is pinned, so no other adapter can come in."""

    def __init__(self, capacity: int) -> None:
        super().__init__(capacity)
        self.capacity = capacity

    def __str__(self) -> str:
        remedy = "unpin an adapter, or raise MAX_RESIDENT_ADAPTERS or BANK_MEMORY_MB"
        return f"every one of the {self.capacity} slots is pinned; {remedy}"


class TextTooLong(RequestError):
    """A text exceeds the adapter's limit and the request declined truncation."""

    def __init__(self, tokens: int, max_tokens: int, adapter: str) -> None:
        super().__init__(tokens, max_tokens, adapter)
        self.tokens, self.max_tokens, self.adapter = tokens, max_tokens, adapter

    def __str__(self) -> str:
        return (
            f"the text has {self.tokens} tokens, adapter {self.adapter} reads {self.max_tokens}; "
            'shorten it, or leave out "truncate": false'
        )


class TooManyTexts(RequestError):
    """More texts, or texts times adapters, than one request may carry."""

    def __init__(self, rows: int, limit: int) -> None:
        super().__init__(rows, limit)
        self.rows, self.limit = rows, limit

    def __str__(self) -> str:
        return f"the request asks for {self.rows} texts times adapters, at most {self.limit} are taken; split it"


class TooManyTokens(RequestError):
    """A request that the empty queue could not hold."""

    def __init__(self, tokens: int, limit: int) -> None:
        super().__init__(tokens, limit)
        self.tokens, self.limit = tokens, limit

    def __str__(self) -> str:
        return f"the request holds about {self.tokens} tokens, at most {self.limit} are taken; split it"


class Unauthorized(RequestError):
    """No key, or one that is not known."""


class Forbidden(RequestError):
    """A known key without the right to do this."""


class Overloaded(RequestError):
    """The queue is full, or one adapter's share of it.

    Args:
        queued, limit: rows waiting now, rows that may wait.
        tokens, max_tokens: the same in tokens, as far as they can be known before they are read.
        retry_after_s: seconds after which a try is likely to be taken.
        adapter: whose share it is; None for the whole queue.
    """

    def __init__(
        self, queued: int, limit: int, tokens: int, max_tokens: int, retry_after_s: int, adapter: str | None = None
    ) -> None:
        super().__init__(queued, limit, tokens, max_tokens, retry_after_s, adapter)
        self.queued, self.limit, self.tokens, self.max_tokens = queued, limit, tokens, max_tokens
        self.retry_after_s, self.adapter = retry_after_s, adapter

    def __str__(self) -> str:
        remedy = f"try again in {self.retry_after_s} s"
        if self.adapter is not None:
            return (
                f"{self.queued} texts are waiting for adapter {self.adapter}, its share is {self.limit} now; {remedy}"
            )
        return (
            f"{self.queued} texts of about {self.tokens} tokens are waiting, at most {self.limit} "
            f"of {self.max_tokens} may; {remedy}"
        )


class UnknownRequest(RequestError):
    """Feedback on something that was not answered, as far as is remembered."""

    def __init__(self, request_id: str, text: int) -> None:
        super().__init__(request_id, text)
        self.request_id, self.text = request_id, text

    def __str__(self) -> str:
        return (
            f"no text {self.text} was answered under request_id {self.request_id!r}, as far as is remembered; "
            "give the request_id of the answer, and the text's place in the request, from 0"
        )


class UnknownExperiment(RequestError):
    """No experiment in force has this name."""


class StoreUnavailable(RequestError):
    """The database does not answer."""


class NotReady(RequestError):
    """The service is starting or draining."""


class WorkerLost(RequestError):
    """The inference worker that held the request died; the request can be sent again."""


class InferenceFailed(RequestError):
    """The forward pass failed for this row."""


class CallerGone(RequestError):
    """The client closed its connection before the answer was there."""


class DeadlineExceeded(RequestError):
    """The request was not answered in time."""

    def __init__(self, timeout_s: float) -> None:
        super().__init__(timeout_s)
        self.timeout_s = timeout_s

    def __str__(self) -> str:
        return f"no answer within {self.timeout_s:g} s"
