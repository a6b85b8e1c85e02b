"""What a dispatch server says about itself. This file is sent to the server and run there by ``python -I -``.

So it uses the standard library alone, reads no personal data, and prints one line of JSON.
"""

import base64
import errno
import json
import os
import shutil
import smtplib
import socket
import ssl
import subprocess
import sys
import time
from typing import Any

TIMEOUT_S = 10.0


def look(query: dict[str, Any]) -> dict[str, Any]:
    """``query``: ``smtp_host, smtp_port, implicit_tls`` of the MTA; ``paths`` whose disks matter; ``sources``: the
    addresses that mail leaves from (null: those of this machine), which are asked for a certificate too when
    ``tls_of_sources``; ``probe``: [host, port] to connect to from each, or null.
    """
    at, began = time.time(), time.monotonic()
    sources = query["sources"]
    if sources is None:
        sources = own_addresses(ipv6=exim_uses_ipv6())
    found: dict[str, Any] = {
        "at": at,
        "sources": sources,
        "disks": [disk(path) for path in query["paths"]],
        "mta": greet(query["smtp_host"], query["smtp_port"], implicit_tls=query["implicit_tls"]),
        "tls": None,
        "outbound": [],
    }
    if query["tls_of_sources"]:
        # Seen from its public address: from 127.0.0.1 the MTA may offer no STARTTLS at all.
        found["tls"] = next((seen for s in sources if "error" not in (seen := greet(s, query["smtp_port"]))), None)
    if query["probe"] is not None:
        host, port = query["probe"]
        found["outbound"] = [outbound(host, port, source) for source in sources or [None]]
    found["took_s"] = time.monotonic() - began
    return found


def queue(query: dict[str, Any]) -> dict[str, Any]:
    """Messages in Exim's spool, named queues included: each has a header file.

    A folder that can't be read is an error, never an empty queue.
    """
    queued = 0
    try:
        for _, _, files in os.walk(query["spool"], onerror=_raise):
            queued += sum(1 for name in files if name.endswith("-H"))
    except OSError as error:
        return {"queued": None, "error": f"{error.filename} can't be read ({error.strerror})"}
    return {"queued": queued, "error": None}


def submit(query: dict[str, Any]) -> dict[str, Any]:
    """Hand the test messages to the MTA: ``messages`` of [sender, recipient, base64]."""
    kind = smtplib.SMTP_SSL if query["implicit_tls"] else smtplib.SMTP
    replies: list[str | None] = []
    try:
        with kind(query["smtp_host"], query["smtp_port"], timeout=TIMEOUT_S) as smtp:
            if query["starttls"]:
                smtp.starttls()
            if query.get("user"):
                smtp.login(query["user"], query["password"])
            for sender, recipient, message in query["messages"]:
                try:
                    smtp.sendmail(sender, [recipient], base64.b64decode(message))
                    replies.append(None)
                except smtplib.SMTPRecipientsRefused as error:
                    code, text = next(iter(error.recipients.values()))
                    replies.append(f"{code} {text.decode(errors='replace')}")
                except smtplib.SMTPResponseException as error:
                    replies.append(f"{error.smtp_code} {_text(error.smtp_error)}")
    except (OSError, smtplib.SMTPException) as error:
        replies += [str(error)] * (len(query["messages"]) - len(replies))
    return {"replies": replies}


def greet(host: str, port: int, *, implicit_tls: bool = False) -> dict[str, Any]:
    """Banner, answer to EHLO and certificate of an MTA."""
    trusting = ssl._create_unverified_context()  # noqa: S323 - the certificate is read, and judged by who asked
    try:
        smtp: smtplib.SMTP
        if implicit_tls:
            smtp = smtplib.SMTP_SSL(timeout=TIMEOUT_S, context=trusting)
        else:
            smtp = smtplib.SMTP(timeout=TIMEOUT_S)
        smtp._host = host  # type: ignore[attr-defined]  # the constructor would connect, and forget the banner
        code, banner = smtp.connect(host, port)
        if code != 220:
            smtp.close()
            return {"error": f"its first line is {code} {_text(banner)}"}
        with smtp:
            smtp.ehlo("probe.invalid")
            found = {"banner": _text(banner), "ehlo": _text(smtp.ehlo_resp), "certificate": None}
            if not implicit_tls and smtp.has_extn("starttls"):
                smtp.starttls(context=trusting)
            if isinstance(smtp.sock, ssl.SSLSocket):
                found["certificate"] = base64.b64encode(smtp.sock.getpeercert(binary_form=True) or b"").decode()
            return found
    except (OSError, smtplib.SMTPException) as error:
        return {"error": str(error) or type(error).__name__}


def outbound(host: str, port: int, source: str | None) -> dict[str, Any]:
    """Whether a mail host can be reached from one of our addresses."""
    found: dict[str, Any] = {"source": source, "host": host, "port": port, "error": None}
    family = socket.AF_UNSPEC if source is None else socket.AF_INET6 if ":" in source else socket.AF_INET
    try:
        targets = socket.getaddrinfo(host, port, family, socket.SOCK_STREAM)
    except OSError as error:
        if family != socket.AF_INET6:  # a host without IPv6 says nothing about ours
            found["error"] = f"its name can't be resolved there ({error.strerror})"
        return found
    try:
        with _connect(targets[0][4][:2], source) as connection:
            line = connection.makefile("rb").readline(1000).decode("ascii", "replace").strip()
            if line[:1] not in ("2", "4", "5"):
                found["error"] = f"it answers {line[:80]!r}, not as a mail host"
    except OSError as error:
        found["error"] = error.strerror or str(error)
    return found


def _connect(target: Any, source: str | None) -> socket.socket:
    try:
        own = None if source is None else (source, 0)
        return socket.create_connection(target, timeout=TIMEOUT_S, source_address=own)
    except OSError as error:
        if error.errno != errno.EADDRNOTAVAIL or source is None:
            raise
    return socket.create_connection(target, timeout=TIMEOUT_S)  # the address is a router's before this machine (NAT)


def _raise(error: OSError) -> None:
    raise error


def disk(path: str) -> dict[str, Any]:
    """Room on the disk of a folder, or of the nearest one above it that exists."""
    folder = path
    while not os.path.exists(folder) and folder != "/":  # noqa: PTH110 - plain strings are sent here and back
        folder = os.path.dirname(folder)  # noqa: PTH120
    return {"path": path, "free_bytes": shutil.disk_usage(folder).free, "free_files": os.statvfs(folder).f_favail}


def own_addresses(*, ipv6: bool) -> list[str]:
    """This machine's addresses that others can reach."""
    said = subprocess.run(["ip", "-j", "address", "show", "scope", "global", "up"], capture_output=True, check=False)
    families = ("inet", "inet6") if ipv6 else ("inet",)
    found = []
    for link in json.loads(said.stdout or b"[]"):
        for address in link.get("addr_info", ()):
            if address.get("deprecated") or address.get("temporary") or link.get("ifname") == "lo":
                continue
            if address.get("family") in families:  # what the scope filters out is there as {}
                found.append(address["local"])
    return found


def exim_uses_ipv6() -> bool:
    """Exim's own word; True when there is no Exim to ask."""
    for program in ("/usr/sbin/exim4", "/usr/sbin/exim"):
        if os.access(program, os.X_OK):
            said = subprocess.run([program, "-bP", "disable_ipv6"], capture_output=True, text=True, check=False)
            return said.returncode != 0 or said.stdout.strip() != "disable_ipv6"
    return True


def _text(said: object) -> str:
    return said.decode("utf-8", "replace").strip() if isinstance(said, bytes) else str(said)


def main(query: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps({"look": look, "submit": submit, "queue": queue}[query["do"]](query)) + "\n")
