"""Gathering what a verification judges: one script run on the server, and questions to DNS."""

import base64
import ipaddress
import json
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC
from pathlib import Path
from typing import Any

import dns.resolver
from cryptography import x509
from cryptography.x509.oid import NameOID

from mailer_lib.fleet import probe
from mailer_lib.fleet.resolver import NoResolverError, addresses, ask, names_of, reverse_name, same_address
from mailer_lib.fleet.servers import DispatchServer
from mailer_lib.fleet.verification import Blocklist, Certificate, Disk, Greeting, HostFacts, Outbound, SourceFacts
from mailer_lib.settings import Settings
from mailer_lib.terms import ChannelKind, MtaKind, SmtpSecurity

SCRIPT_TIMEOUT_S = 90.0
_SPOOL = "/var/spool/exim4"

RunScript = Callable[[str], str]  # runs a Python script where the server's agent runs; gives what it prints


class ProbeError(RuntimeError):
    """The server couldn't be asked; the sentence says why."""


def script_runner(server: DispatchServer, settings: Settings) -> RunScript:
    """Runs scripts on the server: over SSH, or here when its agent is here."""
    if server.channel is ChannelKind.SSH:
        return lambda script: _run_by_ssh(server, settings, script)
    return _run_here


def host_query(server: DispatchServer, settings: Settings, sources: Sequence[str], probe_host: str | None) -> Any:
    """What to ask the server for (``probe.look``)."""
    own = server.mta is not MtaKind.RELAY
    remote = server.channel is ChannelKind.SSH
    paths = [server.remote_jobs_dir if remote else str(settings.jobs_dir)]
    if own:
        paths.append(server.mta_spool or (_SPOOL if remote else str(Path(server.mta_log or paths[0]).parent)))
    return {
        "do": "look",
        "smtp_host": server.smtp_host,
        "smtp_port": server.smtp_port,
        "implicit_tls": server.smtp_security is SmtpSecurity.IMPLICIT,
        "paths": paths,
        "sources": list(sources) or (None if remote else []),
        "tls_of_sources": remote and _is_loopback(server.smtp_host),
        "probe": list(_host_and_port(probe_host)) if probe_host else None,
    }


def gather_host(run: RunScript, query: Mapping[str, Any], *, clock: Callable[[], float] = time.time) -> HostFacts:
    """
    Raises:
        ProbeError: it can't be asked.
    """
    before = clock()
    said = run_probe(run, query)
    after = clock()
    # What the answer took there is known; when it began is known but for the rest.
    unsure = max(0.0, (after - before - float(said["took_s"])) / 2)
    return HostFacts(
        clock_offset_s=float(said["at"]) - (before + unsure),
        clock_unsure_s=unsure,
        sources=tuple(map(str, said["sources"])),
        mta=_greeting(said["mta"]),
        tls=None if said["tls"] is None else _greeting(said["tls"]),
        disks=tuple(Disk(**disk) for disk in said["disks"]),
        outbound=tuple(Outbound(**tried) for tried in said["outbound"]),
    )


def run_probe(run: RunScript, query: Mapping[str, Any]) -> dict[str, Any]:
    """Send ``probe.py`` with a question, and read its answer. What is asked travels on stdin, never on a command line.

    Raises:
        ProbeError: it can't be asked, or answers with something else.
    """
    source = Path(probe.__file__).read_text("utf-8")
    printed = run(f"{source}\n\nmain(json.loads({json.dumps(dict(query))!r}))\n")
    try:
        answer = json.loads(printed.strip().rpartition("\n")[2])
    except ValueError:
        raise ProbeError(f"the check on the server printed no answer but {printed[:200]!r}") from None
    if not isinstance(answer, dict):
        raise ProbeError(f"the check on the server printed no answer but {printed[:200]!r}")
    return answer


def gather_sources(resolver: dns.resolver.Resolver, sources: Sequence[str]) -> tuple[SourceFacts, ...]:
    """
    Raises:
        NoResolverError: nobody answers.
    """
    found = []
    for address in sources:
        ptr = names_of(resolver, address)
        confirmed = tuple(name.lower() for name in ptr if same_address(address, addresses(resolver, name)))
        found.append(SourceFacts(address, reverse_name(address), tuple(name.lower() for name in ptr), confirmed))
    return tuple(found)


def read_blocklists(
    resolver: dns.resolver.Resolver, zones: Sequence[str], sources: Sequence[str]
) -> tuple[Blocklist, ...]:
    """Each list is asked about its own test points first (RFC 5782 §5): 127.0.0.2 is on it, and 127.0.0.1 is not."""
    found = []
    for zone in zones:
        try:
            point = _listing(resolver, zone, "127.0.0.2")
            if not point or _refuses(point):
                says = f"answers {', '.join(point)}" if point else "doesn't list its test point 127.0.0.2"
                found.append(Blocklist(zone, f"it {says}: does it serve your resolver?"))
            elif _listing(resolver, zone, "127.0.0.1"):
                found.append(Blocklist(zone, "it lists 127.0.0.1, so it lists everybody"))
            else:
                answers = {address: _listing(resolver, zone, address) for address in sources}
                listed = tuple(address for address, said in answers.items() if said and not _refuses(said))
                found.append(Blocklist(zone, None, listed))
        except NoResolverError as problem:
            found.append(Blocklist(zone, str(problem)))
    return tuple(found)


def certificate_of(der: bytes) -> Certificate:
    """
    Raises:
        ValueError: that is no certificate.
    """
    parsed = x509.load_der_x509_certificate(der)
    try:
        extension = parsed.extensions.get_extension_for_class(x509.SubjectAlternativeName)
        names = tuple(extension.value.get_values_for_type(x509.DNSName))
    except x509.ExtensionNotFound:
        names = tuple(str(name.value) for name in parsed.subject.get_attributes_for_oid(NameOID.COMMON_NAME))
    return Certificate(tuple(name.lower() for name in names), parsed.not_valid_after_utc.astimezone(UTC))


def _run_by_ssh(server: DispatchServer, settings: Settings, script: str) -> str:
    from mailer_lib.fleet import ssh

    command = f"{shlex.quote(server.agent_python)} -I -"
    try:
        done = ssh.run(server, settings, command, stdin=script, timeout_s=SCRIPT_TIMEOUT_S)
    except (ssh.SshError, ValueError) as problem:  # ValueError: no pinned key, no key of ours
        raise ProbeError(str(problem)) from None
    if done.status != 0:
        why = done.stderr.strip().rpartition("\n")[2] or f"status {done.status}"
        raise ProbeError(f"the check on {server.name} failed ({why}): is it provisioned?")
    return done.stdout


def _run_here(script: str) -> str:
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-"],
            input=script,
            capture_output=True,
            text=True,
            timeout=SCRIPT_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise ProbeError(f"the check didn't end within {SCRIPT_TIMEOUT_S:.0f} s") from None
    if done.returncode != 0:
        raise ProbeError(f"the check failed: {done.stderr.strip().rpartition(chr(10))[2]}")
    return done.stdout


def _greeting(said: Mapping[str, Any]) -> Greeting:
    if "error" in said:
        return Greeting(error=str(said["error"]))
    certificate = None
    if said["certificate"]:
        certificate = certificate_of(base64.b64decode(said["certificate"]))
    return Greeting(None, str(said["banner"]), str(said["ehlo"]), certificate)


def _listing(resolver: dns.resolver.Resolver, zone: str, address: str) -> tuple[str, ...]:
    labels = reverse_name(address).removesuffix(".in-addr.arpa").removesuffix(".ip6.arpa")
    return ask(resolver, f"{labels}.{zone}", "A")


def _refuses(answers: Sequence[str]) -> bool:
    """127.255.255.0/24, or anything outside 127/8, isn't a listing but a refusal to answer."""
    return not all(answer.startswith("127.") and not answer.startswith("127.255.255.") for answer in answers)


def _host_and_port(text: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    if colon and port.isdecimal() and ":" not in host.strip("[]"):
        return host.strip("[]"), int(port)
    return text.strip("[]"), 25


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
