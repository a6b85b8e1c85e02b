"""Taking a send back after it is over: what its MTAs hold and haven't delivered."""

from dataclasses import dataclass

from sqlalchemy import Engine, func, select

from mailer_lib.contacts.consent import active_suppressions_since
from mailer_lib.database import audit
from mailer_lib.database.engine import read, write
from mailer_lib.database.schema import leases, snapshots
from mailer_lib.dispatch.channel import ChannelError
from mailer_lib.dispatch.channels import open_channel
from mailer_lib.dispatch.queue_listings import keep_listing
from mailer_lib.dispatch.reattach import run_once, slots_of
from mailer_lib.dispatch.recalling import RecallBooks, RecallReader
from mailer_lib.dispatch.sends import SendError, SendRecord, find_send
from mailer_lib.dispatch.slot_rules import suppression_lines
from mailer_lib.dispatch.states import FINAL
from mailer_lib.fleet import servers
from mailer_lib.settings import Settings
from mailer_lib.terms import Control, MtaKind, Outcome, ServerState

DONE = "send.recall"  # in the audit log
_OUT_OF_REACH = frozenset({ServerState.FENCED, ServerState.FAILED, ServerState.RETIRED})


@dataclass(frozen=True)
class Recalled:
    """What became of one slot's part of the queue."""

    slot: str
    messages: int = 0  # recalled, and booked as cancelled
    trouble: str = ""  # why nothing is known
    again: bool = False  # it may be otherwise next time


def recall_send(engine: Engine, settings: Settings, ref: str, actor: str, *, due_only: bool = False) -> list[Recalled]:
    """Take back what lies in the MTAs' queues: everything, or (``due_only``) what must not be delivered any more, to
    people who left since, and all of it when the send has expired. Twice is the same as once.

    Raises:
        SendError: the send isn't over: stopping it recalls.
        LedgerError: a file is damaged.
    """
    with read(engine) as connection:
        send = find_send(connection, ref)
        slots = slots_of(connection, send.id)
    if send.state not in FINAL:
        raise SendError(f"{ref} is {send.state}: `mailfleet send stop {ref}` stops it, and takes back what is queued")
    lines = sorted(_lines(engine, settings, send))
    found = []
    for slot in slots:
        with read(engine) as connection:
            server = servers.get(connection, slot.server)
        if server.mta is not MtaKind.EXIM:
            found.append(Recalled(slot.folder, trouble=f"the queue of a {server.mta} can't be reached from here"))
            continue
        if server.state in _OUT_OF_REACH:
            found.append(Recalled(slot.folder, trouble=f"the server is {server.state}"))
            continue
        before = _cancelled(engine, send.id)
        try:
            with open_channel(server, settings, send, slot) as channel:
                control = Control.RUN if due_only else Control.STOP
                run_once(engine, settings, send, slot, channel, control=control, suppressions=lines)
                RecallReader(RecallBooks(engine, settings, send.id, send.ref, actor), channel).sync()
                keep_listing(settings, send.id, slot, channel)
                channel.clear()
        except ChannelError as error:
            found.append(Recalled(slot.folder, trouble=str(error), again=True))
        else:
            found.append(Recalled(slot.folder, _cancelled(engine, send.id) - before))
    with write(engine) as connection:
        detail = {"due_only": due_only, "messages": sum(one.messages for one in found)}
        whole = not any(one.again for one in found)  # what is due stays so until every queue was looked at
        audit.record(connection, actor, DONE if whole else "send.recall-incomplete", f"send:{send.ref}", detail)
    return found


def _lines(engine: Engine, settings: Settings, send: SendRecord) -> set[str]:
    with read(engine) as connection:
        since = connection.scalar(select(func.min(snapshots.c.as_of)).where(snapshots.c.send_id == send.id))
        if since is None:
            return set()
        hashes, domains = active_suppressions_since(connection, since=since, list_id=send.list_id)
    return suppression_lines(hashes, domains, settings.identity().send_key(send.campaign, send.edition))


def _cancelled(engine: Engine, send_id: int) -> int:
    with read(engine) as connection:
        counted = connection.scalar(
            select(func.sum(leases.c[Outcome.CANCELLED.value])).where(leases.c.send_id == send_id)
        )
    return int(counted or 0)
