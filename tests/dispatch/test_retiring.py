"""Out of the fleet: the playbook, the state, then the rented machine; whatever fails half-way is done again."""

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import Engine, select, update

from mailer_lib.database.engine import now, read, write
from mailer_lib.database.schema import audit_log, dispatch_servers
from mailer_lib.dispatch import retiring
from mailer_lib.fleet import pools, servers
from mailer_lib.fleet.hosts import HostsError
from mailer_lib.fleet.names import FleetError
from mailer_lib.settings import Settings
from mailer_lib.terms import HostProvider, ServerState

HOST_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIDkNtfpbZBVyoOWdTmmLxTXtEC2dLmYYXdy1oTTBSHs6"


class Fleet:
    """Playbook and provider in one: notes what is done, and fails at ``fails``."""

    kind = HostProvider.HETZNER

    def __init__(self) -> None:
        self.done: list[str] = []
        self.fails = ""
        self.queued = 0

    def retire(self, name: str, *, give_up_queue: bool = False) -> None:
        if self.fails == "playbook":
            raise FleetError(f"{name} can't be retired: it hung up")
        self.done.append(f"playbook{' without its queue' if give_up_queue else ''}")

    def delete(self, machine_id: str) -> None:
        if self.fails == "provider":
            raise HostsError("Hetzner's API says unavailable")
        self.done.append(f"gave back {machine_id}")

    def queue(self, script: str) -> str:
        return f'{{"queued": {self.queued}, "error": null}}'


@pytest.fixture
def fleet() -> Fleet:
    return Fleet()


@pytest.fixture
def retire(engine: Engine, settings: Settings, fleet: Fleet) -> Callable[..., bool]:
    """A rented server that was provisioned, and drains."""
    spec = servers.make_spec(
        name="main-7", pool="main", channel="ssh", host="192.0.2.7", host_key=HOST_KEY, helo_name="main-7.example.com",
        mta="exim", mta_log="/var/log/exim4/mainlog", mta_spool="/var/spool/exim4",
    )  # fmt: skip
    with write(engine) as connection:
        pools.ensure(connection, "main", actor="test")
        servers.add(connection, spec, actor="test")
        servers.set_provisioned(connection, "main-7", now())
        connection.execute(
            update(dispatch_servers).values(
                state=ServerState.DRAINING, machine_from=HostProvider.HETZNER, machine_id="42"
            )
        )

    def call(**more: Any) -> bool:
        given = {"builder": fleet, "hosts": fleet, "run": fleet.queue} | more
        return retiring.retire(engine, settings, "main-7", actor="ann", **given)

    return call


def state(engine: Engine) -> str:
    with read(engine) as connection:
        return servers.get(connection, "main-7").state.value


def test_the_playbook_runs_and_the_machine_is_given_back_last(
    engine: Engine, fleet: Fleet, retire: Callable[..., bool]
) -> None:
    assert retire() is True
    assert fleet.done == ["playbook", "gave back 42"]
    assert state(engine) == "retired"
    with read(engine) as connection:
        actions = connection.scalars(select(audit_log.c.action).where(audit_log.c.actor == "ann")).all()
    assert actions == ["state", "give back"]


@pytest.mark.parametrize(
    ("fails", "then", "again"),
    [("playbook", "draining", ["playbook", "gave back 42"]), ("provider", "retired", ["gave back 42"])],
)
def test_a_failure_half_way_is_done_again(
    engine: Engine, fleet: Fleet, retire: Callable[..., bool], fails: str, then: str, again: list[str]
) -> None:
    fleet.fails = fails
    with pytest.raises((FleetError, HostsError)):
        retire()
    assert state(engine) == then
    fleet.fails, fleet.done = "", []
    assert retire() is True
    assert fleet.done == again


def test_after_a_kill_behind_the_playbook_nobody_of_ours_can_log_in_and_it_goes_on(
    engine: Engine, fleet: Fleet, retire: Callable[..., bool]
) -> None:
    assert retire(run=lambda script: "Permission denied") is True
    assert fleet.done == ["playbook", "gave back 42"]  # the playbook has looked into the queue itself


def test_nothing_is_done_while_something_is_left(engine: Engine, fleet: Fleet, retire: Callable[..., bool]) -> None:
    fleet.queued = 3
    with pytest.raises(FleetError, match="its MTA still holds 3 messages"):
        retire()
    with write(engine) as connection:
        connection.execute(update(dispatch_servers).values(unreconciled=True))
    with pytest.raises(FleetError, match=r"its ledgers haven't been read.*`mailfleet server reconcile main-7`"):
        retire(give_up_queue=True)
    with write(engine) as connection:
        connection.execute(update(dispatch_servers).values(unreconciled=False, state=ServerState.ACTIVE))
    with pytest.raises(FleetError, match="drain it first"):
        retire()
    assert fleet.done == []


def test_a_queue_that_is_given_up_and_a_machine_that_is_gone_are_said_by_a_person(
    engine: Engine, fleet: Fleet, retire: Callable[..., bool]
) -> None:
    fleet.queued = 3
    retire(give_up_queue=True)
    assert fleet.done == ["playbook without its queue", "gave back 42"]
    with write(engine) as connection:
        connection.execute(update(dispatch_servers).values(state=ServerState.FAILED, provisioned_at=now()))
    fleet.done = []
    retire(gone=True)
    assert fleet.done == ["gave back 42"]


def test_a_rented_machine_is_not_forgotten_where_nobody_can_give_it_back(
    engine: Engine, fleet: Fleet, retire: Callable[..., bool]
) -> None:
    with pytest.raises(FleetError, match="MAILFLEET_HETZNER_TOKEN_REF is missing"):
        retire(hosts=None)
    assert (fleet.done, state(engine)) == ([], "draining")
