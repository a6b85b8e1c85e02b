import pytest

from mailer_lib.web.user_agents import AgentClass, classify


@pytest.mark.parametrize(("header", "expected"), [
    ("Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 Chrome/140.0 Safari/537.36", AgentClass.PERSON),
    ("Mozilla/5.0", AgentClass.PROXY),
    ("Mozilla/5.0 (Windows NT 5.1; rv:11.0) Gecko Firefox/11.0 (via ggpht.com GoogleImageProxy)", AgentClass.PROXY),
    ("YahooMailProxy; https://help.yahoo.com/kb/yahoo-mail-proxy-SLN28749.html", AgentClass.PROXY),
    ("Mozilla/5.0 (compatible; Barracuda Sentinel (EE))", AgentClass.BOT),
    ("python-requests/2.32", AgentClass.BOT),
    ("Mozilla/5.0 (compatible; Googlebot/2.1)", AgentClass.BOT),
    ("", AgentClass.UNKNOWN),
    (None, AgentClass.UNKNOWN),
    ("Outlook", AgentClass.UNKNOWN),
])  # fmt: skip
def test_who_probably_fetched(header: str | None, expected: AgentClass) -> None:
    assert classify(header) is expected
