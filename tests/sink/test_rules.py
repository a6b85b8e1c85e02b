import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailer_lib.sink.rules import DomainRules, Fate, RulesError, after_dot, at_rcpt, parse_rules, position

ADDRESSES = [f"person{n}@isp.example" for n in range(2000)]


def rules(text: str) -> DomainRules:
    return parse_rules(f"domains: {{isp.example: {text}}}").for_domain("ISP.example")


@pytest.mark.parametrize(("text", "address", "attempts", "fate", "reply"), [
    ("{}", "a@isp.example", 0, Fate.TAKE, ""),
    ("{refuse: {code: 554, enhanced: 5.7.9, text: Never}}", "a@isp.example", 0, Fate.REFUSE, "554 5.7.9 Never"),
    ("{refuse: {share: 0}}", "a@isp.example", 0, Fate.TAKE, ""),
    ("{refuse: {enhanced: null, text: Away}}", "a@isp.example", 0, Fate.REFUSE, "550 Away"),
    ("{refuse: {at: dot}}", "a@isp.example", 0, Fate.TAKE, ""),
    ("{defer: {first: 2, text: Later}}", "a@isp.example", 1, Fate.DEFER, "451 4.7.1 Later"),
    ("{defer: {first: 2}}", "a@isp.example", 2, Fate.TAKE, ""),
    ("{defer: {}}", "a@isp.example", 99, Fate.DEFER, "451 4.7.1 Try again later"),
    ("{unknown: {pattern: '^gone'}}", "Gone.4@isp.example", 0, Fate.REFUSE, "550 5.1.1 The email account"),
    ("{unknown: {pattern: '^gone'}}", "here@isp.example", 0, Fate.TAKE, ""),
])  # fmt: skip
def test_replies_to_rcpt(text: str, address: str, attempts: int, fate: Fate, reply: str) -> None:
    verdict = at_rcpt(rules(text), address, attempts)
    assert verdict.fate is fate and verdict.reply.startswith(reply)


@pytest.mark.parametrize(("text", "attempts", "fate"), [
    ("{refuse: {at: dot}}", 0, Fate.REFUSE),
    ("{defer: {at: dot, first: 1}}", 0, Fate.DEFER),
    ("{defer: {at: dot, first: 1}}", 1, Fate.TAKE),
    ("{refuse: {}}", 0, Fate.TAKE),
    ("{vanish: {first: 1}}", 0, Fate.VANISH),
    ("{vanish: {first: 1}}", 1, Fate.TAKE),
])  # fmt: skip
def test_what_follows_the_dot(text: str, attempts: int, fate: Fate) -> None:
    assert after_dot(rules(text), "a@isp.example", attempts).fate is fate


def test_delays() -> None:
    slow = rules("{slow: {after_rcpt_ms: 5, after_dot_ms: 7}, refuse: {at: dot}}")
    assert at_rcpt(slow, "a@isp.example", 0).delay_ms == 5
    assert after_dot(slow, "a@isp.example", 0).delay_ms == 7


def test_a_share_is_a_share_and_kinds_choose_for_themselves() -> None:
    both = rules("{refuse: {share: 0.1}, defer: {share: 0.1}}")
    fates = [at_rcpt(both, address, 0).fate for address in ADDRESSES]
    assert 140 < fates.count(Fate.REFUSE) < 260
    assert 120 < fates.count(Fate.DEFER) < 250


@given(st.emails())
def test_positions_are_stable_and_blind_to_case(address: str) -> None:
    assert position(address, "refuse") == position(address.upper().lower(), "refuse")
    assert 0 <= position(address, "refuse") < 1


def test_other_domains() -> None:
    book = parse_rules("domains: {a.example: {refuse: {}}, '*': {defer: {}}}")
    assert book.for_domain("a.example").refuse and not book.for_domain("a.example").defer
    assert book.for_domain("b.example").defer


@pytest.mark.parametrize(("text", "named"), [
    ("domains: {a.example: {refuse: {code: 450}}}", "domains.a.example.refuse.code"),
    ("domains: {a.example: {refuse: {share: 2}}}", "refuse.share"),
    ("domains: {a.example: {refuse: {text: \"a\\r\\n250 OK\"}}}", "refuse.text"),
    ("domains: {a.example: {unknown: {pattern: '('}}}", "unknown.pattern"),
    ("domains: {a.example: {reject: {}}}", "reject"),
    ("domain: {}", "domain"),
    ("{", "isn't YAML"),
    ("[1, 2]", "rules.yaml"),
])  # fmt: skip
def test_errors_name_the_place(text: str, named: str) -> None:
    with pytest.raises(RulesError, match=named.replace(".", r"\.")):
        parse_rules(text)


def test_an_empty_file_is_no_rules() -> None:
    assert parse_rules("").domains == {}
