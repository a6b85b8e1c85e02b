"""The job protocol: a folder through which a slot (central) and an agent (beside an MTA) talk. Version 1.

    job.json          what to do, written once                        slot → agent
    message.json      the bundle (message/bundle.py)                  slot → agent
    secrets.json      DKIM key (PEM), token key; mode 0600            slot → agent
    shards/           NNNN.p<phase>.parquet, copies of the snapshot's slot → agent
    control.json      leases, grants, pause/stop, pace; replaced      slot → agent
    suppressions.log  append-only; one line each: a hex address hash,
                      "@" + domain, or "=" + hex message key of a
                      person in this send                             slot → agent
    ledgers/          NNNN.p<phase>.e<epoch>.ledger, append-only      agent → slot
    ledgers/recalls.log  what was taken back out of the MTA's queue,
                      append-only (recalls.py)                        agent → slot
    ledgers/queue.json   what lay in it lately; replaced              agent → slot
    status.json       heartbeat, rates, reasons for waiting; replaced agent → slot
    agent.lock        flock held by the agent for life
    agent.log         the agent's log: no address, no token, no secret

"Replaced" means: a temporary file, fsynced, renamed over. The channel ``ssh`` moves the same files; nothing else passes
between the two sides, so either can be restarted alone.
"""

import os
import tempfile
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, Field

from mailer_lib.release import release
from mailer_lib.terms import Control, MtaKind, SmtpSecurity

PROTOCOL = 1


class ProtocolFile(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    def store(self, path: Path, mode: int = 0o644, *, durable: bool = True) -> None:
        """Replace ``path``: a reader sees the old file or the new one, after a power loss too if ``durable``."""
        replace_file(path, self.model_dump_json(indent=1).encode(), mode, durable=durable)

    @classmethod
    def load(cls, path: Path) -> Self:
        return cls.model_validate_json(path.read_bytes())


class SmtpServer(ProtocolFile):
    """The MTA that takes what this agent sends."""

    host: str
    port: int
    security: SmtpSecurity = SmtpSecurity.NONE
    helo_name: str
    user: str | None = None  # the password is in secrets.json
    connections: int = 4
    timeout_s: float = 120.0
    mta: MtaKind = MtaKind.RELAY
    mta_log: str | None = None  # main log; rotated ones beside it
    mta_spool: str | None = None
    mta_queues: bool = False  # each send has a queue of its own in the MTA
    mta_command: str | None = None  # of an Exim that isn't /usr/sbin/exim4, words parted by spaces


class Limits(ProtocolFile):
    """Upper bounds for this job. None: no bound."""

    per_s: float | None = None
    provider_per_s: dict[str, float] = {}


class BreakerRules(ProtocolFile):
    """When a provider is left alone (``agent/breaker.py``)."""

    replies: int = 40  # that are looked at; nothing is judged before there are so many. 0: no breaker
    refused_share: float = 0.5  # of them, 5xx
    deferred_share: float = 0.9  # of them, 4xx that is neither greylisting nor a full mailbox
    hold_first_s: float = 60.0  # doubled each time the provider still refuses
    hold_longest_s: float = 3600.0
    probes: int = 3  # accepted in a row, then it is as before
    probe_every_s: float = 5.0


class HeldProvider(ProtocolFile):
    """A provider whose breaker is open; "*" is all of them."""

    provider: str
    until: float  # Unix seconds
    reason: str


class Job(ProtocolFile):
    protocol: int = PROTOCOL
    release: str = Field(default_factory=release)  # of the centre that made it; the agent must be of the same
    job_id: str  # "<campaign>#<edition>@<server>.<slot>"
    send_id: int
    campaign: str
    edition: str
    server: str
    slot: int = 0
    dkim_selector: str | None = None  # of the key in secrets.json; None: the bundle's
    expires_at: float | None = None  # Unix seconds
    smtp: SmtpServer
    limits: Limits = Limits()
    retry_first_s: float = 5.0  # back-off of 4xx: first wait, doubled up to retry_max_s
    retry_max_s: float = 900.0
    breaker: BreakerRules = BreakerRules()
    idle_exit_s: float = 120.0  # the agent ends when control.json is older than this and nothing may be sent


class Secrets(ProtocolFile):
    dkim_key_pem: str = Field(repr=False)
    token_key: str = Field(repr=False)  # hex; tokens.send_token_key of the send
    smtp_password: str | None = Field(default=None, repr=False)


class LeaseGrant(ProtocolFile):
    """Rows [first_row, granted_through) of one shard may be sent by this agent under this epoch."""

    shard: int
    phase: int = 1
    epoch: int
    rows: int  # of the whole shard
    first_row: int
    granted_through: int
    shard_file: str  # below the job folder
    sha256: str
    rest_variant: int | None = None  # what rows outside the test slice get; None: none of them is granted
    window_closes_at: float | None = None  # Unix seconds: none of its rows is begun from then on

    @property
    def ledger_name(self) -> str:
        return f"{self.shard:04d}.p{self.phase}.e{self.epoch}.ledger"


class ControlFile(ProtocolFile):
    generation: int  # grows with each replacement
    control: Control = Control.RUN
    limits: Limits = Limits()  # replaces job.json's
    expires_at: float | None = None  # replaces job.json's
    window_closes_at: float | None = None  # Unix seconds: nothing is begun from then on, whatever the slot does
    leases: tuple[LeaseGrant, ...] = ()
    keep_queue: bool = False  # stopped: what the MTA has taken is left to it
    complete: bool = False  # no more leases will come: settle these and exit


class Status(ProtocolFile):
    """The agent's heartbeat, about twice a second."""

    pid: int
    boot_id: str
    at: float  # Unix seconds
    state: str  # settling | sending | paused | waiting | done | failed
    reason: str = ""  # of waiting or failure, a sentence
    generation: int = 0  # of the control.json in force
    suppressions_read: int = 0  # lines of suppressions.log in force
    injected: int = 0
    settled_rows: int = 0
    in_flight: int = 0
    deferred: int = 0  # waiting for another attempt
    per_s: float = 0.0  # over the last few seconds
    connections: int = 0
    held: tuple[HeldProvider, ...] = ()
    queued: int = 0  # messages of this job in the MTA's queue, when it was listed last
    recalled: int = 0  # taken back out of it by this agent
    dry: bool = False  # everything granted is settled: more grants are wanted


def replace_file(path: Path, data: bytes, mode: int = 0o644, *, durable: bool = True) -> None:
    """Write beside ``path``, fsync, rename over it, fsync the folder. Not ``durable``: without the fsyncs."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fchmod(file.fileno(), mode)
            if durable:
                os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink()
        raise
    if not durable:
        return
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
