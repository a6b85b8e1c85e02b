"""Consent against refusal: the table of docs/decisions/0201."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailer_lib.contacts.precedence import (
    BY_PERSON,
    EVERYWHERE,
    LIFTABLE,
    NEWCOMER,
    Barrier,
    KeptOut,
    Standing,
    contact_state,
    weigh,
)
from mailer_lib.terms import ConsentAction, ContactState, SubscriptionState, SuppressionReason

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
BEFORE, AFTER = NOON - timedelta(days=1), NOON + timedelta(days=1)
CONFIRMED, PENDING, UNSUBSCRIBED = (
    SubscriptionState.CONFIRMED,
    SubscriptionState.PENDING,
    SubscriptionState.UNSUBSCRIBED,
)
STAY = sorted(set(SuppressionReason) - LIFTABLE - {SuppressionReason.ERASED})


def barred(*reasons: SuppressionReason, list_id: int = EVERYWHERE) -> Standing:
    return Standing(barriers=tuple(Barrier(n, r, NOON, list_id) for n, r in enumerate(reasons, 1)))


def test_a_newcomer_with_proven_consent_is_in() -> None:
    verdict = weigh(False, NOON, NEWCOMER)
    assert (verdict.action, verdict.state, verdict.kept_out) == (ConsentAction.CONFIRMED, CONFIRMED, None)


def test_a_newcomer_who_only_signed_up_waits() -> None:
    verdict = weigh(True, NOON, NEWCOMER)
    assert (verdict.action, verdict.state) == (ConsentAction.REQUESTED, PENDING)


@pytest.mark.parametrize("reason", sorted(LIFTABLE))
def test_a_newer_consent_lifts_what_the_person_or_the_mailbox_caused(reason: SuppressionReason) -> None:
    verdict = weigh(False, AFTER, barred(reason))
    assert verdict.lifts == (1,)
    assert (verdict.action, verdict.state, verdict.kept_out) == (ConsentAction.CONFIRMED, CONFIRMED, None)


@pytest.mark.parametrize("reason", sorted(BY_PERSON))
@pytest.mark.parametrize("at", [BEFORE, NOON, None], ids=["older", "same-moment", "undated"])
def test_an_older_consent_is_kept_as_evidence_and_changes_nothing(
    reason: SuppressionReason, at: datetime | None
) -> None:
    verdict = weigh(False, at, barred(reason))
    assert (verdict.action, verdict.state, verdict.lifts) == (ConsentAction.IMPORTED_OLDER, UNSUBSCRIBED, ())
    assert verdict.kept_out == reason.value


@pytest.mark.parametrize("at", [BEFORE, None])
def test_a_dead_mailbox_keeps_out_but_refuses_nothing(at: datetime | None) -> None:
    verdict = weigh(False, at, barred(SuppressionReason.HARD_BOUNCE))
    assert (verdict.action, verdict.state, verdict.lifts) == (ConsentAction.CONFIRMED, CONFIRMED, ())
    assert verdict.kept_out is KeptOut.HARD_BOUNCE


@pytest.mark.parametrize("reason", STAY)
def test_what_an_operator_caused_only_an_operator_lifts(reason: SuppressionReason) -> None:
    verdict = weigh(False, AFTER, barred(reason))
    assert verdict.lifts == ()
    assert verdict.kept_out == reason.value


@pytest.mark.parametrize("requested", [True, False])
def test_of_the_erased_nothing_is_kept(requested: bool) -> None:
    verdict = weigh(requested, AFTER, barred(SuppressionReason.UNSUBSCRIBED, SuppressionReason.ERASED))
    assert verdict.action is None
    assert verdict.kept_out is KeptOut.ERASED


@pytest.mark.parametrize("at", [BEFORE, AFTER, None])
def test_a_request_lifts_nothing(at: datetime | None) -> None:
    """Anybody can type an address into a form: only the person's own confirmation may undo their refusal."""
    verdict = weigh(True, at, barred(SuppressionReason.UNSUBSCRIBED))
    assert (verdict.state, verdict.lifts) == (UNSUBSCRIBED, ())
    assert verdict.kept_out is KeptOut.UNSUBSCRIBED
    newer = at is not None and at > NOON
    assert verdict.action is (ConsentAction.REQUESTED if newer else ConsentAction.IMPORTED_OLDER)


def test_a_request_does_not_demote_who_is_confirmed() -> None:
    assert weigh(True, AFTER, Standing(state=CONFIRMED)).state is CONFIRMED


def test_unsubscribed_counts_even_when_an_operator_lifted_the_suppression() -> None:
    left = Standing(state=UNSUBSCRIBED, unsubscribed_at=NOON)
    assert weigh(False, BEFORE, left).kept_out is KeptOut.UNSUBSCRIBED
    assert weigh(False, AFTER, left).state is CONFIRMED


def test_one_refusal_that_is_newer_keeps_all_of_them() -> None:
    standing = Standing(
        barriers=(
            Barrier(1, SuppressionReason.COMPLAINED, BEFORE),
            Barrier(2, SuppressionReason.UNSUBSCRIBED, AFTER, list_id=3),
        )
    )
    verdict = weigh(False, NOON, standing)
    assert (verdict.lifts, verdict.kept_out) == ((), KeptOut.UNSUBSCRIBED)


def test_a_barred_domain_keeps_out() -> None:
    verdict = weigh(False, AFTER, Standing(domain_barred=True))
    assert (verdict.state, verdict.kept_out) == (CONFIRMED, KeptOut.DOMAIN)


MOMENTS = st.sampled_from([BEFORE, NOON, AFTER])
BARRIERS = st.lists(
    st.builds(Barrier, st.integers(1, 99), st.sampled_from(SuppressionReason), MOMENTS, st.sampled_from([0, 3])),
    max_size=4,
    unique_by=lambda b: b.id,
).map(tuple)
STANDINGS = st.builds(
    Standing, st.none() | st.sampled_from(SubscriptionState), st.none() | MOMENTS, BARRIERS, st.booleans()
)


@given(st.booleans(), st.none() | MOMENTS, STANDINGS)
def test_nobody_is_let_in_past_a_suppression(requested: bool, at: datetime | None, standing: Standing) -> None:
    verdict = weigh(requested, at, standing)
    remaining = [b for b in standing.barriers if b.id not in verdict.lifts]
    assert (verdict.kept_out is None) == (
        not remaining and not standing.domain_barred and verdict.state is not UNSUBSCRIBED
    )
    for barrier in standing.barriers:
        if barrier.id in verdict.lifts:
            assert barrier.reason in LIFTABLE
            assert not requested
            assert at is not None
            assert at > barrier.refused_at


@given(st.booleans(), STANDINGS)
def test_undated_is_never_stronger_than_dated(requested: bool, standing: Standing) -> None:
    if weigh(requested, None, standing).kept_out is None:
        assert weigh(requested, AFTER, standing).kept_out is None


@pytest.mark.parametrize(
    ("reasons", "state"),
    [
        ((), ContactState.ACTIVE),
        ((SuppressionReason.MANUAL, SuppressionReason.UNSUBSCRIBED), ContactState.ACTIVE),
        ((SuppressionReason.HARD_BOUNCE,), ContactState.BOUNCED),
        ((SuppressionReason.HARD_BOUNCE, SuppressionReason.COMPLAINED), ContactState.COMPLAINED),
        ((SuppressionReason.ERASED, SuppressionReason.COMPLAINED), ContactState.ERASED),
    ],
)
def test_state_of_a_contact(reasons: tuple[SuppressionReason, ...], state: ContactState) -> None:
    assert contact_state(barred(*reasons).barriers) is state
    assert contact_state(barred(*reasons, list_id=7).barriers) is ContactState.ACTIVE
