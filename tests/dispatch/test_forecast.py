"""The forecast: a fluid model, checked by hand and by what must hold for any send."""

from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailer_lib.dispatch.caps import CapRules
from mailer_lib.dispatch.forecast import Capacity, Capped, ServerCapacity, forecast
from mailer_lib.message.send_window import SendWindow
from mailer_lib.terms import CapSpan

AT = datetime(2026, 11, 24, 12, tzinfo=UTC)
HOUR_S, DAY_S = 3600.0, 86400.0


def able(*per_s: float) -> tuple[ServerCapacity, ...]:
    return tuple(ServerCapacity(one) for one in per_s)


def capped(per_s: float, **rules: Any) -> ServerCapacity:
    used = rules.pop("used", {})
    return ServerCapacity(per_s, CapRules("mta-1", **rules), used)


def test_capacity_decides_when_nothing_else_does() -> None:
    made = forecast({"gmail": 670, "outlook": 330}, Capacity(able(100.0), {}), AT)
    assert made.total_s == pytest.approx(10)
    assert {p.bound_by for p in made.by_provider} == {"capacity"}


def test_a_providers_limit_holds_only_that_provider_back() -> None:
    made = forecast({"gmail": 600, "other": 400}, Capacity(able(100.0), {"gmail": 10.0}), AT)
    by_name = {p.provider: p for p in made.by_provider}
    assert by_name["gmail"].done_after_s == pytest.approx(60)
    assert by_name["gmail"].bound_by == "limit of gmail"
    assert by_name["other"].done_after_s == pytest.approx(400 / 90)
    assert made.by_provider[0].provider == "gmail"  # the last to finish is named first


def test_a_pace_bounds_the_whole_send() -> None:
    made = forecast({"other": 100}, Capacity(able(100.0), {}, pace_per_s=2.0), AT)
    assert (made.total_s, made.by_provider[0].bound_by) == (pytest.approx(50), "pace")


def test_without_a_server_it_is_never_done() -> None:
    made = forecast({"other": 100}, Capacity(able(0.0), {}), AT)
    assert made.as_dict()["total_s"] is None


def test_nothing_to_send_takes_no_time() -> None:
    assert forecast({}, Capacity(able(10.0), {}), AT).total_s == 0


names = st.sampled_from(["gmail", "outlook", "yahoo", "gmx", "other"])


@given(
    messages=st.dictionaries(names, st.integers(0, 10**6), max_size=5),
    per_s=st.floats(0.1, 1e4),
    bounds=st.dictionaries(names, st.floats(0.01, 1e3), max_size=5),
    pace=st.none() | st.floats(0.1, 1e4),
)
def test_no_limit_is_passed_and_the_time_is_the_least_possible(
    messages: dict[str, int], per_s: float, bounds: dict[str, float], pace: float | None
) -> None:
    made = forecast(messages, Capacity(able(per_s), bounds, pace), AT)
    total = min(per_s, pace) if pace is not None else per_s
    count = sum(messages.values())
    assert {p.provider for p in made.by_provider} == {p for p, n in messages.items() if n}
    least = max([count / total, *(n / bounds[p] for p, n in messages.items() if p in bounds)], default=0.0)
    assert made.total_s >= least * (1 - 1e-6)
    for one in made.by_provider:
        assert one.done_after_s >= messages[one.provider] / min(total, bounds.get(one.provider, total)) * (1 - 1e-6)


def test_a_warm_up_quota_spreads_a_send_over_days_and_is_named() -> None:
    made = forecast({"gmail": 1000}, Capacity((capped(100.0, ramp=(50, 100, 500, 1000)),), {}), AT)
    # 50 today, 100 tomorrow, 500 on the third day, the other 350 at the beginning of the fourth
    assert made.total_s == pytest.approx(12 * HOUR_S + 2 * DAY_S + 3.5, abs=0.1)
    assert "warm-up quota of mta-1" in made.by_provider[0].bound_by


def test_what_was_granted_today_counts() -> None:
    server = capped(100.0, per_day=1000, used={CapSpan.DAY: 900})
    made = forecast({"gmail": 500}, Capacity((server,), {}), AT)
    assert made.total_s == pytest.approx(12 * HOUR_S + 4)
    assert made.by_provider[0].bound_by == "daily cap of mta-1"


def test_a_warm_server_carries_what_a_cold_one_may_not() -> None:
    servers = (capped(10.0, ramp=(50,)), *able(10.0))
    made = forecast({"gmail": 1050}, Capacity(servers, {}), AT)
    assert made.total_s == pytest.approx(5 + 95)  # together until the quota is used up, then the warm one alone


def test_a_cap_of_a_provider_spreads_it_over_days_and_holds_back_nobody_else() -> None:
    caps = {"gmail": Capped(CapRules("gmail", per_day=400), {CapSpan.DAY: 300})}
    made = forecast({"gmail": 1000, "other": 500}, Capacity(able(10.0), {}, provider_caps=caps), AT)
    done = {p.provider: p for p in made.by_provider}
    # 100 today, 400 tomorrow and the day after, 100 at the beginning of the third day
    assert done["gmail"].done_after_s == pytest.approx(12 * HOUR_S + 2 * DAY_S + 10)
    assert done["gmail"].bound_by == "daily cap of gmail"
    assert done["other"].done_after_s == pytest.approx(60)  # the two together until the cap, then it alone
    assert done["other"].bound_by == "capacity"


def test_outside_the_send_window_nothing_flows() -> None:
    window = SendWindow.model_validate({"from": "09:00", "until": "13:00", "timezone": "UTC"})
    made = forecast({"gmail": 5400}, Capacity(able(1.0), {}, None, window), AT)
    assert made.total_s == pytest.approx(HOUR_S + 20 * HOUR_S + 1800)  # an hour today, half an hour tomorrow
    assert made.by_provider[0].bound_by == "send window"


def test_what_takes_more_than_a_year_is_never() -> None:
    made = forecast({"gmail": 1000}, Capacity((capped(100.0, per_day=1),), {}), AT)
    assert made.as_dict()["total_s"] is None
    assert made.by_provider[0].bound_by == "daily cap of mta-1"


@given(
    messages=st.dictionaries(names, st.integers(1, 10**5), min_size=1, max_size=3),
    per_s=st.floats(0.5, 1e3),
    per_day=st.integers(100, 10**5),
    ramp=st.none()
    | st.lists(st.integers(50, 10**4), min_size=1, max_size=10).map(lambda quotas: tuple(sorted(quotas))),
)
def test_no_day_takes_more_than_its_caps(
    messages: dict[str, int], per_s: float, per_day: int, ramp: tuple[int, ...] | None
) -> None:
    made = forecast(messages, Capacity((capped(per_s, per_day=per_day, ramp=ramp),), {}), AT)
    if made.total_s == float("inf"):
        return
    days = int((made.total_s + 12 * HOUR_S) // DAY_S) + 1
    quotas = [min(per_day, ramp[day] if ramp and day < len(ramp) else per_day) for day in range(days)]
    count = sum(messages.values())
    assert count <= sum(quotas) * (1 + 1e-6) + 1
    if days > 1:  # and the days before the last were used, as far as the server can
        most = [min(quota, per_s * (12 * HOUR_S if day == 0 else DAY_S)) for day, quota in enumerate(quotas)]
        assert count >= sum(most[:-1]) * (1 - 1e-3) - days
