"""Sending domains: keys are made once and kept, and the DNS records are ones that a verifier accepts."""

from collections.abc import Callable
from pathlib import Path

import dkim
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Engine

from mailer_lib.database.engine import read, write
from mailer_lib.fleet import dns, domains
from mailer_lib.fleet.names import FleetError
from mailer_lib.secret_refs import SecretRefError
from mailer_lib.settings import Settings
from tests.conftest import Ran

DOMAIN = "news.fjordfern.example"


def test_the_key_is_made_once_readable_by_its_owner_only(engine: Engine, settings: Settings) -> None:
    with write(engine) as connection:
        stored, changed = domains.add(connection, settings, DOMAIN, actor="ann")
        path = settings.keys_dir / "dkim" / f"{DOMAIN}.mf1.pem"
        pem = path.read_text()
        assert domains.add(connection, settings, DOMAIN, actor="ann") == (stored, False)
    assert changed
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert path.read_text() == pem
    assert domains.dkim_private_key(settings, stored) + "\n" == pem
    assert stored.return_path_domain == f"bounce.{DOMAIN}"
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_a_key_from_elsewhere_is_used_and_none_is_made(
    engine: Engine, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    domains.make_dkim_key(tmp_path / "own.pem")
    monkeypatch.setenv("DKIM_KEY", (tmp_path / "own.pem").read_text())
    with write(engine) as connection:
        stored, _ = domains.add(connection, settings, DOMAIN, key_ref="env:DKIM_KEY", actor="ann")
    assert domains.dkim_private_key(settings, stored).startswith("-----BEGIN PRIVATE KEY-----")
    assert not (settings.keys_dir / "dkim").exists()


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"name": "no domain"}, "isn't a host or domain"),
        ({"name": "localhost"}, "isn't a host or domain"),
        ({"name": DOMAIN, "selector": "Upper"}, "can't be a DKIM selector"),
        ({"name": DOMAIN, "selector": "a.b"}, "can't be a DKIM selector"),
        ({"name": DOMAIN, "tracking_url": "javascript:alert(1)"}, "base of links"),
        ({"name": DOMAIN, "tracking_url": "https://x.example/?a=b"}, "base of links"),
        ({"name": DOMAIN, "key_ref": "env:NOT_SET_ANYWHERE"}, "isn't set"),
        ({"name": DOMAIN, "key_ref": "file:bad.pem"}, "can't be read"),
    ],
)
def test_what_is_wrong_is_refused_before_anything_is_stored(
    engine: Engine, settings: Settings, wrong: dict[str, str], says: str
) -> None:
    (settings.home / "bad.pem").write_text("-----BEGIN PRIVATE KEY-----\nnonsense\n-----END PRIVATE KEY-----\n")
    with pytest.raises((FleetError, SecretRefError), match=says), write(engine) as connection:
        domains.add(connection, settings, actor="ann", **wrong)  # type: ignore[arg-type]
    with read(engine) as connection:
        assert domains.list_domains(connection) == []


def test_a_domain_is_changed_only_when_asked(engine: Engine, settings: Settings) -> None:
    with write(engine) as connection:
        domains.add(connection, settings, DOMAIN, actor="ann")
        with pytest.raises(FleetError, match="another tracking_url"):
            domains.add(connection, settings, DOMAIN, tracking_url=f"https://links.{DOMAIN}/", actor="ann")
        changed, _ = domains.add(
            connection, settings, DOMAIN, tracking_url=f"https://links.{DOMAIN}/", actor="ann", replace=True
        )
        assert changed.tracking_url == f"https://links.{DOMAIN}"


def test_an_international_domain_is_stored_in_ascii_and_found_by_either_name(
    engine: Engine, settings: Settings
) -> None:
    with write(engine) as connection:
        stored, _ = domains.add(connection, settings, "Bücher.example", actor="ann")
        assert stored.name == "xn--bcher-kva.example"
        assert domains.get(connection, "bücher.example") == stored


def _records(settings: Settings, domain: domains.SendingDomain, outgoing: list[str]) -> dict[tuple[str, str], str]:
    made = dns.records(
        domain,
        domains.public_key_of(domains.dkim_private_key(settings, domain)),
        outgoing=outgoing,
        bounce_host="mail.fjordfern.example",
        public_url="https://mail.fjordfern.example/",
    )
    return {(record.name, record.type): record.value for record in made}


def test_a_signature_verifies_against_the_record_to_publish(engine: Engine, settings: Settings) -> None:
    with write(engine) as connection:
        domain, _ = domains.add(connection, settings, DOMAIN, actor="ann")
    records = _records(settings, domain, [])
    mail = f"From: Shop <shop@{DOMAIN}>\r\nSubject: Hei\r\n\r\nHello\r\n".encode()
    key = domains.dkim_private_key(settings, domain).encode()
    signed = dkim.sign(mail, b"mf1", DOMAIN.encode(), key, include_headers=[b"from", b"subject"]) + mail
    found = records[f"mf1._domainkey.{DOMAIN}", "TXT"].encode()
    assert dkim.verify(signed, dnsfunc=lambda name, timeout=5: found)


def test_the_records_are_those_of_domain_return_path_and_links(engine: Engine, settings: Settings) -> None:
    with write(engine) as connection:
        domain, _ = domains.add(connection, settings, DOMAIN, tracking_url=f"https://links.{DOMAIN}", actor="ann")
    records = _records(settings, domain, ["mta1.fjordfern.example", "192.0.2.7", "2001:db8::7", "192.0.2.7"])
    bounce = f"bounce.{DOMAIN}"
    assert records[bounce, "TXT"] == "v=spf1 a:mta1.fjordfern.example ip4:192.0.2.7 ip6:2001:db8::7 -all"
    assert records[bounce, "MX"] == "10 mail.fjordfern.example."
    assert records[f"_dmarc.{DOMAIN}", "TXT"].startswith("v=DMARC1; p=none;")
    assert records[f"links.{DOMAIN}", "CNAME"] == "mail.fjordfern.example."


def test_spf_with_more_than_ten_names_is_told(engine: Engine) -> None:
    assert not dns.too_many_lookups([f"mta{n}.example" for n in range(10)])
    assert dns.too_many_lookups([f"mta{n}.example" for n in range(11)])
    assert not dns.too_many_lookups([f"192.0.2.{n}" for n in range(200)])


@given(st.text(alphabet=st.characters(min_codepoint=32, max_codepoint=126), max_size=700))
def test_a_txt_record_in_a_zone_file_reads_back_as_its_value(value: str) -> None:
    import shlex

    line = dns.DnsRecord("x.example", "TXT", value, "").zone_line()
    strings = shlex.split(line.split(" TXT ", 1)[1])
    assert "".join(strings) == value
    assert all(len(s) <= 255 for s in strings)


def test_the_commands(sqlite_engine: Engine, mailfleet: Callable[..., Ran]) -> None:
    assert mailfleet("domain", "add", DOMAIN).code == 0
    assert DOMAIN in mailfleet("domain", "list").stdout
    printed = mailfleet("domain", "dns", DOMAIN, "--bounce-host", "mail.fjordfern.example")
    assert f"mf1._domainkey.{DOMAIN}. 3600 IN TXT" in printed.stdout
    assert "no dispatch server yet" in printed.stderr
    assert "PRIVATE" not in printed.stdout + printed.stderr
    assert "--bounce-host" in mailfleet("domain", "dns", DOMAIN).stderr
