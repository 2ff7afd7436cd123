"""What was answered, and what the truth was: exposures and feedback, in SQLite or PostgreSQL.

An exposure is written off the request's path, in batches, from a bounded queue: a database that is slow or gone costs
exposures, which are counted, and never an answer. Feedback is in the database before it is acknowledged.
"""

import asyncio
import hashlib
import json
import queue
import secrets
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import sqlalchemy as sa
import structlog
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import SQLAlchemyError

from adapters.errors import SettingsError, StoreUnavailable, UnknownRequest
from service import metrics

METADATA = sa.MetaData()

EXPOSURES = sa.Table(
    "exposures",
    METADATA,
    sa.Column("request_id", sa.String(128), primary_key=True),
    sa.Column("text", sa.Integer, primary_key=True),
    sa.Column("adapter", sa.String(80), primary_key=True),
    sa.Column("at_s", sa.Double, nullable=False),
    sa.Column("experiment", sa.String(63)),
    sa.Column("arm", sa.String(63)),
    sa.Column("unit", sa.String(32)),
    sa.Column("label", sa.Text, nullable=False),
    sa.Column("score", sa.Double, nullable=False),
    sa.Column("took_ms", sa.Double, nullable=False),
    sa.Column("error", sa.String(64)),
    sa.Index("exposures_by_experiment", "experiment", "arm"),
    sa.Index("exposures_by_time", "at_s"),
)
PAIRS = sa.Table(
    "pairs",
    METADATA,
    sa.Column("request_id", sa.String(128), primary_key=True),
    sa.Column("text", sa.Integer, primary_key=True),
    sa.Column("shadow", sa.String(80), primary_key=True),
    sa.Column("at_s", sa.Double, nullable=False),
    sa.Column("experiment", sa.String(63), nullable=False),
    sa.Column("unit", sa.String(32), nullable=False),
    sa.Column("adapter", sa.String(80), nullable=False),
    sa.Column("label", sa.Text, nullable=False),
    sa.Column("score", sa.Double, nullable=False),
    sa.Column("shadow_label", sa.Text, nullable=False),
    sa.Column("shadow_score", sa.Double, nullable=False),
    sa.Index("pairs_by_experiment", "experiment", "shadow"),
    sa.Index("pairs_by_time", "at_s"),
)
FEEDBACK = sa.Table(
    "feedback",
    METADATA,
    sa.Column("request_id", sa.String(128), primary_key=True),
    sa.Column("text", sa.Integer, primary_key=True),
    sa.Column("at_s", sa.Double, nullable=False),
    sa.Column("label", sa.Text, nullable=False),
    sa.Index("feedback_by_time", "at_s"),
)
DECISIONS = sa.Table(
    "decisions",
    METADATA,
    sa.Column("experiment", sa.String(63), primary_key=True),
    sa.Column("salt", sa.String(256), primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("at_s", sa.Double, nullable=False),
    sa.Column("kind", sa.String(16), nullable=False),
    sa.Column("weights", sa.Text, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
)
_FACTS = sa.Table(
    "facts",
    METADATA,
    sa.Column("name", sa.String(32), primary_key=True),
    sa.Column("value", sa.Text, nullable=False),
)


def _sqlite_insert(table: sa.Table) -> sa.TextClause:
    """All rows in one step of SQLite's: row by row, this thread would have to get Python's lock from a busy event loop
    each time, and a batch of a hundred rows would take most of a second."""
    names = [column.name for column in table.columns]
    values = ", ".join(f"json_extract(value, '$.{name}')" for name in names)
    insert = f"INSERT INTO {table.name} ({', '.join(names)}) SELECT {values} FROM json_each(:rows)"
    return sa.text(f"{insert} WHERE true ON CONFLICT DO NOTHING")


_SQLITE_INSERTS = {table: _sqlite_insert(table) for table in (EXPOSURES, PAIRS)}

FLUSH_EVERY_S = 0.05
"""Longest time that an exposure waits for its batch: what a kill may lose."""

HORIZON_S = 1.0
"""How long feedback waits for its exposure, which another replica may be about to write."""

_MOST_QUEUED = 100_000
_MOST_A_BATCH = 1000
_RETENTION_EVERY_S = 3600.0
_BUSY_TIMEOUT_S = 10

log = structlog.get_logger(__name__)


class Exposure(NamedTuple):
    """One text that one adapter answered, or failed to.

    Attributes:
        text: its place in the request.
        adapter: `name@version`.
        at_s: Unix time.
        unit: as the caller sent it; stored hashed.
        label, score: what was answered.
        error: what failed, where it was the service's own doing; label and score say nothing then.
    """

    request_id: str
    text: int
    adapter: str
    at_s: float
    experiment: str | None
    arm: str | None
    unit: str | None
    label: str
    score: float
    took_ms: float
    error: str | None = None


class Pair(NamedTuple):
    """One text that was answered, and that a shadow read as well. Attributes as of `Exposure`."""

    request_id: str
    text: int
    shadow: str
    at_s: float
    experiment: str
    unit: str
    adapter: str
    label: str
    score: float
    shadow_label: str
    shadow_score: float


class Store:
    """One database. `migrate` belongs to main, before the fork; everything else to the API process, from any thread."""

    def __init__(self, url: str, retention_days: float) -> None:
        """
        Raises:
            SettingsError: the URL is none, or of a database that is not supported.
        """
        try:
            self._url = sa.make_url(url)
        except sa.exc.ArgumentError:
            raise _bad_url(url) from None
        self._backend = self._url.get_backend_name()
        if self._backend not in ("sqlite", "postgresql"):
            raise _bad_url(url)
        if self._backend == "sqlite" and self._url.database in (None, "", ":memory:"):
            raise _bad_url(url)  # each connection would have a database of its own
        if self._backend == "postgresql" and self._url.drivername == "postgresql":
            self._url = self._url.set(drivername="postgresql+psycopg")
        self._retention_s = retention_days * 86_400
        self._queue: queue.Queue[Exposure | Pair] = queue.Queue(_MOST_QUEUED)
        self._taken = 0
        """Exposures that have left the queue and are in the database, or never will be."""
        self._put = 0
        self._stopping = threading.Event()
        self._engine: sa.Engine | None = None
        self._writer: threading.Thread | None = None
        self._unit_key = b""

    def migrate(self) -> None:
        """Bring the database to the present schema, making it if need be.

        Raises:
            SettingsError: it cannot be reached, or is of a later version than this.
        """
        from alembic import command
        from alembic.config import Config
        from alembic.util import CommandError

        config = Config()
        config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
        engine = None
        try:
            engine = self._connect()
            with engine.begin() as connection:
                if self._backend == "postgresql":  # replicas that start together: one migrates, the others wait
                    connection.execute(sa.text("SELECT pg_advisory_xact_lock(7036071)"))
                config.attributes["connection"] = connection
                command.upgrade(config, "head")
                key = self._insert(_FACTS).values(name="unit_key", value=secrets.token_hex(16))
                connection.execute(key.on_conflict_do_nothing())
        except (SQLAlchemyError, CommandError, ImportError) as error:
            reason = str(error.orig) if isinstance(error, sa.exc.DBAPIError) else str(error)
            raise SettingsError(
                "TONEARM_DATABASE_URL", self._shown, f"a database that can be used: {reason.splitlines()[0]}"
            ) from None
        finally:
            if engine is not None:
                engine.dispose()

    def start(self) -> None:
        """Begin to write; after the fork, for neither connections nor threads survive one."""
        self._engine = self._connect()
        with self._engine.connect() as connection:
            found = connection.execute(sa.select(_FACTS.c.value).where(_FACTS.c.name == "unit_key")).scalar_one()
        self._unit_key = bytes.fromhex(found)
        self._writer = threading.Thread(target=self._write_for_ever, name="store", daemon=True)
        self._writer.start()

    def stop(self, timeout_s: float) -> None:
        """Write what is queued, within this time."""
        if self._writer is not None:
            self._stopping.set()
            self._writer.join(timeout_s)
            if self._writer.is_alive() or not self._queue.empty():
                log.error("exposures_lost", count=self._queue.qsize())

    def expose(self, exposures: Sequence[Exposure | Pair]) -> None:
        """Queue exposures; what does not fit is counted and forgotten. Never waits."""
        for at, exposure in enumerate(exposures):
            try:
                self._queue.put_nowait(exposure)
                self._put += 1
            except queue.Full:
                metrics.exposures.labels("dropped").inc(len(exposures) - at)
                return

    async def feedback(self, request_id: str, text: int, label: str) -> bool:
        """Write down the truth about one text; on disk when this returns. Saying it again changes nothing.

        Returns:
            whether another label was known before.

        Raises:
            UnknownRequest: no such text was answered, as far as is remembered.
            StoreUnavailable: the database does not take it; nothing is written.
        """
        put, deadline_s = self._put, time.monotonic() + _BUSY_TIMEOUT_S
        while self._taken < put and time.monotonic() < deadline_s:  # first what this process itself has queued
            await asyncio.sleep(FLUSH_EVERY_S / 4)
        deadline_s = time.monotonic() + HORIZON_S
        while True:
            try:
                return await asyncio.to_thread(self._note_feedback, request_id, text, label)
            except UnknownRequest:
                if time.monotonic() > deadline_s:
                    raise
            await asyncio.sleep(FLUSH_EVERY_S)

    def _note_feedback(self, request_id: str, text: int, label: str) -> bool:
        try:
            if not self._exposed(request_id, text):
                raise UnknownRequest(request_id, text)
            with self._running.begin() as connection:
                key = (FEEDBACK.c.request_id == request_id) & (FEEDBACK.c.text == text)
                before = connection.execute(sa.select(FEEDBACK.c.label).where(key)).scalar_one_or_none()
                row = self._insert(FEEDBACK).values(request_id=request_id, text=text, at_s=time.time(), label=label)
                connection.execute(
                    row.on_conflict_do_update(
                        index_elements=["request_id", "text"],
                        set_={"label": label, "at_s": row.excluded.at_s},
                        where=FEEDBACK.c.label != label,
                    )
                )
        except SQLAlchemyError as error:
            log.error("feedback_refused", reason=_reason(error))
            raise StoreUnavailable("the database does not answer; nothing was written, try again") from None
        return before is not None and before != label

    @contextmanager
    def reading(self) -> Iterator[sa.Connection]:
        """A connection for questions.

        Raises:
            StoreUnavailable: the database does not answer.
        """
        try:
            with self._running.connect() as connection:
                yield connection
        except SQLAlchemyError as error:
            log.error("store_unreadable", reason=_reason(error))
            raise StoreUnavailable("the database does not answer; try again") from None

    def insert_new(self, table: sa.Table, row: dict[str, Any]) -> bool:
        """Write one row, unless there is one with its key.

        Returns:
            whether it was written.

        Raises:
            StoreUnavailable: the database does not take it.
        """
        try:
            with self._running.begin() as connection:
                # Not by rowcount, which psycopg leaves at -1 here.
                written = self._insert(table).values(**row).on_conflict_do_nothing().returning(*table.primary_key)
                return connection.execute(written).first() is not None
        except SQLAlchemyError as error:
            log.error("store_unwritable", reason=_reason(error))
            raise StoreUnavailable("the database does not answer; nothing was written, try again") from None

    @property
    def _running(self) -> sa.Engine:
        if self._engine is None:
            raise StoreUnavailable("the database is not connected yet; try again")
        return self._engine

    @property
    def _shown(self) -> str:
        return self._url.render_as_string(hide_password=True)

    def _connect(self) -> sa.Engine:
        if self._backend == "sqlite":
            if self._url.database:
                Path(self._url.database).absolute().parent.mkdir(parents=True, exist_ok=True)
            engine = sa.create_engine(self._url, connect_args={"timeout": _BUSY_TIMEOUT_S})
            sa.event.listen(engine, "connect", _on_sqlite_connect)
            return engine
        return sa.create_engine(self._url, pool_pre_ping=True, connect_args={"connect_timeout": _BUSY_TIMEOUT_S})

    def _insert(self, table: sa.Table) -> Any:
        return sqlite.insert(table) if self._backend == "sqlite" else postgresql.insert(table)

    def _exposed(self, request_id: str, text: int) -> bool:
        of_text = (EXPOSURES.c.request_id == request_id) & (EXPOSURES.c.text == text)
        query = sa.select(sa.literal(1)).where(of_text & EXPOSURES.c.error.is_(None))
        with self._running.connect() as connection:
            return connection.execute(query.limit(1)).first() is not None

    # The writer's thread

    def _write_for_ever(self) -> None:
        retention_due_s = time.monotonic()
        while True:
            last = self._stopping.is_set()
            batch = self._take()
            if batch:
                self._write(batch)
                self._taken += len(batch)
            elif last:
                return
            elif time.monotonic() >= retention_due_s:
                retention_due_s = time.monotonic() + _RETENTION_EVERY_S
                self._forget_old()
            if len(batch) < _MOST_A_BATCH:
                self._stopping.wait(FLUSH_EVERY_S)

    def _take(self) -> list[Exposure | Pair]:
        batch: list[Exposure | Pair] = []
        while len(batch) < _MOST_A_BATCH:
            try:
                batch.append(self._queue.get_nowait())
            except queue.Empty:
                break
        return batch

    def _write(self, batch: list[Exposure | Pair]) -> None:
        try:
            with self._running.begin() as connection:
                for table, kind in ((EXPOSURES, Exposure), (PAIRS, Pair)):
                    of_kind = [each for each in batch if isinstance(each, kind)]
                    rows = [each._asdict() | {"unit": self._hashed(each.unit)} for each in of_kind]
                    if not rows:
                        continue
                    # A request id that a caller used twice: the first answer is the one that counts.
                    if self._backend == "sqlite":
                        connection.execute(_SQLITE_INSERTS[table], {"rows": json.dumps(rows)})
                    else:
                        connection.execute(self._insert(table).on_conflict_do_nothing(), rows)
            metrics.exposures.labels("written").inc(len(batch))
        except SQLAlchemyError as error:
            metrics.exposures.labels("failed").inc(len(batch))
            log.error("exposures_not_written", count=len(batch), reason=_reason(error))

    def _hashed(self, unit: str | None) -> str | None:
        """Keyed, so that nobody without the database can try out who a unit might be."""
        return None if unit is None else hashlib.blake2b(unit.encode(), key=self._unit_key, digest_size=16).hexdigest()

    def _forget_old(self) -> None:
        oldest_s = time.time() - self._retention_s
        try:
            with self._running.begin() as connection:
                for table in (EXPOSURES, PAIRS, FEEDBACK):
                    connection.execute(sa.delete(table).where(table.c.at_s < oldest_s))
        except SQLAlchemyError as error:
            log.error("retention_failed", reason=_reason(error))


def _on_sqlite_connect(connection: Any, record: Any) -> None:
    # WAL lets readers read while the writer writes; FULL syncs it at each commit, so what was committed stays.
    for pragma in ("journal_mode=WAL", "synchronous=FULL", f"busy_timeout={_BUSY_TIMEOUT_S * 1000}"):
        connection.execute(f"PRAGMA {pragma}")


def _reason(error: SQLAlchemyError) -> str:
    return str(error.orig if isinstance(error, sa.exc.DBAPIError) else error).splitlines()[0]


def _bad_url(url: str) -> SettingsError:
    shown = url.rsplit("@", maxsplit=1)[-1][:80]  # without what may be a password
    return SettingsError("TONEARM_DATABASE_URL", shown, "sqlite:///file.db or postgresql://user:password@host/name")
