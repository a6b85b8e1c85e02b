"""Why somebody got it, or not: snapshot, ledger and database agree, for everybody in the audience."""

from datetime import timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from sqlalchemy import delete, insert, select, update

from mailer_lib.audience import catalogue, criteria
from mailer_lib.audience import manifest as manifests
from mailer_lib.audience.exclusions import reason_names
from mailer_lib.audience.plan import Exclude, FrequencyCap, SnapshotError
from mailer_lib.audience.snapshot import build, build_seed_snapshot, plan_snapshot
from mailer_lib.contacts import consent
from mailer_lib.contacts.address import AddressError
from mailer_lib.contacts.seeds import add_seed
from mailer_lib.database.engine import now, read, write
from mailer_lib.database.schema import audit_log, contacts, shards, subscriptions
from mailer_lib.dispatch.erasure import erase
from mailer_lib.dispatch.why import Why, headline, why
from mailer_lib.identity import message_key
from mailer_lib.shard.files import read_shard
from mailer_lib.terms import ExclusionReason, Outcome, ShardState
from tests.audience.test_snapshot import excluded
from tests.audience.world import ON_THE_LIST, World, rule
from tests.dispatch.ledgers import deferral, final, intents, leased, write_ledger
from tests.dispatch.world import World as SendingWorld

LEA = "lea@example.org"


@pytest.fixture
def audience(engine: Any, settings: Any) -> World:
    return World.make(engine, settings)


@pytest.fixture
def sqlite_audience(sqlite_engine: Any, settings: Any) -> World:
    return World.make(sqlite_engine, settings)


def freeze(world: World, edition: str = "1", **more: Any) -> Any:
    send_id = world.add_send(edition)
    plan = plan_snapshot(
        world.engine, world.settings, send_id, **{"rules": ON_THE_LIST, "list_id": world.newsletter} | more
    )
    build(world.engine, world.settings, plan)
    return plan.published_folder(world.settings)


def ask(world: Any, address: str = LEA, edition: str = "1", phase: int | None = None) -> Why:
    return why(world.engine, world.settings, address, campaign="spring-sale", edition=edition, phase=phase, actor="ann")


POPULATION = st.lists(
    st.tuples(
        st.sampled_from(["confirmed", "pending", "unsubscribed", None]),
        st.integers(0, 3),
        st.sampled_from([None, "domain", "address", "offers"]),
    ),
    min_size=1,
    max_size=12,
)
_editions = iter(range(1, 10_000))


@given(population=POPULATION)
@hypothesis_settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_it_agrees_with_what_the_snapshot_holds_of_everybody(
    audience: World, population: list[tuple[str | None, int, str | None]]
) -> None:
    world, edition = audience, str(next(_editions))
    people = {}
    with write(world.engine) as connection:
        connection.execute(delete(subscriptions))
        connection.execute(delete(contacts))
        consent.suppress_domain(connection, domain="barred.example", source="test")
    for number, (state, points, barred) in enumerate(population):
        address = f"p{edition}-{number}@{'barred' if barred == 'domain' else 'open'}.example"
        people[world.add(address, state=state, attributes={"points": points})] = address
        with write(world.engine) as connection:
            if barred == "address":
                consent.suppress(
                    connection, address_hash=world.hash_of(address), reason=consent.SuppressionReason.MANUAL,
                    source="ann", at=now(),
                )  # fmt: skip
            elif barred == "offers":
                row = {"contact_id": max(people), "list_id": world.lists["offers"], "state": "confirmed"}
                connection.execute(insert(subscriptions).values(**row, updated_at=now() - timedelta(days=1)))
    folder = freeze(world, edition, rules=rule("attribute.points", ">=", 1), exclude=Exclude(lists=("offers",)))
    manifest = manifests.load(folder)
    frozen = {
        who.address: (entry.number, row, who)
        for entry in manifest.shards
        for row, who in read_shard(folder / entry.path)
    }
    left_out = excluded(folder)
    for contact_id, address in people.items():
        found = ask(world, address, edition)
        (phase,) = found.phases
        assert (phase.frozen is not None) == (address in frozen)
        if phase.frozen is not None:
            number, row, who = frozen[address]
            assert (phase.shard, phase.frozen.row, phase.frozen.message_key) == (number, row, who.message_key)
            assert (phase.frozen.variant, phase.frozen.provider) == (who.variant, who.provider)
        mask = left_out.get(contact_id, ExclusionReason(0))
        assert tuple(reason.name for reason in phase.left_out) == reason_names(mask)
        assert found.rules is not None and found.rules.answer is not None and not found.rules.changed
        assert found.rules.answer.holds == (address in frozen or contact_id in left_out)


def test_selected_with_what_the_ledger_says(world: SendingWorld) -> None:
    send_id = world.send()
    world.publish(send_id, [3])
    first = ask(world, "p1@outlook.example")
    assert headline(first) == "selected for spring-sale#1"
    assert first.phases[0].outcome is not None and first.phases[0].outcome.outcome is None
    lease = leased(world, send_id, through=2)
    assert ask(world, "p1@outlook.example").phases[0].outcome.server == "local-1"  # type: ignore[union-attr]
    assert ask(world, "p2@yahoo.example").phases[0].outcome.server is None  # type: ignore[union-attr]
    records = [*intents(world, lease, [1]), deferral(1), *intents(world, lease, range(2))]
    write_ledger(world, lease, [*records, final(0, Outcome.FAILED), final(1, text="OK")], settle=False)
    (phase,) = ask(world, "P1@Outlook.Example").phases
    said = phase.outcome
    assert phase.frozen is not None and phase.frozen.row == 1 and said is not None
    assert (said.outcome, said.reply, said.deferrals, said.server) == (Outcome.INJECTED, "250 2.0.0 OK", 1, "local-1")


def test_a_top_up_left_out_who_had_it(audience: World) -> None:
    audience.add(LEA)
    send_id = audience.add_send()
    arguments = {"rules": ON_THE_LIST, "list_id": audience.newsletter}
    build(audience.engine, audience.settings, plan_snapshot(audience.engine, audience.settings, send_id, **arguments))
    with write(audience.engine) as connection:
        connection.execute(update(shards).values(state=ShardState.SETTLED))
    key = message_key(audience.settings.identity().send_key("spring-sale", "1"), audience.hash_of(LEA))
    again = plan_snapshot(audience.engine, audience.settings, send_id, **arguments)
    build(audience.engine, audience.settings, again, {key})
    first, second = ask(audience).phases
    assert first.frozen is not None
    assert [(r.name, r.sentence) for r in second.left_out] == [("already-sent", "phase 1: not settled")]
    assert [p.phase for p in ask(audience, phase=2).phases] == [2]
    with pytest.raises(SnapshotError, match="published are: 1, 2"):
        ask(audience, phase=3)


def test_a_cap_is_told_with_the_messages_that_it_counted(audience: World) -> None:
    audience.add(LEA)
    audience.add("max@example.org")
    freeze(audience, "1", rules=rule("domain", "=", "example.org"))
    freeze(audience, "2", rules=rule("domain", "=", "example.com"))
    cap = FrequencyCap(messages=1, days=7, campaign_class="marketing")
    freeze(audience, "3", exclude=Exclude(frequency_cap=cap))
    (reason,) = ask(audience, edition="3").phases[0].left_out
    assert reason.name == "frequency-cap"
    assert reason.sentence.endswith("cap allows, 1 of class marketing in 7 days: spring-sale#1 not settled")


def test_who_never_matched_is_judged_now(audience: World) -> None:
    contact_id = audience.add(LEA, attributes={"points": 5})
    freeze(audience, rules=rule("attribute.points", ">=", 10))
    before = ask(audience)
    assert headline(before) == "not in spring-sale#1: didn't match when it was frozen, and doesn't match now either"
    assert before.rules is not None and before.rules.answer is not None and before.rules.changed == ()
    with write(audience.engine) as connection:
        connection.execute(
            update(contacts).where(contacts.c.id == contact_id).values(attributes={"points": 10}, updated_at=now())
        )
    after = ask(audience)
    assert headline(after) == "not in spring-sale#1: didn't match when it was frozen, but matches now"
    assert after.rules is not None and "the contact was last changed on" in after.rules.changed[0]
    audience.add("new@example.org", attributes={"points": 50}, created_at=now())
    newcomer = ask(audience, "new@example.org").rules
    assert newcomer is not None and "became a contact on" in newcomer.changed[0]


def test_other_criteria_mean_what_they_meant_then(audience: World) -> None:
    audience.add(LEA, attributes={"points": 5})
    with write(audience.engine) as connection:
        known = catalogue.load(connection)
        criteria.save(connection, known, "few", rule("attribute.points", "<", 10), actor="ann")
    freeze(audience, rules=rule("criteria", "=", "few"), exclude=Exclude(criteria=("few",)))
    with write(audience.engine) as connection:
        criteria.save(connection, known, "few", rule("attribute.points", "<", 1), actor="ann")
    found = ask(audience)
    assert found.rules is not None and found.rules.answer is not None and found.rules.answer.holds
    (reason,) = found.phases[0].left_out
    assert reason.sentence == 'matches the criteria "few", which the campaign leaves out'


def test_rules_that_mean_nothing_any_more_are_a_sentence(audience: World) -> None:
    audience.add(LEA, attributes={"city": "Linz"})
    folder = freeze(audience)
    manifest = manifests.load(folder)
    changed = manifest.model_copy(
        update={"criteria": manifest.criteria.model_copy(update={"rules": rule("attribute.shoes", "=", "x")})}
    )
    (folder / "manifest.json").write_bytes(changed.dump())
    rules = ask(audience).rules
    assert rules is not None and rules.answer is None
    assert 'there is no field "attribute.shoes"' in rules.problem


def test_of_an_erased_person_only_keyed_facts_are_told(audience: World) -> None:
    audience.add(LEA, given_name="Lea", attributes={"city": "Linz"})
    freeze(audience)
    erase(audience.engine, audience.settings, LEA, actor="ann")
    found = ask(audience)
    assert headline(found) == "selected for spring-sale#1, and erased since"
    assert found.phases[0].frozen is not None and found.phases[0].frozen.blanked
    assert (found.contact_id, found.rules) == (None, None)
    assert "Lea" not in repr(found) and "Linz" not in repr(found) and LEA not in repr(found)


def test_strangers_and_seeds(sqlite_audience: World) -> None:
    world = sqlite_audience
    world.add(LEA)
    freeze(world)
    assert headline(ask(world, "who@example.org")) == "nobody of this address is known; not in spring-sale#1"
    erase(world.engine, world.settings, "gone@example.org", actor="ann")
    assert headline(ask(world, "gone@example.org")).startswith("not in spring-sale#1; the person was erased on ")
    with pytest.raises(AddressError):
        ask(world, "nonsense")
    with pytest.raises(SnapshotError, match="no published snapshot"):
        ask(world, edition="2")
    with write(world.engine) as connection:
        add_seed(connection, "team", "seed@example.org", None)
    seeds = {"seed_list": "team", "list_id": world.newsletter}
    build_seed_snapshot(world.engine, world.settings, world.add_send("test-1.1"), **seeds)
    assert headline(ask(world, edition="test-1.1")) == 'not in spring-sale#test-1.1, which went to the seed list "team"'
    assert ask(world, "seed@example.org", edition="test-1.1").phases[0].frozen is not None


def test_the_question_is_audited_without_the_address(sqlite_audience: World) -> None:
    world = sqlite_audience
    world.add(LEA)
    freeze(world)
    ask(world)
    with read(world.engine) as connection:
        (row,) = connection.execute(select(audit_log).where(audit_log.c.action == "snapshot.why")).all()
    assert row.object == f"address:{world.hash_of(LEA).hex()}" and LEA not in repr(row)
