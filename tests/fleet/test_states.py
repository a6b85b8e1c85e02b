"""Server states: which may follow which, that an unverified server behind SSH sends nothing, and the audit."""

from datetime import timedelta

import pytest
from sqlalchemy import Engine, select

from mailer_lib.database.engine import now, read, write
from mailer_lib.database.schema import audit_log
from mailer_lib.fleet import pools, server_checks, servers, states
from mailer_lib.fleet.findings import error, warning
from mailer_lib.fleet.names import FleetError
from mailer_lib.terms import ChannelKind, ServerState
from tests.fleet.verified import pretend_verified

S = ServerState
ALLOWED = {
    S.STANDBY: "provisioning verifying warming active retired failed fenced",
    S.PROVISIONING: "standby verifying failed fenced",
    S.VERIFYING: "standby provisioning warming active failed fenced",
    S.WARMING: "standby active draining failed fenced",
    S.ACTIVE: "standby warming draining failed fenced",
    S.DRAINING: "standby warming active retired failed fenced",
    S.RETIRED: "standby provisioning fenced",
    S.FAILED: "standby provisioning verifying draining retired fenced",
    S.FENCED: "standby provisioning warming active retired failed",
}


@pytest.mark.parametrize("before", S)
@pytest.mark.parametrize("after", S)
def test_a_state_follows_another_by_the_table(before: ServerState, after: ServerState) -> None:
    said = states.why_not(before, after)
    assert (said is None) == (after is before or after in ALLOWED[before].split())
    assert said is None or len(said.split()) >= 4


@pytest.mark.parametrize(
    ("before", "after", "says"),
    [
        (S.ACTIVE, S.RETIRED, "its MTA may still hold mail: drain it first"),
        (S.FAILED, S.ACTIVE, "it failed: put right what failed, then verify it"),
        (S.PROVISIONING, S.WARMING, "it is being provisioned: verify it first"),
        (S.RETIRED, S.ACTIVE, "it is retired: make it standby, provision and verify it again"),
        (S.ACTIVE, S.PROVISIONING, "it sends: drain it first, since provisioning restarts its MTA"),
        (S.PROVISIONING, S.DRAINING, "after provisioning come only failed, fenced, standby, verifying"),
    ],
)
def test_what_is_not_allowed_says_what_to_do(before: ServerState, after: ServerState, says: str) -> None:
    assert states.why_not(before, after) == says


def test_every_state_can_be_given_up_and_none_is_a_dead_end() -> None:
    for state in S:
        assert states.why_not(state, S.FENCED) is None
    for state in S:
        assert any(states.why_not(state, other) is None for other in S if other is not state)


@pytest.mark.parametrize(
    ("channel", "through", "warmed", "becomes"),
    [
        (ChannelKind.SSH, False, None, S.WARMING),
        (ChannelKind.SSH, True, None, S.ACTIVE),
        (ChannelKind.SSH, False, True, S.ACTIVE),
        (ChannelKind.SSH, True, False, S.WARMING),
        (ChannelKind.LOCAL, False, None, S.ACTIVE),
        (ChannelKind.LOCAL, False, False, S.WARMING),
    ],
)
def test_a_new_address_warms_up_first(
    channel: ChannelKind, through: bool, warmed: bool | None, becomes: ServerState
) -> None:
    assert states.service_state(channel, ramp_is_through=through, warmed=warmed) is becomes


def add_remote(engine: Engine, **values: object) -> None:
    spec = servers.make_spec(
        **{"name": "mta-1", "pool": "main", "helo_name": "mta1.example.net", "channel": "ssh", "host": "192.0.2.7"}
        | values
    )
    with write(engine) as connection:
        pools.ensure(connection, "main", actor="test")
        servers.add(connection, spec, actor="ann", replace=True)


def set_state(engine: Engine, state: ServerState, reason: str | None = None) -> None:
    with write(engine) as connection:
        servers.set_state(connection, "mta-1", state, actor="ann", reason=reason)


def state_of(engine: Engine) -> ServerState:
    with read(engine) as connection:
        return servers.get(connection, "mta-1").state


def pretend(engine: Engine, *findings: object) -> None:
    with write(engine) as connection:
        pretend_verified(connection, "mta-1", *findings)  # type: ignore[arg-type]


def test_a_server_behind_ssh_begins_as_standby_and_sends_only_when_verified(engine: Engine) -> None:
    with pytest.raises(FleetError, match="a new server behind SSH can't be active"):
        add_remote(engine, state="active")
    add_remote(engine)
    assert state_of(engine) is S.STANDBY
    for state in states.MAY_SEND:
        with pytest.raises(FleetError, match=r"was never verified: run `mailfleet server verify mta-1`"):
            set_state(engine, state)
    pretend(engine, error("ptr", "192.0.2.7 has no PTR"))
    with pytest.raises(FleetError, match="found an error on"):
        set_state(engine, S.WARMING)
    pretend(engine, warning("spf", "something to look at"))
    set_state(engine, S.WARMING)
    assert state_of(engine) is S.WARMING


def test_a_verification_speaks_only_for_the_server_as_it_was(engine: Engine) -> None:
    add_remote(engine)
    pretend(engine)
    add_remote(engine, host="192.0.2.8")
    with pytest.raises(FleetError, match="has had another host since it was verified"):
        set_state(engine, S.ACTIVE)
    pretend(engine)
    set_state(engine, S.ACTIVE)
    with pytest.raises(FleetError, match="can't stay active: mta-1 has had another helo_name"):
        add_remote(engine, host="192.0.2.8", helo_name="other.example.net")
    add_remote(engine, host="192.0.2.8", per_hour=100)  # says nothing of the state, so it stays
    assert state_of(engine) is S.ACTIVE


def test_the_newest_verification_counts_and_comes_back_as_it_was(engine: Engine) -> None:
    add_remote(engine)
    found = error("ptr", "192.0.2.7 has no PTR", ["7.2.0.192.in-addr.arpa. 3600 IN PTR mta1.example.net."])
    pretend(engine)
    pretend(engine, found)
    with read(engine) as connection:
        server = servers.get(connection, "mta-1")
        check = server_checks.latest(connection, server.id)
        assert server_checks.latest_of_all(connection) == {server.id: check}
        assert server_checks.latest(connection, server.id + 1) is None
    assert check is not None
    assert (check.findings, check.errors, check.actor) == ((found,), 1, "test")
    assert not states.is_old(check.at, now(), 30)
    assert states.is_old(now() - timedelta(days=31), now(), 30)


def test_each_change_of_state_is_audited_with_who_and_why(engine: Engine) -> None:
    add_remote(engine)
    set_state(engine, S.PROVISIONING, "bought yesterday")
    set_state(engine, S.PROVISIONING, "the same again is no change")
    with pytest.raises(FleetError, match="can't go from provisioning to retired: wait for the playbook"):
        set_state(engine, S.RETIRED)
    with read(engine) as connection:
        rows = connection.execute(select(audit_log).where(audit_log.c.action == "state")).all()
    assert [(row.actor, row.object, row.detail) for row in rows] == [
        ("ann", "server:mta-1", {"before": "standby", "after": "provisioning", "reason": "bought yesterday"})
    ]
