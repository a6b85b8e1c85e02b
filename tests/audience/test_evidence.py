"""Each reason of the bitmask is a sentence that tells the evidence, and says what has changed since."""

from datetime import UTC, datetime

import pytest

from mailer_lib.audience.evidence import DomainRecord, Facts, Frozen, explain
from mailer_lib.audience.plan import ControlGroup, Exclude, FrequencyCap
from mailer_lib.contacts.person import Person, SubscriptionRecord, SuppressionRecord
from mailer_lib.terms import ExclusionReason as R

BEFORE, FROZEN, AFTER = (datetime(2026, month, 3, 8, 30, tzinfo=UTC) for month in (10, 11, 12))
SNAPSHOT = Frozen(
    as_of=FROZEN,
    published_at=FROZEN,
    exclude=Exclude(
        lists=("offers",),
        criteria=("bought lately",),
        control_group=ControlGroup(percent=5, seed="spring"),
        frequency_cap=FrequencyCap(messages=2, days=7, campaign_class="marketing"),
    ),
)


def facts(
    *subscriptions: SubscriptionRecord,
    state: str | None = "active",
    suppressions: tuple[SuppressionRecord, ...] = (),
    domain: DomainRecord | None = None,
    criteria: tuple[str, ...] = (),
    earlier: tuple[str, ...] = (),
    counted: tuple[str, ...] = (),
) -> Facts:
    person = Person({"state": state} if state else None, subscriptions, (), (), False)
    return Facts(person, "newsletter", suppressions, domain, criteria, earlier, counted)


def on(state: str, name: str = "newsletter", **more: object) -> SubscriptionRecord:
    columns = {"source": None, "confirmed_at": None, "unsubscribed_at": None, "confirmation_sent_at": None}
    return SubscriptionRecord(name, state, **{**columns, **more})  # type: ignore[arg-type]


def suppressed(reason: str, lifted: datetime | None = None, **more: object) -> SuppressionRecord:
    columns = {"list_name": None, "source": None, "refused_at": BEFORE, "recorded_at": BEFORE}
    return SuppressionRecord(reason=reason, lifted_at=lifted, **{**columns, **more})  # type: ignore[arg-type]


LEFT = suppressed("unsubscribed", list_name="newsletter", source="one-click")
CASES = {
    "never subscribed": (R.UNCONFIRMED, facts(), 'has no subscription to the list "newsletter"'),
    "pending": (
        R.UNCONFIRMED,
        facts(on("pending", source="form.csv", confirmation_sent_at=BEFORE)),
        'is pending on the list "newsletter", asked for confirmation on 2026-10-03 08:30 UTC (from form.csv)',
    ),
    "confirmed since": (
        R.UNCONFIRMED,
        facts(on("confirmed", confirmed_at=AFTER)),
        'was not confirmed on the list "newsletter" then; is now since 2026-12-03 08:30 UTC',
    ),
    "left": (
        R.UNSUBSCRIBED,
        facts(on("unsubscribed", unsubscribed_at=BEFORE), suppressions=(LEFT,)),
        'left the list "newsletter" on 2026-10-03 08:30 UTC; '
        'suppressed on the list "newsletter" since 2026-10-03 08:30 UTC: unsubscribed (one-click)',
    ),
    "came back since": (
        R.UNSUBSCRIBED,
        facts(on("confirmed", unsubscribed_at=BEFORE)),
        'had left the list "newsletter" on 2026-10-03 08:30 UTC; is confirmed now',
    ),
    "suppressed": (
        R.SUPPRESSED_ADDRESS,
        facts(suppressions=(suppressed("manual", source="ann"),)),
        "suppressed on every list since 2026-10-03 08:30 UTC: manual (ann)",
    ),
    "lifted since": (
        R.SUPPRESSED_ADDRESS,
        facts(suppressions=(suppressed("manual", AFTER),)),
        "suppressed on every list since 2026-10-03 08:30 UTC: manual, lifted on 2026-12-03 08:30 UTC",
    ),
    "another list, lifted before, recorded after": (
        R.SUPPRESSED_ADDRESS,
        facts(
            suppressions=(
                suppressed("manual", list_name="offers"),
                suppressed("manual", BEFORE),
                suppressed("manual", recorded_at=AFTER),
            )
        ),
        "the address was suppressed; nothing of it is known any more",
    ),
    "domain": (
        R.SUPPRESSED_DOMAIN,
        facts(domain=DomainRecord("x.example", "ann", BEFORE)),
        "the domain x.example is suppressed since 2026-10-03 08:30 UTC (ann)",
    ),
    "bounced": (
        R.BOUNCED,
        facts(suppressions=(suppressed("hard-bounce"), suppressed("manual"))),
        "suppressed on every list since 2026-10-03 08:30 UTC: hard-bounce",
    ),
    "complained, by state alone": (
        R.COMPLAINED,
        facts(state="complained"),
        "complained about a message: the contact's state is complained",
    ),
    "invalid state": (R.INVALID_ADDRESS, facts(state="invalid"), "the contact's state is invalid"),
    "unreadable address": (
        R.INVALID_ADDRESS,
        facts(),
        "the address couldn't be read as one that mail can be sent to",
    ),
    "already sent": (
        R.ALREADY_SENT,
        facts(earlier=("phase 1: injected on 2026-10-03 08:30 UTC",)),
        "phase 1: injected on 2026-10-03 08:30 UTC",
    ),
    "erased, and gone": (
        R.ERASED,
        facts(state=None, suppressions=(suppressed("erased", source="ann"),)),
        "suppressed on every list since 2026-10-03 08:30 UTC: erased (ann)",
    ),
    "cap": (
        R.FREQUENCY_CAP,
        facts(),
        "had got, or was due to get, as many messages as the campaign's cap allows, 2 of class marketing in 7 days",
    ),
    "cap, with the messages that are known": (
        R.FREQUENCY_CAP,
        facts(counted=("welcome#1 injected on 2026-10-03 08:30 UTC", "letter#2 not settled")),
        "had got, or was due to get, as many messages as the campaign's cap allows, 2 of class marketing in 7 days: "
        "welcome#1 injected on 2026-10-03 08:30 UTC, letter#2 not settled",
    ),
    "left out by list and criteria": (
        R.EXCLUDED_LIST,
        facts(on("pending", "offers", source="shop"), criteria=("bought lately",)),
        'is pending on the list "offers", which the campaign leaves out (from shop); '
        'matches the criteria "bought lately", which the campaign leaves out',
    ),
    "control group": (R.CONTROL_GROUP, facts(), 'is in the control group, 5 % of all people by the seed "spring"'),
    "duplicate": (R.DUPLICATE, facts(), "another contact with the same address was taken"),
}


@pytest.mark.parametrize("case", CASES)
def test_a_sentence_for_each_reason(case: str) -> None:
    bit, known, sentence = CASES[case]
    (reason,) = explain(bit, known, SNAPSHOT)
    assert reason.sentence == sentence


def test_every_reason_that_there_is_has_its_sentence() -> None:
    """Also when nothing at all is known any more."""
    everything = R(sum(R))
    bare = Frozen(FROZEN, FROZEN, Exclude())
    told = explain(everything, facts(state=None), bare)
    assert len(told) == len(list(R))
    assert all(reason.sentence for reason in told)
