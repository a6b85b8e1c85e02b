"""Pre-flight finds what would be wrong, and says nothing of what isn't."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from sqlalchemy import Engine

from mailer_lib import tokens
from mailer_lib.audience import criteria
from mailer_lib.audience.catalogue import load as load_catalogue
from mailer_lib.database.engine import read, write
from mailer_lib.fleet import domains
from mailer_lib.fleet.domains import SendingDomain
from mailer_lib.message import preflight_net
from mailer_lib.message.campaign import load_campaign, save_campaign
from mailer_lib.message.findings import Finding
from mailer_lib.message.merge import merge_fields
from mailer_lib.message.preflight import check_alignment, check_fields, check_links, preflight
from mailer_lib.settings import Settings
from mailer_lib.terms import AttributeType, FindingLevel, SendMode
from tests.fleet.dns_server import DnsServer
from tests.message.installation import furnish, subscribe
from tests.message.test_campaign import PAGE, YAML, write_files
from tests.message.test_templates import campaign, page
from tests.message.world import DOMAIN, bundle
from tests.support import free_port

GOOD = YAML + "postal_address: Strandgaten 21, Bergen\nexpires_after: 24h\ndefaults: {given_name: friend}\n"


@pytest.fixture
def site() -> Iterator[str]:
    """A server that answers what the path says, and 410 on unsubscribe links, as `mailfleet serve` does for send 0."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status = 410 if self.path.startswith("/u/") else int(self.path.split("/")[1])
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def run(
    engine: Engine, settings: Settings, folder: Path, yaml: str = GOOD, page: str = PAGE, mode: SendMode = SendMode.SEND
) -> dict[str, Finding]:
    save_campaign(engine, settings, load_campaign(write_files(folder, yaml, page_html=page)), "ann")
    return {finding.code: finding for finding in preflight(engine, settings, "spring", mode=mode)}


@pytest.fixture
def furnished(sqlite_engine: Engine, settings: Settings, site: str) -> Engine:
    furnish(sqlite_engine, settings)
    tree = {"combinator": "and", "rules": []}
    with write(sqlite_engine) as connection:
        criteria.save(connection, load_catalogue(connection), "everybody", tree, actor="ann")
        domains.add(connection, settings, DOMAIN, tracking_url=site, actor="ann", replace=True)
    return sqlite_engine


def test_a_good_campaign(furnished: Engine, settings: Settings, tmp_path: Path) -> None:
    subscribe(furnished, settings, "ann@example.com")

    found = run(furnished, settings, tmp_path)

    assert {code for code, finding in found.items() if finding.level is not FindingLevel.INFO} == set()
    assert "verifies" in found["dkim"].text
    assert "% of the body" in found["dynamic-share"].text
    assert "answers" in found["unsubscribe"].text
    assert "reserved for examples" in found["dns"].text


@pytest.mark.parametrize(
    ("yaml", "page", "level", "code"),
    [
        (GOOD, PAGE.replace("given_name", "nickname"), FindingLevel.ERROR, "merge-field"),
        (GOOD, PAGE.replace("given_name", "tier"), FindingLevel.WARNING, "bare-contact"),
        (GOOD.replace("everybody", "nobody"), PAGE, FindingLevel.ERROR, "criteria"),
        (GOOD + "exclude: {criteria: [nobody]}\n", PAGE, FindingLevel.ERROR, "criteria"),
        (GOOD + "exclude: {lists: [nobodys]}\n", PAGE, FindingLevel.ERROR, "exclude"),
        (GOOD.replace("defaults: {", "defaults: {points: many, "), PAGE, FindingLevel.ERROR, "default-type"),
        (GOOD.replace("NEWS.fjordfern", "news.other"), PAGE, FindingLevel.ERROR, "alignment"),
        (GOOD.replace("postal_address", "title"), PAGE, FindingLevel.WARNING, "postal-address"),
        (GOOD + "seed_list: team\n", PAGE, FindingLevel.WARNING, "seed-list"),
        (GOOD, PAGE.replace("</p>", "x" * 95_000 + "</p>"), FindingLevel.WARNING, "size"),
        (GOOD, "<p>Hi {{ contact.given_name }}</p>", FindingLevel.WARNING, "footer-added"),
        (GOOD, PAGE.replace("<p>", '<a href="https://shop">x</a><p>'), FindingLevel.ERROR, "link"),
        (
            GOOD,
            PAGE.replace("<p>", '<a href="https://x.example/{{ contact.given_name }}">x</a><p>'),
            FindingLevel.INFO,
            "link-untracked",
        ),
    ],
)
def test_what_is_wrong_is_found(
    furnished: Engine, settings: Settings, tmp_path: Path, yaml: str, page: str, level: FindingLevel, code: str
) -> None:
    subscribe(furnished, settings, "ann@example.com", tier="gold")

    assert run(furnished, settings, tmp_path, yaml, page)[code].level is level


def test_a_contact_whose_message_fails_is_named_by_number(
    furnished: Engine, settings: Settings, tmp_path: Path
) -> None:
    number = subscribe(furnished, settings, "ann@example.com")

    finding = run(furnished, settings, tmp_path, page=PAGE.replace("given_name", "tier"))["render"]

    assert finding.level is FindingLevel.ERROR
    assert f"contact {number}" in finding.text
    assert "ann@" not in finding.text


def test_a_lost_key(furnished: Engine, settings: Settings, tmp_path: Path) -> None:
    (settings.keys_dir / "dkim" / f"{DOMAIN}.mf1.pem").unlink()

    found = run(furnished, settings, tmp_path)

    assert found["dkim-key"].level is FindingLevel.ERROR
    assert "dkim" not in found


def test_an_unsubscribe_page_that_does_not_answer(furnished: Engine, settings: Settings, tmp_path: Path) -> None:
    with write(furnished) as connection:
        domains.add(connection, settings, DOMAIN, tracking_url="http://127.0.0.1:9", actor="ann", replace=True)

    assert run(furnished, settings, tmp_path)["unsubscribe-unreachable"].level is FindingLevel.ERROR
    assert (
        run(furnished, settings, tmp_path, mode=SendMode.TEST)["unsubscribe-unreachable"].level is FindingLevel.WARNING
    )


@pytest.mark.parametrize(
    ("path", "code"), [("200", "unsubscribe"), ("404", "unsubscribe-refused"), ("500", "unsubscribe-refused")]
)
def test_what_it_answers_matters(site: str, path: str, code: str) -> None:
    found = list(preflight_net.check_unsubscribe(f"{site}/{path}/u/x", needed=True))
    assert code in {finding.code for finding in found}


def test_https_is_wanted_off_this_machine() -> None:
    found = list(preflight_net.check_unsubscribe("http://links.invalid/u/x", needed=True))
    assert found[0] == Finding(FindingLevel.WARNING, "unsubscribe-https", found[0].text)


def test_the_probe_is_signed_and_names_no_send(settings: Settings) -> None:
    from mailer_lib.message.preflight import _BARE, _unsubscribe_url

    token = _unsubscribe_url(settings, bundle(), _BARE).rsplit("/", 1)[1]
    assert tokens.verify(settings.tokens(), token, tokens.TokenKind.UNSUBSCRIBE).send_id == 0


def test_fields_get_near_matches() -> None:
    made = campaign(page("{{ contact.teir }}"))
    found = list(check_fields(made, merge_fields(made), {"tier": AttributeType.TEXT}))

    assert [finding.text for finding in found] == [
        "the template uses contact.teir, which doesn't exist; did you mean tier?"
    ]


@pytest.mark.parametrize(
    ("sender", "dkim", "fine"),
    [
        ("a@fjord.example", "fjord.example", True),
        ("a@news.fjord.example", "fjord.example", True),
        ("a@fjord.example", "news.fjord.example", True),
        ("a@fjord.example", "notfjord.example", False),
    ],
)
def test_alignment(sender: str, dkim: str, fine: bool) -> None:
    made = campaign(page("x"), **{"from": {"address": sender}})
    domain = SendingDomain(1, dkim, "mf1", "", f"bounce.{dkim}", None)

    assert (not [f for f in check_alignment(made, domain) if f.code == "alignment"]) is fine


def test_malformed_links() -> None:
    found = list(
        check_links(bundle(links=("https://[x", "https:///path", "https://a b.example/", "http://ok.example/")))
    )

    assert [finding.level for finding in found] == [*[FindingLevel.ERROR] * 3, FindingLevel.INFO, FindingLevel.INFO]


def test_nothing_is_written(furnished: Engine, settings: Settings, tmp_path: Path) -> None:
    run(furnished, settings, tmp_path)

    assert not (settings.storage / "bundles").exists()
    with read(furnished) as connection:
        assert connection.exec_driver_sql("SELECT COUNT(*) FROM sends").scalar() == 0


def test_dns_is_asked_for_what_receivers_will_ask() -> None:
    domain = SendingDomain(1, "news.fjord.test", "mf1", "file:k", "bounce.news.fjord.test", None)
    lookup = SendingDomain(1, "news.fjord-mail.net", "mf1", "file:k", "bounce.news.fjord-mail.net", None)

    def said(address: str, key: str | None = "QUJD") -> dict[str, FindingLevel]:
        return {f.code: f.level for f in preflight_net.check_dns(lookup, key, address)}

    error, warning, info = FindingLevel.ERROR, FindingLevel.WARNING, FindingLevel.INFO
    with DnsServer(["fjord-mail.net. NS ns.fjord-mail.net."]) as server:
        assert [f.code for f in preflight_net.check_dns(domain, "QUJD", server.address)] == ["dns"]  # .test is reserved
        assert said(server.address) == {"dkim-dns": error, "spf": error, "dmarc": error, "mx": warning}
        server.publish('mf1._domainkey.news.fjord-mail.net. TXT "v=DKIM1; k=rsa; p=QUJD"')
        server.publish('bounce.news.fjord-mail.net. TXT "v=spf1 ip4:192.0.2.7 -all"')
        server.publish("bounce.news.fjord-mail.net. MX 10 mta1.fjord-mail.net.")
        server.publish('_dmarc.news.fjord-mail.net. TXT "v=DMARC1; p=reject"')
        assert said(server.address) == {"dkim-dns": info, "spf": info, "dmarc": info}
        assert said(server.address, "QUJE")["dkim-dns"] is error
    assert [f.text for f in preflight_net.check_dns(lookup, "QUJD", f"127.0.0.1:{free_port()}")] == [
        "DNS not checked: no resolver answers here"
    ]
