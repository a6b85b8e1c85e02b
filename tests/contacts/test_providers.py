"""Whose mailbox it is."""

import pytest

from mailer_lib.contacts.providers import OTHER, PROVIDERS, provider_of


@pytest.mark.parametrize(
    ("domain", "provider"),
    [
        ("gmail.com", "gmail"), ("googlemail.com", "gmail"), ("hotmail.com", "outlook"), ("hotmail.co.uk", "outlook"),
        ("outlook.fr", "outlook"), ("live.nl", "outlook"), ("yahoo.co.jp", "yahoo"), ("yahoo.com.br", "yahoo"),
        ("ymail.com", "yahoo"), ("icloud.com", "apple"), ("gmx.net", "gmx"), ("web.de", "web.de"),
        ("t-online.de", "t-online"), ("orange.fr", "orange"), ("free.fr", "free"), ("libero.it", "libero"),
        ("aol.de", "aol"), ("proton.me", "proton"), ("wp.pl", "wp.pl"),
        ("fjellpost.example", OTHER), ("yahoo.example", OTHER), ("live.company.uk", OTHER), ("notgmail.com", OTHER),
        ("gmail.com.evil.example", OTHER),
    ],
)  # fmt: skip
def test_by_domain(domain: str, provider: str) -> None:
    assert provider_of(domain) == provider
    assert provider in PROVIDERS


def test_names_fit_the_column() -> None:
    assert all(len(name) <= 32 for name in PROVIDERS)
