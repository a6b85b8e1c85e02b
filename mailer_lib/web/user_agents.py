"""Who probably fetched a pixel or a link: a person, a mail service's proxy, or a machine that checks links.

Only a class is kept, never the header. Proxies open for people whom nobody saw (Apple Mail Privacy Protection, Gmail's
image proxy when it prefetches), so they must not count as reading; scanners click everything.
"""

import re
from enum import StrEnum

_PROXY = re.compile(r"GoogleImageProxy|ggpht\.com|YahooMailProxy|\bBing-?Preview", re.IGNORECASE)
_BOT = re.compile(
    r"bot\b|crawl|spider|scan|preview|check|monitor|barracuda|proofpoint|mimecast|symantec|safelinks|"
    r"curl|wget|python|okhttp|go-http|java/|libwww|headless|axios|node-fetch",
    re.IGNORECASE,
)
_APPLE_PRIVACY = "Mozilla/5.0"  # all that Apple's relay says


class AgentClass(StrEnum):
    PERSON = "person"
    PROXY = "proxy"
    BOT = "bot"
    UNKNOWN = "unknown"


def classify(user_agent: str | None) -> AgentClass:
    """The class of a ``User-Agent`` header."""
    text = (user_agent or "").strip()[:500]
    if not text:
        return AgentClass.UNKNOWN
    if text == _APPLE_PRIVACY or _PROXY.search(text):
        return AgentClass.PROXY
    if _BOT.search(text):
        return AgentClass.BOT
    return AgentClass.PERSON if text.startswith("Mozilla/") else AgentClass.UNKNOWN
