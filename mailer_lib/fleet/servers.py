"""Dispatch servers: where an agent runs, and the MTA that takes what it sends."""

import re
from collections.abc import Collection
from datetime import datetime
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from sqlalchemy import Connection, Select, insert, select, update

from mailer_lib import secret_refs
from mailer_lib.database.audit import record
from mailer_lib.database.engine import now
from mailer_lib.database.schema import dispatch_servers, sending_pools, server_sources
from mailer_lib.fleet import pools, server_checks, states
from mailer_lib.fleet.host_keys import check_host_key, fingerprint
from mailer_lib.fleet.names import FleetError, check_host, check_name
from mailer_lib.terms import ChannelKind, HostProvider, MtaKind, ServerState, SmtpSecurity

_USER = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,31}")
_PLAIN_MTAS = frozenset({MtaKind.EXIM, MtaKind.SINK})


def _first_state(channel: ChannelKind | None) -> ServerState:
    """What a server begins with: one behind SSH must be verified before it sends."""
    return ServerState.STANDBY if channel is ChannelKind.SSH else ServerState.ACTIVE


class ServerSpec(BaseModel):
    """A dispatch server as an operator describes it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    pool: str
    channel: ChannelKind = ChannelKind.LOCAL
    state: ServerState = Field(default_factory=lambda values: _first_state(values.get("channel")))
    host: str | None = None  # where the agent runs, channel ssh
    ssh_port: int = Field(default=22, ge=1, le=65535)
    ssh_user: str = "mailfleet"
    host_key: str | None = None  # pinned; without it nobody logs in
    agent_python: str = "/opt/mailfleet/venv/bin/python"  # on the server
    remote_jobs_dir: str = "/var/lib/mailfleet/jobs"
    slots: int = Field(default=1, ge=1, le=64)  # agent processes: one a core
    mta: MtaKind = MtaKind.RELAY
    mta_log: str | None = None
    mta_spool: str | None = None
    mta_queues: bool = False  # it gives each send a queue of its own, by the name in EHLO
    mta_command: str | None = None  # of an Exim that isn't /usr/sbin/exim4
    smtp_host: str = "127.0.0.1"
    smtp_port: int = Field(default=25, ge=1, le=65535)
    smtp_security: SmtpSecurity = SmtpSecurity.NONE
    smtp_user: str | None = None
    smtp_password_ref: str | None = None
    helo_name: str
    connections: int = Field(default=4, ge=1, le=1000)  # of each slot
    per_hour: int | None = Field(default=None, ge=1)
    per_day: int | None = Field(default=None, ge=1)

    @field_validator("name")
    @classmethod
    def _name(cls, value: str) -> str:
        return check_name("dispatch server", value)

    @field_validator("smtp_host", "host", "helo_name")
    @classmethod
    def _host(cls, value: str | None) -> str | None:
        return None if value is None else check_host(value)

    @field_validator("ssh_user")
    @classmethod
    def _ssh_user(cls, value: str) -> str:
        if _USER.fullmatch(value) is None:
            raise ValueError(f"{value!r} isn't the name of a user: letters, digits, _ and - only")
        return value

    @field_validator("host_key")
    @classmethod
    def _host_key(cls, value: str | None) -> str | None:
        return None if value is None else check_host_key(value)

    @field_validator("agent_python", "remote_jobs_dir")
    @classmethod
    def _absolute(cls, value: str) -> str:
        if not value.startswith("/") or "\0" in value or "\n" in value:
            raise ValueError("must be an absolute path on the server")
        return value

    @field_validator("smtp_password_ref")
    @classmethod
    def _reference(cls, value: str | None) -> str | None:
        return None if value is None else secret_refs.check(value)

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if (self.channel is ChannelKind.SSH) != (self.host is not None):
            raise ValueError("a host belongs to the channel ssh, and only to it: give both or neither")
        if self.host_key is not None and self.channel is not ChannelKind.SSH:
            raise ValueError("a host key belongs to the channel ssh, and only to it")
        if (self.smtp_user is None) != (self.smtp_password_ref is None):
            raise ValueError("an SMTP user and its password reference go together: give both or neither")
        if self.smtp_user is not None and self.smtp_security is SmtpSecurity.NONE:
            raise ValueError("a password isn't sent in plain text: choose the security starttls or implicit")
        if self.mta in _PLAIN_MTAS and self.mta_log is None:
            raise ValueError(f"settling what is in doubt needs the main log of the {self.mta} MTA: give its path")
        if self.mta is MtaKind.EXIM and self.mta_spool is None:
            raise ValueError("settling what is in doubt needs Exim's spool folder: give its path")
        if self.mta_queues and self.mta is not MtaKind.EXIM:
            raise ValueError("a queue for each send is what an Exim beside the agent gives; this server has none")
        return self


class DispatchServer(ServerSpec):
    """A stored dispatch server."""

    id: int
    pool_id: int
    warmup: tuple[int, ...] | None = None  # a ramp of its own
    warming_from: datetime | None = None
    served_until: datetime | None = None  # when it last left the state active
    machine_from: HostProvider = HostProvider.INVENTORY
    provisioned_at: datetime | None = None  # when our playbook was last through
    machine_id: str | None = None  # what the one whom it is rented from calls it
    sources: tuple[str, ...] = ()  # "address name" of each that its mail leaves from; none: as its routes say
    unreconciled: bool = False  # it was lost, and its ledgers haven't been read since
    created_at: datetime
    updated_at: datetime

    def spec(self) -> ServerSpec:
        return ServerSpec(**self.model_dump(include=set(ServerSpec.model_fields)))


def make_spec(**values: object) -> ServerSpec:
    """A spec from an operator's input; what isn't given has its default.

    Raises:
        FleetError: one sentence for all that is wrong.
    """
    try:
        return ServerSpec.model_validate({key: value for key, value in values.items() if value is not None})
    except ValidationError as error:
        raise FleetError("; ".join(_sentence(problem["loc"], problem["msg"]) for problem in error.errors())) from None


def add(connection: Connection, spec: ServerSpec, *, actor: str, replace: bool = False) -> tuple[int, bool]:
    """Store a dispatch server; returns its id and whether anything changed. The same twice changes nothing.

    A state that isn't given stays as it is; a pinned host key does as long as host and port are the same.

    Raises:
        FleetError: no such sending pool, a server of that name differs and ``replace`` isn't given, or it can't be in
            that state (yet).
    """
    pool = pools.get(connection, spec.pool)
    existing = _find(connection, spec.name)
    if existing is not None and "state" not in spec.model_fields_set:
        spec = spec.model_copy(update={"state": existing.state})
    if existing is not None and spec.host_key is None and _same_place(existing, spec):
        spec = spec.model_copy(update={"host_key": existing.host_key})
    values = spec.model_dump(exclude={"pool"}) | {"pool_id": pool.id, "updated_at": now()}
    if existing is not None and not _same_place(existing, spec):
        values["provisioned_at"] = None  # another machine
    if existing is None:
        if states.needs_verification(spec.channel, spec.state):
            raise FleetError(
                f"a new server behind SSH can't be {spec.state}: add it without a state, provision and verify it, then "
                f"`mailfleet server activate {spec.name}`"
            )
        done = connection.execute(insert(dispatch_servers).values(**values, created_at=now()))
        record(connection, actor, "add", f"server:{spec.name}", spec.model_dump(mode="json"))
        key = done.inserted_primary_key
        assert key is not None
        return int(key[0]), True
    before, after = existing.spec().model_dump(mode="json"), spec.model_dump(mode="json")
    changed = {field: [before[field], after[field]] for field in after if before[field] != after[field]}
    if not changed:
        return existing.id, False
    if not replace:
        raise FleetError(
            f"there is a dispatch server {spec.name!r} already, with another {', '.join(changed)}: "
            "use --replace to change it"
        )
    becomes = existing.model_copy(update=spec.model_dump())
    another = server_checks.subject_of(becomes) != server_checks.subject_of(existing)
    if another or becomes.state is not existing.state:
        if becomes.state is not existing.state:
            _check_reconciled(existing, becomes.state)
        _check_state(connection, becomes, existing.state, becomes.state)
    connection.execute(update(dispatch_servers).where(dispatch_servers.c.id == existing.id).values(**values))
    record(connection, actor, "change", f"server:{spec.name}", changed)
    return existing.id, True


def _same_place(one: ServerSpec, other: ServerSpec) -> bool:
    return (one.channel, one.host, one.ssh_port) == (other.channel, other.host, other.ssh_port)


def pin(connection: Connection, name: str, host_key: str, *, actor: str) -> bool:
    """Store the key that the server's sshd must show from now on. Returns whether it wasn't pinned before.

    Raises:
        FleetError: there is no such server, it isn't reached by SSH, or that isn't a key.
    """
    server = get(connection, name)
    if server.channel is not ChannelKind.SSH:
        raise FleetError(f"{name} is reached by the channel {server.channel}: only a server with ssh has a host key")
    key = check_host_key(host_key)
    if key == server.host_key:
        return False
    values = {"host_key": key, "updated_at": now()}
    connection.execute(update(dispatch_servers).where(dispatch_servers.c.id == server.id).values(values))
    before = fingerprint(server.host_key) if server.host_key else None
    record(connection, actor, "pin", f"server:{name}", {"before": before, "after": fingerprint(key)})
    return True


def set_state(
    connection: Connection, name: str, state: ServerState, *, actor: str, reason: str | None = None
) -> DispatchServer:
    """Returns the server as it was. Whoever begins to warm up begins with the first day of the ramp.


    Raises:
        FleetError: there is no such server, or it can't go into that state (``states.py``; a server behind SSH sends
            only after it was verified).
    """
    server = get(connection, name)
    if server.state is state:
        return server
    _check_reconciled(server, state)
    _check_state(connection, server, server.state, state)
    values: dict[str, Any] = {"state": state, "updated_at": now()}
    if state is ServerState.WARMING:
        values["warming_from"] = None
    if server.state is ServerState.ACTIVE:
        values["served_until"] = now()
    same = (dispatch_servers.c.id == server.id) & (dispatch_servers.c.state == server.state)
    if connection.execute(update(dispatch_servers).where(same).values(**values)).rowcount != 1:
        raise FleetError(f"the state of {name} is being changed by somebody else: look at it, and try again")
    detail = {"before": server.state, "after": state} | ({"reason": reason} if reason else {})
    record(connection, actor, "state", f"server:{name}", detail)
    return server


def _check_reconciled(server: DispatchServer, after: ServerState) -> None:
    if server.unreconciled and after not in (ServerState.FENCED, ServerState.FAILED, ServerState.RETIRED):
        raise FleetError(
            f"{server.name} was given up, and its ledgers haven't been read since: "
            f"`mailfleet server reconcile {server.name}` first"
        )


def _check_state(connection: Connection, server: DispatchServer, before: ServerState, after: ServerState) -> None:
    wrong = states.why_not(before, after)
    if wrong is None and states.needs_verification(server.channel, after):
        wrong = server_checks.why_unverified(server, server_checks.latest(connection, server.id))
    if wrong is not None:
        change = f"go from {before} to {after}" if before is not after else f"stay {after}"
        raise FleetError(f"{server.name} can't {change}: {wrong}")


def set_provisioned(connection: Connection, name: str, at: datetime | None) -> None:
    """Whether, and since when, it is what our playbook makes of a machine."""
    connection.execute(update(dispatch_servers).where(dispatch_servers.c.name == name).values(provisioned_at=at))


def fence(connection: Connection, name: str, *, actor: str) -> None:
    """Give a server up: it gets no work until it is reconciled.

    Raises:
        FleetError: there is no such server.
    """
    set_state(connection, name, ServerState.FENCED, actor=actor)
    connection.execute(update(dispatch_servers).where(dispatch_servers.c.name == name).values(unreconciled=True))


def set_reconciled(connection: Connection, name: str, *, actor: str) -> None:
    """What it left is known: it is standby, and may be taken into service."""
    connection.execute(update(dispatch_servers).where(dispatch_servers.c.name == name).values(unreconciled=False))
    set_state(connection, name, ServerState.STANDBY, actor=actor)


def get(connection: Connection, name: str) -> DispatchServer:
    """
    Raises:
        FleetError: there is no such server; the sentence names those that there are.
    """
    found = _find(connection, name)
    if found is None:
        names = ", ".join(server.name for server in list_servers(connection)) or "none yet: mailfleet server add NAME"
        raise FleetError(f"there is no dispatch server {name!r} (there are: {names})")
    return found


def list_servers(
    connection: Connection, *, pool_id: int | None = None, states: Collection[ServerState] = ()
) -> list[DispatchServer]:
    """Dispatch servers by name; of one sending pool, or in certain states, when asked."""
    query = _select().order_by(dispatch_servers.c.name)
    if pool_id is not None:
        query = query.where(dispatch_servers.c.pool_id == pool_id)
    if states:
        query = query.where(dispatch_servers.c.state.in_(sorted(states)))
    sources = _sources(connection)
    rows = connection.execute(query).mappings()
    return [DispatchServer.model_validate({**row, "sources": sources.get(row["id"], ())}) for row in rows]


def outgoing_names(connection: Connection) -> list[str]:
    """The names that mail of ours leaves from, for SPF."""
    there = [server for server in list_servers(connection) if server.state is not ServerState.RETIRED]
    own = [server.helo_name for server in there]
    return list(dict.fromkeys([*own, *(source.split()[1] for server in there for source in server.sources)]))


def _sources(connection: Connection) -> dict[int, tuple[str, ...]]:
    found: dict[int, tuple[str, ...]] = {}
    query = select(server_sources).order_by(server_sources.c.created_at, server_sources.c.address)
    for row in connection.execute(query):
        found[row.server_id] = (*found.get(row.server_id, ()), f"{row.address} {row.helo_name}")
    return found


def _find(connection: Connection, name: str) -> DispatchServer | None:
    row = connection.execute(_select().where(dispatch_servers.c.name == name)).mappings().one_or_none()
    if row is None:
        return None
    return DispatchServer.model_validate({**row, "sources": _sources(connection).get(row["id"], ())})


def _select() -> Select[Any]:
    return select(dispatch_servers, sending_pools.c.name.label("pool")).join(sending_pools)


def _sentence(location: tuple[int | str, ...], message: str) -> str:
    message = message.removeprefix("Value error, ")
    return f"{'.'.join(map(str, location))}: {message}" if location else message
