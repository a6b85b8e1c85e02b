"""Runs on a dispatch server, given to its Python as text: prints the facts of ``health.Facts`` as one line of JSON.

Nothing of Mailfleet is imported, for it must work on a server whose agent is broken. In a ``-H`` file of Exim's spool
(chapter 56 of its specification) the third line is the sender, the fourth "<received time> <warnings>";
``-deliver_firsttime`` is there until the first attempt; the recipients follow a line with their number.
"""

import json
import os
import ssl
import sys
import time
from pathlib import Path
from typing import Any

LIMIT_FILES = 50_000
LIMIT_S = 20.0
HEAD_BYTES = 8_192
DELIVERED = ("YY ", "YN ", "NY ", "NN ")  # lines of the tree of who has got it


def recipients_left(lines: list[str]) -> list[str]:
    """Domains still to be delivered to."""
    done: set[str] = set()
    for place, line in enumerate(lines):
        if line[:3] in DELIVERED:
            done.add(line[3:].strip().lower())
        elif line.isdigit() and lines[place + 1 + int(line) : place + 2 + int(line)] == [""]:  # not an ACL's variable
            addresses = [line.split(" ")[0].lower() for line in lines[place + 1 : place + 1 + int(line)]]
            return [address.rpartition("@")[2] for address in addresses if address not in done]
    return []


def read_message(path: Path) -> tuple[int, bool, list[str]]:
    """(received, tried, domains)."""
    with path.open("rb") as file:
        lines = file.read(HEAD_BYTES).decode("utf-8", "replace").split("\n")
    return int(lines[3].split(" ")[0]), "-deliver_firsttime" not in lines, recipients_left(lines[4:])


def queue(spool: Path, now: float) -> dict[str, Any]:
    """What is in all of its queues."""
    messages = unread = oldest_s = deferred = 0
    domains: dict[str, dict[str, int]] = {}
    until = time.monotonic() + LIMIT_S
    for top, _, names in os.walk(spool):
        if "input" not in Path(top).relative_to(spool).parts:
            continue
        for name in names:
            if not name.endswith("-H"):
                continue
            messages += 1
            if messages > LIMIT_FILES or time.monotonic() > until:
                unread += 1
                continue
            try:
                received, tried, left = read_message(Path(top) / name)
            except FileNotFoundError:  # delivered meanwhile
                messages -= 1
                continue
            except (OSError, ValueError, IndexError):
                unread += 1
                continue
            age_s = max(0, int(now - received))
            oldest_s = max(oldest_s, age_s)
            deferred += tried
            for domain in set(left):
                one = domains.setdefault(domain, {"queued": 0, "deferred": 0, "oldest_s": 0})
                one["queued"] += 1
                one["deferred"] += tried
                one["oldest_s"] = max(one["oldest_s"], age_s)
    return {"messages": messages, "unread": unread, "queue": domains, "oldest_s": oldest_s, "deferred": deferred}


def exim_runs() -> bool:
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            try:
                if (process / "comm").read_text().strip() in ("exim4", "exim"):
                    return True
            except OSError:
                continue
    return False


def certificate_left_s(path: str, now: float) -> int | None:
    """Until it ends. The parser of one PEM file is private in Python, and has been there since 2.6."""
    try:
        decoded = ssl._ssl._test_decode_cert(path)  # type: ignore[attr-defined]
        return int(ssl.cert_time_to_seconds(decoded["notAfter"]) - now)
    except (OSError, ssl.SSLError):
        return None


def main(asked: dict[str, Any]) -> None:
    now = time.time()
    disk = os.statvfs(asked["disk"])
    facts: dict[str, Any] = {
        "at": now,
        "load": os.getloadavg()[0] / (os.cpu_count() or 1),
        "disk_free_share": disk.f_bavail / disk.f_blocks if disk.f_blocks else 1.0,
        "inodes_free_share": disk.f_favail / disk.f_files if disk.f_files else 1.0,
    }
    if asked["spool"]:
        facts |= queue(Path(asked["spool"]), now)
        facts["mta_runs"] = exim_runs()
        paniclog = Path(asked["paniclog"] or "/var/log/exim4/paniclog")
        facts["panics"] = paniclog.stat().st_size if paniclog.exists() else 0
    if asked["certificate"]:
        facts["certificate_left_s"] = certificate_left_s(asked["certificate"], now)
    ages = [int(now - Path(key).stat().st_mtime) for key in asked["keys"] if Path(key).exists()]
    if ages:
        facts["key_age_s"] = max(ages)
    sys.stdout.write("mailfleet-health " + json.dumps(facts) + "\n")


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
