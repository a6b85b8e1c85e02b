"""Job folders don't stay for ever: ``settings.job_folder_days`` after its send is over a folder goes, here and on
dispatch servers. Its ledgers are kept centrally by then; its shards went when its slot was through.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from sqlalchemy import Connection, Engine, select

from mailer_lib.agent.job_folders import list_folders, remove_folder
from mailer_lib.agent.remote import Op
from mailer_lib.database import audit
from mailer_lib.database.engine import now, read, write
from mailer_lib.database.schema import campaigns, sends
from mailer_lib.dispatch.channel import ChannelError
from mailer_lib.dispatch.states import FINAL
from mailer_lib.fleet.servers import DispatchServer, list_servers
from mailer_lib.settings import Settings
from mailer_lib.terms import ChannelKind, ServerState

HERE = "this machine"
_NOT_ASKED = (ServerState.FENCED, ServerState.RETIRED)  # given up: read it first; retired: its playbook has emptied it


@dataclass(frozen=True)
class Tidied:
    """What was done about the job folders of one machine."""

    server: str  # or HERE
    removed: tuple[str, ...] = ()  # campaign/edition/slot
    strange: tuple[str, ...] = ()  # of no send that is known: left for a person to look at
    trouble: str = ""  # why nothing, or not all, could be done


def expires_at(settings: Settings, finished_at: datetime) -> datetime:
    return finished_at + timedelta(days=settings.job_folder_days)


def tidy(engine: Engine, settings: Settings, *, actor: str) -> list[Tidied]:
    """Remove every folder that is due. What can't be reached is said, and done next time."""
    with read(engine) as connection:
        due = _due(connection, settings)
        asked = [one for one in list_servers(connection) if one.state not in _NOT_ASKED]
    unread = {one.name for one in asked if one.unreconciled}
    done = [_here(settings.jobs_dir, due, unread)]
    done += [
        _there(server, settings, due)
        for server in asked
        if server.channel is ChannelKind.SSH and not server.unreconciled
    ]
    for one in done:
        if one.removed:
            with write(engine) as connection:
                target = "jobs:here" if one.server == HERE else f"server:{one.server}"
                audit.record(connection, actor, "job-folders.remove", target, {"folders": list(one.removed)})
    return done


def _due(connection: Connection, settings: Settings) -> Mapping[str, bool]:
    """``campaign/edition`` of every send, and whether its folders are due."""
    at = now()
    rows = connection.execute(
        select(campaigns.c.name, sends.c.edition, sends.c.state, sends.c.claim, sends.c.finished_at).join(
            campaigns, campaigns.c.id == sends.c.campaign_id
        )
    )
    return {
        f"{row.name}/{row.edition}": row.state in FINAL
        and row.claim is None
        and row.finished_at is not None
        and expires_at(settings, row.finished_at) <= at
        for row in rows
    }


def _here(root: Path, due: Mapping[str, bool], unread: set[str]) -> Tidied:
    removed, troubles = [], []
    there = [job for job in list_folders(root) if job.rpartition("/")[2].rpartition(".")[0] not in unread]
    for job in _chosen(there, due):
        try:
            remove_folder(root, job)
        except (ChannelError, OSError) as error:
            troubles.append(str(error))
        else:
            removed.append(job)
    return Tidied(HERE, tuple(removed), _strange(there, due), "; ".join(troubles))


def _there(server: DispatchServer, settings: Settings, due: Mapping[str, bool]) -> Tidied:
    from mailer_lib.dispatch.ssh_link import shared_link  # asyncssh takes a second of CPU to import

    removed: list[str] = []
    there: list[str] = []
    try:
        with shared_link(server, settings) as link:
            answer, _ = link.request("", Op.FOLDERS)
            there = [str(job) for job in answer["folders"]]
            for job in _chosen(there, due):
                link.request(job, Op.REMOVE)
                removed.append(job)
    except ChannelError as error:
        return Tidied(server.name, tuple(removed), _strange(there, due), str(error))
    return Tidied(server.name, tuple(removed), _strange(there, due))


def _chosen(there: list[str], due: Mapping[str, bool]) -> list[str]:
    return [job for job in there if due.get(job.rpartition("/")[0], False)]


def _strange(there: list[str], due: Mapping[str, bool]) -> tuple[str, ...]:
    return tuple(job for job in there if job.rpartition("/")[0] not in due)
