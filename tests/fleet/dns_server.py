"""A small authoritative DNS server on loopback, for tests: what isn't in its zone doesn't exist."""

import socket
import threading
from collections.abc import Iterable
from types import TracebackType
from typing import Self

import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype
import dns.rrset
import dns.zonefile


class DnsServer:
    """``zone``: lines as a zone file has them, names complete. ``publish`` and ``remove`` change it at once."""

    def __init__(self, zone: Iterable[str] = ()) -> None:
        self._records: dict[tuple[dns.name.Name, int], dns.rrset.RRset] = {}
        for line in zone:
            self.publish(line)
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._socket.getsockname()[1]}"
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def publish(self, line: str) -> None:
        """Add a record; others of its name and type stay."""
        for rrset in dns.zonefile.read_rrsets(line, rdclass=None, default_ttl=60):
            key = (rrset.name, rrset.rdtype)
            if key in self._records:
                self._records[key].update(rrset)
            else:
                self._records[key] = rrset

    def remove(self, name: str, kind: str) -> None:
        del self._records[dns.name.from_text(name), dns.rdatatype.from_text(kind)]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._socket.sendto(b"", self._socket.getsockname())  # an empty datagram ends the thread
        self._thread.join(10)
        self._socket.close()

    def _serve(self) -> None:
        while True:
            wire, client = self._socket.recvfrom(4096)
            if not wire:
                return
            query = dns.message.from_wire(wire)
            question = query.question[0]
            answer = dns.message.make_response(query)
            answer.flags |= dns.flags.AA | dns.flags.RA
            found = self._records.get((question.name, question.rdtype))
            if found is not None:
                answer.answer.append(found)
            elif not any(name.is_subdomain(question.name) for name, _ in self._records):
                answer.set_rcode(dns.rcode.NXDOMAIN)
            self._socket.sendto(answer.to_wire(), client)
