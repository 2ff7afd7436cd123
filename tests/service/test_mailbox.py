"""The API process's end of the queue: one message a tick, bounded, with deadlines, leaving nothing behind."""

import asyncio

import pytest

from adapters.errors import DeadlineExceeded, Overloaded, WorkerLost
from adapters.reference import AdapterId
from engine.rows import Answer, Row
from service.admission import Admission
from service.mailbox import Mailbox, ReplySlot
from service.messages import Job, Reply, Timings, Withdrawal

ROW = Row("a text", AdapterId("movies", 1))
ANSWER = Answer(("a", "b"), (0.0, 1.0), (0.25, 0.75), 3, False)


def reply(job: Job) -> Reply:
    return Reply(job.id, (ANSWER,) * len(job.rows), Timings(0, 0, 0))


def connected(limit: int) -> tuple[Mailbox, list[tuple[Job | Withdrawal, ...]]]:
    mailbox, sent = Mailbox(Admission(limit, 10_000, max_wait_s=60, least_tokens=512)), []
    mailbox.connect(sent.append)
    return mailbox, sent


def test_one_tick_is_one_message_and_replies_find_their_jobs() -> None:
    async def main() -> None:
        mailbox, sent = connected(100)
        asked = [asyncio.create_task(mailbox.ask([ROW] * (1 + index), timeout_s=5)) for index in range(8)]
        await asyncio.sleep(0.01)
        assert len(sent) == 1 and len(sent[0]) == 8
        assert mailbox.queued_rows == 36
        slot = ReplySlot(mailbox)
        slot.response = [[reply(job) for job in reversed(sent[0])], "OK"]
        answers = await asyncio.gather(*asked)
        assert [len(answer.outcomes) for answer in answers] == list(range(1, 9))
        assert mailbox.queued_rows == 0 and not mailbox._pending

    asyncio.run(main())


def test_a_deadline_ends_the_wait_and_a_late_reply_hurts_nobody() -> None:
    async def main() -> None:
        mailbox, sent = connected(100)
        with pytest.raises(DeadlineExceeded):
            await mailbox.ask([ROW], timeout_s=0.02)
        assert mailbox.queued_rows == 0 and not mailbox._pending
        mailbox.deliver([reply(sent[0][0])])

    asyncio.run(main())


def test_a_full_queue_refuses_one_text_as_it_does_many() -> None:
    async def main() -> None:
        mailbox, sent = connected(4)
        waiting = asyncio.create_task(mailbox.ask([ROW] * 4, timeout_s=5))
        await asyncio.sleep(0.01)
        for rows in ([ROW], [ROW] * 4):
            with pytest.raises(Overloaded) as caught:
                await mailbox.ask(rows, timeout_s=5)
            assert caught.value.retry_after_s >= 1
        mailbox.deliver([reply(sent[0][0])])
        await waiting

    asyncio.run(main())


def test_losing_the_worker_or_the_queue_fails_what_waits() -> None:
    async def main() -> None:
        mailbox, _ = connected(100)
        waiting = [asyncio.create_task(mailbox.ask([ROW], timeout_s=5)) for _ in range(3)]
        await asyncio.sleep(0.01)
        assert mailbox.fail_all(lambda: WorkerLost("gone")) == 3
        assert all(isinstance(error, WorkerLost) for error in await asyncio.gather(*waiting, return_exceptions=True))
        assert mailbox.queued_rows == 0

        def broken(jobs: tuple[Job | Withdrawal, ...]) -> None:
            raise BrokenPipeError

        mailbox.connect(broken)
        with pytest.raises(WorkerLost):
            await mailbox.ask([ROW], timeout_s=5)

    asyncio.run(main())
