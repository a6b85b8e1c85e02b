"""The test fleet itself: what later tests stand on."""

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mailer_lib.sink.process import SinkProcess
from tests.hosts.fleet import Fleet

pytestmark = pytest.mark.fleet


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    providers = {"isp-a.test": "", "isp-b.test": 'domains: {isp-b.test: {unknown: {pattern: "."}}}'}
    with Fleet(tmp_path_factory.mktemp("internet"), hosts=2, providers=providers) as fleet:
        yield fleet


def test_a_host_is_a_booted_debian_with_sshd_and_nothing_more(fleet: Fleet) -> None:
    said = fleet.run(fleet.hosts[0], "cat /etc/debian_version; hostname; systemctl is-system-running --wait; ss -Htln")
    version, name, state, *listening = said.stdout.splitlines()
    assert (version.partition(".")[0], name, state) == ("12", "host-1", "running"), said.stdout + said.stderr
    assert {line.split()[3].rpartition(":")[2] for line in listening} == {"22"}


def test_hosts_have_different_host_keys(fleet: Fleet) -> None:
    assert len({host.host_key for host in fleet.hosts}) == 2


def test_no_packet_can_leave(fleet: Fleet) -> None:
    said = fleet.run(fleet.hosts[0], "ip route; bash -c 'exec 3<>/dev/tcp/192.0.2.1/80' 2>&1")
    assert "default" not in said.stdout
    assert "Network is unreachable" in said.stdout


def test_names_are_known_both_ways_and_mail_goes_where_its_mx_says(fleet: Fleet) -> None:
    script = """
import smtplib, socket, struct
print(socket.getfqdn("10.77.0.11"), socket.gethostbyname("mx.isp-b.test"))
with smtplib.SMTP("mx.isp-a.test", 25) as smtp:
    smtp.sendmail("a@fleet.test", ["lea@isp-a.test"], "Subject: hello\\r\\n\\r\\nHi\\r\\n")
with smtplib.SMTP("mx.isp-b.test", 25) as smtp:
    try:
        smtp.sendmail("a@fleet.test", ["lea@isp-b.test"], "Subject: hello\\r\\n\\r\\nHi\\r\\n")
    except smtplib.SMTPRecipientsRefused as error:
        print([code for code, _ in error.recipients.values()])
"""
    fleet.hosts[0].write("/root/mail.py", script)
    said = fleet.run(fleet.hosts[0], "python3 /root/mail.py")
    assert said.stdout.split("\n")[:2] == ["host-1.fleet.test 10.77.0.102", "[550]"], said.stderr
    assert stored(fleet.providers["isp-a.test"]) == 1
    assert stored(fleet.providers["isp-b.test"]) == 0


def stored(provider: SinkProcess) -> int:
    return len([path for path in provider.maildir.rglob("*") if path.is_file() and path.parent.name == "new"])


def test_packages_come_from_this_machines_sources(fleet: Fleet) -> None:
    said = fleet.run(
        fleet.hosts[1],
        "apt-get -qq update && apt-get -qq -y --no-install-recommends install netcat-openbsd && which nc",
    )
    assert said.stdout.splitlines()[-1:] == ["/usr/bin/nc"], said.stdout + said.stderr


def test_a_cable_can_be_pulled_and_a_plug_too(fleet: Fleet) -> None:
    host = fleet.hosts[1]
    fleet.switch.pull(host.number)
    with pytest.raises(subprocess.TimeoutExpired):
        fleet.run(host, "true", timeout_s=2)
    fleet.switch.push(host.number)
    assert fleet.run(host, "echo kept > /root/file; sync; (sleep 1000 &) >/dev/null 2>&1").returncode == 0
    host.power_off()
    assert fleet.run(host, "true").returncode == 255
    started = time.monotonic()
    host.boot()
    host.wait()
    assert fleet.run(host, "cat /root/file").stdout == "kept\n"
    assert fleet.run(host, "pgrep -c sleep").stdout == "0\n"
    assert time.monotonic() - started < 60


def test_a_fleet_is_torn_down_whole_whatever_failed(tmp_path: Path) -> None:
    class FailedError(Exception):
        pass

    with pytest.raises(FailedError), Fleet(tmp_path, hosts=1) as fleet:
        name = fleet.switch.name
        raise FailedError
    namespaces = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout
    assert not [line for line in namespaces.splitlines() if line.split()[0].startswith(f"{name}-")]
    assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()
    assert not [folder for folder, _, _ in os.walk("/sys/fs/cgroup") if Path(folder).name == f"{name}-11"]
