"""What is configured, reachable and missing: every check of ``mailfleet doctor``, each returning what it found.

A FAIL is something that would keep mail from being sent, or a doubt from being settled. No finding holds a secret.
"""

import os
import shutil
import socket
import ssl
import stat
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from enum import StrEnum
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING

from pydantic import SecretStr
from sqlalchemy import Engine, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from mailer_lib import secret_refs
from mailer_lib.database import migrate
from mailer_lib.database.engine import now, open_engine, read
from mailer_lib.fleet import domains, server_checks, servers
from mailer_lib.fleet.names import FleetError
from mailer_lib.fleet.states import MAY_SEND
from mailer_lib.release import release
from mailer_lib.secret_refs import SecretRefError
from mailer_lib.settings import Settings, SettingsError
from mailer_lib.shard.store import DOCTOR_HINT, store
from mailer_lib.terms import ChannelKind, FindingLevel, MtaKind, ServerState, SmtpSecurity

if TYPE_CHECKING:
    from mailer_lib.fleet.domains import SendingDomain
    from mailer_lib.fleet.servers import DispatchServer

_TIMEOUT_S = 3.0
_LOGIN_S = 20.0  # Python starts there
_FREE_WARN, _FREE_FAIL = 2 * 2**30, 200 * 2**20  # a snapshot of a million recipients is about 150 MB, ledgers as much
_IN_SERVICE = MAY_SEND
_GONE = (ServerState.RETIRED, ServerState.FENCED)
# distribution, module; what the central side can't do without
_PACKAGES = (
    ("alembic", "alembic"), ("cryptography", "cryptography"), ("css-inline", "css_inline"), ("duckdb", "duckdb"),
    ("fastapi", "fastapi"), ("granian", "granian"), ("jinja2", "jinja2"), ("mrml", "mrml"), ("numpy", "numpy"),
    ("pandas", "pandas"), ("pyarrow", "pyarrow"), ("sqlalchemy", "sqlalchemy"), ("uvloop", "uvloop"),
)  # fmt: skip
_OPTIONAL = (("apache-airflow", "airflow"), ("aiosmtpd", "aiosmtpd"), ("checkdmarc", "checkdmarc"))


class Level(StrEnum):
    INFO = "info"
    OK = "ok"
    WARN = "warn"
    FAIL = "FAIL"


@dataclass(frozen=True)
class Finding:
    section: str
    level: Level
    text: str


def examine(settings: Settings) -> Iterator[Finding]:
    """Every check, in the order in which one thing needs another. What is beyond a failed check isn't tried."""
    yield from check_settings(settings)
    yield from check_software(settings)
    yield from check_keys(settings)
    yield from check_storage(settings)
    fleet: list[DispatchServer] = []
    sending: list[SendingDomain] = []
    try:
        engine = open_engine(settings.url)
    except (ArgumentError, ModuleNotFoundError, OSError) as error:
        yield Finding("database", Level.FAIL, f"MAILFLEET_DATABASE_URL can't be used: {type(error).__name__}: {error}")
    else:
        findings = list(check_database(engine))
        yield from findings
        if not any(finding.level is Level.FAIL for finding in findings):
            with read(engine) as connection:
                fleet = servers.list_servers(connection, states=_IN_SERVICE)
                checks = server_checks.latest_of_all(connection)
                known = servers.list_servers(connection, states=[s for s in ServerState if s not in _GONE])
                verified = [(server, checks.get(server.id)) for server in known]
                sending = domains.list_domains(connection)
            yield from check_servers(settings, fleet)
            yield from check_verified(settings, verified)
            yield from check_domains(settings, sending)
        engine.dispose()
    yield from check_public_url(settings, in_service=bool(fleet and sending))
    yield from check_resolver(settings.dns_server)


def check_settings(settings: Settings) -> Iterator[Finding]:
    """Each setting, and where it comes from."""
    for name, field in type(settings).model_fields.items():
        variable = f"MAILFLEET_{name.upper()}"
        value = getattr(settings, name)
        if name == "database_url":
            shown = make_url(settings.url).render_as_string(hide_password=True)
        elif isinstance(value, SecretStr):
            shown = "set (not shown)"
        elif value is None:
            shown = str(settings.storage) if name == "storage_dir" else f"not set; {field.description}"
        else:
            shown = str(value)
        source = f"from {variable}" if name in settings.model_fields_set else "default"
        yield Finding("settings", Level.INFO, f"{name} = {shown}  ({source})")
    known = [f"MAILFLEET_{name.upper()}" for name in type(settings).model_fields]
    for variable in sorted(v for v in os.environ if v.startswith("MAILFLEET_") and v not in known):
        near = get_close_matches(variable, known, n=1, cutoff=0.85)
        if near:
            yield Finding("settings", Level.WARN, f"{variable} is set, but there is no such setting: is it {near[0]}?")


def check_software(settings: Settings) -> Iterator[Finding]:
    """Python, and the packages of the central side."""
    running = ".".join(map(str, sys.version_info[:3]))
    yield Finding("software", Level.OK, f"Python {running}")  # older than 3.11 wouldn't have come so far
    wanted = list(_PACKAGES)
    if make_url(settings.url).get_backend_name() in ("mysql", "mariadb"):
        wanted.append(("mysqlclient", "MySQLdb"))
    missing = [package for package, module in wanted if find_spec(module) is None]
    if missing:
        yield Finding("software", Level.FAIL, f"packages are missing, run pip install {' '.join(missing)}")
    else:
        yield Finding("software", Level.OK, ", ".join(f"{package} {_version(package)}" for package, _ in wanted))
    for package, module in _OPTIONAL:
        there = find_spec(module) is not None
        yield Finding(
            "software", Level.INFO, f"{package} {_version(package) if there else 'is not installed (optional)'}"
        )


def check_keys(settings: Settings) -> Iterator[Finding]:
    """Identity key and token key: there, well-formed, and nobody else's to read."""
    for name, configured, load in (
        ("identity", settings.identity_key, settings.identity),
        ("token", settings.token_key, settings.tokens),
    ):
        try:
            load()
        except SettingsError as error:
            yield Finding("keys", Level.FAIL, str(error))
            continue
        if configured is not None:
            yield Finding("keys", Level.OK, f"{name} key from MAILFLEET_{name.upper()}_KEY")
        else:
            yield from _private_file("keys", f"{name} key", settings.keys_dir / f"{name}.key")


def check_storage(settings: Settings) -> Iterator[Finding]:
    """The snapshot store and the folders of this machine: there, writable, with room."""
    own = "snapshot store"
    if settings.bucket is not None:
        own = "work folder"
        yield _check_bucket(settings)
    for label, folder in ((own, settings.storage), ("job folders", settings.jobs_dir)):
        try:
            with tempfile.TemporaryFile(dir=folder) as probe:
                probe.write(b"mailfleet doctor")
                probe.flush()
            free = shutil.disk_usage(folder).free
        except FileNotFoundError:
            yield Finding("storage", Level.FAIL, f"{label}: {folder} doesn't exist; run `mailfleet init`")
            continue
        except OSError as error:
            yield Finding("storage", Level.FAIL, f"{label}: {folder} can't be written: {error.strerror}")
            continue
        level = Level.FAIL if free < _FREE_FAIL else Level.WARN if free < _FREE_WARN else Level.OK
        yield Finding("storage", level, f"{label}: {folder}, writable, {free / 2**30:.1f} GiB free")


def _check_bucket(settings: Settings) -> Finding:
    """Write an object, read it, remove it: what sends need of the bucket, and no more."""
    root = store(settings)
    probe = root / f".doctor-{os.getpid()}"
    said = b"mailfleet doctor"
    try:
        probe.write_bytes(said)
        same = probe.read_bytes() == said
        probe.unlink()
    except OSError as error:
        return Finding(
            "storage",
            Level.FAIL,
            f"snapshot store: {str(error).removesuffix(DOCTOR_HINT)}; check the bucket, MAILFLEET_STORAGE_ENDPOINT, "
            "_REGION and the keys, which must be allowed to list, read, write and delete",
        )
    where = f" at {settings.storage_endpoint}" if settings.storage_endpoint else ""
    if not same:
        return Finding("storage", Level.FAIL, f"snapshot store: {root}{where} gave back other bytes than were stored")
    return Finding("storage", Level.OK, f"snapshot store: {root}{where}, writable")


def check_database(engine: Engine) -> Iterator[Finding]:
    """Reachable, and with the tables of this release."""
    url = engine.url
    if url.get_backend_name() == "sqlite" and url.database and not Path(url.database).exists():
        yield Finding("database", Level.FAIL, f"{url.database} doesn't exist; run `mailfleet init`")
        return
    try:
        with read(engine) as connection:
            name = engine.dialect.name
            release = connection.execute(text("SELECT sqlite_version()" if name == "sqlite" else "SELECT VERSION()"))
            yield Finding("database", Level.OK, f"{name} {release.scalar_one()} answers")
        migrate.require_current(engine)
    except migrate.MigrationError as error:
        yield Finding("database", Level.FAIL, str(error))
    except SQLAlchemyError as error:
        cause = getattr(error, "orig", None) or error
        yield Finding("database", Level.FAIL, f"{url.render_as_string(hide_password=True)}: {cause}")
    else:
        yield Finding("database", Level.OK, f"at revision {migrate.head()}, as this release needs")


def check_servers(settings: Settings, fleet: "list[DispatchServer]") -> Iterator[Finding]:
    """Each dispatch server in service: its SMTP port answers, its records can be read, its password is there."""
    if not fleet:
        yield Finding("dispatch servers", Level.WARN, "none is active: add one with `mailfleet server add`")
    for server in fleet:
        if server.channel is ChannelKind.SSH:
            yield from _login(settings, server)
            continue
        try:
            banner = smtp_banner(
                server.smtp_host, server.smtp_port, implicit_tls=server.smtp_security is SmtpSecurity.IMPLICIT
            )
        except (OSError, ValueError) as error:
            yield Finding(
                "dispatch servers",
                Level.FAIL,
                f"{server.name}: {server.smtp_host}:{server.smtp_port} doesn't answer ({error}); start its MTA, or "
                f"take it out of service with `mailfleet server state {server.name} standby`",
            )
        else:
            yield Finding(
                "dispatch servers", Level.OK, f"{server.name}: {server.smtp_host}:{server.smtp_port}, {banner}"
            )
        yield from _records_of(server)
        if server.smtp_password_ref is not None:
            yield from _secret(settings, "dispatch servers", f"{server.name}: SMTP password", server.smtp_password_ref)


def check_verified(
    settings: Settings, verified: "list[tuple[DispatchServer, server_checks.Check | None]]"
) -> Iterator[Finding]:
    """Who isn't verified, or was long ago."""
    level = {FindingLevel.ERROR: Level.FAIL, FindingLevel.WARNING: Level.WARN, FindingLevel.INFO: Level.INFO}
    for server, check in verified:
        found = server_checks.overview(server, check, now(), settings.verified_for_days)
        yield Finding("dispatch servers", level[found.level], found.text)


def _login(settings: Settings, server: "DispatchServer") -> Iterator[Finding]:
    """We are let in, and what is installed there is of this release."""
    from mailer_lib.fleet import ssh

    ask = f"{quote(server.agent_python)} -P -c 'from mailer_lib.release import release; print(release())'"
    try:
        there = ssh.run(server, settings, ask, timeout_s=_LOGIN_S)
    except (ssh.SshError, FleetError, SecretRefError) as error:
        yield Finding("dispatch servers", Level.FAIL, str(error))
        return
    provision = f"`mailfleet server provision {server.name}` installs it"
    if there.status != 0:
        yield Finding("dispatch servers", Level.FAIL, f"{server.name}: the agent isn't on {server.host}; {provision}")
    elif there.stdout.strip() != release():
        yield Finding(
            "dispatch servers",
            Level.FAIL,
            f"{server.name}: {server.host} has Mailfleet {there.stdout.strip()[:40]}, this is {release()}; {provision}",
        )
    else:
        yield Finding(
            "dispatch servers", Level.OK, f"{server.name}: {server.host} lets us in and has Mailfleet {release()}"
        )


def check_domains(settings: Settings, sending: "list[SendingDomain]") -> Iterator[Finding]:
    """Each sending domain's DKIM key can be read and used."""
    if not sending:
        yield Finding("sending domains", Level.WARN, "there is none: add one with `mailfleet domain add`")
    for domain in sending:
        try:
            domains.public_key_of(domains.dkim_private_key(settings, domain))
        except (FleetError, SecretRefError) as error:
            yield Finding("sending domains", Level.FAIL, f"{domain.name}: {error}")
            continue
        yield from _secret(settings, "sending domains", f"{domain.name}: DKIM key", domain.dkim_key_ref)


def check_public_url(settings: Settings, *, in_service: bool) -> Iterator[Finding]:
    """Links and unsubscribe must work before anything is sent; until there is a fleet it is only worth a remark."""
    import http.client

    url = settings.public_url
    host, port = url.host or "", url.port or (443 if url.scheme == "https" else 80)
    kind = http.client.HTTPSConnection if url.scheme == "https" else http.client.HTTPConnection
    connection = kind(host, port, timeout=_TIMEOUT_S)
    try:
        connection.request("GET", url.path or "/")
        status = connection.getresponse().status
    except (OSError, http.client.HTTPException) as error:
        yield Finding(
            "public URL",
            Level.FAIL if in_service else Level.WARN,
            f"{url} doesn't answer ({error}): nobody could unsubscribe. Start `mailfleet serve`, or put "
            "MAILFLEET_PUBLIC_URL right",
        )
    else:
        level = Level.OK if status < 500 else Level.FAIL
        yield Finding("public URL", level, f"{url} answers ({status})")
    finally:
        connection.close()
    if url.scheme != "https" and host not in ("127.0.0.1", "localhost", "::1"):
        yield Finding("public URL", Level.WARN, f"{url} isn't https: RFC 8058 one-click unsubscribe needs it")


def check_resolver(dns_server: str | None = None) -> Iterator[Finding]:
    """Pre-flight and verifications read SPF, DKIM and DMARC where a resolver is there."""
    if find_spec("dns") is None:
        yield Finding("DNS", Level.WARN, "dnspython isn't installed: pre-flight can't check SPF, DKIM, DMARC and MX")
        return
    import dns.exception
    import dns.resolver

    from mailer_lib.fleet.resolver import open_resolver

    try:
        resolver = open_resolver(dns_server) if dns_server else dns.resolver.get_default_resolver()
        resolver.resolve(".", "NS", lifetime=_TIMEOUT_S)
    except (dns.resolver.NoAnswer, dns.resolver.NXDOMAIN):
        pass  # an answer all the same
    except (dns.exception.DNSException, OSError) as error:
        yield Finding(
            "DNS", Level.WARN, f"no resolver answers ({type(error).__name__}): pre-flight skips its DNS checks"
        )
        return
    yield Finding("DNS", Level.OK, f"resolver {', '.join(map(str, resolver.nameservers))} answers")


def smtp_banner(host: str, port: int, *, implicit_tls: bool = False, timeout_s: float = _TIMEOUT_S) -> str:
    """The first line that an SMTP server says (RFC 5321 §4.2: 220 when it is ready).

    Raises:
        OSError: it can't be reached, or not in time.
        ValueError: it says something else.
    """
    with socket.create_connection((host, port), timeout=timeout_s) as plain:
        connection: socket.socket = plain
        if implicit_tls:
            connection = ssl.create_default_context().wrap_socket(plain, server_hostname=host)
        with connection, connection.makefile("rb") as stream:
            line = stream.readline(1000).decode("ascii", "replace").strip()
            if not line.startswith("220"):
                raise ValueError(f"its first line is {line[:80]!r}, not 220" if line else "it closes without a word")
            connection.sendall(b"QUIT\r\n")
            return line


def _records_of(server: "DispatchServer") -> Iterator[Finding]:
    if server.mta is MtaKind.RELAY:
        yield Finding(
            "dispatch servers",
            Level.INFO,
            f"{server.name}: somebody else's MTA; after a crash, what is in doubt there stays unknown",
        )
        return
    wanted = [("log", server.mta_log)] + ([("spool", server.mta_spool)] if server.mta is MtaKind.EXIM else [])
    for what, path in wanted:
        needed = os.R_OK | (os.X_OK if path and Path(path).is_dir() else 0)
        if path and os.access(path, needed):
            yield Finding("dispatch servers", Level.OK, f"{server.name}: the MTA's {what} {path} can be read")
        else:
            yield Finding(
                "dispatch servers",
                Level.FAIL,
                f"{server.name}: the MTA's {what} {path} can't be read; doubts after a crash couldn't be settled",
            )


def _secret(settings: Settings, section: str, label: str, reference: str) -> Iterator[Finding]:
    try:
        secret_refs.resolve(settings, reference)
    except SecretRefError as error:
        yield Finding(section, Level.FAIL, f"{label}: {error}")
        return
    path = secret_refs.file_of(settings, reference)
    if path is None:
        yield Finding(section, Level.OK, f"{label} from {reference}")
    else:
        yield from _private_file(section, label, path)


def _private_file(section: str, label: str, path: Path) -> Iterator[Finding]:
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o077:
        yield Finding(section, Level.WARN, f"{label}: others can read {path} (mode {mode:04o}); chmod 600 {path}")
    else:
        yield Finding(section, Level.OK, f"{label} in {path}, mode {mode:04o}")


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "(version unknown)"
