"""Double opt-in: the one confirmation mail, to a real SMTP server. On both databases."""

import asyncio
import email
import email.policy
import re
import threading
from collections.abc import Callable, Iterator
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import dkim
import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, Envelope, Session
from sqlalchemy import Engine, select

from mailer_lib.contacts import consent
from mailer_lib.database.engine import read, write
from mailer_lib.database.schema import audit_log, subscriptions
from mailer_lib.dispatch.confirmation import ConfirmationError, ConfirmationReport, send_confirmations
from mailer_lib.dispatch.confirmation_mail import ConfirmationSender, build_confirmation, words_for
from mailer_lib.dispatch.one_off import NoServerError
from mailer_lib.fleet import domains, pools, servers
from mailer_lib.message.bundle import Mailbox
from mailer_lib.message.dkim import DkimSigner
from mailer_lib.settings import Settings
from mailer_lib.terms import ChannelKind, MtaKind, ServerState, SmtpSecurity, SubscriptionState, SuppressionReason
from mailer_lib.tokens import TokenKind, verify
from tests.contacts.world import World, at

DOMAIN = "news.fjordfern.example"


class Mta:
    """An MTA that keeps what it takes. ``answers``: reply to RCPT by address; ``after_data``: reply to the dot."""

    def __init__(self) -> None:
        self.taken: list[Envelope] = []
        self.answers: dict[str, str] = {}
        self.after_data: Callable[[SMTP], str] = lambda server: "250 OK"

    async def handle_RCPT(
        self, server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        answer = self.answers.get(address, "250 OK")
        if answer.startswith("250"):
            envelope.rcpt_tos.append(address)
        return answer

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:
        answer = self.after_data(server)
        self.taken.append(envelope)
        await asyncio.sleep(0)
        return answer

    def mails(self) -> list[EmailMessage]:
        return [email.message_from_bytes(e.content, policy=email.policy.default) for e in self.taken]  # type: ignore[misc]

    def recipients(self) -> list[str]:
        return sorted(e.rcpt_tos[0] for e in self.taken)


class FreePort(Controller):
    """A controller on whatever port is free; ``port`` says which."""

    def _trigger_server(self) -> None:
        assert self.server is not None
        self.port = self.server.sockets[0].getsockname()[1]
        super()._trigger_server()


@pytest.fixture
def mta() -> Iterator[Mta]:
    mta = Mta()
    controller = FreePort(mta, hostname="127.0.0.1", port=0, enable_SMTPUTF8=True)
    controller.start()
    mta.port = controller.port  # type: ignore[attr-defined]
    yield mta
    controller.stop()


def add_server(engine: Engine, settings: Settings, name: str, port: int, **more: Any) -> None:
    spec = {
        "name": name, "pool": "main", "state": ServerState.ACTIVE, "channel": ChannelKind.LOCAL, "mta": MtaKind.RELAY,
        "smtp_host": "127.0.0.1", "smtp_port": port, "smtp_security": SmtpSecurity.NONE,
        "helo_name": f"{name}.{DOMAIN}",
    }  # fmt: skip
    with write(engine) as connection:
        servers.add(connection, servers.make_spec(**(spec | more)), actor="test")


@pytest.fixture(scope="session")
def dkim_key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made once: RSA keys are slow to find."""
    path = tmp_path_factory.mktemp("dkim") / "key.pem"
    domains.make_dkim_key(path)
    return path


@pytest.fixture
def world(engine: Engine, settings: Settings, mta: Mta, dkim_key: Path) -> World:
    made = World.make(engine, settings)
    with write(engine) as connection:
        pools.ensure(connection, "main", actor="test")
        domains.add(connection, settings, DOMAIN, key_ref=f"file:{dkim_key}", actor="test")
    add_server(engine, settings, "local-1", mta.port)  # type: ignore[attr-defined]
    return made


def sign_up(world: World, folder: Path, *addresses: str, locale: str = "en") -> None:
    rows = "".join(f"{address},Lena,{locale}\n" for address in addresses)
    world.load(
        folder / "pending.csv", f"E-Mail,First name,Language\n{rows}",
        consent=SubscriptionState.PENDING, consent_at="2026-03-01",
    )  # fmt: skip


def send(world: World) -> ConfirmationReport:
    return send_confirmations(world.engine, world.settings, "newsletter")


def waiting(world: World) -> int:
    with read(world.engine) as connection:
        query = select(subscriptions.c.contact_id).where(
            subscriptions.c.confirmation_sent_at.is_(None), subscriptions.c.state == "pending"
        )
        return len(connection.execute(query).all())


def test_everybody_who_waits_gets_one_mail_and_never_a_second(world: World, mta: Mta, tmp_path: Path) -> None:
    sign_up(world, tmp_path, "lena@example.org", "bo@example.org")
    assert send(world).sent == 2
    assert send(world).sent == 0
    sign_up(world, tmp_path, "lena@example.org", "bo@example.org", "cy@example.org")
    assert send(world).sent == 1
    assert mta.recipients() == ["bo@example.org", "cy@example.org", "lena@example.org"]


def test_the_link_confirms_this_person_on_this_list(world: World, mta: Mta, tmp_path: Path) -> None:
    sign_up(world, tmp_path, "lena@example.org")
    send(world)
    (mail,) = mta.mails()
    text = mail.get_body(("plain",)).get_content()  # type: ignore[union-attr]
    html = mail.get_body(("html",)).get_content()  # type: ignore[union-attr]
    (token,) = set(re.findall(r"/k/([\w-]{60})", text) + re.findall(r"/k/([\w-]{60})", html))
    opened = verify(world.settings.tokens(), token, TokenKind.CONFIRM)
    assert opened.send_id == world.list_id
    assert opened.message_key == world.key("lena@example.org")
    assert text.count(str(world.settings.public_url)) == 1
    world.do(
        consent.confirm, address_hash=opened.message_key, list_id=opened.send_id,
        method="confirmation-link", source=None, at=at("2026-03-02"),
    )  # fmt: skip
    assert world.subscription("lena@example.org") == "confirmed"
    assert send(world).sent == 0


def test_the_mail_is_signed_and_says_where_bounces_go(world: World, mta: Mta, tmp_path: Path) -> None:
    sign_up(world, tmp_path, "lena@example.org")
    send(world)
    (envelope,) = mta.taken
    assert envelope.mail_from == f"bounces@bounce.{DOMAIN}"
    with read(world.engine) as connection:
        domain = domains.get(connection, DOMAIN)
    signer = DkimSigner(DOMAIN, domain.dkim_selector, domains.dkim_private_key(world.settings, domain))
    record = f"v=DKIM1; k=rsa; p={signer.public_key()}".encode()
    assert isinstance(envelope.content, bytes)
    assert dkim.verify(envelope.content, dnsfunc=lambda *_args, **_more: record)
    (mail,) = mta.mails()
    assert mail["From"] == f"Fjord & Fern News <news@{DOMAIN}>"
    assert mail["Auto-Submitted"] == "auto-generated"
    assert "List-Unsubscribe" not in mail


@pytest.mark.parametrize(
    ("locale", "subject"), [("de-AT", "Bitte bestätigen"), ("fr", "Merci de confirmer"), ("ja", "Please confirm")]
)
def test_in_the_persons_language(world: World, mta: Mta, tmp_path: Path, locale: str, subject: str) -> None:
    sign_up(world, tmp_path, "lena@example.org", locale=locale)
    send(world)
    assert mta.mails()[0]["Subject"].startswith(subject)


def test_nobody_suppressed_is_asked(world: World, mta: Mta, tmp_path: Path) -> None:
    barred = ["manual@example.org", "imported@example.org", "bounce@example.org", "domain@bad.example"]
    sign_up(world, tmp_path, *barred, "left@example.org", "other@example.org", "lena@example.org")
    for address, reason in zip(barred, ("manual", "imported", "hard-bounce"), strict=False):
        world.do(consent.suppress, address, reason=SuppressionReason(reason), source=None, at=at("2020-01-01"))
    world.do(consent.suppress_domain, domain="bad.example", source=None)
    world.do(consent.unsubscribe, "left@example.org", list_id=None, method="form", source=None, at=at("2020-01-01"))
    world.do(
        consent.suppress, "other@example.org", reason=SuppressionReason.MANUAL, source=None,
        list_id=world.list_id - 1, at=at("2020-01-01"),
    )  # fmt: skip
    assert send(world).sent == 2
    assert mta.recipients() == ["lena@example.org", "other@example.org"]


def test_a_deferral_is_tried_again(world: World, mta: Mta, tmp_path: Path) -> None:
    sign_up(world, tmp_path, "lena@example.org", "bo@example.org")
    mta.answers["lena@example.org"] = "451 4.7.1 <lena@example.org>: please try again later"
    report = send(world)
    assert (report.sent, report.postponed) == (1, 1)
    assert "lena@" not in str(report.reasons)
    mta.answers.clear()
    assert send(world).sent == 1


def test_our_own_fault_costs_nobody_their_mail(world: World, mta: Mta, tmp_path: Path) -> None:
    sign_up(world, tmp_path, "lena@example.org")
    mta.answers["lena@example.org"] = "550 5.7.1 blocked by our policy, see RBL"
    assert send(world).postponed == 1
    assert waiting(world) == 1
    assert world.active("lena@example.org") == []


def test_an_unknown_mailbox_is_suppressed(world: World, mta: Mta, tmp_path: Path) -> None:
    sign_up(world, tmp_path, "lena@example.org")
    mta.answers["lena@example.org"] = "550 5.1.1 no such user"
    assert send(world).refused == 1
    assert world.active("lena@example.org") == [("hard-bounce", 0)]
    mta.answers.clear()
    assert send(world).sent == 0


def test_a_connection_that_breaks_at_the_dot_is_not_repeated(world: World, mta: Mta, tmp_path: Path) -> None:
    sign_up(world, tmp_path, "lena@example.org", "bo@example.org")

    def hang_up(server: SMTP) -> str:
        mta.after_data = lambda _server: "250 OK"
        server.transport.close()  # type: ignore[union-attr]
        return "250 OK"

    mta.after_data = hang_up
    report = send(world)
    assert (report.unknown, report.sent) == (1, 1)
    assert send(world).sent == 0
    assert len(mta.taken) == 2


def test_the_next_server_is_taken_when_one_is_away(world: World, mta: Mta, tmp_path: Path) -> None:
    add_server(world.engine, world.settings, "dead-1", 1)
    sign_up(world, tmp_path, "lena@example.org")
    assert send(world).sent == 1


def test_without_a_server_nobody_is_claimed(world: World, tmp_path: Path, mta: Mta) -> None:
    sign_up(world, tmp_path, "lena@example.org")
    with write(world.engine) as connection:
        spec = servers.get(connection, "local-1").spec().model_copy(update={"smtp_port": 1})
        servers.add(connection, spec, actor="test", replace=True)
    with pytest.raises(NoServerError, match=r"local-1 \(127\.0\.0\.1:1\)"):
        send(world)
    assert waiting(world) == 1


def test_two_at_once_send_one_mail_each(world: World, mta: Mta, tmp_path: Path) -> None:
    people = [f"p{n}@example.org" for n in range(30)]
    sign_up(world, tmp_path, *people)
    reports: list[ConfirmationReport] = []
    threads = [threading.Thread(target=lambda: reports.append(send(world))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(report.sent for report in reports) == 30
    assert mta.recipients() == sorted(people)


def test_addresses_outside_ascii(world: World, mta: Mta, tmp_path: Path) -> None:
    sign_up(world, tmp_path, "müller@example.org", "info@müller.example")
    assert send(world).sent == 2
    assert mta.recipients() == ["info@xn--mller-kva.example", "müller@example.org"]


def test_what_must_be_said(world: World, tmp_path: Path) -> None:
    sign_up(world, tmp_path, "lena@example.org")
    with write(world.engine) as connection:
        pools.ensure(connection, "second", actor="test")
    with pytest.raises(ConfirmationError, match="--pool, one of main, second"):
        send(world)


def test_it_is_in_the_audit_log_without_addresses(world: World, mta: Mta, tmp_path: Path) -> None:
    sign_up(world, tmp_path, "lena@example.org")
    send(world)
    with read(world.engine) as connection:
        rows = connection.execute(
            select(audit_log.c.object, audit_log.c.detail).where(audit_log.c.action == "contacts.confirm-pending")
        ).all()
    assert [(row.object, row.detail) for row in rows] == [("list:newsletter", {"taken": 1})]


def test_names_from_the_file_cannot_become_headers_or_markup() -> None:
    by = ConfirmationSender(Mailbox(name="F & F", address=f"news@{DOMAIN}"), "News <b>")
    raw = build_confirmation(
        by, to="lena@example.org", name="<script>Lena\r\nBcc: x@y.org", locale="en", url="https://x/k/t"
    )
    mail = email.message_from_bytes(raw, policy=email.policy.default)
    assert mail["Bcc"] is None
    html = mail.get_body(("html",)).get_content()  # type: ignore[union-attr]
    assert "<script>" not in html
    assert "News &lt;b&gt;" in html
    assert all(len(line) <= 998 for line in raw.split(b"\r\n"))
    assert b"\n" not in raw.replace(b"\r\n", b"")


def test_every_language_says_everything() -> None:
    for language in ("en", "de", "fr"):
        code, words = words_for(f"{language}-XX")
        assert code == language
        assert "{list}" in words.subject
        assert "{name}" in words.greeting_name
