"""Several addresses of one server: to the playbook, through verification, and warmed up each by itself."""

from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import Engine, select

from mailer_lib.database.engine import now, read, write
from mailer_lib.database.schema import server_sources
from mailer_lib.dispatch.caps import CapRules, NewAddress, caps_at, room
from mailer_lib.dispatch.grant_counts import count_grant, rules_of
from mailer_lib.fleet import pools, provisioning, servers, sources, warmup
from mailer_lib.fleet.names import FleetError
from mailer_lib.fleet.server_checks import latest, why_unverified
from mailer_lib.fleet.upkeep import Upkeep
from mailer_lib.fleet.verification import SourceFacts, check_ptr
from mailer_lib.settings import Settings
from mailer_lib.terms import CapSpan, ServerState
from tests.fleet.test_upkeep import HOST_KEY, Ansible, ansible, fleet
from tests.fleet.verified import pretend_verified

__all__ = ["ansible", "fleet"]  # fixtures

AT = datetime(2026, 3, 2, 17, 30, tzinfo=UTC)
ONE, TWO = ("192.0.2.7", "mta1.example.com"), ("192.0.2.8", "mta1b.example.com")


def give(engine: Engine, *given: tuple[str, str], warmed: bool = False) -> None:
    with write(engine) as connection:
        for address, name in given:
            sources.add(connection, "mta-1", address, helo_name=name, warmed=warmed, actor="ann")


def test_exim_is_given_them_and_uses_them_once_it_is_configured(fleet: Upkeep, ansible: Ansible) -> None:
    give(fleet.engine, ONE, TWO)
    with read(fleet.engine) as connection:
        assert servers.outgoing_names(connection) == ["mta1.example.com", "mta1b.example.com"]  # in SPF
    fleet.configure(["mta-1"])
    assert ansible.ran[0][1].variables["exim_sources"] == [
        {"address": address, "helo_name": name} for address, name in (ONE, TWO)
    ]
    with read(fleet.engine) as connection:
        assert set(connection.scalars(select(server_sources.c.in_use))) == {True}
    with write(fleet.engine) as connection:
        sources.remove(connection, "mta-1", ONE[0], actor="ann")
        sources.remove(connection, "mta-1", TWO[0], actor="ann")
    fleet.configure(["mta-1"])
    assert "exim_sources" not in ansible.ran[1][1].variables


def test_a_server_in_service_is_verified_with_a_new_address_before_it_sends_from_it(
    fleet: Upkeep, ansible: Ansible
) -> None:
    with write(fleet.engine) as connection:
        pretend_verified(connection, "mta-1")
        servers.set_state(connection, "mta-1", ServerState.ACTIVE, actor="ann")
    give(fleet.engine, TWO)
    with pytest.raises(FleetError, match=r"never verified with all of its addresses: `mailfleet server verify mta-1`"):
        fleet.configure(["mta-1"])
    with write(fleet.engine) as connection:
        server = servers.get(connection, "mta-1")
        assert "another sources" in str(why_unverified(server, latest(connection, server.id)))
        pretend_verified(connection, "mta-1")
    fleet.configure(["mta-1"])
    assert len(ansible.ran) == 1


def test_each_address_is_judged_by_its_own_name() -> None:
    facts = SourceFacts(TWO[0], "8.2.0.192.in-addr.arpa", (TWO[1],), (TWO[1],), helo_name=TWO[1])
    (found,) = check_ptr(facts, facts.helo_name or ONE[1])
    assert found.level == "info"
    (found,) = check_ptr(facts, ONE[1])
    assert found.level == "warning"


@pytest.mark.parametrize(
    ("rules", "left"),
    [
        (CapRules("mta-1", addresses=2), None),
        (CapRules("mta-1", addresses=2, new_addresses=(NewAddress(TWO[0], (50, 80)),)), 100),
        (CapRules("mta-1", addresses=2, new_addresses=(NewAddress(TWO[0], (50, 80), AT - timedelta(days=1)),)), 160),
        (CapRules("mta-1", addresses=2, new_addresses=(NewAddress(TWO[0], (50, 80), AT - timedelta(days=2)),)), None),
        # the one that has begun last binds
        (
            CapRules(
                "mta-1",
                addresses=3,
                new_addresses=(NewAddress("a", (50, 80), AT - timedelta(days=1)), NewAddress("b", (50, 80))),
            ),
            150,
        ),
        (CapRules("mta-1", ramp=(50, 80), addresses=2), 100),
    ],
)
def test_a_new_address_holds_the_server_to_its_quota_for_an_equal_share(rules: CapRules, left: int | None) -> None:
    assert room(caps_at(rules, {}, AT)) == left


def test_its_ramp_begins_when_it_is_in_use_and_its_server_is_granted_something(fleet: Upkeep, ansible: Ansible) -> None:
    engine = fleet.engine
    with write(engine) as connection:
        warmup.set_server_ramp(connection, "mta-1", (50, 80), actor="ann")
        pretend_verified(connection, "mta-1")
        servers.set_state(connection, "mta-1", ServerState.ACTIVE, actor="ann")
        server_id = servers.get(connection, "mta-1").id
        sources.add(connection, "mta-1", ONE[0], helo_name=ONE[1], warmed=True, actor="ann")
        sources.add(connection, "mta-1", TWO[0], helo_name=TWO[1], actor="ann")
        assert count_grant(connection, server_id, 1_000, now() - timedelta(days=3))  # nothing is new yet
        assert rules_of(connection, server_id).new_addresses == ()
        pretend_verified(connection, "mta-1")
    fleet.configure(["mta-1"])
    with write(engine) as connection:
        assert count_grant(connection, server_id, 101, now()) is False
        assert count_grant(connection, server_id, 100, now()) is True
        (new,) = rules_of(connection, server_id).new_addresses
        assert (new.address, new.warming_from) == (TWO[0], now().replace(hour=0, minute=0, second=0, microsecond=0))
        (cap,) = caps_at(rules_of(connection, server_id), {CapSpan.DAY: 100}, now())
    assert (cap.name, cap.left) == ("warm-up quota of 192.0.2.8, one of 2 of mta-1, day 1", 0)


def test_an_address_belongs_to_one_server(fleet: Upkeep, settings: Settings) -> None:
    give(fleet.engine, ONE)
    with write(fleet.engine) as connection:
        pools.ensure(connection, "main", actor="test")
        other = servers.make_spec(
            name="mta-2", pool="main", channel="ssh", host="192.0.2.9", host_key=HOST_KEY, helo_name="mta2.example.com"
        )
        servers.add(connection, other, actor="test")
        with pytest.raises(FleetError, match=r"192\.0\.2\.7 is an address of mta-1: remove it there first"):
            sources.add(connection, "mta-2", ONE[0], helo_name=ONE[1], actor="ann")
        with pytest.raises(FleetError, match=r"192\.0\.2\.9 isn't an address of mta-1 \(192\.0\.2\.7\)"):
            sources.remove(connection, "mta-1", "192.0.2.9", actor="ann")
        assert sources.add(connection, "mta-1", ONE[0], helo_name=ONE[1], actor="ann") is False
        assert provisioning.addresses_of(servers.get(connection, "mta-1")) == [ONE[0]]
