"""The circuit breaker on a clock of the test's own."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailer_lib.agent.breaker import EVERYBODY, Answer, Breakers, answer_of
from mailer_lib.agent.job import BreakerRules

RULES = BreakerRules(replies=10, refused_share=0.5, deferred_share=0.9, hold_first_s=60, probes=2, probe_every_s=5)
OK, NO, LATER, GREY = (
    (250, "", ""),
    (550, "5.7.1", "blocked for policy"),
    (451, "4.3.0", "later"),
    (451, "4.7.1", "Greylisted"),
)


def hear(breakers: Breakers, provider: str, reply: tuple[int, str, str], now: float, times: int = 1) -> list[str]:
    return [held.provider for _ in range(times) for held in breakers.hear(provider, *reply, now)]


@pytest.mark.parametrize(
    ("reply", "answer"),
    [
        (OK, Answer.ACCEPTED),
        (NO, Answer.REFUSED),
        ((550, "5.1.1", "no such user"), Answer.REFUSED),
        (LATER, Answer.DEFERRED),
        ((421, "4.7.28", "rate limited"), Answer.DEFERRED),
        (GREY, None),
        ((452, "4.2.2", "mailbox full"), None),
    ],
)
def test_what_a_reply_says_about_its_provider(reply: tuple[int, str, str], answer: Answer | None) -> None:
    assert answer_of(*reply) is answer


def test_half_of_the_last_replies_refused_opens_it_and_says_why() -> None:
    breakers = Breakers(RULES)
    assert hear(breakers, "gmail", OK, 0, 5) == []
    assert hear(breakers, "gmail", NO, 0, 4) == []
    assert breakers.provider_allowed_at("gmail", 0) == 0
    assert hear(breakers, "gmail", NO, 0) == ["gmail"]
    (held,) = breakers.held()
    assert (held.provider, held.until) == ("gmail", 60)
    assert held.reason == "5 of the last 10 messages were refused; the last reply: 550 blocked for policy"
    assert breakers.provider_allowed_at("gmail", 1) == 60
    assert breakers.provider_allowed_at("yahoo", 1) == 1
    assert breakers.all_allowed_at(1) == 1


def test_deferrals_open_it_when_nearly_everything_is_deferred_and_greylisting_never() -> None:
    breakers = Breakers(RULES)
    assert hear(breakers, "gmail", GREY, 0, 100) == []
    assert hear(breakers, "gmail", OK, 0, 2) == []
    assert hear(breakers, "gmail", LATER, 0, 8) == []
    assert hear(breakers, "gmail", LATER, 0) == ["gmail"]


def test_after_the_hold_a_few_are_tried_and_accepted_ones_close_it() -> None:
    breakers = Breakers(RULES)
    hear(breakers, "gmail", NO, 0, 10)
    assert breakers.provider_allowed_at("gmail", 60) == 60
    breakers.take("gmail", 60)
    assert breakers.provider_allowed_at("gmail", 61) == 65
    hear(breakers, "gmail", OK, 62)
    breakers.take("gmail", 65)
    assert hear(breakers, "gmail", OK, 66) == []
    assert breakers.held() == []
    assert breakers.provider_allowed_at("gmail", 66) == 66


def test_a_refused_probe_doubles_the_hold_up_to_the_longest() -> None:
    breakers = Breakers(RULES.model_copy(update={"hold_longest_s": 100}))
    hear(breakers, "gmail", NO, 0, 10)
    for now, until in ((60, 160), (160, 260)):
        breakers.take("gmail", now)
        assert hear(breakers, "gmail", NO, now) == ["gmail"]
        assert breakers.provider_allowed_at("gmail", now) == until


def test_answers_to_what_was_on_its_way_when_it_opened_change_nothing() -> None:
    breakers = Breakers(RULES)
    hear(breakers, "gmail", NO, 0, 10)
    assert hear(breakers, "gmail", NO, 1, 20) == []
    assert hear(breakers, "gmail", OK, 1, 20) == []
    assert breakers.provider_allowed_at("gmail", 2) == 60


def test_an_mta_that_refuses_everything_is_left_alone_as_a_whole() -> None:
    breakers = Breakers(RULES)
    opened = [hear(breakers, f"provider-{n}", NO, 0) for n in range(12)]
    assert opened.count([EVERYBODY]) == 1
    assert breakers.all_allowed_at(0) == 60


def test_no_replies_to_judge_no_breaker() -> None:
    breakers = Breakers(BreakerRules(replies=0))
    assert hear(breakers, "gmail", NO, 0, 1000) == []


@given(st.lists(st.tuples(st.sampled_from([OK, NO, LATER, GREY]), st.floats(0, 30)), max_size=300))
def test_while_it_is_open_nothing_passes_and_it_always_ends(story: list[tuple[tuple[int, str, str], float]]) -> None:
    breakers, now, refused_in_a_row = Breakers(RULES), 0.0, 0
    for reply, wait_s in story:
        now += wait_s
        allowed_at = breakers.provider_allowed_at("gmail", now)
        assert now <= allowed_at <= now + RULES.hold_longest_s
        if allowed_at > now:
            assert breakers.held()
            continue
        breakers.take("gmail", now)
        refused_in_a_row = refused_in_a_row + 1 if reply is NO else 0
        hear(breakers, "gmail", reply, now)
        assert refused_in_a_row <= RULES.replies  # nobody can refuse more than the breaker looks at
