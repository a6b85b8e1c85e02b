"""``server_health``: what each look at a dispatch server found, and which servers have just turned sick."""

import subprocess
import sys
import time
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import PurePosixPath

from sqlalchemy import Connection, Engine, Row, delete, func, insert, select

from mailer_lib.database.engine import now, read, write
from mailer_lib.database.schema import server_health
from mailer_lib.fleet import server_checks
from mailer_lib.fleet.health import Health, HealthRules, Place, Run, gather, judge, load_facts, silent
from mailer_lib.fleet.servers import DispatchServer, list_servers
from mailer_lib.settings import Settings
from mailer_lib.terms import ChannelKind, HealthVerdict, MtaKind, ServerState

KEEP = timedelta(days=14)
AT_ONCE = 8
TIMEOUT_S = 60.0
CERTIFICATE = "/etc/exim4/tls.crt"
KEYS = ("/etc/exim4/tls.key",)
LOOKED_AT = (ServerState.WARMING, ServerState.ACTIVE, ServerState.DRAINING, ServerState.STANDBY, ServerState.FENCED)


@dataclass(frozen=True)
class Look:
    """One look at a server. ``turned``: it was well, or is silent for the second time; a person should know."""

    server: str
    pool: str
    state: ServerState
    health: Health
    at: datetime
    turned: bool = False

    def __str__(self) -> str:
        why = f": {'; '.join(self.health.reasons)}" if self.health.reasons else ""
        return f"{self.server} is {self.health.verdict}{why}"


def place_of(server: DispatchServer, settings: Settings) -> Place:
    """Where the script looks on this server."""
    spool = server.mta_spool if server.mta is MtaKind.EXIM else None
    paniclog = str(PurePosixPath(server.mta_log).with_name("paniclog")) if spool and server.mta_log else None
    if server.channel is ChannelKind.LOCAL:
        settings.jobs_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        return Place(sys.executable, spool, paniclog, disk=str(settings.jobs_dir))
    certificate, keys = (CERTIFICATE, KEYS) if server.mta is MtaKind.EXIM else (None, ())
    return Place(server.agent_python, spool, paniclog, certificate, keys, server.remote_jobs_dir)


def runner_of(server: DispatchServer, settings: Settings) -> Run:
    """How a command gets there: a child process for a local server, else SSH."""
    if server.channel is ChannelKind.LOCAL:
        return _run_here

    def over_ssh(command: str) -> str:
        from mailer_lib.fleet.ssh import run

        done = run(server, settings, command, timeout_s=TIMEOUT_S)
        return done.stdout if done.status == 0 else f"{done.stdout}\n{done.stderr}"

    return over_ssh


def _run_here(command: str) -> str:
    done = subprocess.run(["/bin/sh", "-c", command], capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    return done.stdout if done.returncode == 0 else f"{done.stdout}\n{done.stderr}"


def look(
    engine: Engine,
    settings: Settings,
    *,
    names: Collection[str] = (),
    rules: HealthRules | None = None,
    runner: Callable[[DispatchServer, Settings], Run] = runner_of,
) -> list[Look]:
    """Ask every server that is in service, draining, fenced or on standby (or those named), and store the answers.

    A standby machine behind SSH that was never verified is bare: nothing is on it that could be well or sick.
    """
    with read(engine) as connection:
        verified = server_checks.latest_of_all(connection)
        asked = [
            server
            for server in list_servers(connection, states=() if names else LOOKED_AT)
            if server.name in names or (not names and not _is_bare(server, server.id in verified))
        ]
    with ThreadPoolExecutor(max_workers=AT_ONCE, thread_name_prefix="health") as threads:
        found = list(threads.map(lambda server: _ask(server, settings, rules, runner), asked))
    return [_store(engine, server, health) for server, health in zip(asked, found, strict=True)]


def _is_bare(server: DispatchServer, was_verified: bool) -> bool:
    return server.channel is ChannelKind.SSH and server.state is ServerState.STANDBY and not was_verified


def _ask(
    server: DispatchServer,
    settings: Settings,
    rules: HealthRules | None,
    runner: Callable[[DispatchServer, Settings], Run],
) -> Health:
    began = time.monotonic()
    try:
        facts = gather(runner(server, settings), place_of(server, settings))
    except Exception as error:  # whatever is in the way: it is what the look found
        return silent(str(error) or type(error).__name__)
    return judge(facts, now(), rules=rules, took_s=time.monotonic() - began)


def _store(engine: Engine, server: DispatchServer, health: Health) -> Look:
    at = now()
    facts = health.facts
    with write(engine) as connection:
        before = [HealthVerdict(row.verdict) for row in _newest(connection, server.id, 2)]
        connection.execute(
            insert(server_health).values(
                server_id=server.id,
                at=at,
                verdict=health.verdict,
                reasons=list(health.reasons),
                queued=facts.messages if facts else None,
                deferred=facts.deferred if facts and facts.messages is not None else None,
                oldest_s=facts.oldest_s if facts and facts.messages is not None else None,
                facts=facts.as_dict() if facts else None,
            )
        )
        old = (server_health.c.server_id == server.id) & (server_health.c.at < at - KEEP)
        connection.execute(delete(server_health).where(old))
    return Look(server.name, server.pool, server.state, health, at, has_turned(health.verdict, before))


def forget_old(connection: Connection, at: datetime) -> int:
    """Drop looks older than ``KEEP``, but for each server's newest: also of servers that nobody looks at any more.
    Returns how many were dropped."""
    dropped = 0
    newest = select(server_health.c.server_id, func.max(server_health.c.at)).group_by(server_health.c.server_id)
    for server_id, last in connection.execute(newest).all():
        old = (server_health.c.server_id == server_id) & (server_health.c.at < min(last, at - KEEP))
        dropped += connection.execute(delete(server_health).where(old)).rowcount
    return dropped


def has_turned(verdict: HealthVerdict, before: Sequence[HealthVerdict]) -> bool:
    """Whether this look is one to tell somebody about; ``before``: the two looks before it, newest first.

    One look without an answer is often the network. So silence counts from the second on, and a server that was sick
    before it was silent for a look isn't told of again.
    """
    if verdict is HealthVerdict.WELL:
        return False
    if verdict is HealthVerdict.SILENT:
        return list(before[:1]) == [verdict] and list(before[1:2]) != [verdict]
    answered = [one for one in before if one is not HealthVerdict.SILENT]
    return not answered or answered[0] is HealthVerdict.WELL


def _newest(connection: Connection, server_id: int, count: int) -> Sequence[Row[tuple[str]]]:
    return connection.execute(
        select(server_health.c.verdict)
        .where(server_health.c.server_id == server_id)
        .order_by(server_health.c.at.desc())
        .limit(count)
    ).all()


def latest(connection: Connection) -> dict[int, Look]:
    """The newest look at each server that was ever looked at, by the server's id."""
    newest = select(server_health.c.server_id, func.max(server_health.c.at).label("at")).group_by(
        server_health.c.server_id
    )
    picked = newest.subquery()
    rows = connection.execute(
        select(server_health).join(
            picked, (server_health.c.server_id == picked.c.server_id) & (server_health.c.at == picked.c.at)
        )
    ).all()
    servers = {server.id: server for server in list_servers(connection)}
    return {
        row.server_id: Look(
            servers[row.server_id].name,
            servers[row.server_id].pool,
            servers[row.server_id].state,
            Health(HealthVerdict(row.verdict), tuple(row.reasons), load_facts(row.facts)),
            row.at,
        )
        for row in rows
    }
