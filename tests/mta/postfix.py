"""A real Postfix beside Exim, which Debian doesn't let one install together: its package unpacked, never installed.

``Postfix`` runs its master with smtpd, cleanup, qmgr and smtp out of that folder; everything is handed to ``relay_to``.
"""

import os
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.mta.exim import make_reachable, wait_for_port
from tests.support import lasting_port, missing

CACHE = Path(__file__).parents[2] / ".demo" / "postfix"
OWNER, GROUP = "daemon", "mail"  # of its queue; Debian's own accounts come with its installation

MAIN = """
compatibility_level = 3.6
myhostname = mx.test
mydestination =
mynetworks = 127.0.0.0/8
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
queue_directory = {folder}/spool
data_directory = {folder}/data
command_directory = {root}/usr/sbin
daemon_directory = {root}/usr/lib/postfix/sbin
shlib_directory = {root}/usr/lib/postfix
meta_directory = {root}/etc/postfix
mail_owner = {owner}
setgid_group = {group}
maillog_file = {folder}/maillog
maillog_file_prefixes = {folder}
import_environment = MAIL_CONFIG LD_LIBRARY_PATH
export_environment = MAIL_CONFIG LD_LIBRARY_PATH
alias_maps =
local_recipient_maps =
relayhost = [127.0.0.1]:{relay_to}
smtpd_peername_lookup = no
smtpd_client_connection_count_limit = 0
smtpd_error_sleep_time = 0
smtpd_hard_error_limit = 1000
smtpd_discard_ehlo_keywords = {hidden}
smtpd_recipient_restrictions = check_recipient_access inline:{{ {{ refusing.example = 550 5.1.1 no such user here }},
    {{ greylisting.example = 450 4.7.1 greylisted, come back later }} }}, permit_mynetworks, reject
smtpd_end_of_data_restrictions = check_recipient_access inline:{{
    {{ content.example = 550 5.7.1 we do not like what it says }} }}, permit
smtputf8_enable = yes
"""

MASTER = """
127.0.0.1:{port} inet n - n - - smtpd
pickup unix n - n 60 1 pickup
cleanup unix n - n - 0 cleanup
qmgr unix n - n 300 1 qmgr
tlsmgr unix - - n 1000? 1 tlsmgr
rewrite unix - - n - - trivial-rewrite
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
trace unix - - n - 0 bounce
verify unix - - n - 1 verify
flush unix n - n 1000? 0 flush
proxymap unix - - n - - proxymap
proxywrite unix - - n - 1 proxymap
smtp unix - - n - - smtp
relay unix - - n - - smtp
showq unix n - n - - showq
error unix - - n - - error
retry unix - - n - - error
discard unix - - n - - discard
local unix - n n - - local
anvil unix - - n - 1 anvil
scache unix - - n - 1 scache
postlog unix-dgram n - n - 1 postlogd
"""


class NoPostfixError(RuntimeError):
    """Postfix isn't here and can't be had."""


def unpacked() -> tuple[Path, str]:
    """The root of Debian's package, unpacked, and its version.

    Raises:
        NoPostfixError: the sentence says how to get it.
    """
    version = CACHE / "version"
    if not version.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        try:
            subprocess.run(["apt-get", "download", "postfix"], cwd=CACHE, check=True, capture_output=True)
            package = next(CACHE.glob("postfix_*.deb"))
            subprocess.run(["dpkg", "-x", package.name, "."], cwd=CACHE, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError, StopIteration) as error:
            raise NoPostfixError(
                "Debian's postfix package can't be downloaded; run "
                f"`apt-get download postfix` in {CACHE} where a mirror is reachable"
            ) from error
        version.write_text(f"postfix {package.name.split('_')[1]}\n")
    return CACHE, version.read_text().strip()


@dataclass
class Postfix:
    folder: Path
    relay_to: int  # port of the next hop on this machine
    chunking: bool = True
    pipelining: bool = True
    port: int = field(default_factory=lasting_port)
    _master: "subprocess.Popen[bytes] | None" = None

    @property
    def log(self) -> Path:
        return self.folder / "maillog"

    def start(self) -> Self:
        if os.geteuid() != 0:
            missing("a real Postfix is needed: be root on Debian")
        try:
            root, _ = unpacked()
        except NoPostfixError as error:
            missing(str(error))
        for name in ("spool", "data", "conf"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        make_reachable(self.folder)
        shutil.chown(self.folder / "data", OWNER)
        for name in (
            *(
                "active",
                "bounce",
                "corrupt",
                "defer",
                "deferred",
                "flush",
                "hold",
                "incoming",
                "private",
                "saved",
                "trace",
            ),
            *("maildrop", "public", "pid"),
        ):
            (self.folder / "spool" / name).mkdir(exist_ok=True)
            shutil.chown(self.folder / "spool" / name, "root" if name == "pid" else OWNER)
        for name in ("maildrop", "public"):
            shutil.chown(self.folder / "spool" / name, None, GROUP)
        hidden = [
            word for word, offered in (("chunking", self.chunking), ("pipelining", self.pipelining)) if not offered
        ]
        (self.folder / "conf" / "main.cf").write_text(
            MAIN.format(
                folder=self.folder, root=root, owner=OWNER, group=GROUP, relay_to=self.relay_to,
                hidden=", ".join(hidden),
            )
        )  # fmt: skip
        (self.folder / "conf" / "master.cf").write_text(MASTER.format(port=self.port))
        environment = {
            **os.environ,
            "LD_LIBRARY_PATH": str(root / "usr/lib/postfix"),
            "MAIL_CONFIG": str(self.folder / "conf"),
        }
        with (self.folder / "stderr.log").open("ab") as errors:
            self._master = subprocess.Popen(
                [str(root / "usr/lib/postfix/sbin/master"), "-c", str(self.folder / "conf"), "-d"],
                stdin=subprocess.DEVNULL, stdout=errors, stderr=errors, env=environment, start_new_session=True,
            )  # fmt: skip
        wait_for_port(self.port, self._master, self.folder / "stderr.log")
        return self

    def stop(self) -> None:
        if self._master is not None and self._master.poll() is None:
            self._master.terminate()
            self._master.wait(20)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()
