"""Late suppressions: who left after the snapshot was frozen (suppressions.log of the job folder, append-only)."""

import re
from pathlib import Path

from mailer_lib.shard.recipient import Recipient

_HASH = re.compile(rb"[0-9a-f]{32}")


class LateSuppressions:
    """Grows only: a line that was read stays in force for the life of the agent."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0
        self._hashes: set[bytes] = set()
        self._domains: set[str] = set()
        self._fresh_keys: set[bytes] = set()
        self._fresh_domains: set[str] = set()
        self.lines = 0  # in force
        self.bad_lines = 0

    def poll(self) -> bool:
        """Read what was appended; whether there was anything. A last line without its newline waits."""
        try:
            size = self._path.stat().st_size
        except FileNotFoundError:
            return False
        if size < self._offset:  # replaced by a shorter one, against the protocol: read it all, drop nothing
            self._offset = 0
            self.lines = self.bad_lines = 0
        if size == self._offset:
            return False
        with self._path.open("rb") as file:
            file.seek(self._offset)
            data = file.read()
        data = data[: data.rfind(b"\n") + 1]
        self._offset += len(data)
        for line in data.splitlines():
            self._add(line.strip())
        return bool(data)

    def _add(self, line: bytes) -> None:
        self.lines += 1
        if line.startswith(b"@") and len(line) > 1:
            domain = line[1:].decode("ascii", "replace").lower()
            self._domains.add(domain)
            self._fresh_domains.add(domain)
        elif line.startswith(b"=") and _HASH.fullmatch(line[1:].lower()):
            self._fresh_keys.add(bytes.fromhex(line[1:].decode()))
        elif _HASH.fullmatch(line.lower()):
            self._hashes.add(bytes.fromhex(line.decode()))
        elif line:
            self.bad_lines += 1

    def take_fresh(self) -> tuple[frozenset[bytes], frozenset[str]]:
        """Message keys and domains that came since this was asked last: the MTA may have messages for them."""
        fresh = frozenset(self._fresh_keys), frozenset(self._fresh_domains)
        self._fresh_keys, self._fresh_domains = set(), set()
        return fresh

    def holds(self, recipient: Recipient) -> bool:
        """Nothing may be sent to this person any more."""
        return recipient.address_hash in self._hashes or recipient.domain in self._domains
