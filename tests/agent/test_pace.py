from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailer_lib.agent.pace import BURST_S, Bucket, Pace

rates = st.floats(0.05, 5000)
steps = st.lists(st.floats(0, 2), min_size=1, max_size=200)


@given(rates, st.floats(0, 1), steps)
def test_no_window_ever_holds_more_than_the_limit_allows(per_s: float, burst_s: float, gaps: list[float]) -> None:
    bucket = Bucket(per_s, burst_s)
    now = 1000.0
    passed: list[float] = []
    for gap in gaps:
        now += gap
        for _ in range(50):  # as greedy as can be
            if bucket.next_allowed_at(now) > now:
                break
            bucket.take(now)
            passed.append(now)
    for i, start in enumerate(passed):
        for j in range(i, min(i + 300, len(passed))):
            window_s = passed[j] - start
            assert j - i + 1 <= per_s * (window_s + burst_s) * (1 + 1e-9) + 1 + 1e-6


@given(st.floats(0.5, 500), st.floats(0.0, 0.03))
def test_a_sender_that_comes_when_it_is_told_uses_the_whole_limit(per_s: float, late_s: float) -> None:
    """Timers that are up to 30 ms late cost nothing: the burst makes up for them."""
    bucket = Bucket(per_s)
    start = now = 5.0
    passed = 0
    while now < start + 400 / per_s:
        allowed_at = bucket.next_allowed_at(now)
        if allowed_at > now:
            now = allowed_at + late_s
            continue
        bucket.take(now)
        passed += 1
    assert passed >= (now - start) * per_s * 0.99 - 1
    assert passed <= (now - start + BURST_S) * per_s + 2


@given(st.floats(0.05, 200), st.floats(0, 1), st.floats(0, 20), st.integers(0, 30), st.floats(0.1, 20))
def test_many_at_once_are_as_many_as_one_after_the_other(
    per_s: float, burst_s: float, first_s: float, earlier: int, lasts_s: float
) -> None:
    one, many = Bucket(per_s, burst_s), Bucket(per_s, burst_s)
    for bucket in (one, many):
        for _ in range(earlier):
            bucket.take(bucket.next_allowed_at(0.0))
    now, until, passed = first_s, first_s + lasts_s, 0
    while (at := one.next_allowed_at(now)) <= until:
        one.take(at)
        now, passed = at, passed + 1
    assert abs(many.passing(first_s, until) - passed) <= 1  # the last may differ by a rounding error
    many.take(first_s, passed)
    assert abs(many.next_allowed_at(until) - one.next_allowed_at(until)) <= 1e-6 + burst_s


def test_no_limit_never_waits_and_zero_waits_for_ever() -> None:
    free, shut = Bucket(None), Bucket(0)
    for _ in range(1000):
        assert free.next_allowed_at(3.0) == 3.0
        free.take(3.0)
    assert shut.next_allowed_at(3.0) == inf


@pytest.mark.parametrize("per_s", [-1.0, float("nan")])
def test_nonsense_limits_are_refused(per_s: float) -> None:
    with pytest.raises(ValueError, match="limit"):
        Bucket(per_s)
    with pytest.raises(ValueError, match="burst"):
        Bucket(1, 1.5)


@given(st.lists(st.sampled_from(["gmail", "yahoo", "other"]), max_size=300))
def test_limits_of_providers_and_of_the_server_hold_together(order: list[str]) -> None:
    pace = Pace(50, {"gmail": 10, "yahoo": 20})
    now, passed = 0.0, []
    for provider in order:
        now = max(now, pace.next_allowed_at(provider, now))
        assert pace.next_allowed_at(provider, now) == now
        pace.take(provider, now)
        passed.append((now, provider))
    for name, limit in (("gmail", 10), ("yahoo", 20), (None, 50)):
        times = [at for at, provider in passed if name in (None, provider)]
        for i, start in enumerate(times):
            for j in range(i, len(times)):
                assert j - i + 1 <= limit * (times[j] - start + BURST_S) + 1 + 1e-6


def test_a_slow_provider_holds_up_nobody_else() -> None:
    pace = Pace(None, {"gmail": 0.001})
    pace.take("gmail", 0.0)
    assert pace.next_allowed_at("gmail", 1.0) > 900
    assert pace.next_allowed_at("other", 1.0) == 1.0


def test_a_changed_limit_holds_at_once_and_gives_no_fresh_burst() -> None:
    pace = Pace(1000, {})
    now = 10.0
    while pace.next_allowed_at("x", now) == now:
        pace.take("x", now)
    pace.change(2, {}, now)
    passed = 0
    for tick in range(1000):
        at = now + tick / 100
        if pace.next_allowed_at("x", at) == at:
            pace.take("x", at)
            passed += 1
    assert 19 <= passed <= 21
    pace.change(None, {"x": 0}, now + 10)
    assert pace.next_allowed_at("x", now + 10) == inf
    pace.change(None, {}, now + 11)
    assert pace.next_allowed_at("x", now + 11) == now + 11
