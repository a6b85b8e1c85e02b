"""Dispatch servers: where an agent runs, and the MTA that takes what it sends."""

from collections.abc import Collection
from datetime import datetime
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from sqlalchemy import Connection, Select, insert, select, update

from mailer_lib import secret_refs
from mailer_lib.database.audit import record
from mailer_lib.database.engine import now
from mailer_lib.database.schema import dispatch_servers, sending_pools
from mailer_lib.fleet import pools
from mailer_lib.fleet.names import FleetError, check_host, check_name
from mailer_lib.terms import ChannelKind, MtaKind, ServerState, SmtpSecurity

_PLAIN_MTAS = frozenset({MtaKind.EXIM, MtaKind.SINK})


class ServerSpec(BaseModel):
    """A dispatch server as an operator describes it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    pool: str
    state: ServerState = ServerState.ACTIVE
    channel: ChannelKind = ChannelKind.LOCAL
    host: str | None = None  # where the agent runs, channel ssh
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

    @field_validator("smtp_password_ref")
    @classmethod
    def _reference(cls, value: str | None) -> str | None:
        return None if value is None else secret_refs.check(value)

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if (self.channel is ChannelKind.SSH) != (self.host is not None):
            raise ValueError("a host belongs to the channel ssh, and only to it: give both or neither")
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

    Raises:
        FleetError: no such sending pool, or a server of that name differs and ``replace`` isn't given.
    """
    pool = pools.get(connection, spec.pool)
    values = spec.model_dump(exclude={"pool"}) | {"pool_id": pool.id, "updated_at": now()}
    existing = _find(connection, spec.name)
    if existing is None:
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
    connection.execute(update(dispatch_servers).where(dispatch_servers.c.id == existing.id).values(**values))
    record(connection, actor, "change", f"server:{spec.name}", changed)
    return existing.id, True


def set_state(connection: Connection, name: str, state: ServerState, *, actor: str) -> None:
    """Whoever begins to warm up begins with the first day of the ramp.

    Raises:
        FleetError: there is no such server.
    """
    server = get(connection, name)
    if server.state is state:
        return
    if server.unreconciled and state not in (ServerState.FENCED, ServerState.FAILED, ServerState.RETIRED):
        raise FleetError(
            f"{name} was given up, and its ledgers haven't been read since: `mailfleet server reconcile {name}` first"
        )
    values: dict[str, Any] = {"state": state, "updated_at": now()}
    if state is ServerState.WARMING:
        values["warming_from"] = None
    connection.execute(update(dispatch_servers).where(dispatch_servers.c.id == server.id).values(**values))
    record(connection, actor, "state", f"server:{name}", {"before": server.state, "after": state})


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
    return [DispatchServer.model_validate(dict(row)) for row in connection.execute(query).mappings()]


def _find(connection: Connection, name: str) -> DispatchServer | None:
    row = connection.execute(_select().where(dispatch_servers.c.name == name)).mappings().one_or_none()
    return None if row is None else DispatchServer.model_validate(dict(row))


def _select() -> Select[Any]:
    return select(dispatch_servers, sending_pools.c.name.label("pool")).join(sending_pools)


def _sentence(location: tuple[int | str, ...], message: str) -> str:
    message = message.removeprefix("Value error, ")
    return f"{'.'.join(map(str, location))}: {message}" if location else message
