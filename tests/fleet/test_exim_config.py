"""From variables to Exim's configuration, as Exim itself reads it."""

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.fleet.exim_config import render
from tests.support import require

EXIM = "/usr/sbin/exim4"
GMAIL = {"name": "gmail", "domains": ["gmail.com", "googlemail.com"], "max_parallel": 20}
SOURCES = [{"address": f"192.0.2.{n}", "helo_name": f"mta{n}.example.com"} for n in (1, 2, 3)]


@pytest.fixture(autouse=True)
def _exim() -> None:
    require(os.geteuid() == 0 and Path(EXIM).exists(), "be root on Debian and `apt-get install exim4-daemon-heavy`")


def exim(tmp_path: Path, *arguments: str, **variables: Any) -> str:
    config = tmp_path / "exim4.conf"
    config.write_text(render(**variables))
    done = subprocess.run([EXIM, "-C", str(config), *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"exim_return_path_domains": ["bounce.a.test", "bounce.b.test"]},
        {"exim_providers": [GMAIL, {"name": "strict", "domains": ["a.test"], "tls": "must", "retry": "F,1h,5m"}]},
        {"exim_sources": SOURCES[:1]},
        {"exim_sources": SOURCES},
        {"exim_sources": [*SOURCES, {"address": "2001:db8::1", "helo_name": "mta1.example.com"}]},
    ],
)
def test_exim_takes_what_the_variables_can_be(tmp_path: Path, variables: dict[str, Any]) -> None:
    assert "Configuration file is" in exim(tmp_path, "-bV", **variables)


def test_a_provider_has_its_own_limit_and_the_rest_none(tmp_path: Path) -> None:
    gmail, others = re.findall(r"^to_\w+:\n  driver = smtp\n(.*?)\n\n", render(exim_providers=[GMAIL]), re.M | re.S)
    assert "  max_parallel = 20\n" in gmail
    assert "max_parallel" not in others
    routed = exim(tmp_path, "-bP", "router", "to_gmail", exim_providers=[GMAIL])
    assert "domains = gmail.com : googlemail.com" in routed


def test_ipv6_is_off_unless_mail_leaves_from_it(tmp_path: Path) -> None:
    assert exim(tmp_path, "-bP", "disable_ipv6", exim_sources=SOURCES) == "disable_ipv6"
    six = [{"address": "2001:db8::1", "helo_name": "mta1.example.com"}]
    assert exim(tmp_path, "-bP", "disable_ipv6", exim_sources=six) == "no_disable_ipv6"


@pytest.mark.parametrize(
    ("helo", "queue"),
    [
        ("s12.queue.invalid", "s12"),
        ("mta1.example.com", ""),
        ("s.queue.invalid", ""),
        ("s1/../../etc.queue.invalid", ""),
        ("xs12.queue.invalid", ""),
        ("s12.queue.invalid.example.com", ""),
    ],
)
def test_the_ehlo_name_of_the_agent_gives_the_queue(tmp_path: Path, helo: str, queue: str) -> None:
    found = re.search(r"queue = (\$\{if match\{\$sender_helo_name\}.*)$", render(), re.MULTILINE)
    assert found is not None
    expansion = found[1].replace("$sender_helo_name", helo)
    assert exim(tmp_path, "-be", f"[{expansion}]") == f"[{queue}]"


def test_each_source_address_gets_its_share_and_its_name(tmp_path: Path) -> None:
    text = render(exim_sources=SOURCES)
    interface = re.search(r"interface = (.*)", text)
    assert interface is not None
    seen = exim(tmp_path, "-be", *[interface[1]] * 60, exim_sources=SOURCES).split()
    assert set(seen) == {"192.0.2.1", "192.0.2.2", "192.0.2.3"}
    name = re.search(r"helo_data = (.*)", text)
    assert name is not None
    asked = [name[1].replace("$sending_ip_address", source["address"]) for source in SOURCES]
    names = exim(tmp_path, "-be", *asked, exim_sources=SOURCES).split()
    assert names == [source["helo_name"] for source in SOURCES]
