"""The playbooks on a real host: from bare Debian to a dispatch server, and out of service again."""

import smtplib
import ssl
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import dkim
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from mailer_lib.fleet.domains import public_key_of
from mailer_lib.fleet.playbooks import HostResult, Playbook, PlaybookEvent, PlaybookHost, run_playbook
from mailer_lib.fleet.wheelhouse import wheelhouse
from mailer_lib.settings import Settings
from mailer_lib.terms import HostOutcome
from tests.hosts.base import CACHE
from tests.hosts.fleet import Fleet
from tests.support import require, times

pytestmark = [pytest.mark.fleet, pytest.mark.timeout(900)]

KEY = "0123456789abcdef0123456789abcdef"
VERP = f"b-{KEY}-c-0123456789@bounce.news.test"
SEND = """
import smtplib, sys
with smtplib.SMTP("127.0.0.1", 25, local_hostname=sys.argv[1]) as smtp:
    smtp.sendmail(sys.argv[2], [sys.argv[3]], open("/root/message", "rb").read())
"""
MESSAGE = f"From: a@news.test\r\nTo: lea@isp-a.test\r\nMessage-ID: <{KEY}@news.test>\r\nSubject: hello\r\n\r\nHi\r\n"


@dataclass
class Server:
    """The one host of this module, in the state that the tests before have left it in."""

    fleet: Fleet
    settings: Settings
    variables: dict[str, object]
    events: list[PlaybookEvent]

    def play(
        self, name: Playbook, *, check: bool = False, secrets: dict[str, str] | None = None, **changes: object
    ) -> HostResult:
        host = self.fleet.hosts[0]
        hosts = [PlaybookHost(host.name, host.address, host.host_key)]
        started = time.monotonic()
        with self.fleet.switch.inside():
            results = run_playbook(
                self.settings, name, hosts,
                variables=self.variables | changes, secrets=secrets, on_event=self.events.append, check=check,
            )  # fmt: skip
        print(f"{name}{' --check' if check else ''}: {time.monotonic() - started:.0f} s, {results[host.name].sentence}")
        return results[host.name]

    def sh(self, command: str) -> str:
        said = self.fleet.run(self.fleet.hosts[0], command)
        return said.stdout + said.stderr

    def hand_over(self, send: int, address: str) -> None:
        """As the agent does: the send's number is in the EHLO name."""
        said = self.sh(f"python3 /root/send.py s{send}.queue.invalid {VERP} {address}")
        assert said == ""

    def queued(self) -> list[str]:
        return self.sh("cd /var/spool/exim4; find . -path '*/input/*' -name '*-H' -printf '%P\\n'").split()

    def until(self, command: str, wanted: str, within_s: float = 30) -> str:
        deadline = time.monotonic() + within_s
        while wanted not in (said := self.sh(command)):
            assert time.monotonic() < deadline, said
            time.sleep(0.3)
        return said


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    home = tmp_path_factory.mktemp("home")
    providers = {"isp-a.test": "", "isp-b.test": "domains: {isp-b.test: {defer: {first: 100}}}"}
    with Fleet(tmp_path_factory.mktemp("internet"), hosts=1, providers=providers) as fleet:
        (CACHE / "wheelhouse").mkdir(parents=True, exist_ok=True)
        (home / "wheelhouse").symlink_to(CACHE / "wheelhouse")  # 70 MB that one machine needs to download once
        settings = Settings(home=home, ssh_key_ref=f"file:{fleet.folder / 'key'}")
        agent = wheelhouse(settings)
        fleet.hosts[0].write("/root/send.py", SEND)
        yield Server(
            fleet,
            settings,
            {
                "exim_helo_name": "host-1.fleet.test",
                "exim_return_path_domains": ["bounce.news.test"],
                "exim_providers": [{"name": "isp_b", "domains": ["isp-b.test"], "max_parallel": 2}],
                "base_authorized_keys": [(fleet.folder / "key.pub").read_text()],
                "agent_wheelhouse": str(agent.path),
                "agent_release": agent.release,
            },
            [],
        )


def test_a_bare_host_becomes_a_dispatch_server(server: Server) -> None:
    result = server.play(Playbook.PROVISION)
    assert result.outcome is HostOutcome.CHANGED, result
    said = server.sh("systemctl is-active exim4 mailfleet-queues nftables; systemctl is-system-running; ss -Htln")
    assert said.split()[:4] == ["active", "active", "active", "running"], said
    assert {line.split()[3].rpartition(":")[2] for line in said.splitlines()[4:]} == {"22", "25"}
    assert "passwordauthentication no" in server.sh("sshd -T")
    version = server.sh(
        "runuser -u mailfleet -- /opt/mailfleet/venv/bin/python -c 'import mailer_lib.agent.agent' 2>&1"
    )
    assert version == ""
    assert server.sh("/opt/mailfleet/venv/bin/pip list 2>/dev/null | grep -ciE 'pandas|airflow|sqlalchemy'") == "0\n"


def test_a_second_run_changes_nothing_and_neither_does_check_mode(server: Server) -> None:
    again = server.play(Playbook.PROVISION)
    assert again.outcome is HostOutcome.OK, server.events
    if times(0, 1):
        checked = server.play(Playbook.PROVISION, check=True)
        assert checked.outcome is HostOutcome.OK, server.events


def test_a_message_goes_through_the_queue_of_its_send_and_its_signature_stays_whole(server: Server) -> None:
    pem = rsa.generate_private_key(65537, 2048).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    signature = dkim.sign(MESSAGE.encode(), b"s1", b"news.test", pem)
    (server.fleet.hosts[0].root / "root/message").write_bytes(signature + MESSAGE.encode())
    server.sh("systemctl stop mailfleet-queues")
    server.hand_over(12, "lea@isp-a.test")
    (name,) = server.queued()
    assert name.startswith("s12/input/")
    assert server.sh(f"runuser -u mailfleet -- cat /var/spool/exim4/{name} | grep -c {KEY}") != "0\n"
    server.sh("systemctl start mailfleet-queues")
    log = server.until("cat /var/log/exim4/mainlog", " Completed")
    assert f"Q=s12 id={KEY}@news.test" in log
    assert server.queued() == []
    (stored,) = (server.fleet.providers["isp-a.test"].maildir / "new").iterdir()
    message = stored.read_bytes()
    assert b".queue.invalid" not in message
    assert message.startswith(f"Return-Path: <{VERP}>".encode())
    record = f"v=DKIM1; k=rsa; p={public_key_of(pem.decode())}".encode()
    assert dkim.verify(message.partition(b"\n")[2], dnsfunc=lambda name, timeout=5: record)
    assert server.sh("cat /var/log/exim4/paniclog 2>/dev/null") == ""


def test_others_bring_bounces_and_nothing_else(server: Server) -> None:
    refused = {}
    for address in (VERP, "lea@isp-a.test", "nobody@bounce.news.test"):
        with server.fleet.switch.inside(), smtplib.SMTP(server.fleet.hosts[0].address, 25, timeout=20) as smtp:
            smtp.starttls(context=ssl._create_unverified_context())
            try:
                smtp.sendmail("", [address], "Subject: undeliverable\r\n\r\nSorry\r\n")
            except smtplib.SMTPRecipientsRefused as error:
                refused[address] = error.recipients[address][1]
    assert refused == {"lea@isp-a.test": b"5.7.1 relaying denied", "nobody@bounce.news.test": b"5.1.1 no such mailbox"}
    bounce = server.until("runuser -u mailfleet -- sh -c 'cat /var/spool/mailfleet/bounces/new/*'", "Sorry")
    assert f"Envelope-to: {VERP}\n" in bounce


def test_what_exim_refuses_is_not_put_in_place(server: Server) -> None:
    before = server.sh("cat /etc/exim4/exim4.conf")
    result = server.play(Playbook.CONFIGURE, exim_others={"max_parallel": 0, "tls": "may", "retry": "nonsense"})
    assert (result.outcome, result.task) == (HostOutcome.FAILED, "Write Exim's configuration")
    assert "Exim configuration error" in result.sentence
    assert server.sh("cat /etc/exim4/exim4.conf") == before


def test_a_configuration_that_exim_is_not_well_with_is_rolled_back(server: Server) -> None:
    before = server.sh("cat /etc/exim4/exim4.conf")
    result = server.play(Playbook.CONFIGURE, exim_listen=["127.0.0.1", "192.0.2.9"])
    assert result.outcome is HostOutcome.FAILED
    assert result.sentence.startswith("Exim wasn't well with its configuration: it doesn't listen on 127.0.0.1:25")
    assert result.sentence.endswith("The one before is in force again.")
    assert server.sh("cat /etc/exim4/exim4.conf") == before
    assert server.sh("/usr/local/sbin/mailfleet-exim-health") == "well\n"


def test_a_secret_is_in_no_command_line_no_event_and_no_file_that_stays(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    require(Path("/usr/bin/openssl").exists(), "openssl")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=host-1.fleet.test",
         "-keyout", str(tmp_path / "key"), "-out", str(tmp_path / "crt")],
        check=True, capture_output=True,
    )  # fmt: skip
    key, line = (tmp_path / "key").read_text(), (tmp_path / "key").read_text().splitlines()[3]
    folder = Path(tempfile.mkdtemp(prefix="mailfleet-"))  # short: the path of a socket has 108 characters at most
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    seen: list[str] = []
    before = server.events

    class Looking(list[PlaybookEvent]):
        def append(self, event: PlaybookEvent) -> None:
            super().append(event)
            for place in Path("/proc").glob("[0-9]*/cmdline"):
                try:
                    seen.append(place.read_text(errors="replace"))
                except OSError:
                    continue

    server.events = Looking()
    secrets = {"exim_certificate_key": key}
    given = {"exim_certificate": (tmp_path / "crt").read_text()}
    assert server.play(Playbook.ROTATE_KEYS, secrets=secrets, **given).outcome is HostOutcome.CHANGED
    assert server.sh("cat /etc/exim4/tls.key") == key
    assert any("ansible-playbook" in command for command in seen)
    assert not [command for command in seen if line in command]
    assert not [event for event in server.events if line in repr(event)]
    assert not list(folder.iterdir())
    folder.rmdir()
    server.events = before


def test_drain_waits_for_the_queues_and_retire_refuses_before(server: Server) -> None:
    server.hand_over(13, "lea@isp-b.test")
    server.until("cat /var/log/exim4/mainlog", "451 4.7.1 Try again later")
    drained = server.play(Playbook.DRAIN, drain_wait_s=1, drain_poll_s=1)
    assert drained.sentence.startswith("1 messages are still in its queues after 1 s"), drained
    assert server.play(Playbook.RETIRE).sentence.startswith("1 messages are still in its queues and would be lost")
    server.sh("rm -r /var/spool/exim4/s13")  # recalled
    assert server.play(Playbook.DRAIN, drain_wait_s=1, drain_poll_s=1).outcome is HostOutcome.OK
    retired = server.play(Playbook.RETIRE)
    assert retired.outcome is HostOutcome.CHANGED, retired
    assert "inactive\ninactive\n" in server.sh("systemctl is-active exim4 mailfleet-queues")
    assert server.sh("ls /var/lib/mailfleet/jobs /var/lib/mailfleet/.ssh /opt/mailfleet 2>/dev/null") == ""
    assert " dport 22 accept" in server.sh("nft list ruleset")
    assert server.sh("cat /var/log/exim4/paniclog 2>/dev/null") == ""
