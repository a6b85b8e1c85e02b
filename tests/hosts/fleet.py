"""A small internet of its own on this machine: bare Debian hosts, mailbox providers and their DNS on one switch.

    with Fleet(tmp_path, hosts=3, providers={"isp-a.test": ""}) as fleet:
        fleet.run(fleet.hosts[0], "apt-get update && apt-get install -y exim4-daemon-light")

Each host is a systemd-nspawn container that boots systemd and sshd in a network namespace whose only link goes to the
switch, and the switch has no link to anywhere: no packet can leave. A mailbox provider is a development sink behind an
MX record. Needs root, debootstrap, systemd-container and dnsmasq-base (packages.txt).
"""

import itertools
import os
import shutil
import subprocess
import time
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

import dns.rdatatype
import dns.zonefile

from mailer_lib.sink.process import SinkProcess
from mailer_lib.sink.process import start as start_sink
from tests.hosts.base import base_root
from tests.hosts.host import Host
from tests.hosts.package_proxy import PackageProxy
from tests.hosts.switch import Switch
from tests.support import missing

_numbers = itertools.count()
_FIRST_HOST, _FIRST_PROVIDER = 11, 101
_PROGRAMS = ("ip", "unshare", "systemd-nspawn", "debootstrap", "dnsmasq", "ssh", "ssh-keygen")


class Fleet:
    """``providers``: rules of the development sink (docs of ``mailer_lib/sink/rules.py``) by domain."""

    def __init__(self, folder: Path, *, hosts: int, providers: Mapping[str, str] | None = None) -> None:
        if os.geteuid():
            missing("a test fleet needs root: network namespaces and systemd-nspawn")
        for program in _PROGRAMS:
            if shutil.which(program) is None:
                missing(f"{program}, for the test fleet (packages.txt)")
        self.folder = folder / "fleet"
        self.hosts: list[Host] = []
        self.providers: dict[str, SinkProcess] = {}
        self._host_count, self._rules = hosts, dict(providers or {})
        self._published: list[str] = []
        self._dns: subprocess.Popen[bytes] | None = None
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        try:
            self._build()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.close()

    @property
    def ssh_config(self) -> Path:
        """For ssh and Ansible, in the controller's place: host names as ``Host.name``, keys pinned."""
        return self.folder / "ssh_config"

    def run(self, host: Host, command: str, *, timeout_s: float = 120) -> "subprocess.CompletedProcess[str]":
        """A shell command on a host, over ssh, as root."""
        ssh = self.switch.command("ssh", "-F", str(self.ssh_config), host.name, command)
        return subprocess.run(ssh, capture_output=True, text=True, timeout=timeout_s, check=False)

    def publish(self, zone_lines: Iterable[str]) -> None:
        """More records for the DNS of this internet, as a zone file has them: TXT, A, MX and PTR."""
        for rrset in dns.zonefile.read_rrsets("\n".join(zone_lines), rdclass=None, default_ttl=60):
            name = rrset.name.to_text(omit_final_dot=True)
            for rdata in rrset:
                match rrset.rdtype:
                    case dns.rdatatype.TXT:
                        texts = ",".join(text.decode() for text in rdata.strings)  # dnsmasq would keep quotes
                        self._published.append(f"--txt-record={name},{texts}")
                    case dns.rdatatype.A:
                        self._published.append(f"--host-record={name},{rdata.address}")
                    case dns.rdatatype.MX:
                        target = rdata.exchange.to_text(omit_final_dot=True)
                        self._published.append(f"--mx-host={name},{target},{rdata.preference}")
                    case dns.rdatatype.PTR:
                        self._published.append(f"--ptr-record={name},{rdata.target.to_text(omit_final_dot=True)}")
                    case other:
                        raise NotImplementedError(f"a record of type {dns.rdatatype.to_text(other)}")
        self._stop_dns()
        self._start_dns()

    def _build(self) -> None:
        base = base_root()
        self.folder.mkdir(parents=True)
        self.switch = Switch(f"mf{os.getpid() % 100_000}x{next(_numbers)}", "10.77.0")
        self._stack.callback(self.switch.close)
        proxy = PackageProxy(self.switch)
        self._stack.callback(proxy.close)
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.folder / "key")], check=True)
        public_key = (self.folder / "key.pub").read_text()
        for number in range(_FIRST_HOST, _FIRST_HOST + self._host_count):
            name = f"host-{number - _FIRST_HOST + 1}"
            host = Host(self.folder / name, base, self.switch, number, name, public_key)
            self._stack.callback(host.remove)
            proxy.configure(host.root)
            self.hosts.append(host)
            host.boot()
        self._describe_hosts()
        self._start_providers()
        self._stack.callback(self._stop_dns)
        self._start_dns()
        for host in self.hosts:
            host.wait()

    def _describe_hosts(self) -> None:
        known = [f"{host.address} {host.host_key}\n" for host in self.hosts]
        (self.folder / "known_hosts").write_text("".join(known))
        blocks = [
            f"Host {host.name}\n  HostName {host.address}\n  User root\n  IdentityFile {self.folder / 'key'}\n"
            f"  IdentitiesOnly yes\n  UserKnownHostsFile {self.folder / 'known_hosts'}\n"
            "  StrictHostKeyChecking yes\n  ConnectTimeout 10\n  BatchMode yes\n"
            for host in self.hosts
        ]
        self.ssh_config.write_text("\n".join(blocks))

    def _start_providers(self) -> None:
        for number, (domain, rules) in enumerate(self._rules.items(), _FIRST_PROVIDER):
            address = self.switch.also(number)
            with self.switch.inside():
                sink = start_sink(self.folder / "providers", name=domain, listen=[f"{address}:25"], rules=rules or None)
            self._stack.callback(sink.stop)
            self.providers[domain] = sink

    def _start_dns(self) -> None:
        """Answers for what is on the switch, forward and reverse, and for nothing else."""
        records = [f"--host-record={host.name}.fleet.test,{host.address}" for host in self.hosts]
        for number, domain in enumerate(self._rules, _FIRST_PROVIDER):
            records.append(f"--host-record=mx.{domain},{self.switch.address(number)}")
            records.append(f"--mx-host={domain},mx.{domain},10")
        command = [
            "dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--no-resolv", "--no-hosts", "--no-daemon",
            f"--listen-address={self.switch.gateway}", "--bind-interfaces", "--user=root", "--cache-size=0",
            # What isn't there is answered as that, not refused for want of an upstream server.
            "--local=/test/", "--local=/in-addr.arpa/", *records,
            *self._published,
        ]  # fmt: skip
        with (self.folder / "dns.log").open("wb") as log, self.switch.inside():
            self._dns = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        time.sleep(0.1)
        if self._dns.poll() is not None:
            raise RuntimeError(f"dnsmasq didn't start: {(self.folder / 'dns.log').read_text()}")

    def _stop_dns(self) -> None:
        if self._dns is not None:
            self._dns.kill()
            self._dns.wait()
