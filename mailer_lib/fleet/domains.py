"""Sending domains: the From domain with its DKIM key, its return path, and the host of its links."""

import base64
import os
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from sqlalchemy import Connection, Row, insert, select, update

from mailer_lib import secret_refs
from mailer_lib.database.audit import record
from mailer_lib.database.engine import now
from mailer_lib.database.schema import sending_domains
from mailer_lib.fleet.names import FleetError, check_domain
from mailer_lib.settings import Settings

_RSA_BITS = 2048  # RFC 8301 §3.2: at least 1024, better 2048; more doesn't fit one DNS string and costs CPU
_SELECTOR = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")


@dataclass(frozen=True)
class SendingDomain:
    id: int
    name: str  # From domain, DKIM d=
    dkim_selector: str
    dkim_key_ref: str
    return_path_domain: str
    tracking_url: str | None  # settings.public_url when None


def add(
    connection: Connection,
    settings: Settings,
    name: str,
    *,
    selector: str = "mf1",
    key_ref: str | None = None,
    return_path_domain: str | None = None,
    tracking_url: str | None = None,
    actor: str,
    replace: bool = False,
) -> tuple[SendingDomain, bool]:
    """Store a sending domain; returns it and whether anything changed. The same twice changes nothing.

    Without ``key_ref`` the DKIM key is ``home/keys/dkim/<domain>.<selector>.pem``, generated (RSA-2048, mode 0600) when
    there is no such file. The return path is ``bounce.<domain>`` by default: aligned for SPF in DMARC's relaxed mode.

    Raises:
        FleetError: something is malformed, or a domain of that name differs and ``replace`` isn't given.
        SecretRefError: ``key_ref`` is malformed or points to nothing.
    """
    domain = check_domain(name)
    if _SELECTOR.fullmatch(selector) is None:
        raise FleetError(f"{selector!r} can't be a DKIM selector: lower-case letters, digits and hyphens")
    if tracking_url is not None and (urlsplit(tracking_url).scheme not in ("http", "https") or "?" in tracking_url):
        raise FleetError(f"{tracking_url!r} can't be the base of links: give something like https://links.{domain}")
    values = {
        "dkim_selector": selector,
        "dkim_key_ref": secret_refs.check(key_ref) if key_ref else f"file:keys/dkim/{domain}.{selector}.pem",
        "return_path_domain": check_domain(return_path_domain or f"bounce.{domain}"),
        "tracking_url": tracking_url.rstrip("/") if tracking_url else None,
    }
    if key_ref is None:
        make_dkim_key(settings.keys_dir / "dkim" / f"{domain}.{selector}.pem")
    public_key_of(secret_refs.resolve(settings, str(values["dkim_key_ref"])))  # refused now, not at the first send
    existing = _find(connection, domain)
    if existing is None:
        connection.execute(insert(sending_domains).values(name=domain, created_at=now(), **values))
        record(connection, actor, "add", f"domain:{domain}", values)
        return get(connection, domain), True
    changed = {key: [getattr(existing, key), value] for key, value in values.items() if getattr(existing, key) != value}
    if not changed:
        return existing, False
    if not replace:
        raise FleetError(
            f"there is a sending domain {domain!r} already, with another {', '.join(changed)}: "
            "use --replace to change it"
        )
    connection.execute(update(sending_domains).where(sending_domains.c.id == existing.id).values(**values))
    record(connection, actor, "change", f"domain:{domain}", changed)
    return get(connection, domain), True


def get(connection: Connection, name: str) -> SendingDomain:
    """
    Raises:
        FleetError: there is no such sending domain; the sentence names those that there are.
    """
    found = _find(connection, check_domain(name))
    if found is None:
        names = ", ".join(d.name for d in list_domains(connection)) or "none yet: mailfleet domain add NAME"
        raise FleetError(f"there is no sending domain {name!r} (there are: {names})")
    return found


def list_domains(connection: Connection) -> list[SendingDomain]:
    rows = connection.execute(select(sending_domains).order_by(sending_domains.c.name))
    return [_domain(row) for row in rows]


def dkim_private_key(settings: Settings, domain: SendingDomain) -> str:
    """The private key as PEM.

    Raises:
        SecretRefError: it isn't where the record says.
    """
    return secret_refs.resolve(settings, domain.dkim_key_ref)


def make_dkim_key(path: Path) -> bool:
    """Write a fresh RSA-2048 key (PKCS #8 PEM, mode 0600) unless the file exists. Returns whether it was made."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import rsa

    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    if path.exists():
        return False
    pem = rsa.generate_private_key(public_exponent=65537, key_size=_RSA_BITS).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    handle, temporary = tempfile.mkstemp(dir=path.parent)  # mode 0600
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(pem)
            file.flush()
            os.fsync(file.fileno())
        os.link(temporary, path)  # unlike a rename it replaces nothing
    except FileExistsError:  # another process was quicker: its key is the key
        return False
    finally:
        Path(temporary).unlink()
    return True


def public_key_of(pem: str) -> str:
    """The public half for DNS: base64 of the SubjectPublicKeyInfo (RFC 6376 §3.6.1, ``p=``).

    Raises:
        FleetError: the text is no RSA private key of at least 1024 bits.
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import rsa

    try:
        key = serialization.load_pem_private_key(pem.encode(), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise FleetError("the DKIM key can't be read: it must be an unencrypted RSA private key in PEM form") from None
    if not isinstance(key, rsa.RSAPrivateKey) or key.key_size < 1024:
        raise FleetError("the DKIM key must be RSA with at least 1024 bits (RFC 8301), better 2048")
    der = key.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return base64.b64encode(der).decode()


def _find(connection: Connection, name: str) -> SendingDomain | None:
    row = connection.execute(select(sending_domains).where(sending_domains.c.name == name)).one_or_none()
    return None if row is None else _domain(row)


def _domain(row: Row[tuple[object, ...]]) -> SendingDomain:
    return SendingDomain(
        row.id, row.name, row.dkim_selector, row.dkim_key_ref, row.return_path_domain, row.tracking_url
    )
