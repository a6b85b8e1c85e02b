"""From the tables to a decision, and from a decision to servers: nothing of it needs Airflow."""

from collections.abc import Callable
from datetime import datetime, timedelta

import pytest
from sqlalchemy import insert, select, update

from mailer_lib.database.engine import now, read, write
from mailer_lib.database.schema import (
    audit_log,
    dispatch_servers,
    grant_counts,
    provider_limits,
    rollups_hourly,
    server_health,
)
from mailer_lib.dispatch import scale_book
from mailer_lib.dispatch.backlog import policy_of, pool_view
from mailer_lib.dispatch.scale_apply import Applier
from mailer_lib.dispatch.scale_book import ScaleError, StoredDecision
from mailer_lib.dispatch.scaling import Policy, PoolView
from mailer_lib.dispatch.slot_report import say
from mailer_lib.dispatch.slot_rules import SlotProgress, SlotState
from mailer_lib.fleet import pools, servers
from mailer_lib.fleet.health import Facts, QueueFacts
from mailer_lib.fleet.hosts import Machine, Terms
from mailer_lib.fleet.login_key import make_login_key
from mailer_lib.fleet.names import FleetError
from mailer_lib.settings import Settings
from mailer_lib.terms import CapSpan, HostProvider, MtaKind, ScaleAction, ScaleFinding, ScaleState, ServerState
from tests.conftest import Ran
from tests.dispatch.world import World
from tests.fleet.verified import pretend_verified

PER_HOUR = 3_600  # one message a second


def put(world: World, number: int, **values: object) -> None:
    with write(world.engine) as connection:
        connection.execute(
            update(dispatch_servers).where(dispatch_servers.c.id == world.servers[number]).values(**values)
        )


def states(world: World) -> list[str]:
    with read(world.engine) as connection:
        return [server.state.value for server in servers.list_servers(connection)]


def view_of(world: World, at: datetime | None = None) -> PoolView:
    with read(world.engine) as connection:
        return pool_view(connection, world.settings, pools.get(connection, "main"), at or now())


def late_world(world: World, **settings: object) -> int:
    """One server of a message a second, 1,000 people, ten minutes; a standby server whose address is warm."""
    more = {"scale_confirm_s": 0, **settings}
    world.settings = world.settings.model_validate({**world.settings.model_dump(), **more})
    put(world, 0, per_hour=PER_HOUR)
    put(world, 1, state=ServerState.STANDBY, served_until=now() - timedelta(days=2), per_hour=PER_HOUR)
    send_id = world.send(expires_at=now() + timedelta(minutes=10), started_at=now())
    world.publish(send_id, [500, 500])
    return send_id


def look(world: World) -> StoredDecision:
    (made,) = scale_book.look(world.engine, world.settings, actor="test")
    return made


def applier(world: World, **more: object) -> Applier:
    return Applier(world.engine, world.settings, "test", **more)  # type: ignore[arg-type]


# --- gathering --------------------------------------------------------------------------------------------------------


def test_a_running_send_is_seen_with_its_people_by_provider_and_its_deadline(world: World) -> None:
    send_id = late_world(world)
    world.send(edition="2", control="pause")
    view = view_of(world)
    (one,) = view.sends
    assert one.ref == "spring-sale#1"
    assert one.unsent == {"gmail": 250, "outlook": 250, "yahoo": 250, "other": 250}
    assert one.finish_by is not None
    assert {server.name: server.per_s for server in view.servers} == {"local-1": 1.0, "local-2": 1.0}
    tally(world, send_id, gmail={"injected": 200, "deferral": 30}, yahoo={"rejected": 10})
    view = view_of(world)
    assert view.sends[0].unsent == {"gmail": 63, "outlook": 316, "yahoo": 304, "other": 316}  # no shard is settled here
    gmail = view.queues["gmail"]
    assert (gmail.handed_over, gmail.lately_taken, gmail.lately_deferred) == (200, 200, 30)
    assert view_of(world, now() + timedelta(hours=3)).queues["gmail"].lately_deferred == 0


def tally(world: World, send_id: int, **by_provider: dict[str, int]) -> None:
    """What the syncing of ledgers would have counted."""
    hour = now().replace(minute=0, second=0, microsecond=0)
    with write(world.engine) as connection:
        for provider, counts in by_provider.items():
            for metric, count in counts.items():
                connection.execute(
                    insert(rollups_hourly).values(
                        send_id=send_id,
                        variant=0,
                        provider=provider,
                        server_id=1,
                        hour=hour,
                        metric=metric,
                        count=count,
                    )
                )


def test_a_wished_length_is_a_deadline_too(world: World) -> None:
    late_world(world, scale_finish_within_h=0.05)
    (one,) = view_of(world).sends
    assert one.finish_by is not None
    assert one.finish_by < now() + timedelta(minutes=4)


def test_what_a_server_was_seen_to_do_counts_unless_the_sends_own_pace_held_it(world: World) -> None:
    late_world(world)
    put(world, 0, per_hour=None)
    say(world.engine, 1, world.slot(0), SlotProgress("local-1", SlotState.SENDING, per_s=17.0))
    assert view_of(world).servers[0].per_s == 17.0
    with write(world.engine) as connection:
        connection.exec_driver_sql("UPDATE sends SET pace_per_s = 17.0")
    assert view_of(world).servers[0].per_s == 300.0


def look_at(world: World, number: int, minutes_ago: float, queued: int, deferred: int) -> None:
    facts = Facts(0, 0, 1, 1, messages=queued, queue={"gmail.com": QueueFacts(queued, deferred)}, deferred=deferred)
    with write(world.engine) as connection:
        connection.execute(
            insert(server_health).values(
                server_id=world.servers[number], at=now() - timedelta(minutes=minutes_ago), verdict="well", reasons=[],
                queued=queued, deferred=deferred, facts=facts.as_dict(),
            )
        )  # fmt: skip


def test_the_queues_of_the_mtas_are_seen_by_mailbox_provider(world: World) -> None:
    late_world(world)
    put(world, 0, mta=MtaKind.EXIM, mta_log="/l", mta_spool="/s")
    assert view_of(world).servers[0].queued is None  # nobody has looked
    look_at(world, 0, 5, queued=900, deferred=400)
    view = view_of(world)
    assert (view.queues["gmail"].queued, view.queues["gmail"].deferred) == (900, 400)
    assert (view.servers[0].queued, view.servers[1].queued) == (900, 0)
    later = view_of(world, now() + timedelta(hours=1))
    assert (later.servers[0].queued, dict(later.queues)) == (None, {})


def test_a_server_that_was_sick_long_ago_may_be_asked(world: World) -> None:
    late_world(world)
    look_at(world, 1, 5, queued=0, deferred=0)
    with write(world.engine) as connection:
        connection.execute(update(server_health).values(verdict="sick"))
    assert view_of(world).servers[1].sick
    assert not view_of(world, now() + timedelta(hours=1)).servers[1].sick


def test_how_long_setting_up_takes_is_the_operators_to_say(settings: Settings) -> None:
    policy = policy_of(
        settings.model_copy(update={"scale_warm_lead_s": 5, "scale_cold_lead_s": 90, "scale_rent_lead_s": 300})
    )
    leads = (policy.warm_lead, policy.cold_lead, policy.rent_lead)
    assert [lead.total_seconds() for lead in leads] == [5, 90, 300]
    assert policy_of(settings) == Policy()


def test_what_an_mta_takes_faster_than_it_delivers_is_no_capacity(world: World) -> None:
    late_world(world)
    put(world, 0, mta=MtaKind.EXIM, mta_log="/l", mta_spool="/s", per_hour=None)
    say(world.engine, 1, world.slot(0), SlotProgress("local-1", SlotState.SENDING, per_s=17.0))
    look_at(world, 0, 10, queued=0, deferred=0)
    look_at(world, 0, 0, queued=7_200, deferred=1_200)  # 6,000 never tried in 600 s
    assert view_of(world).servers[0].per_s == pytest.approx(7.0, abs=0.1)


@pytest.mark.parametrize(
    ("values", "granted_days_ago", "warm"),
    [
        ({}, None, False),
        ({"served_until": 2}, None, True),
        ({"served_until": 40}, None, False),  # receivers have forgotten it
        ({"served_until": 40}, 3, True),
        ({"warming_from": 20}, 3, True),  # through the ramp of 14 days
        ({"warming_from": 5}, 3, False),
    ],
)
def test_an_address_is_warm_when_it_was_in_service_of_late(
    world: World, values: dict[str, int], granted_days_ago: int | None, warm: bool
) -> None:
    moments = {name: now() - timedelta(days=days) for name, days in values.items()}
    put(world, 1, state=ServerState.STANDBY, **moments)
    if granted_days_ago is not None:
        with write(world.engine) as connection:
            day = now() - timedelta(days=granted_days_ago)
            connection.execute(
                insert(grant_counts).values(server_id=world.servers[1], span=CapSpan.DAY, starts_at=day, rows=5)
            )
    assert view_of(world).servers[1].warm is warm


def test_leaving_the_state_active_is_what_makes_an_address_warm(world: World) -> None:
    with write(world.engine) as connection:
        servers.set_state(connection, "local-2", ServerState.STANDBY, actor="ann")
    assert view_of(world).servers[1].warm


def test_limits_of_receivers_hold_for_the_servers_in_service(world: World) -> None:
    with write(world.engine) as connection:
        connection.execute(insert(provider_limits).values(pool_id=world.pool_id, provider="gmail", per_hour=3_600))
    assert view_of(world).provider_per_s == {"gmail": 2.0}
    put(world, 1, state=ServerState.STANDBY)
    assert view_of(world).provider_per_s == {"gmail": 1.0}


# --- the life of a decision -------------------------------------------------------------------------------------------


def test_a_late_send_is_proposed_a_warm_standby_and_an_approval_makes_it_active(world: World) -> None:
    late_world(world)
    made = look(world)
    assert (made.action, made.server, made.state) == (ScaleAction.ACTIVATE, "local-2", ScaleState.PROPOSED)
    assert made.numbers["unsent"] == 1_000
    assert look(world).finding is ScaleFinding.IN_HAND  # one question at a time
    with pytest.raises(ScaleError, match="is proposed"):
        applier(world).apply(made.id)
    scale_book.approve(world.engine, made.id, by="ann")
    done = applier(world).apply(made.id)
    assert (done.state, done.decided_by) == (ScaleState.APPLIED, "ann")
    assert states(world) == ["active", "active"]
    assert look(world).action is ScaleAction.NONE
    with read(world.engine) as connection:
        said = connection.execute(select(audit_log.c.action, audit_log.c.actor).order_by(audit_log.c.id)).all()
    assert [tuple(row) for row in said if row.action != "state"] == [
        ("scale.proposed", "test"),
        ("scale.approved", "ann"),
        ("scale.applying", "test"),
        ("scale.applied", "test"),
    ]


def test_by_setting_nobody_is_asked(sqlite_world: World) -> None:
    late_world(sqlite_world, scale_automatic=True)
    made = look(sqlite_world)
    assert (made.state, made.decided_by) == (ScaleState.APPROVED, "automatic")
    assert applier(sqlite_world).apply(made.id).state is ScaleState.APPLIED


def test_a_rejection_is_kept_and_not_asked_again_at_once(sqlite_world: World) -> None:
    late_world(sqlite_world)
    made = look(sqlite_world)
    scale_book.reject(sqlite_world.engine, made.id, by="ann")
    with pytest.raises(ScaleError, match="is rejected"):
        scale_book.approve(sqlite_world.engine, made.id, by="bob")
    assert look(sqlite_world).finding is ScaleFinding.COOLING_DOWN
    assert states(sqlite_world) == ["active", "standby"]


def test_an_approval_that_comes_when_the_backlog_is_gone_does_nothing(sqlite_world: World) -> None:
    world = sqlite_world
    late_world(world)
    made = look(world)
    scale_book.approve(world.engine, made.id, by="ann")
    put(world, 0, per_hour=None)
    done = applier(world).apply(made.id)
    assert done.state is ScaleState.LAPSED
    assert "in time" in (done.outcome or "")
    assert states(world) == ["active", "standby"]


def test_a_question_that_nobody_answers_lapses(sqlite_world: World) -> None:
    world = sqlite_world
    late_world(world)
    made = look(world)
    with write(world.engine) as connection:
        connection.exec_driver_sql("UPDATE scale_decisions SET changed_at = '2026-01-01 00:00:00.000000'")
    look(world)
    with read(world.engine) as connection:
        assert scale_book.get(connection, made.id).state is ScaleState.LAPSED


def test_looks_without_a_change_are_one_note_for_each_spell(world: World) -> None:
    first, second = look(world), look(world)
    assert first.id == second.id
    assert (second.finding, second.state) == (ScaleFinding.NOTHING_RUNS, ScaleState.NOTED)
    assert second.changed_at > first.changed_at


def test_whoever_died_over_a_decision_is_followed_by_somebody_who_ends_it(sqlite_world: World) -> None:
    world = sqlite_world
    late_world(world)
    made = look(world)
    scale_book.approve(world.engine, made.id, by="ann")
    scale_book.begin(world.engine, made.id, by="dead")
    put(world, 1, state=ServerState.ACTIVE)  # its last deed
    assert applier(world).apply(made.id).state is ScaleState.APPLIED
    assert states(world) == ["active", "active"]


def test_an_idle_server_is_drained_and_goes_back_on_standby_when_it_is_empty(sqlite_world: World) -> None:
    world = sqlite_world
    world.settings = world.settings.model_copy(update={"scale_automatic": True})
    put(world, 1, updated_at=now() - timedelta(days=30))
    made = look(world)
    assert (made.action, made.server) == (ScaleAction.DRAIN, "local-2")
    assert applier(world).apply(made.id).state is ScaleState.APPLIED
    assert states(world) == ["active", "draining"]
    made = look(world)
    assert (made.action, made.server) == (ScaleAction.RETIRE, "local-2")
    applier(world).apply(made.id)
    assert states(world) == ["active", "standby"]


# --- behind SSH, and rented -------------------------------------------------------------------------------------------


class Builder:
    """Notes what it was asked for; ``fails`` names the call that fails."""

    def __init__(self, world: World, fails: str = "") -> None:
        self.world, self.fails = world, fails
        self.asked: list[str] = []

    def _note(self, what: str, name: str) -> None:
        self.asked.append(f"{what} {name}")
        if self.fails == what:
            raise FleetError(f"the task of {what} failed")

    def provision(self, name: str) -> None:
        self._note("provision", name)
        with write(self.world.engine) as connection:
            servers.set_provisioned(connection, name, now())

    def verify(self, name: str) -> None:
        self._note("verify", name)
        with write(self.world.engine) as connection:
            pretend_verified(connection, name)

    def retire(self, name: str, *, give_up_queue: bool = False) -> None:
        self._note("retire", name)


class Renting:
    """A source of machines in memory."""

    kind = HostProvider.HETZNER

    def __init__(self) -> None:
        self.there: dict[str, Machine] = {}

    def terms(self) -> Terms:
        return Terms(4.0)

    def create(self, name: str, *, helo_name: str, login_key: str) -> Machine:
        key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl"
        return self.there.setdefault(name, Machine(str(len(self.there) + 1), name, "192.0.2.7", key))

    def machines(self) -> list[Machine]:
        return list(self.there.values())

    def delete(self, machine_id: str) -> None:
        self.there = {name: one for name, one in self.there.items() if one.id != machine_id}


@pytest.fixture
def renting(sqlite_world: World, monkeypatch: pytest.MonkeyPatch) -> Renting:
    """A late pool without a standby server, where machines may be rented."""
    late_world(
        sqlite_world, scale_automatic=True, scale_budget_per_day=10.0, rented_domain="fjordfern.example",
        scale_max_servers=5,
    )  # fmt: skip
    put(sqlite_world, 1, state=ServerState.FAILED)
    with write(sqlite_world.engine) as connection:
        connection.exec_driver_sql("UPDATE sending_pools SET warmup = '[5000, 10000]'")
        connection.exec_driver_sql("UPDATE sends SET expires_at = datetime(expires_at, '+10 minutes')")
        connection.exec_driver_sql("UPDATE dispatch_servers SET per_hour = 360")
    make_login_key(sqlite_world.settings.keys_dir / "ssh_ed25519")
    source = Renting()
    monkeypatch.setattr(scale_book, "source_of", lambda settings: source)
    return source


def test_a_rented_machine_is_provisioned_verified_and_warms_up(sqlite_world: World, renting: Renting) -> None:
    world, builder = sqlite_world, Builder(sqlite_world)
    made = look(world)
    assert (made.action, made.machine_from, made.server) == (ScaleAction.PROVISION, HostProvider.HETZNER, None)
    done = applier(world, builder=builder, hosts=renting).apply(made.id)
    name = f"main-{made.id}"
    assert (done.state, done.outcome) == (
        ScaleState.APPLIED,
        f"{name} is warming: it joins the sends that run, where its slot waits",
    )
    assert builder.asked == [f"provision {name}", f"verify {name}"]
    with read(world.engine) as connection:
        server = servers.get(connection, name)
    assert (server.state, server.machine_id, server.helo_name) == (
        ServerState.WARMING,
        "1",
        f"{name}.fjordfern.example",
    )
    assert view_of(world).rented_per_day == 0.0  # of a view that asks nobody for a price


def test_a_machine_is_not_rented_twice_for_one_decision(sqlite_world: World, renting: Renting) -> None:
    world = sqlite_world
    made = look(world)
    with pytest.raises(KeyboardInterrupt):
        applier(world, builder=Dying(), hosts=renting).apply(made.id)
    done = applier(world, builder=Builder(world), hosts=renting).apply(made.id)
    assert done.state is ScaleState.APPLIED
    assert len(renting.there) == 1


class Dying:
    def provision(self, name: str) -> None:
        raise KeyboardInterrupt


@pytest.mark.parametrize(("fails", "state"), [("provision", "failed"), ("verify", "standby")])
def test_what_fails_is_said_and_nothing_unverified_sends(
    sqlite_world: World, renting: Renting, fails: str, state: str
) -> None:
    made = look(sqlite_world)
    done = applier(sqlite_world, builder=Builder(sqlite_world, fails), hosts=renting).apply(made.id)
    assert (done.state, done.outcome) == (ScaleState.FAILED, f"the task of {fails} failed")
    with read(sqlite_world.engine) as connection:
        assert servers.get(connection, f"main-{made.id}").state == state
    assert look(sqlite_world).finding is ScaleFinding.COOLING_DOWN


def test_the_commands_show_decide_and_do(
    sqlite_world: World, mailfleet: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    late_world(sqlite_world)
    monkeypatch.setenv("MAILFLEET_SCALE_CONFIRM_S", "0")
    assert "activate local-2" in mailfleet("fleet", "plan").stdout
    assert "proposed" in mailfleet("fleet", "decide").stdout
    assert mailfleet("fleet", "approve", "1").code == 0
    assert states(sqlite_world) == ["active", "active"]
    assert "applied" in mailfleet("fleet", "show").stdout
    again = mailfleet("fleet", "reject", "1")
    assert (again.code, "is applied" in again.stderr) == (1, True)
