"""Who is never selected, and every reason why."""

from collections.abc import Callable

import pytest
from sqlalchemy import Connection, insert, select, update

from mailer_lib.audience import catalogue
from mailer_lib.audience.counts import count
from mailer_lib.audience.exclusions import exclusions, reason_names, seed_exclusions
from mailer_lib.contacts import consent
from mailer_lib.database.engine import read, write
from mailer_lib.database.schema import contacts, subscriptions
from mailer_lib.terms import ContactState, ExclusionReason, SuppressionReason
from tests.audience.world import EVERYBODY, LONG_AGO, World

R = ExclusionReason
NOBODY = ExclusionReason(0)


def reasons(world: World) -> dict[str, ExclusionReason]:
    barred = exclusions(world.newsletter)
    rows = world.fetch(select(contacts.c.address_given, barred.reasons).select_from(barred.people))
    return {address: ExclusionReason(mask) for address, mask in rows}


def test_only_a_confirmed_subscription_to_the_campaigns_own_list_will_do(world: World) -> None:
    for state in ("confirmed", "pending", "unsubscribed"):
        world.add(f"{state}@example.org", state=state)
    world.add("stranger@example.org", state=None)
    elsewhere = world.add("elsewhere@example.org", state=None)
    row = {"contact_id": elsewhere, "list_id": world.lists["offers"], "state": "confirmed", "updated_at": LONG_AGO}
    with write(world.engine) as connection:
        connection.execute(insert(subscriptions).values(row))
    assert reasons(world) == {
        "confirmed@example.org": NOBODY,
        "pending@example.org": R.UNCONFIRMED,
        "unsubscribed@example.org": R.UNSUBSCRIBED,
        "stranger@example.org": R.UNCONFIRMED,
        "elsewhere@example.org": R.UNCONFIRMED,
    }


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        ("active", NOBODY),
        ("bounced", R.BOUNCED),
        ("complained", R.COMPLAINED),
        ("invalid", R.INVALID_ADDRESS),
        ("erased", R.ERASED),
        ("of-a-later-release", R.INVALID_ADDRESS),
    ],
)
def test_the_state_of_a_contact_bars(sqlite_world: World, state: str, reason: ExclusionReason) -> None:
    world = sqlite_world
    contact_id = world.add("a@example.org")
    with write(world.engine) as connection:
        connection.execute(update(contacts).where(contacts.c.id == contact_id).values(state=state))
    assert reasons(world) == {"a@example.org": reason}


def test_every_state_that_a_contact_can_have_is_judged() -> None:
    assert len(ContactState) == 5, "give the new state a reason in exclusions.py, and a line above"


@pytest.mark.parametrize(
    ("reason", "bits"),
    [
        (SuppressionReason.UNSUBSCRIBED, R.SUPPRESSED_ADDRESS | R.UNSUBSCRIBED),
        (SuppressionReason.COMPLAINED, R.SUPPRESSED_ADDRESS | R.COMPLAINED),
        (SuppressionReason.HARD_BOUNCE, R.SUPPRESSED_ADDRESS | R.BOUNCED),
        (SuppressionReason.MANUAL, R.SUPPRESSED_ADDRESS),
        (SuppressionReason.IMPORTED, R.SUPPRESSED_ADDRESS),
        (SuppressionReason.ERASED, R.SUPPRESSED_ADDRESS | R.ERASED),
    ],
)
def test_an_active_suppression_bars_with_its_reason(
    world: World, reason: SuppressionReason, bits: ExclusionReason
) -> None:
    world.add("a@example.org")
    world.add("b@example.org")
    with write(world.engine) as connection:
        consent.suppress(
            connection, address_hash=world.hash_of("A@example.org"), reason=reason, source="test", at=LONG_AGO
        )
    found = reasons(world)
    assert found["b@example.org"] == NOBODY
    assert found["a@example.org"] & bits == bits


def test_suppressions_hold_everywhere_or_for_one_list_and_until_they_are_lifted(world: World) -> None:
    world.add("other-list@example.org")
    world.add("this-list@example.org")
    world.add("lifted@example.org")

    def bar(connection: Connection, address: str, list_id: int) -> None:
        consent.suppress(
            connection,
            address_hash=world.hash_of(address),
            reason=SuppressionReason.MANUAL,
            source="test",
            list_id=list_id,
            at=LONG_AGO,
        )

    with write(world.engine) as connection:
        bar(connection, "other-list@example.org", world.lists["offers"])
        bar(connection, "this-list@example.org", world.newsletter)
        bar(connection, "lifted@example.org", 0)
        consent.lift(connection, address_hash=world.hash_of("lifted@example.org"), by="ann")
    assert reasons(world) == {
        "other-list@example.org": NOBODY,
        "this-list@example.org": R.SUPPRESSED_ADDRESS,
        "lifted@example.org": NOBODY,
    }


def leave_the_list(connection: Connection, world: World, address_hash: bytes) -> None:
    consent.unsubscribe(
        connection,
        address_hash=address_hash,
        list_id=world.newsletter,
        method="one-click",
        source="test",
        at=LONG_AGO,
    )


def leave_everything(connection: Connection, world: World, address_hash: bytes) -> None:
    consent.unsubscribe(
        connection, address_hash=address_hash, list_id=None, method="one-click", source="test", at=LONG_AGO
    )


@pytest.mark.parametrize("leave", [leave_the_list, leave_everything])
def test_whoever_leaves_is_barred(world: World, leave: Callable[[Connection, World, bytes], None]) -> None:
    world.add("a@example.org")
    with write(world.engine) as connection:
        leave(connection, world, world.hash_of("a@example.org"))
    assert reasons(world)["a@example.org"] & R.UNSUBSCRIBED


def test_a_barred_domain_bars_exactly_that_domain(world: World) -> None:
    for address in ("a@bücher.example", "b@sub.xn--bcher-kva.example", "c@example.org"):
        world.add(address)
    with write(world.engine) as connection:
        consent.suppress_domain(connection, domain="xn--bcher-kva.example", source="test")
    assert [mask for _, mask in sorted(reasons(world).items())] == [R.SUPPRESSED_DOMAIN, NOBODY, NOBODY]


def test_all_reasons_are_told_and_counted(world: World) -> None:
    world.add("fine@example.org")
    world.add("bad@barred.example", state="pending")
    with write(world.engine) as connection:
        consent.suppress_domain(connection, domain="barred.example", source="test")
        for reason in (SuppressionReason.HARD_BOUNCE, SuppressionReason.COMPLAINED):
            address_hash = world.hash_of("bad@barred.example")
            consent.suppress(connection, address_hash=address_hash, reason=reason, source="t", at=LONG_AGO)
    mask = reasons(world)["bad@barred.example"]
    assert mask & R.BOUNCED and mask & R.COMPLAINED and mask & R.SUPPRESSED_DOMAIN and mask & R.SUPPRESSED_ADDRESS
    with read(world.engine) as connection:
        found = count(connection, world.settings, EVERYBODY, catalogue.load(connection), world.newsletter)
    assert (found.matching, found.mailable, found.barred) == (2, 1, 1)
    assert found.by_reason == dict.fromkeys(reason_names(mask), 1)


def test_seeds_need_no_subscription_but_their_refusal_binds(world: World) -> None:
    world.add("colleague@example.org", state=None)
    world.add("left@example.org", state="unsubscribed")
    barred = seed_exclusions(world.newsletter)
    rows = world.fetch(select(contacts.c.address_given, barred.reasons).select_from(barred.people))
    assert dict(map(tuple, rows)) == {"colleague@example.org": 0, "left@example.org": R.UNSUBSCRIBED}


def test_reasons_have_names() -> None:
    assert reason_names(0) == ()
    assert reason_names(R.UNSUBSCRIBED | R.SUPPRESSED_ADDRESS) == ("unsubscribed", "suppressed-address")
