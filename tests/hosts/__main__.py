"""``make fleet``: bare hosts and mailbox providers to play with, until Ctrl-C."""

import argparse
import signal
import tempfile
from contextlib import suppress
from pathlib import Path

from tests.hosts.fleet import Fleet

PROVIDERS = {
    "accepts.test": "",
    "refuses.test": 'domains: {refuses.test: {unknown: {pattern: "."}}}',
    "greylists.test": "domains: {greylists.test: {defer: {first: 1}}}",
    "slow.test": "domains: {slow.test: {slow: {after_dot_ms: 1000}}}",
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--hosts", type=int, default=3)
    hosts = parser.parse_args().hosts
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with (
        suppress(KeyboardInterrupt),
        tempfile.TemporaryDirectory(prefix="mailfleet-hosts-") as folder,
        Fleet(Path(folder), hosts=hosts, providers=PROVIDERS) as fleet,
    ):
        for host in fleet.hosts:
            print(" ".join(fleet.switch.command("ssh", "-F", str(fleet.ssh_config), host.name)))
        for domain, provider in fleet.providers.items():
            print(f"mail to anybody@{domain} lands in {provider.maildir}")
        print("Ctrl-C takes everything down", flush=True)
        signal.pause()


main()
