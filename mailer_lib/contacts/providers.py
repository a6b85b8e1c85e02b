"""Who runs a person's mailbox, told by the domain alone: the unit of pace limits and of reports.

Company domains hosted at Google or Microsoft look like ``other`` here; telling them by MX host is a look-up that
belongs to a sync, not to an import.
"""

from functools import lru_cache

OTHER = "other"

_DOMAINS: dict[str, tuple[str, ...]] = {
    "gmail": ("gmail.com", "googlemail.com"),
    "outlook": ("outlook.com", "hotmail.com", "live.com", "msn.com", "windowslive.com", "passport.com"),
    "yahoo": ("yahoo.com", "ymail.com", "rocketmail.com", "myyahoo.com"),
    "aol": ("aol.com", "aim.com", "verizon.net", "netscape.net"),
    "apple": ("icloud.com", "me.com", "mac.com"),
    "proton": ("proton.me", "protonmail.com", "protonmail.ch", "pm.me"),
    "fastmail": ("fastmail.com", "fastmail.fm"),
    "zoho": ("zoho.com", "zohomail.com", "zohomail.eu"),
    "gmx": ("gmx.de", "gmx.net", "gmx.at", "gmx.ch", "gmx.com", "gmx.fr", "gmx.eu", "mail.com"),
    "web.de": ("web.de", "email.de"),
    "t-online": ("t-online.de", "magenta.de"),
    "freenet": ("freenet.de",),
    "posteo": ("posteo.de", "posteo.net"),
    "mailbox.org": ("mailbox.org",),
    "bluewin": ("bluewin.ch",),
    "orange": ("orange.fr", "wanadoo.fr"),
    "free": ("free.fr", "aliceadsl.fr"),
    "laposte": ("laposte.net",),
    "sfr": ("sfr.fr", "neuf.fr", "club-internet.fr"),
    "libero": ("libero.it", "iol.it", "virgilio.it", "inwind.it"),
    "tim": ("tim.it", "alice.it"),
    "wp.pl": ("wp.pl",),
    "o2.pl": ("o2.pl", "tlen.pl"),
    "onet": ("onet.pl", "op.pl", "onet.eu", "poczta.onet.pl"),
    "interia": ("interia.pl", "interia.eu", "poczta.fm"),
    "seznam": ("seznam.cz", "email.cz"),
    "mail.ru": ("mail.ru", "inbox.ru", "list.ru", "bk.ru"),
    "yandex": ("yandex.ru", "yandex.com", "ya.ru"),
    "ukr.net": ("ukr.net",),
    "bt": ("btinternet.com", "btopenworld.com"),
    "sky": ("sky.com",),
    "virgin": ("virginmedia.com", "ntlworld.com", "blueyonder.co.uk"),
    "telenet": ("telenet.be",),
    "ziggo": ("ziggo.nl", "home.nl"),
    "kpn": ("kpnmail.nl", "planet.nl", "hetnet.nl"),
    "comcast": ("comcast.net", "xfinity.com"),
    "att": ("att.net", "sbcglobal.net", "bellsouth.net"),
    "naver": ("naver.com",),
    "qq": ("qq.com", "foxmail.com"),
    "netease": ("163.com", "126.com", "yeah.net"),
    "docomo": ("docomo.ne.jp",),
    "rediff": ("rediffmail.com",),
}
PROVIDERS = frozenset({*_DOMAINS, OTHER})
_BY_DOMAIN = {domain: provider for provider, domains in _DOMAINS.items() for domain in domains}

# National variants: yahoo.co.uk, hotmail.fr, outlook.de, live.nl, aol.de …
_BY_FIRST_LABEL = {
    "yahoo": "yahoo",
    "ymail": "yahoo",
    "hotmail": "outlook",
    "outlook": "outlook",
    "live": "outlook",
    "aol": "aol",
}
_NATIONAL = frozenset({"com", "co", "org", "ne"})


@lru_cache(maxsize=65_536)
def provider_of(domain: str) -> str:
    """The mailbox provider of a domain as ``Address.domain`` has it; ``other`` when it isn't in the table."""
    known = _BY_DOMAIN.get(domain)
    if known is not None:
        return known
    first, *rest = domain.split(".")
    national = (len(rest) == 1 and len(rest[0]) == 2) or (len(rest) == 2 and rest[0] in _NATIONAL and len(rest[1]) == 2)
    return _BY_FIRST_LABEL.get(first, OTHER) if national else OTHER


def domains_of(provider: str) -> tuple[str, ...]:
    """The provider's domains in the table; national variants aren't listed. None for ``other``."""
    return _DOMAINS.get(provider, ())
