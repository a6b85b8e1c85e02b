"""How a send is written, and how progress looks where nobody watches."""

import pytest

from mailer_lib.commands.context import SendRef, parse_send_ref, progress
from mailer_lib.commands.errors import CommandError


@pytest.mark.parametrize(
    ("text", "campaign", "edition"),
    [
        ("spring-sale#1", "spring-sale", "1"),
        ("welcome#2026-11-24T09:00", "welcome", "2026-11-24T09:00"),
        ("a.b_c#test-2026-11-24T09:00:00+00:00", "a.b_c", "test-2026-11-24T09:00:00+00:00"),
    ],
)
def test_a_send_is_campaign_and_edition(text: str, campaign: str, edition: str) -> None:
    assert parse_send_ref(text) == SendRef(campaign, edition)
    assert str(SendRef(campaign, edition)) == text


@pytest.mark.parametrize(
    "text", ["", "spring-sale", "#1", "spring-sale#", "a#b#c", "Spring Sale#1", "../x#1", "x#../1"]
)
def test_anything_else_says_how_to_write_it(text: str) -> None:
    with pytest.raises(CommandError, match="spring-sale#1") as caught:
        parse_send_ref(text)
    assert caught.value.code == 2


def test_progress_off_a_terminal_is_plain_lines_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("import", total=2000) as report:
        report(1000)
        report(2000)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "import: 2,000 of 2,000 rows, done\n"


def test_progress_that_fails_does_not_claim_to_be_done(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ZeroDivisionError), progress("import") as report:
        report(7)
        raise ZeroDivisionError
    assert "done" not in capsys.readouterr().err
