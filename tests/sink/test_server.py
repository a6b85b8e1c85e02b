"""The sink as a real process: what is logged is stored, and a log line comes before the 250."""

import os
import signal
import smtplib
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from mailer_lib.sink.process import SinkProcess, SinkProcessError, start
from tests.sink.smtp_client import Client, accepted, stored


@pytest.fixture(scope="module")
def _shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SinkProcess]:
    with start(tmp_path_factory.mktemp("sink")) as running:
        yield running


@pytest.fixture
def sink(_shared: SinkProcess) -> Iterator[SinkProcess]:
    """An empty sink without rules; one process for all tests of this module."""
    yield _shared
    until(lambda: _connections_open(_shared.mainlog) == 0)
    for file in [*(_shared.maildir / "new").iterdir(), *_shared.folder.glob("mainlog.*")]:
        file.unlink()
    os.truncate(_shared.mainlog, 0)
    (_shared.folder / "rules.yaml").unlink(missing_ok=True)


def _connections_open(mainlog: Path) -> int:
    lines = [
        line
        for file in (mainlog.with_name("mainlog.1"), mainlog)
        if file.exists()
        for line in file.read_text().splitlines()
        if " SMTP connection from " in line
    ]
    begun = sum("(TCP/IP connection count" in line for line in lines)
    return begun - (len(lines) - begun)


def until(condition: Callable[[], bool], within_s: float = 20) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def test_a_message_is_stored_and_logged_before_the_reply(sink: SinkProcess) -> None:
    with Client(sink.port) as client:
        reply = client.deliver("ann@isp.example", b"Message-ID: <k.7@news.example>\r\n\r\n..dot\r\n")
        (line,) = accepted(sink.mainlog)  # at once
    assert reply == f"250 2.0.0 OK id={line['id']}"
    assert (line["from"], line["helo"], line["protocol"]) == ("b-1@bounce.example", "client.example", "esmtp")
    assert (int(line["port"]), int(line["local"])) == (client.port, sink.port)
    assert line["message_id"] == "k.7@news.example"
    file = stored(sink.maildir)[line["id"]]
    assert file.startswith(b"Return-Path: <b-1@bounce.example>\r\nEnvelope-To: ann@isp.example\r\nReceived: ")
    assert file.endswith(b"\r\n\r\n.dot\r\n") and int(line["size"]) == len(
        b"Message-ID: <k.7@news.example>\r\n\r\n.dot\r\n"
    )
    assert os.listdir(sink.maildir / "tmp") == []


def test_extensions(sink: SinkProcess) -> None:
    with Client(sink.port) as client:
        offered = {line[4:].split()[0] for line in client.extensions.splitlines()[1:]}
    assert {"PIPELINING", "8BITMIME", "SMTPUTF8", "SIZE", "ENHANCEDSTATUSCODES"} <= offered
    assert not {"STARTTLS", "AUTH"} & offered


def test_the_next_envelope_may_ride_with_the_last_dot(sink: SinkProcess) -> None:
    envelope = b"MAIL FROM:<b@x.example>\r\nRCPT TO:<a@isp.example>\r\nDATA\r\n"
    with Client(sink.port) as client:
        client.send(envelope)
        for number in range(200):
            assert [client.reply()[:3] for _ in range(3)] == ["250", "250", "354"]
            more = envelope if number < 199 else b"QUIT\r\n"
            client.send(b"Message-ID: <%d@x>\r\n\r\n" % number + b"x" * 70 + b"\r\n.\r\n" + more)
            assert client.reply().startswith("250 ")
        assert client.reply().startswith("221")
    assert [line["message_id"] for line in accepted(sink.mainlog)] == [f"{n}@x" for n in range(200)]
    assert len(stored(sink.maildir)) == 200


def test_who_has_said_quit_may_close_its_side_and_is_answered(sink: SinkProcess) -> None:
    with socket.create_connection(("127.0.0.1", sink.port), 10) as client, client.makefile("rb") as replies:
        client.sendall(b"EHLO a.test\r\nMAIL FROM:<a@a.test>\r\nRCPT TO:<b@b.test>\r\nDATA\r\n")
        while not replies.readline().startswith(b"354"):
            pass
        client.sendall(b"Subject: x\r\n\r\nHi\r\n.\r\nQUIT\r\n")
        client.shutdown(socket.SHUT_WR)
        assert replies.readline().startswith(b"250 2.0.0 OK id=")
        assert replies.read() == b"221 Bye\r\n"
    assert len(stored(sink.maildir)) == 1


@pytest.mark.parametrize(
    "message", [b"", b".x\r\n", b"\r\n", b"no header\r\n", b"A: b\r\n\r\nbare\n.\nlf\r\n", b"x" * 100_000 + b"\r\n"]
)
def test_odd_messages_arrive_as_they_are(sink: SinkProcess, message: bytes) -> None:
    stuffed = (b"." + message if message.startswith(b".") else message).replace(b"\r\n.", b"\r\n..")
    with Client(sink.port) as client:
        assert client.deliver("a@isp.example", stuffed).startswith("250")
    (file,) = stored(sink.maildir).values()
    assert file.split(b"\r\n", 3)[3] == message


def test_a_message_that_comes_byte_by_byte(sink: SinkProcess) -> None:
    with Client(sink.port) as client:
        client.envelope("a@isp.example")
        for byte in b"A: b\r\n\r\nx\r\n.\r\n":
            client.send(bytes([byte]))
        assert client.reply().startswith("250")
    (file,) = stored(sink.maildir).values()
    assert file.endswith(b"A: b\r\n\r\nx\r\n")


def test_too_big_is_refused_and_the_connection_lives(sink: SinkProcess) -> None:
    with Client(sink.port) as client:
        assert client.say("MAIL FROM:<b@x.example> SIZE=99999999").startswith("552")
        client.envelope("a@isp.example")
        block = (b"x" * 76 + b"\r\n") * 13_000
        for _ in range(12):
            client.send(block)
        client.send(b".\r\n")
        assert client.reply().startswith("552 5.3.4")
        assert client.deliver("a@isp.example").startswith("250")
    assert len(accepted(sink.mainlog)) == len(stored(sink.maildir)) == 1


def test_international_addresses(sink: SinkProcess) -> None:
    with Client(sink.port) as client:
        assert client.say("MAIL FROM:<b@x.example> SMTPUTF8 BODY=8BITMIME").startswith("250")
        assert client.say("RCPT TO:<léa@bücher.example>").startswith("250")
        assert client.say("DATA").startswith("354")
        client.send("Subject: ü\r\n\r\nü\r\n.\r\n".encode())
        assert client.reply().startswith("250")
    assert "léa@bücher.example".encode() in next(iter(stored(sink.maildir).values()))


def test_refusals_are_logged_without_the_local_part(sink: SinkProcess) -> None:
    sink.set_rules("domains: {isp.example: {unknown: {pattern: ^nobody}, defer: {first: 1}}}")
    with Client(sink.port) as client:
        assert client.deliver("nobody7@isp.example").startswith("550 5.1.1")
        assert client.deliver("someone@isp.example").startswith("451 4.7.1")
        assert client.deliver("someone@isp.example").startswith("250")
    log = sink.mainlog.read_text()
    assert "rejected RCPT <@isp.example>: 550 5.1.1" in log and "temporarily rejected RCPT <@isp.example>: 451" in log
    assert "nobody7" not in log and "someone" not in log


def test_rules_are_read_again_and_broken_ones_change_nothing(sink: SinkProcess) -> None:
    with Client(sink.port) as client:
        assert client.deliver("a@isp.example").startswith("250")
        sink.set_rules("domains: {isp.example: {refuse: {text: Not you}}}")
        assert client.deliver("a@isp.example") == "550 5.7.1 Not you"
        sink.set_rules("domains: {isp.example: {refuse: {code: 200}}}")
        assert client.deliver("a@isp.example") == "550 5.7.1 Not you"
        assert "the old ones stay in force" in sink.mainlog.read_text()
        sink.set_rules("")
        assert client.deliver("a@isp.example").startswith("250")


def test_slow_domains_delay_only_themselves(sink: SinkProcess) -> None:
    sink.set_rules("domains: {slow.example: {slow: {after_dot_ms: 600000}}}")
    with Client(sink.port) as waiting, Client(sink.port) as other:
        waiting.envelope("a@slow.example")
        waiting.send(b"A: b\r\n\r\n.\r\n")
        assert other.deliver("a@isp.example").startswith("250")
        assert len(accepted(sink.mainlog)) == 1


def test_vanishing_leaves_doubt_and_a_record(sink: SinkProcess) -> None:
    sink.set_rules("domains: {isp.example: {vanish: {first: 1}}}")
    with Client(sink.port) as client, pytest.raises(ConnectionError):
        client.deliver("a@isp.example")
    assert len(accepted(sink.mainlog)) == len(stored(sink.maildir)) == 1


def test_rotation_by_signal(sink: SinkProcess) -> None:
    with Client(sink.port) as client:
        client.deliver("a@isp.example", b"Message-ID: <before@x>\r\n\r\n")
        sink.rotate_log()
        rotated = sink.mainlog.with_name("mainlog.1")
        until(rotated.exists)
        until(sink.mainlog.exists)
        client.deliver("a@isp.example", b"Message-ID: <after@x>\r\n\r\n")
    assert [line["message_id"] for line in accepted(rotated)] == ["before@x"]
    assert [line["message_id"] for line in accepted(sink.mainlog)] == ["after@x"]


def test_rotation_by_size_loses_no_line(tmp_path: Path) -> None:
    with start(tmp_path, log_max_bytes=4000, fsync=False) as sink:
        with Client(sink.port) as client:
            for number in range(120):
                client.deliver("a@isp.example", b"Message-ID: <%d@x>\r\n\r\n" % number)
        files = sorted(sink.folder.glob("mainlog*"), key=lambda file: int(file.suffix[1:] or 0), reverse=True)
        assert 3 < len(files) <= 10
        seen = [line["message_id"] for file in files for line in accepted(file)]
    assert seen == [f"{n}@x" for n in range(120)][-len(seen) :] and seen[-1] == "119@x"


KILLED_CLIENT = """
import socket, sys
connection = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
connection.sendall(b"EHLO x\\r\\n")
while True:
    connection.sendall(b"MAIL FROM:<b@x.example>\\r\\nRCPT TO:<a@isp.example>\\r\\nDATA\\r\\n")
    reply = b""
    while b"354 " not in reply:
        reply += connection.recv(4096)
    connection.sendall(b"Subject: x\\r\\n\\r\\n" + b"y" * 40_000 + b"\\r\\n.\\r\\n")
"""


@pytest.mark.fault
def test_killed_clients_leave_no_line_without_a_file_and_no_file_without_a_line(sink: SinkProcess) -> None:
    clients = [subprocess.Popen([sys.executable, "-c", KILLED_CLIENT, str(sink.port)]) for _ in range(6)]
    try:
        for number, client in enumerate(clients, 1):
            until(lambda n=number: len(accepted(sink.mainlog)) > 15 * n)  # type: ignore[misc]
            client.kill()
            client.wait()
    finally:
        for client in clients:
            client.kill()
            client.wait()
    until(lambda: sink.mainlog.read_text().count(" lost\n") == 6)
    lines, files = accepted(sink.mainlog), stored(sink.maildir)
    assert {line["id"] for line in lines} == set(files) and len(lines) == len(files)
    assert all(file.endswith(b"y\r\n") for file in files.values())


def test_nothing_of_a_connection_follows_its_last_line(sink: SinkProcess) -> None:
    """So that settling may look once the connection has ended."""
    for _ in range(40):
        client = Client(sink.port)
        client.envelope("a@isp.example")
        client.send(b"Subject: x\r\n\r\n" + b"y" * 40_000 + b"\r\n.\r\n")
        client.close()
    until(lambda: sink.mainlog.read_text().count(" lost\n") == 40)
    ended: set[str] = set()
    for line in sink.mainlog.read_text().splitlines():
        end = line.partition(" SMTP connection from (")[2]
        if end:
            ended.add(end.split("[127.0.0.1]:")[1].split()[0])
        elif " <= " in line:
            assert line.split("[127.0.0.1]:")[1].split()[0] not in ended


def test_a_partial_message_is_nothing(sink: SinkProcess) -> None:
    client = Client(sink.port)
    client.envelope("a@isp.example")
    client.send(b"Subject: x\r\n\r\nhalf of it\r\n.")
    client.close()
    until(lambda: " lost\n" in sink.mainlog.read_text())
    assert accepted(sink.mainlog) == [] and stored(sink.maildir) == {}


@hypothesis_settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.one_of(
    st.binary(max_size=200),
    st.sampled_from([b"EHLO x\r\n", b"MAIL FROM:<a@b.example>\r\n", b"RCPT TO:<c@d.example>\r\n", b"DATA\r\n", b".\r\n",
                     b"RSET\r\n", b"AUTH PLAIN =\r\n", b"STARTTLS\r\n", b"VRFY x\r\n", b"MAIL FROM:<\"@>\r\n",
                     b"RCPT TO:<(>\r\n", b"MAIL FROM:a@b(\r\n", b"NOOP\r\n", b"HELP\r\n", b"EHLO \xff\r\n", b"\r\n"]),
), max_size=12))  # fmt: skip
def test_garbage_harms_nobody_else(sink: SinkProcess, pieces: list[bytes]) -> None:
    client = Client(sink.port, helo="")
    try:
        for piece in pieces:
            client.send(piece)
    except OSError:
        pass
    finally:
        client.close()
    with Client(sink.port) as other:
        assert other.deliver("a@isp.example").startswith("250")


def test_a_line_without_end(sink: SinkProcess) -> None:
    with Client(sink.port) as client:
        client.send(b"MAIL FROM:<" + b"a" * 12_000_000)
        client.send(b"\r\n")
        assert client.reply().startswith("500")
        assert client.deliver("a@isp.example").startswith("250")


def test_sigterm_finishes_what_is_in_hand(tmp_path: Path) -> None:
    with start(tmp_path, rules="domains: {slow.example: {slow: {after_dot_ms: 500}}}") as sink:
        idle, busy = Client(sink.port), Client(sink.port)
        busy.envelope("a@slow.example")
        busy.send(b"Subject: x\r\n\r\n.\r\n")
        time.sleep(0.1)
        sink.process.send_signal(signal.SIGTERM)
        assert idle.reply().startswith("421")
        assert busy.reply().startswith("250")
        assert sink.process.wait(20) == 0
        assert len(accepted(sink.mainlog)) == 1
        idle.close()
        busy.close()
    assert not (tmp_path / "sink" / "ports.json").exists()


def test_starttls_and_auth(tmp_path: Path) -> None:
    with start(tmp_path, require_starttls=True, listen_tls=["127.0.0.1:0"], auth={"mx": "s3cret:x"}) as sink:
        trust = ssl.create_default_context(cafile=sink.certificate)
        with smtplib.SMTP("127.0.0.1", sink.port) as client:
            client.ehlo("me")
            assert client.mail("b@x.example")[0] == 530
            client.starttls(context=trust)
            client.ehlo("me")
            assert client.mail("b@x.example")[0] == 530
            with pytest.raises(smtplib.SMTPAuthenticationError):
                client.login("mx", "wrong")
        for make in (
            lambda: smtplib.SMTP("127.0.0.1", sink.port),
            lambda: smtplib.SMTP_SSL("127.0.0.1", sink.tls_ports[0], context=trust),
        ):
            with make() as client:
                if not isinstance(client, smtplib.SMTP_SSL):
                    client.starttls(context=trust)
                client.login("mx", "s3cret:x")
                client.sendmail("b@x.example", ["a@isp.example"], b"Message-ID: <1@x>\r\n\r\nhi\r\n")
        assert [line["protocol"] for line in accepted(sink.mainlog)] == ["esmtpsa", "esmtpsa"]
        assert "s3cret" not in sink.mainlog.read_text()


def test_several_addresses_share_one_maildir(tmp_path: Path) -> None:
    with start(tmp_path, listen=["127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:0"]) as sink:
        threads = [threading.Thread(target=_deliver, args=(port,)) for port in sink.ports * 4]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(set(sink.ports)) == 3
        assert len(stored(sink.maildir)) == 12
        assert {int(line["local"]) for line in accepted(sink.mainlog)} == set(sink.ports)


def _deliver(port: int) -> None:
    with Client(port) as client:
        assert client.deliver("a@isp.example").startswith("250")


def test_it_ends_with_who_started_it(tmp_path: Path) -> None:
    code = (
        "import os, sys\nfrom pathlib import Path\nfrom mailer_lib.sink.process import start\n"
        "print(start(Path(sys.argv[1])).process.pid, flush=True)\nos.kill(os.getpid(), 9)"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    pid = int(ran.stdout)
    until(lambda: not Path(f"/proc/{pid}").exists() or Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z")


def test_a_taken_port_is_a_sentence(sink: SinkProcess, tmp_path: Path) -> None:
    with pytest.raises(SinkProcessError, match="can't listen on"):
        start(tmp_path, name="second", listen=[f"127.0.0.1:{sink.port}"])
