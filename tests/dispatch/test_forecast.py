"""The forecast: a fluid model, checked by hand and by what must hold for any send."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailer_lib.dispatch.forecast import Capacity, forecast


def test_capacity_decides_when_nothing_else_does() -> None:
    made = forecast({"gmail": 670, "outlook": 330}, Capacity(100.0, {}))
    assert made.total_s == pytest.approx(10)
    assert {p.bound_by for p in made.by_provider} == {"capacity"}


def test_a_providers_limit_holds_only_that_provider_back() -> None:
    made = forecast({"gmail": 600, "other": 400}, Capacity(100.0, {"gmail": 10.0}))
    by_name = {p.provider: p for p in made.by_provider}
    assert by_name["gmail"].done_after_s == pytest.approx(60)
    assert by_name["gmail"].bound_by == "limit of gmail"
    assert by_name["other"].done_after_s == pytest.approx(400 / 90)
    assert made.by_provider[0].provider == "gmail"  # the last to finish is named first


def test_a_pace_bounds_the_whole_send() -> None:
    made = forecast({"other": 100}, Capacity(100.0, {}, pace_per_s=2.0))
    assert (made.total_s, made.by_provider[0].bound_by) == (pytest.approx(50), "pace")


def test_without_a_server_it_is_never_done() -> None:
    made = forecast({"other": 100}, Capacity(0.0, {}))
    assert made.as_dict()["total_s"] is None


def test_nothing_to_send_takes_no_time() -> None:
    assert forecast({}, Capacity(10.0, {})).total_s == 0


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
    made = forecast(messages, Capacity(per_s, bounds, pace))
    total = min(per_s, pace) if pace is not None else per_s
    count = sum(messages.values())
    assert {p.provider for p in made.by_provider} == {p for p, n in messages.items() if n}
    least = max([count / total, *(n / bounds[p] for p, n in messages.items() if p in bounds)], default=0.0)
    assert made.total_s >= least * (1 - 1e-6)
    for one in made.by_provider:
        assert one.done_after_s >= messages[one.provider] / min(total, bounds.get(one.provider, total)) * (1 - 1e-6)
