"""Consent and refusal of one person, with evidence; on both databases."""

from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import delete, update
from sqlalchemy.exc import DatabaseError

from mailer_lib.contacts import consent
from mailer_lib.contacts.consent import OVERLAP, ConsentResult
from mailer_lib.contacts.precedence import EVERYWHERE, KeptOut
from mailer_lib.database.engine import now, read, write
from mailer_lib.database.schema import consent_events
from mailer_lib.terms import ContactState, SuppressionReason
from tests.contacts.world import World, at

LENA = "lena@example.org"
JUNE = at("2026-06-01")


@pytest.fixture
def lena(world: World, tmp_path: Path) -> World:
    """A confirmed subscriber of ``newsletter`` since March."""
    world.load(tmp_path / "people.csv", f"E-Mail\n{LENA}\n", consent_at="2026-03-01")
    return world


def leave(world: World, list_id: int | None, moment: str = "2026-06-01") -> bool:
    left: bool = world.do(
        consent.unsubscribe,
        LENA,
        list_id=list_id,
        method="one-click",
        source="spring-sale#1",
        ip="192.0.2.1",
        at=at(moment),
    )
    return left


def agree(world: World, moment: str) -> ConsentResult:
    result: ConsentResult = world.do(
        consent.confirm, LENA, list_id=world.list_id, method="form", source="/signup", at=at(moment)
    )
    return result


def test_leaving_one_list(lena: World) -> None:
    assert leave(lena, lena.list_id)
    assert lena.subscription(LENA) == "unsubscribed"
    assert lena.active(LENA) == [("unsubscribed", lena.list_id)]
    assert lena.evidence(LENA) == [("confirmed", at("2026-03-01")), ("unsubscribed", JUNE)]


def test_leaving_every_list(lena: World, tmp_path: Path) -> None:
    lena.load(tmp_path / "people.csv", list_name="other", consent_at="2026-03-01")
    leave(lena, None)
    assert lena.subscription(LENA) == lena.subscription(LENA, lena.list_id - 1) == "unsubscribed"
    assert lena.active(LENA) == [("unsubscribed", EVERYWHERE)]


def test_leaving_twice_changes_nothing(lena: World) -> None:
    leave(lena, lena.list_id)
    before = lena.tables()
    assert not leave(lena, lena.list_id)
    assert lena.tables() == before


def test_the_last_refusal_is_what_a_consent_must_be_newer_than(lena: World) -> None:
    leave(lena, lena.list_id, "2026-06-01")
    leave(lena, lena.list_id, "2026-08-01")
    assert agree(lena, "2026-07-01") is ConsentResult.KEPT_OUT
    assert lena.subscription(LENA) == "unsubscribed"


def test_who_is_no_contact_can_leave_too(world: World, tmp_path: Path) -> None:
    leave(world, None)
    report = world.load(tmp_path / "people.csv", f"E-Mail\n{LENA}\n", consent_at="2026-03-01")
    assert report.kept_out == {KeptOut.UNSUBSCRIBED: 1}
    assert world.subscription(LENA) == "unsubscribed"


def test_a_newer_consent_brings_back(lena: World) -> None:
    leave(lena, None)
    assert agree(lena, "2026-07-01") is ConsentResult.GIVEN
    assert lena.subscription(LENA) == "confirmed"
    assert lena.active(LENA) == []


def test_a_consent_to_one_list_brings_back_to_that_one_only(lena: World, tmp_path: Path) -> None:
    lena.load(tmp_path / "people.csv", list_name="other", consent_at="2026-03-01")
    leave(lena, None)
    agree(lena, "2026-07-01")
    assert lena.subscription(LENA, lena.list_id - 1) == "unsubscribed"


def test_an_older_consent_does_not(lena: World) -> None:
    leave(lena, lena.list_id)
    assert agree(lena, "2026-05-31") is ConsentResult.KEPT_OUT
    assert lena.subscription(LENA) == "unsubscribed"
    assert lena.evidence(LENA)[-1] == ("imported-older", at("2026-05-31"))


def test_confirming_twice_changes_nothing(lena: World) -> None:
    before = lena.tables()
    assert agree(lena, "2026-07-01") is ConsentResult.UNCHANGED
    assert lena.tables() == before


def test_nobody_becomes_a_contact_by_confirming(world: World) -> None:
    assert agree(world, "2026-07-01") is ConsentResult.NO_CONTACT
    assert world.evidence(LENA) == []


@pytest.mark.parametrize(
    ("reason", "state"),
    [(SuppressionReason.HARD_BOUNCE, ContactState.BOUNCED), (SuppressionReason.COMPLAINED, ContactState.COMPLAINED)],
)
def test_bounces_and_complaints_mark_the_contact_until_a_newer_consent(
    lena: World, reason: SuppressionReason, state: ContactState
) -> None:
    assert lena.do(consent.suppress, LENA, reason=reason, source="feedback", at=JUNE)
    assert not lena.do(consent.suppress, LENA, reason=reason, source="feedback", at=JUNE)
    assert lena.contact(LENA).state == state
    assert agree(lena, "2026-07-01") is ConsentResult.GIVEN
    assert lena.contact(LENA).state == ContactState.ACTIVE


def test_a_complaint_is_a_refusal_with_evidence(lena: World) -> None:
    lena.do(consent.suppress, LENA, reason=SuppressionReason.COMPLAINED, source="feedback loop", at=JUNE)
    assert lena.subscription(LENA) == "unsubscribed"
    assert lena.evidence(LENA)[-1] == ("complained", JUNE)


def test_what_an_operator_barred_stays_until_an_operator_lifts_it(lena: World) -> None:
    lena.do(consent.suppress, LENA, reason=SuppressionReason.MANUAL, source="ann", at=JUNE)
    assert agree(lena, "2026-07-01") is ConsentResult.KEPT_OUT
    assert lena.active(LENA) == [("manual", EVERYWHERE)]
    assert lena.do(consent.lift, LENA, by="ann") == 1
    assert lena.active(LENA) == []


def test_lifting_gives_nobody_a_consent(lena: World) -> None:
    leave(lena, lena.list_id)
    assert lena.do(consent.lift, LENA, by="ann", list_id=lena.list_id) == 1
    assert lena.subscription(LENA) == "unsubscribed"
    assert agree(lena, "2026-05-01") is ConsentResult.KEPT_OUT


def test_domains(world: World) -> None:
    assert world.do(consent.suppress_domain, domain="example.org", source="ann")
    assert not world.do(consent.suppress_domain, domain="example.org", source="ann")
    with read(world.engine) as connection:
        why = consent.barring(connection, address_hash=world.key(LENA), domain="example.org", list_id=world.list_id)
    assert why is KeptOut.DOMAIN
    assert world.do(consent.lift_domain, domain="example.org")
    assert not world.do(consent.lift_domain, domain="example.org")


def test_a_running_send_learns_what_is_new(world: World) -> None:
    start = now()
    for number, (reason, list_id) in enumerate(
        [
            (SuppressionReason.MANUAL, EVERYWHERE),
            (SuppressionReason.UNSUBSCRIBED, world.list_id),
            (SuppressionReason.UNSUBSCRIBED, world.list_id - 1),  # of another list
            (SuppressionReason.MANUAL, EVERYWHERE),  # lifted again
        ]
    ):
        world.do(consent.suppress, f"p{number}@x.org", reason=reason, source=None, list_id=list_id, at=at("2020-01-01"))
    world.do(consent.lift, "p3@x.org", by="ann")
    world.do(consent.suppress_domain, domain="example.org", source=None)
    with read(world.engine) as connection:
        hashes, domains = consent.active_suppressions_since(connection, since=start, list_id=world.list_id)
        later = consent.active_suppressions_since(
            connection, since=now() + OVERLAP + timedelta(seconds=1), list_id=world.list_id
        )
    assert hashes == {world.key("p0@x.org"), world.key("p1@x.org")}  # whenever it happened, it is news
    assert domains == {"example.org"}
    assert later == (frozenset(), frozenset())


def test_evidence_cannot_be_changed_or_deleted(lena: World) -> None:
    for statement in (update(consent_events).values(action="confirmed"), delete(consent_events)):
        with pytest.raises(DatabaseError, match="append-only"), write(lena.engine) as connection:
            connection.execute(statement)
