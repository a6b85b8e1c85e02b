"""Settling from an MTA's records: real files in Exim's form, and a real server socket."""

import contextlib
import gzip
import os
import socket
import threading
import time
from datetime import datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailer_lib.agent.ledger import InDoubt
from mailer_lib.agent.settle import (
    CantTell,
    Injected,
    MtaRecords,
    NotInjected,
    held_ports,
    log_position,
    settle,
)
from mailer_lib.terms import MtaKind
from tests.support import free_port

KEY, OTHER = bytes(range(16)), b"o" * 16
BOOT = "boot-a"
NOW_S = time.time()


def stamp(at_s: float) -> str:
    return datetime.fromtimestamp(at_s).strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]


def noise(at_s: float) -> str:
    return f"{stamp(at_s)} [71] SMTP connection from [127.0.0.1]:40312 I=[127.0.0.1]:25\n"


def accepted(key: bytes, queue_id: str = "1tEFGh-0000A1-2F") -> str:
    return (
        f"{stamp(NOW_S - 100_000)} [71] {queue_id} <= b-{key.hex()}-7-0123456789@bounce.example "
        f'H=mx1 [127.0.0.1]:40312 I=[127.0.0.1]:25 P=esmtp S=35012 id={key.hex()}.7@news.example T="Spring"\n'
    )


class Mta:
    """Records of an MTA below a folder. Time is the test's: ``at_s`` is when the log was written to last."""

    def __init__(self, folder: Path, kind: MtaKind = MtaKind.SINK) -> None:
        self.log = folder / "mainlog"
        self.spool = folder / "spool"
        self.at_s = NOW_S - 100_000
        self.write(noise(self.at_s))
        self.records = MtaRecords(kind, free_port(), self.log, self.spool if kind is MtaKind.EXIM else None)
        if kind is MtaKind.EXIM:
            (self.spool / "input" / "x").mkdir(parents=True)

    def write(self, *lines: str) -> None:
        """A minute passes, then the lines are written."""
        self.at_s += 60
        with self.log.open("a") as file:
            file.writelines(lines)
        os.utime(self.log, (self.at_s, self.at_s))

    def rotate(self, compress: bool = False) -> None:
        """As logrotate does it: rename, begin a new one, then compress the second ("delaycompress")."""
        for number in range(8, 0, -1):
            for end in ("", ".gz"):
                older = self.log.with_name(f"mainlog.{number}{end}")
                if older.exists():
                    older.rename(self.log.with_name(f"mainlog.{number + 1}{end}"))
        self.log.rename(self.log.with_name("mainlog.1"))
        if compress and self.log.with_name("mainlog.2").exists():
            self.compress(2)
        self.write(noise(self.at_s))

    def compress(self, number: int) -> None:
        plain = self.log.with_name(f"mainlog.{number}")
        packed = self.log.with_name(f"mainlog.{number}.gz")
        packed.write_bytes(gzip.compress(plain.read_bytes()))
        os.utime(packed, (plain.stat().st_mtime, plain.stat().st_mtime))
        plain.unlink()

    def doubt(self, key: bytes = KEY, port: int = 1) -> InDoubt:
        """A message whose connection is opened now, a minute after the log was written to."""
        inode, offset = log_position(self.records)
        self.at_s += 60
        return InDoubt(0, key, 1, "1.1", port, inode, offset, BOOT, int(self.at_s * 1000))

    def verdict(self, doubt: InDoubt, boot: str = BOOT) -> object:
        return settle([doubt], self.records, boot=boot, wait_s=0)[doubt.message_key]


@pytest.fixture
def mta(tmp_path: Path) -> Mta:
    return Mta(tmp_path)


def test_a_line_after_the_recorded_position_means_injected(mta: Mta) -> None:
    doubt = mta.doubt()
    mta.write(noise(NOW_S), accepted(OTHER, "1tAAAA-0000A1-2F"), accepted(KEY))
    assert mta.verdict(doubt) == Injected("1tEFGh-0000A1-2F")


def test_no_line_in_a_log_without_gaps_means_not_injected(mta: Mta) -> None:
    doubt = mta.doubt()
    mta.write(accepted(OTHER))
    assert mta.verdict(doubt) == NotInjected()


def test_an_older_hand_over_before_the_position_doesn_t_count(mta: Mta) -> None:
    """Another attempt of the same message, long settled: its line lies before this connection's position."""
    mta.write(accepted(KEY))
    doubt = mta.doubt()
    assert mta.verdict(doubt) == NotInjected()


@pytest.mark.parametrize(
    "line",
    [
        "2026-11-24 03:31:52 1tEFGh-0000A1-2F <= b-{key}-7-0123456789@bounce.example H=x P=esmtp S=1\n",
        "2026-11-24 03:31:52.123 +0100 [71] 1tEFGh-0000A1-2F <= x@y.example P=esmtp S=1 id={key}.7@news.example\n",
        "2026-11-24 03:31:52.123 [71] 1tEFGh-0000A1-2F => ann@a.example F=<b-{key}-7-0123456789@b.example> R=r T=t\n",
        "2026-11-24 03:31:52.123 [71] 1tEFGh-0000A1-2F ** ann@a.example F=<b-{key}-7-0123456789@b.example>: no\n",
        "2026-11-24 03:31:52.123 [71] 1tEFGh-0000A1-2F == ann@a.example F=<B-{KEY}-7-0123456789@b.example> defer\n",
    ],
)
def test_whatever_shows_the_message_in_the_mta_s_hands_counts(mta: Mta, line: str) -> None:
    doubt = mta.doubt()
    mta.write(line.format(key=KEY.hex(), KEY=KEY.hex().upper()))
    assert mta.verdict(doubt) == Injected("1tEFGh-0000A1-2F")


@pytest.mark.parametrize(
    "line",
    [
        "2026-11-24 03:31:52.123 [71] H=mx1 F=<b-{key}-7-01@b.example> rejected RCPT <@a.example>: 550\n",
        "2026-11-24 03:31:52.123 [71] 1tEFGh-0000A1-2F H=mx1 F=<b-{key}-7-01@b.example> rejected after DATA: no\n",
        '2026-11-24 03:31:52.123 [71] 1tEFGh-0000A1-2F <= x@y.example P=esmtp T="<= b-{key}-7-01" id=1@z\n',
        "2026-11-24 03:31:52.123 [71] SMTP data timeout (message abandoned) F=<b-{key}-7-01@b.example>\n",
    ],
)
def test_refusals_and_quotations_don_t_count(mta: Mta, line: str) -> None:
    doubt = mta.doubt()
    mta.write(line.format(key=KEY.hex()))
    assert mta.verdict(doubt) == NotInjected()


@pytest.mark.parametrize("rotations", [1, 2, 5])
def test_rotated_logs_are_followed(mta: Mta, rotations: int) -> None:
    present, absent = mta.doubt(), mta.doubt(OTHER)
    for _ in range(rotations):
        mta.rotate()
    mta.write(accepted(KEY))
    assert mta.verdict(present) == Injected("1tEFGh-0000A1-2F")
    assert mta.verdict(absent) == NotInjected()


def test_a_line_in_a_rotated_log_is_found(mta: Mta) -> None:
    doubt = mta.doubt()
    mta.write(accepted(KEY))
    mta.rotate()
    mta.rotate()
    assert mta.verdict(doubt) == Injected("1tEFGh-0000A1-2F")


def test_an_inode_that_another_log_has_now_deceives_nobody(mta: Mta) -> None:
    """Compression frees the old log's inode, and the next file gets it (ext4 does that at once)."""
    mta.rotate()
    present = mta.doubt()
    mta.write(accepted(KEY))
    mta.rotate(compress=True)
    mta.rotate(compress=True)
    assert mta.log.with_name("mainlog.2.gz").exists()
    for file in (mta.log, mta.log.with_name("mainlog.1")):
        same = present._replace(log_inode=file.stat().st_ino, log_offset=file.stat().st_size)
        assert mta.verdict(same) == Injected("1tEFGh-0000A1-2F")
        assert mta.verdict(same._replace(message_key=OTHER)) == NotInjected()


def test_a_compressed_log_is_read_when_an_older_one_shows_that_none_is_lost(mta: Mta) -> None:
    mta.rotate()
    doubt = mta.doubt()
    mta.write(accepted(KEY))
    mta.rotate()
    mta.rotate()
    mta.compress(2)
    assert mta.verdict(doubt) == Injected("1tEFGh-0000A1-2F")
    assert mta.verdict(doubt._replace(message_key=OTHER)) == NotInjected()
    mta.log.with_name("mainlog.3").unlink()
    assert mta.verdict(doubt) == Injected("1tEFGh-0000A1-2F")
    assert isinstance(mta.verdict(doubt._replace(message_key=OTHER)), CantTell)


def test_logs_that_were_dropped_since_can_t_tell(mta: Mta) -> None:
    """Rotation without compression, the oldest deleted: its inode is the newest log's now."""
    doubt = mta.doubt()
    mta.write(accepted(KEY))
    for _ in range(3):
        mta.rotate()
    mta.log.with_name("mainlog.3").unlink()
    reused = doubt._replace(log_inode=mta.log.stat().st_ino, log_offset=mta.log.stat().st_size)
    assert isinstance(mta.verdict(doubt), CantTell)
    assert isinstance(mta.verdict(reused), CantTell)


def test_a_missing_log_between_can_t_tell(mta: Mta) -> None:
    doubt = mta.doubt()
    mta.rotate()
    mta.rotate()
    mta.log.with_name("mainlog.1").unlink()
    assert mta.verdict(doubt) == CantTell("mainlog.1 is missing beside the MTA's log")


def test_a_log_that_is_gone_or_cut_can_t_tell(mta: Mta) -> None:
    doubt = mta.doubt()
    os.truncate(mta.log, 0)
    assert isinstance(mta.verdict(doubt), CantTell)
    mta.log.unlink()
    assert isinstance(mta.verdict(doubt), CantTell)
    assert isinstance(mta.verdict(doubt._replace(log_inode=0, log_offset=0)), CantTell)


def test_a_log_that_was_begun_after_the_connection_is_read_whole(mta: Mta) -> None:
    mta.log.unlink()
    doubt = mta.doubt()
    assert doubt.log_inode == 0
    mta.write(accepted(KEY))
    assert mta.verdict(doubt) == Injected("1tEFGh-0000A1-2F")
    assert mta.verdict(doubt._replace(message_key=OTHER)) == NotInjected()


def test_after_a_reboot_absence_proves_nothing(mta: Mta) -> None:
    doubt = mta.doubt()
    assert isinstance(mta.verdict(doubt, boot="boot-b"), CantTell)
    mta.write(accepted(KEY))
    assert mta.verdict(doubt, boot="boot-b") == Injected("1tEFGh-0000A1-2F")


def test_a_relay_s_records_can_t_be_read(mta: Mta) -> None:
    mta.write(accepted(KEY))
    verdict = settle([mta.doubt()], MtaRecords(MtaKind.RELAY, 25), boot=BOOT)
    assert isinstance(verdict[KEY], CantTell)


def test_many_doubts_of_different_connections_are_settled_in_one_go(mta: Mta) -> None:
    keys = [bytes([n]) * 16 for n in range(20)]
    doubts = []
    for n, key in enumerate(keys):
        doubts.append(mta.doubt(key))
        if n % 2:
            mta.write(accepted(key, f"1t{n:04d}-0000A1-2F"))
        if n % 7 == 6:
            mta.rotate()
    verdicts = settle(doubts, mta.records, boot=BOOT, wait_s=0)
    assert verdicts == {key: Injected(f"1t{n:04d}-0000A1-2F") if n % 2 else NotInjected() for n, key in enumerate(keys)}


# --- Exim's spool -----------------------------------------------------------------------------------------------------


def test_a_message_in_exim_s_spool_counts_without_a_log_line(tmp_path: Path) -> None:
    mta = Mta(tmp_path, MtaKind.EXIM)
    doubt = mta.doubt()
    assert mta.verdict(doubt) == NotInjected()
    (mta.spool / "input" / "x" / "1tEFGh-0000A1-2F-H").write_text(
        f"1tEFGh-0000A1-2F-H\nexim 100 101\n<b-{KEY.hex()}-7-0123456789@bounce.example>\n1795492557 0\n"
    )
    assert mta.verdict(doubt) == Injected("1tEFGh-0000A1-2F")


def test_a_message_in_a_named_queue_counts_too(tmp_path: Path) -> None:
    mta = Mta(tmp_path, MtaKind.EXIM)
    doubt = mta.doubt()
    queue = mta.spool / "spring-sale" / "input"
    queue.mkdir(parents=True)
    (queue / "1tEFGh-0000A1-2F-H").write_text(f"…\nI Message-ID: <{KEY.hex()}.7@news.example>\n")
    assert mta.verdict(doubt) == Injected("1tEFGh-0000A1-2F")


def test_without_exim_s_spool_absence_proves_nothing(tmp_path: Path) -> None:
    mta = Mta(tmp_path, MtaKind.EXIM)
    doubt = mta.doubt()
    for folder in (mta.spool / "input" / "x", mta.spool / "input"):
        folder.rmdir()
    assert isinstance(mta.verdict(doubt), CantTell)
    without = MtaRecords(MtaKind.EXIM, mta.records.port, mta.log)
    assert isinstance(settle([doubt], without, boot=BOOT, wait_s=0)[KEY], CantTell)


# --- the connection ---------------------------------------------------------------------------------------------------


def test_the_look_up_waits_for_the_server_s_end_of_the_connection(tmp_path: Path) -> None:
    """The server accepts only after its client is dead: an early look would find nothing."""
    mta = Mta(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        records = MtaRecords(MtaKind.SINK, listener.getsockname()[1], mta.log)
        client = socket.create_connection(listener.getsockname())
        server, _ = listener.accept()
        doubt = mta.doubt(port=client.getsockname()[1])
        client.close()
        begun = threading.Event()

        def finish() -> None:
            begun.wait()
            mta.write(accepted(KEY))
            server.close()

        thread = threading.Thread(target=finish)
        thread.start()

        def sleep(seconds: float) -> None:
            begun.set()
            time.sleep(seconds)

        assert settle([doubt], records, boot=BOOT, sleep=sleep)[KEY] == Injected("1tEFGh-0000A1-2F")
        assert begun.is_set()
        thread.join()


def test_a_server_that_never_lets_go_can_t_tell(tmp_path: Path) -> None:
    mta = Mta(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as listener, contextlib.ExitStack() as stack:
        records = MtaRecords(MtaKind.SINK, listener.getsockname()[1], mta.log)
        client = socket.create_connection(listener.getsockname())
        server, _ = listener.accept()
        stack.enter_context(server)
        doubt = mta.doubt(port=client.getsockname()[1])
        client.close()
        assert settle([doubt], records, boot=BOOT, wait_s=0.05)[KEY] == CantTell(
            "the MTA still holds the connection open"
        )


TABLE = """\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:0019 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1000 1 0 100 0 0 10 0
   1: 0100007F:0019 0100007F:9D78 01 00000000:00000000 00:00000000 00000000     0        0 1001 1 0 20 4 30 10 -1
   2: 0100007F:0019 0100007F:9D79 08 00000000:00000000 00:00000000 00000000     0        0 0 1 0 20 4 30 10 -1
   3: 0100007F:0019 0100007F:9D7A 06 00000000:00000000 03:00001000 00000000     0        0 0 3 0
   4: 0100007F:9D7B 0100007F:0019 04 00000000:00000000 00:00000000 00000000     0        0 0 1 0
"""


def test_only_the_server_s_live_ends_hold() -> None:
    assert held_ports(TABLE, 25) == {0, 0x9D78, 0x9D79}
    assert held_ports(TABLE, 26) == set()


@given(st.text(max_size=300))
def test_any_table_can_be_read(text: str) -> None:
    with contextlib.suppress(ValueError):  # not the kernel's
        held_ports(text, 25)


def test_nothing_in_doubt_asks_nobody() -> None:
    assert settle([], MtaRecords(MtaKind.EXIM, 25, Path("/nonexistent"))) == {}


def test_an_unreadable_log_can_t_tell(mta: Mta) -> None:
    doubt = mta.doubt()
    mta.log.unlink()
    mta.log.mkdir()
    verdict = mta.verdict(doubt)
    assert isinstance(verdict, CantTell)
    assert "can't be read" in verdict.why
