"""Runs a playbook of ``include/playbooks`` on dispatch servers, by ansible-runner, and says of each how it went.

Everything that a run needs lies in one folder of mode 0700 while it lasts: inventory, the pinned host keys, the private
key, variables and secrets, and what Ansible writes. Nothing is trusted at first sight, no secret is on a command line
or in an event, and the folder is gone afterwards.
"""

import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from mailer_lib import secret_refs
from mailer_lib.fleet.names import FleetError
from mailer_lib.settings import Settings
from mailer_lib.terms import HostOutcome

TIMEOUT_S = 1800
_GROUP = "dispatch"
_PACKAGE = Path(__file__).parents[1]
_FOLDERS = (_PACKAGE / "playbooks", _PACKAGE.parent / "include" / "playbooks")  # of the wheel, of a checkout
_HIDDEN = "[secret]"
_SHORTEST_SECRET = 4  # shorter text is part of everything


class Playbook(StrEnum):
    PROVISION = "provision"
    CONFIGURE = "configure"
    ROTATE_KEYS = "rotate-keys"
    DRAIN = "drain"
    RETIRE = "retire"


@dataclass(frozen=True)
class PlaybookHost:
    """A machine as Ansible reaches it. ``host_key``: type and key, as ``known_hosts`` has them."""

    name: str
    address: str
    host_key: str
    port: int = 22
    user: str = "root"
    variables: Mapping[str, object] = field(default_factory=dict)  # of this host alone


@dataclass(frozen=True)
class PlaybookEvent:
    """One task on one host has ended."""

    host: str
    task: str
    outcome: HostOutcome
    text: str = ""  # a failure's sentence


@dataclass(frozen=True)
class HostResult:
    host: str
    outcome: HostOutcome
    sentence: str  # what was wrong; or what was done
    task: str | None = None  # the one that failed


def run_playbook(
    settings: Settings,
    name: Playbook,
    hosts: Sequence[PlaybookHost],
    *,
    variables: Mapping[str, object] | None = None,
    secrets: Mapping[str, str] | None = None,
    on_event: Callable[[PlaybookEvent], None] = lambda event: None,
    check: bool = False,
    should_stop: Callable[[], bool] = lambda: False,
    timeout_s: int = TIMEOUT_S,
) -> dict[str, HostResult]:
    """Run it on all hosts at once; one that fails doesn't hold up the others. Returns each host's result by name.

    ``variables`` and ``secrets`` are for every host; a secret's value is kept out of events and results. With ``check``
    nothing is changed, and CHANGED means that something would be.

    Raises:
        FleetError: Ansible isn't installed, or it didn't get as far as the hosts.
    """
    try:
        import ansible_runner
    except ImportError:
        raise FleetError("Ansible isn't installed here: install mailfleet with the extra `fleet`") from None
    if not hosts:
        return {}
    key = secret_refs.resolve(settings, settings.ssh_key_ref)
    hidden = [key, *(secrets or {}).values()]
    watch = _Watch([host.name for host in hosts], hidden, on_event)
    folder = Path(tempfile.mkdtemp(prefix="mailfleet-ansible-"))
    try:
        _lay_out(folder, hosts, key, {**(variables or {}), **(secrets or {})})
        run = ansible_runner.run(
            private_data_dir=str(folder),
            playbook=str(_playbook(name)),
            inventory=str(folder / "inventory.json"),
            cmdline=f"--extra-vars @{folder / 'variables.json'}{' --check' if check else ''}",
            forks=len(hosts),
            envvars=_environment(folder),
            settings={"job_timeout": timeout_s, "idle_timeout": timeout_s},
            event_handler=watch.on_event,
            cancel_callback=should_stop,
            quiet=True,
        )
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return watch.results(run.status)


def _playbook(name: Playbook) -> Path:
    for folder in _FOLDERS:
        path = folder / f"{name}.yml"
        if path.is_file():
            return path
    raise FleetError(f"the playbook {name} is in none of {', '.join(str(folder) for folder in _FOLDERS)}")


def _lay_out(folder: Path, hosts: Sequence[PlaybookHost], key: str, variables: Mapping[str, object]) -> None:
    """What Ansible reads. The folder is 0700, so each file is its owner's alone."""
    key_file = folder / "key"
    key_file.touch(mode=0o600)
    key_file.write_text(key.rstrip("\n") + "\n")
    (folder / "ansible.cfg").touch()
    (folder / "known_hosts").write_text("".join(known_hosts_line(host) for host in hosts))
    (folder / "inventory.json").write_text(json.dumps(inventory(folder, hosts)))
    (folder / "variables.json").write_text(json.dumps(dict(variables), default=str))


def known_hosts_line(host: PlaybookHost) -> str:
    place = host.address if host.port == 22 else f"[{host.address}]:{host.port}"
    return f"{place} {host.host_key}\n"


def inventory(folder: Path, hosts: Sequence[PlaybookHost]) -> dict[str, Any]:
    """Ansible's inventory of these hosts: only the pinned host key opens the way, only our key is offered."""
    ssh = (
        f"-F /dev/null -o IdentitiesOnly=yes -o UserKnownHostsFile={folder / 'known_hosts'} "
        "-o GlobalKnownHostsFile=/dev/null -o StrictHostKeyChecking=yes -o ConnectTimeout=15 -o ServerAliveInterval=10"
    )
    return {
        _GROUP: {
            "vars": {
                "ansible_ssh_private_key_file": str(folder / "key"),
                "ansible_ssh_common_args": ssh,
                "ansible_python_interpreter": "/usr/bin/python3",
                "ansible_become": False,
            },
            "hosts": {
                host.name: {
                    **host.variables,
                    "ansible_host": host.address,
                    "ansible_port": host.port,
                    "ansible_user": host.user,
                    # Debian's sudo asks no password of the users of hosting companies' images
                    "ansible_become": host.user != "root",
                }
                for host in hosts
            },
        }
    }


def _environment(folder: Path) -> dict[str, str]:
    return {
        "PATH": f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin",
        "ANSIBLE_HOME": str(folder / "ansible"),
        "ANSIBLE_LOCAL_TEMP": str(folder / "ansible" / "tmp"),
        "ANSIBLE_CONFIG": str(folder / "ansible.cfg"),  # nobody else's
        "ANSIBLE_SSH_ARGS": "-o ControlMaster=auto -o ControlPersist=15s",
        "ANSIBLE_SSH_CONTROL_PATH_DIR": str(folder / "cp"),
        "ANSIBLE_PIPELINING": "True",
        "ANSIBLE_GATHER_SUBSET": "!all,!min,distribution,virtual",
        "ANSIBLE_NOCOLOR": "True",
        "ANSIBLE_DEPRECATION_WARNINGS": "False",
    }


class _Watch:
    """Turns ansible-runner's events into ours, and keeps each host's result."""

    def __init__(self, hosts: Sequence[str], hidden: Sequence[str], on_event: Callable[[PlaybookEvent], None]) -> None:
        texts = {text for secret in hidden for text in (secret, *secret.splitlines())}
        self._hidden = sorted((text for text in texts if len(text) >= _SHORTEST_SECRET), key=len, reverse=True)
        self._on_event = on_event
        self._hosts = tuple(hosts)
        self._changed: dict[str, int] = dict.fromkeys(hosts, 0)
        self._failed: dict[str, PlaybookEvent] = {}
        self._ended: set[str] = set()
        self._words = ""

    def on_event(self, event: dict[str, Any]) -> bool:
        kind, data = event.get("event", ""), event.get("event_data", {})
        host, result = data.get("host"), data.get("res") or {}
        if kind == "playbook_on_stats":
            self._ended = set(data.get("processed") or ())
            self._changed |= data.get("changed") or {}  # counts what no_log hides, too
        elif host in self._hosts and kind in {"runner_on_ok", "runner_on_failed", "runner_on_unreachable"}:
            self._ended_task(kind, data, host, result)
        elif kind in {"error", "warning", "verbose", ""} and event.get("stdout"):
            self._words = self._cleared(str(event["stdout"]))
        return False  # ansible-runner needs not keep it

    def _ended_task(self, kind: str, data: dict[str, Any], host: str, result: dict[str, Any]) -> None:
        task = self._cleared(str(data.get("task", "")))
        if kind == "runner_on_ok":
            changed = bool(result.get("changed"))
            self._changed[host] += changed
            self._on_event(PlaybookEvent(host, task, HostOutcome.CHANGED if changed else HostOutcome.OK))
            return
        if data.get("ignore_errors"):
            return
        text = self._cleared(_reason(result, unreachable=kind == "runner_on_unreachable"))
        failure = PlaybookEvent(host, task, HostOutcome.FAILED, text)
        self._failed[host] = failure  # of several the last: what rescued it says more than what it rescued
        self._on_event(failure)

    def results(self, status: str) -> dict[str, HostResult]:
        if not self._ended and not self._failed:
            raise FleetError(f"Ansible ended ({status}) before it reached a host: {self._words or 'it said nothing'}")
        return {host: self._result(host, status) for host in self._hosts}

    def _result(self, host: str, status: str) -> HostResult:
        failure = self._failed.get(host)
        if failure is not None:
            return HostResult(host, HostOutcome.FAILED, failure.text, failure.task)
        if host not in self._ended:
            return HostResult(host, HostOutcome.FAILED, f"the run ended ({status}) before it was through")
        changed = self._changed[host]
        if changed:
            return HostResult(
                host, HostOutcome.CHANGED, f"{changed} things changed" if changed > 1 else "1 thing changed"
            )
        return HostResult(host, HostOutcome.OK, "nothing to change")

    def _cleared(self, text: str) -> str:
        for secret in self._hidden:
            text = text.replace(secret, _HIDDEN)
        return text


def _reason(result: dict[str, Any], *, unreachable: bool) -> str:
    """A failure in one line: Ansible's message, and what the program that failed wrote."""
    if "censored" in result:
        return "it failed, and what it said may hold a secret: log in and look"
    message = str(result.get("msg") or "").strip()
    details = [str(item.get("msg", "")) for item in result.get("results", []) if item.get("failed")]
    output = str(result.get("stderr") or result.get("stdout") or "").strip().splitlines()[-3:]
    parts = [message, *details, *output]
    text = " ".join(" ".join(part.split()) for part in parts if part)
    return f"it can't be reached: {text}" if unreachable else text or "it failed without a word"
