"""What agents took back out of their MTA's queue, brought into the books: injected becomes cancelled, exactly once.

The agent's word is ``recalls.log`` beside its ledgers (``agent/recalls.py``). It is booked once the lease of the row
has ended, because until then the kept ledger is a copy that grows; before that the row stays injected.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

from sqlalchemy import Engine

from mailer_lib.agent.ledger import Amended, Final
from mailer_lib.agent.recalls import FILE, Recall, Step, read_recalls
from mailer_lib.database import audit
from mailer_lib.database.engine import read, write
from mailer_lib.dispatch.amendments import amend
from mailer_lib.dispatch.channel import Channel
from mailer_lib.dispatch.lease import LeaseLostError, leases_of_send
from mailer_lib.settings import Settings
from mailer_lib.terms import LeaseState, Outcome

_READ_BYTES = 4 * 1024 * 1024
_MAY_LIE_IN_A_QUEUE = frozenset({Outcome.INJECTED, Outcome.UNKNOWN})


@dataclass(frozen=True)
class RecallBooks:
    """Whose recalls are booked: ``actor`` and ``send`` are for the audit log."""

    engine: Engine
    settings: Settings
    send_id: int
    send: str  # campaign#edition
    actor: str

    def book(self, recalls: Iterable[Recall]) -> list[Recall]:
        """Book what can be booked. Returns the recalls whose lease hasn't ended yet."""
        by_ledger: dict[str, list[Recall]] = {}
        for recall in recalls:
            by_ledger.setdefault(recall.ledger, []).append(recall)
        if not by_ledger:
            return []
        with read(self.engine) as connection:
            leases = {lease.ledger_name: lease for lease in leases_of_send(connection, self.send_id)}
        waiting: list[Recall] = []
        booked = 0
        for name, told in by_ledger.items():
            lease = leases.get(name)
            if lease is None:
                continue  # another send's ledger: the job folder was given a foreign file
            if lease.state == LeaseState.ACTIVE:
                waiting += told
                continue
            try:
                booked += len(amend(self.engine, self.settings, lease.id, partial(cancelled, told=told)))
            except LeaseLostError:  # lost, and its unknown rows aren't booked yet
                waiting += told
        if booked:
            with write(self.engine) as connection:
                audit.record(connection, self.actor, "send.recalled", f"send:{self.send}", {"messages": booked})
        return waiting


def cancelled(there: Mapping[int, Final], told: Iterable[Recall]) -> Iterator[Amended]:
    """Amendments for recalled rows; only under the queue id that their hand-over was answered with."""
    for recall in told:
        before = there.get(recall.row)
        if before is not None and before.outcome in _MAY_LIE_IN_A_QUEUE and before.queue_id == recall.queue_id:
            after = before._replace(outcome=Outcome.CANCELLED, t_ms=recall.t_ms, text=f"recalled: {recall.why}")
            yield Amended(*after)


class RecallReader:
    """Follows one job folder's recalls.log."""

    def __init__(self, books: RecallBooks, channel: Channel) -> None:
        self._books = books
        self._channel = channel
        self._offset = 0
        self._waiting: list[Recall] = []

    def sync(self) -> None:
        """Read what is new, and book what can be booked.

        Raises:
            LedgerError: the file, or a kept ledger, is damaged.
        """
        while data := self._channel.fetch_ledger(FILE, self._offset, _READ_BYTES):
            whole = data.rfind(b"\n") + 1
            if not whole:
                break
            self._offset += whole
            self._waiting += [recall for recall in read_recalls(data[:whole]) if recall.step is Step.RECALLED]
        self._waiting = self._books.book(self._waiting)
