"""The choice of the next message and the story of each row, on a clock of the test's own."""

from dataclasses import replace
from pathlib import Path

import pytest

from mailer_lib.agent.backlog import Backlog, Backoff, Outgoing, queue_id
from mailer_lib.agent.breaker import Breakers
from mailer_lib.agent.folder import JobError
from mailer_lib.agent.job import BreakerRules, LeaseGrant
from mailer_lib.agent.lease import Lease, ShardRows
from mailer_lib.agent.ledger import LedgerState, Opened
from mailer_lib.agent.pace import Pace
from mailer_lib.agent.settle import CantTell, Injected, NotInjected
from mailer_lib.agent.smtp.protocol import Stage
from mailer_lib.agent.smtp.replies import Reply
from mailer_lib.agent.suppressions import LateSuppressions
from mailer_lib.message.builder import MessageBuilder
from mailer_lib.shard.recipient import REST
from mailer_lib.terms import Outcome
from mailer_lib.tokens import send_token_key
from tests.support_agent import SEND_ID, TOKEN_KEY, JobBuilder, recipients, sink_server, small_bundle

OK = Reply(250, ("2.0.0 OK id=1tEFGh-0000A1-2F",))
LATER = Reply(451, ("4.7.1 <ann@example.org>: later",))
NO = Reply(550, ("5.1.1 <ann@example.org>: unknown",))


class World:
    """A backlog over one shard, and its clock."""

    def __init__(
        self,
        folder: Path,
        count: int = 10,
        *,
        pace: Pace | None = None,
        mixed: bool = False,
        rules: BreakerRules | None = None,
    ) -> None:
        self.now = 1000.0
        self.people = recipients(count, lambda row: "gmail" if mixed and row % 3 else "other")
        self.job = JobBuilder(folder, sink_server(25, None)).write()
        self.grant = self.job.add_shard(self.people)
        self.suppressions = LateSuppressions(folder / "suppressions.log")
        builder = MessageBuilder(small_bundle(), dkim_key_pem=None, token_key=send_token_key(TOKEN_KEY, SEND_ID))
        self.backlog = Backlog(
            builder,
            self.suppressions,
            pace or Pace(),
            Backoff(5, 60),
            Breakers(rules or BreakerRules()),
            log_position=lambda: (1, 2),
            boot_id="boot-a",
            monotonic=lambda: self.now,
            wall=lambda: self.now + 1_790_000_000,
        )
        self.backlog.sending = True

    def open(self, grant: LeaseGrant | None = None, incarnation: int = 1) -> Lease:
        lease = Lease(
            self.job.path, grant or self.grant, "small#1@local-1.0", Opened(incarnation, "boot-a", 1, 1), ShardRows()
        )
        self.backlog.add(lease)
        return lease

    def next(self) -> Outgoing:
        outgoing = self.backlog.next()
        assert outgoing is not None
        return outgoing

    def drain(self) -> list[Outgoing]:
        found = []
        while (outgoing := self.backlog.next()) is not None:
            found.append(outgoing)
        return found

    def ledger(self) -> LedgerState:
        self.backlog.flush()
        return self.job.states()["0000.p1.e1.ledger"]


def test_granted_rows_come_once_in_order(tmp_path: Path) -> None:
    world = World(tmp_path)
    lease = world.open(world.grant.model_copy(update={"granted_through": 4}))
    assert [outgoing.row for outgoing in world.drain()] == [0, 1, 2, 3]
    assert world.backlog.dry
    lease.grant(world.grant.model_copy(update={"granted_through": 6}))
    world.backlog.granted(lease)
    assert not world.backlog.dry
    assert [outgoing.row for outgoing in world.drain()] == [4, 5]
    assert world.backlog.left == 6


def test_a_row_of_the_rest_is_built_with_the_variant_decided_on_and_never_before(tmp_path: Path) -> None:
    world = World(tmp_path)
    people = [replace(person, variant=REST if row >= 2 else 0) for row, person in enumerate(world.people)]
    given = world.job.add_shard(people)
    lease = world.open(given.model_copy(update={"granted_through": 2}))
    assert [outgoing.row for outgoing in world.drain()] == [0, 1]
    lease.grant(given.model_copy(update={"granted_through": 3}))
    world.backlog.granted(lease)
    with pytest.raises(JobError, match="row 2 was granted, but nobody has decided"):
        world.backlog.next()
    lease.grant(given.model_copy(update={"granted_through": 5, "rest_variant": 0}))
    world.backlog.granted(lease)
    assert [outgoing.recipient.variant for outgoing in world.drain()] == [0, 0]
    with pytest.raises(JobError, match="was to get variant 0, now 1"):
        lease.grant(given.model_copy(update={"granted_through": 6, "rest_variant": 1}))


def test_nothing_begins_while_sending_is_off(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.open()
    world.backlog.sending = False
    assert world.backlog.next() is None
    assert not world.backlog.ready


def test_a_message_is_built_for_its_recipient(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.open()
    outgoing = world.next()
    assert outgoing.envelope.recipient == "person0@other.example"
    assert outgoing.envelope.sender.startswith(f"b-{world.people[0].message_key.hex()}-")
    assert outgoing.envelope.size == len(outgoing.data)
    assert not outgoing.envelope.eight_bit


def test_late_suppressions_are_dropped_before_they_are_built(tmp_path: Path) -> None:
    world = World(tmp_path, 6, mixed=True)
    world.open()
    world.job.suppress(world.people[0].address_hash.hex(), "@gmail.example")
    world.suppressions.poll()
    assert [outgoing.row for outgoing in world.drain()] == [3]
    assert {row for row, outcome in world.ledger().outcomes.items() if outcome is Outcome.SUPPRESSED} == {0, 1, 2, 4, 5}


def test_a_row_that_can_t_be_built_fails_alone(tmp_path: Path) -> None:
    world = World(tmp_path, 3)
    bad = [world.people[0], type(world.people[1])(**_without_name(world.people[1])), world.people[2]]
    world.job.leases.clear()
    world.grant = world.job.add_shard(bad)
    world.open()
    assert [outgoing.row for outgoing in world.drain()] == [0, 2]
    assert world.ledger().outcomes == {1: Outcome.FAILED}


def _without_name(person: object) -> dict[str, object]:
    values = {name: getattr(person, name) for name in type(person).__slots__}  # type: ignore[attr-defined]
    return values | {"given_name": None}


def test_the_intent_is_in_the_file_once_flush_returns(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.open()
    outgoing = world.next()
    world.backlog.intend(outgoing, "1.1", 40312)
    (doubt,) = world.ledger().in_doubt
    assert (doubt.row, doubt.message_key, doubt.conn, doubt.local_port) == (0, outgoing.key, "1.1", 40312)
    assert (doubt.log_inode, doubt.log_offset, doubt.boot_id) == (1, 2, "boot-a")


def test_answers_become_outcomes(tmp_path: Path) -> None:
    world = World(tmp_path, 4)
    world.open()
    taken, refused, deferred, refused_early = world.drain()
    world.backlog.finished(taken, Stage.DOT, OK, "1.1")
    world.backlog.finished(refused, Stage.DOT, NO, "1.1")
    world.backlog.finished(deferred, Stage.RCPT, LATER, "1.1")
    world.backlog.finished(refused_early, Stage.RCPT, NO, "1.1")
    state = world.ledger()
    assert state.outcomes == {0: Outcome.INJECTED, 1: Outcome.REJECTED, 3: Outcome.REJECTED}
    assert list(state.deferred) == [2]
    text = (tmp_path / "ledgers/0000.p1.e1.ledger").read_text()
    assert "1tEFGh-0000A1-2F" in text
    assert "ann@" not in text and "<address>" in text


def test_a_deferred_row_comes_back_later_and_later(tmp_path: Path) -> None:
    world = World(tmp_path, 1)
    world.open()
    waits = []
    for attempt in range(1, 7):
        outgoing = world.next()
        assert outgoing.attempt == attempt
        world.backlog.finished(outgoing, Stage.RCPT, LATER, "1.1")
        assert world.backlog.next() is None
        waits.append(world.backlog.wake_at - world.now)
        world.now = world.backlog.wake_at
    assert waits == [5, 10, 20, 40, 60, 60]


def test_a_restarted_agent_keeps_attempts_and_times(tmp_path: Path) -> None:
    world = World(tmp_path, 2)
    world.open()
    first, second = world.drain()
    world.backlog.finished(first, Stage.RCPT, LATER, "1.1")
    world.backlog.finished(second, Stage.DOT, OK, "1.1")
    world.backlog.close()
    again = World(tmp_path, 2)
    again.now = world.now + 3
    again.grant = world.grant
    lease = again.open(incarnation=2)
    assert (lease.left, lease.settled, lease.injected) == (1, 1, 1)
    assert again.backlog.next() is None
    assert again.backlog.wake_at == pytest.approx(world.now + 5)
    again.now += 2.1
    assert (again.next().row, again.backlog.leases[lease.name].attempts[0]) == (0, 1)


def test_a_returned_row_goes_first(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.open()
    outgoing = world.next()
    world.backlog.returned(outgoing)
    assert [world.next().row, world.next().row] == [0, 1]


def test_verdicts_end_doubt(tmp_path: Path) -> None:
    world = World(tmp_path, 3)
    lease = world.open()
    messages = world.drain()
    for outgoing in messages:
        world.backlog.intend(outgoing, "1.1", 40312)
    doubts = [world.backlog.doubt(outgoing, "1.1") for outgoing in messages]
    assert world.ledger().in_doubt == doubts
    for doubt, verdict in zip(doubts, (Injected("1t"), NotInjected(), CantTell("why")), strict=True):
        world.backlog.settled(lease, doubt, verdict)
    state = world.ledger()
    assert state.outcomes == {0: Outcome.INJECTED, 2: Outcome.UNKNOWN}
    assert not state.in_doubt
    again = world.next()
    assert (again.row, again.attempt) == (1, 2)


def test_a_slow_provider_steps_aside(tmp_path: Path) -> None:
    world = World(tmp_path, 30, mixed=True, pace=Pace(None, {"gmail": 1}))
    world.open()
    providers = [outgoing.recipient.provider for outgoing in world.drain()]
    assert providers.count("other") == 10
    assert providers.count("gmail") == 1
    assert not world.backlog.dry
    for _ in range(19):
        assert world.now < world.backlog.wake_at <= world.now + 1
        world.now = world.backlog.wake_at
        (one,) = world.drain()
        assert one.recipient.provider == "gmail"
    assert world.now == pytest.approx(1000 + 19, abs=0.2)
    assert world.backlog.left == 30


def test_a_lease_of_a_tight_provider_is_not_kept_waiting_behind_another(tmp_path: Path) -> None:
    world = World(tmp_path, 6, pace=Pace(None, {"gmail": 1.0}))
    world.open(world.grant)
    others = [world.next().row]
    tight = world.job.add_shard(recipients(4, lambda row: "gmail"))
    world.open(tight)
    first = world.next()
    assert (first.lease.name, first.recipient.provider) == (tight.ledger_name, "gmail")
    others += [outgoing.row for outgoing in world.drain()]
    assert others == [0, 1, 2, 3, 4, 5]
    world.now += 1.0
    assert [outgoing.recipient.provider for outgoing in world.drain()] == ["gmail"]


def test_rows_whose_window_is_shut_step_aside_until_it_opens(tmp_path: Path) -> None:
    world = World(tmp_path, 4)
    at = world.now + 1_790_000_000
    lease = world.open(world.grant.model_copy(update={"window_closes_at": at + 10}))
    assert world.next().row == 0
    world.now += 10
    assert world.drain() == []
    assert (world.backlog.shut, world.backlog.left, world.backlog.dry) == (3, 4, True)
    lease.grant(world.grant.model_copy(update={"window_closes_at": at + 100_000}))
    world.backlog.granted(lease)
    assert [outgoing.row for outgoing in world.drain()] == [1, 2, 3]


def test_the_server_s_limit_holds_for_all(tmp_path: Path) -> None:
    world = World(tmp_path, 20, pace=Pace(10))
    world.open()
    sent = len(world.drain())
    assert sent <= 2
    while sent < 20:
        world.now = world.backlog.wake_at
        sent += len(world.drain())
    assert world.now == pytest.approx(1000 + 1.9, abs=0.2)


def test_the_end_of_a_send_gives_every_untouched_row_its_outcome(tmp_path: Path) -> None:
    world = World(tmp_path, 6)
    world.open(world.grant.model_copy(update={"granted_through": 5}))
    under_way, deferred = world.next(), world.next()
    world.backlog.returned(world.next())
    world.backlog.finished(deferred, Stage.RCPT, LATER, "1.1")
    world.backlog.end_all(Outcome.CANCELLED, "the send was stopped")
    assert world.ledger().outcomes == dict.fromkeys((1, 2, 3, 4), Outcome.CANCELLED)  # row 5 was never granted
    assert world.backlog.left == 1
    world.backlog.finished(under_way, Stage.DOT, OK, "1.1")
    assert world.backlog.left == 0
    world.backlog.end_all(Outcome.CANCELLED, "again")
    assert len(world.ledger().outcomes) == 5


def test_a_lease_that_is_taken_away_is_left_alone(tmp_path: Path) -> None:
    world = World(tmp_path, 3)
    lease = world.open()
    under_way = world.next()
    world.backlog.close_settled([])
    assert lease.dropped and world.backlog.next() is None
    world.backlog.finished(under_way, Stage.DOT, OK, "1.1")
    world.backlog.close_settled([])
    assert world.backlog.leases == {}
    assert world.job.states()["0000.p1.e1.ledger"].outcomes == {0: Outcome.INJECTED}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("OK id=1tEFGh-0000A1-2F", "1tEFGh-0000A1-2F"),
        ("2.0.0 Ok: queued as 4Xq1Zk2v3Jz5vKJ", "4Xq1Zk2v3Jz5vKJ"),
        ("2.0.0 4AO3Vq0E012345 Message accepted for delivery", "4AO3Vq0E012345"),
        ("OK", ""),
    ],
)
def test_queue_ids(text: str, expected: str) -> None:
    assert queue_id(text) == expected


def test_a_provider_that_refuses_is_left_alone_while_the_others_go_on(tmp_path: Path) -> None:
    rules = BreakerRules(replies=5, hold_first_s=60)
    world = World(tmp_path, 60, mixed=True, rules=rules)
    world.open()
    refused = sent = 0
    while (outgoing := world.backlog.next()) is not None:
        gmail = outgoing.recipient.provider == "gmail"
        refused, sent = refused + gmail, sent + (not gmail)
        world.backlog.finished(outgoing, Stage.RCPT if gmail else Stage.DOT, NO if gmail else OK, "1.1")
    assert (refused, sent) == (5, 20)
    assert world.backlog.wake_at == world.now + 60
    assert [held.provider for held in world.backlog.breakers.held()] == ["gmail"]
    world.now += 60
    for _ in range(rules.probes):
        world.backlog.finished(world.next(), Stage.DOT, OK, "1.1")
        world.now += rules.probe_every_s
    assert len(world.drain()) == 35 - rules.probes
