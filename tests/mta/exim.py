"""A real Exim below a folder of its own: takes what comes to its port, and hands it on or keeps it queued.

What it writes is what settling reads on a dispatch server: main log with ``+pid +smtp_connection``, split spool.
"""

import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.support import lasting_port, missing

PROGRAM = "/usr/sbin/exim4"
USER = "Debian-exim"
_MESSAGE_ID = re.compile(rb"^\d{3}I Message-ID: <([0-9a-f]{32})", re.IGNORECASE | re.MULTILINE)

CONFIG = """
primary_hostname = mx.test
qualify_domain = mx.test
spool_directory = {folder}/spool
log_file_path = {folder}/log/%slog
pid_file_path = {folder}/exim.pid
daemon_smtp_ports = {port}
local_interfaces = 127.0.0.1
queue_only
split_spool_directory
message_logs = false
deliver_drop_privilege
smtp_accept_max = 200
smtp_accept_max_per_connection = 0
smtp_accept_queue_per_connection = 0
smtp_connect_backlog = 100
rfc1413_query_timeout = 0s
host_lookup =
tls_advertise_hosts = {starttls}
tls_certificate = {folder}/tls.pem
chunking_advertise_hosts = {chunking}
pipelining_advertise_hosts = {pipelining}
accept_8bitmime
keep_environment =
log_selector = +millisec +pid +smtp_confirmation +deliver_time +queue_time +queue_time_overall +received_recipients \\
  +return_path_on_delivery +sender_on_delivery +delivery_size +smtp_connection +subject +outgoing_port \\
  +incoming_port +tls_cipher
received_header_text = Received: by mx.test id $message_exim_id
acl_smtp_mail = mail
acl_smtp_rcpt = rcpt
acl_smtp_data = data
begin acl
mail:
  accept  condition = ${{if match{{$sender_helo_name}}{{\\N^s[0-9]{{1,18}}\\.queue\\.invalid$\\N}}}}
          queue = s${{eval10:${{sg{{$sender_helo_name}}{{\\N[^0-9]\\N}}{{}}}}}}
  accept
rcpt:
  deny    domains = refusing.example
          message = 5.1.1 no such user here
  defer   domains = greylisting.example
          message = 4.7.1 greylisted, come back later
  accept
data:
  deny    condition = ${{if match{{$recipients}}{{@content.example}}}}
          message = 5.7.1 we do not like what it says
  accept
begin routers
onward:
  driver = manualroute
  route_list = * 127.0.0.1::{relay_to} byname
  self = send
  transport = onward
begin transports
onward:
  driver = smtp
  allow_localhost
  hosts_try_chunking =
begin retry
* * F,2h,1s
"""


@dataclass
class Exim:
    """``start`` it, ``kill`` its whole group, ``start`` it again: the spool stays."""

    folder: Path
    relay_to: int = 9  # port of the next hop on this machine
    runner_every_s: int = 0  # queue runs; 0: none, what comes stays in the spool
    starttls: bool = False
    chunking: bool = True
    pipelining: bool = True
    port: int = field(default_factory=lasting_port)
    _process: "subprocess.Popen[bytes] | None" = None

    @property
    def log(self) -> Path:
        return self.folder / "log" / "mainlog"

    @property
    def command(self) -> str:
        """Exim's, with its configuration: what an agent changes the queue with."""
        return f"{PROGRAM} -C {self.folder / 'exim.conf'}"

    @property
    def spool(self) -> Path:
        return self.folder / "spool"

    @property
    def panics(self) -> str:
        path = self.folder / "log" / "paniclog"
        return path.read_text() if path.exists() else ""

    def start(self) -> Self:
        if os.geteuid() != 0 or not Path(PROGRAM).exists():
            missing("a real Exim is needed: be root on Debian and `apt-get install exim4-daemon-heavy`")
        for name in ("spool", "log"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
            shutil.chown(self.folder / name, USER, USER)
        make_reachable(self.folder)
        if self.starttls and not (self.folder / "tls.pem").exists():
            _certificate(self.folder / "tls.pem")
        config = self.folder / "exim.conf"
        config.write_text(
            CONFIG.format(
                folder=self.folder,
                port=self.port,
                relay_to=self.relay_to,
                starttls="*" if self.starttls else "",
                chunking="*" if self.chunking else "",
                pipelining="*" if self.pipelining else "",
            )
        )
        command = [PROGRAM, "-C", str(config), "-bdf", f"-q{self.runner_every_s}s" if self.runner_every_s else "-v"]
        if not self.runner_every_s:
            command.pop()
        with (self.folder / "stderr.log").open("ab") as errors:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=errors, stderr=errors, start_new_session=True
            )
        wait_for_port(self.port, self._process, self.folder / "stderr.log")
        return self

    def kill(self) -> None:
        """SIGKILL to every process of it, forked receivers included: killing the listener alone leaves those alive."""
        assert self._process is not None
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def stop(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self.kill()

    def queued(self) -> Counter[str]:
        """Message keys in the Message-IDs of the spool, hex, with how many queue ids each has."""
        found: Counter[str] = Counter()
        for path in self.spool.rglob("input/**/*-H"):
            match = _MESSAGE_ID.search(path.read_bytes())
            assert match is not None, path
            found[match[1].decode().lower()] += 1
        return found

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()


def _certificate(path: Path) -> None:
    key = path.with_suffix(".key")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=mx.test",
         "-keyout", str(key), "-out", str(path)],
        check=True, capture_output=True,
    )  # fmt: skip
    path.write_bytes(path.read_bytes() + key.read_bytes())
    path.chmod(0o640)
    shutil.chown(path, "root", USER)


def make_reachable(folder: Path) -> None:
    """Pytest closes its folders to others, and an MTA gives up being root."""
    for place in (folder, *folder.parents):
        stat = place.stat()
        if stat.st_mode & 0o001 == 0 and stat.st_uid == os.geteuid():
            place.chmod(stat.st_mode | 0o055)


def wait_for_port(port: int, process: "subprocess.Popen[bytes]", errors: Path) -> None:
    """Until somebody listens; fails with the server's last words."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            time.sleep(0.02)
        else:
            return
    raise AssertionError(f"the server doesn't listen: {errors.read_text(errors='replace')[-800:]}")
