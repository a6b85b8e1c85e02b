"""Kept values are told apart as the text that they give."""

import pytest

from mailer_lib.message.memo import MAX_BYTES, MAX_VALUES, Memo


@pytest.mark.parametrize("values", [(1, True, "1", 1.5, None, 0, False, ""), ("a", "A", "á")])
def test_values_that_compare_equal_may_read_differently(values: tuple[object, ...]) -> None:
    contact: dict[str, object] = {}
    memo = Memo(("x",), (lambda _: [repr(contact["x"])],), str.encode)
    pair = Memo(("x", "y"), (lambda _: [repr(contact["x"])],), str.encode)
    for _ in range(2):
        for value in values:
            contact["x"] = value
            assert memo.values(contact, {}) == pair.values(contact, {}) == [repr(value).encode()]


def test_a_value_is_rendered_once() -> None:
    asked: list[int] = []
    memo = Memo(("x",), (lambda _: asked.append(1) or ["text"],), str.encode)  # type: ignore[func-returns-value]

    assert [memo.values({"x": "a"}, {}) for _ in range(5)] == [[b"text"]] * 5
    assert len(asked) == 1


def test_values_stand_in_the_order_of_what_renders_them() -> None:
    memo = Memo(("x",), (lambda v: [v["x"], "b"], lambda v: [v["x"] + "c"]), str.encode)

    assert [memo.values({"x": "a"}, {"x": "a"}) for _ in range(2)] == [[b"a", b"b", b"ac"]] * 2


def test_memory_is_bounded() -> None:
    memo = Memo(("x",), (lambda variables: [variables["text"]],), str.encode)
    for number in range(MAX_VALUES + 10):
        memo.values({"x": str(number)}, {"text": "short"})
    memo.values({"x": "large"}, {"text": "x" * (MAX_BYTES + 1)})

    assert len(memo._cache) <= MAX_VALUES
    assert "large" not in memo._cache


def test_a_list_is_no_key() -> None:
    assert Memo(("x",), (lambda _: ["text"],), str.encode).values({"x": [1]}, {}) == [b"text"]


def test_a_bare_field_is_escaped_instead_of_rendered_and_only_text_is_bare() -> None:
    memo = Memo(("x",), (lambda _: ["rendered", "rendered"],), str.encode, (str.upper, str))

    assert [memo.values({"x": "ab"}, {}) for _ in range(2)] == [[b"AB", b"ab"]] * 2
    assert memo.values({"x": 5}, {}) == memo.values({}, {}) == [b"rendered", b"rendered"]
