"""Job folders made directly, without a database: what tests of the agent and the dispatch benchmark hand to it."""

import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import pyarrow as pa
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from mailer_lib.agent.job import ControlFile, Job, LeaseGrant, Limits, Secrets, SmtpServer, Status
from mailer_lib.agent.ledger import LedgerState
from mailer_lib.identity import IdentityKey, message_key
from mailer_lib.message.bundle import Bundle, BundleVariant, Mailbox
from mailer_lib.shard.files import shard_schema, write_shard
from mailer_lib.shard.recipient import Recipient
from mailer_lib.terms import AttributeType, Control, MtaKind, Outcome
from mailer_lib.tokens import send_token_key

IDENTITY = IdentityKey(b"i" * 32)
TOKEN_KEY = b"t" * 32
SEND_ID = 7


@cache
def dkim_key_pem() -> str:
    key = rsa.generate_private_key(65537, 2048)
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()


def small_bundle() -> Bundle:
    return Bundle(
        campaign="small",
        edition="1",
        send_id=SEND_ID,
        list_name="newsletter",
        list_title="News",
        sender=Mailbox(name="Fjord & Fern", address="news@news.fjordfern.example"),
        dkim_domain="news.fjordfern.example",
        dkim_selector="mf1",
        return_path_domain="bounce.news.fjordfern.example",
        tracking_url="http://127.0.0.1:8025",
        variants=(
            BundleVariant(
                name="a",
                weight=1,
                subject="Hello {{ contact.given_name }}",
                html="<p>Hello {{ contact.given_name }}</p>",
                text="Hello {{ contact.given_name }}",
            ),
        ),
    )


def recipients(count: int, provider_of: Callable[[int], str] = lambda row: "other") -> list[Recipient]:
    send_key = IDENTITY.send_key("small", "1")
    made = []
    for row in range(count):
        domain = f"{provider_of(row)}.example"
        address = f"person{row}@{domain}"
        address_hash = IDENTITY.address_hash(address)
        made.append(
            Recipient(
                contact_id=row + 1,
                message_key=message_key(send_key, address_hash),
                address_hash=address_hash,
                address=address,
                domain=domain,
                provider=provider_of(row),
                given_name=f"Person {row}",
            )
        )
    return made


def table_of(rows: Sequence[Recipient], attributes: dict[str, AttributeType] | None = None) -> pa.Table:
    types = attributes or {}
    schema = shard_schema(types)
    columns: dict[str, list[object]] = {}
    for name in schema.names:
        if name.startswith("attribute."):
            columns[name] = [row.attributes.get(name.removeprefix("attribute.")) for row in rows]
        else:
            columns[name] = [getattr(row, name) for row in rows]
    return pa.table(columns, schema=schema)


@dataclass
class JobBuilder:
    """A job folder that a test steers by hand."""

    path: Path
    smtp: SmtpServer
    bundle: Bundle = field(default_factory=small_bundle)
    leases: list[LeaseGrant] = field(default_factory=list)
    generation: int = 0
    rows: list[Recipient] = field(default_factory=list)
    password: str | None = None

    def write(self, **job: object) -> "JobBuilder":
        for name in ("shards", "ledgers"):
            (self.path / name).mkdir(parents=True, exist_ok=True)
        Job(
            job_id="small#1@local-1.0",
            send_id=SEND_ID,
            campaign="small",
            edition="1",
            server="local-1",
            smtp=self.smtp,
            **job,  # type: ignore[arg-type]
        ).store(self.path / "job.json")
        (self.path / "message.json").write_bytes(self.bundle.dump())
        Secrets(
            dkim_key_pem=dkim_key_pem(),
            token_key=send_token_key(TOKEN_KEY, SEND_ID).hex(),
            smtp_password=self.password,
        ).store(self.path / "secrets.json", 0o600)
        return self

    def add_shard(
        self,
        rows: Sequence[Recipient],
        granted_through: int | None = None,
        attributes: dict[str, AttributeType] | None = None,
    ) -> LeaseGrant:
        shard = len(self.leases)
        name = f"shards/{shard:04d}.p1.parquet"
        sha256 = write_shard(self.path / name, table_of(rows, attributes))
        grant = LeaseGrant(
            shard=shard,
            epoch=1,
            rows=len(rows),
            first_row=0,
            granted_through=len(rows) if granted_through is None else granted_through,
            shard_file=name,
            sha256=sha256,
        )
        self.leases.append(grant)
        self.rows.extend(rows)
        return grant

    def control(
        self, control: Control = Control.RUN, limits: Limits | None = None, complete: bool = True, **more: object
    ) -> None:
        self.generation += 1
        ControlFile(
            generation=self.generation,
            control=control,
            limits=limits or Limits(),
            leases=tuple(self.leases),
            complete=complete,
            **more,  # type: ignore[arg-type]
        ).store(self.path / "control.json")

    def suppress(self, *lines: str) -> None:
        with (self.path / "suppressions.log").open("a") as file:
            file.writelines(f"{line}\n" for line in lines)

    def start(self, module: str = "mailer_lib.agent", boot_id: str | None = None) -> "subprocess.Popen[bytes]":
        """The shipped command, as a separate process; root may let it see another boot of the machine."""
        command = [sys.executable, "-m", module, str(self.path)]
        if boot_id is not None:
            file = self.path / f"{boot_id}.boot"
            file.write_text(f"{boot_id}\n")
            shown = f"mount --bind {shlex.quote(str(file))} /proc/sys/kernel/random/boot_id"
            command = ["unshare", "--mount", "sh", "-c", f"{shown} && exec {shlex.join(command)}"]
        with (self.path / "stderr.log").open("ab") as errors:
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=errors,
                stderr=errors,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            )

    def run(self, timeout_s: float = 60) -> int:
        process = self.start()
        try:
            return process.wait(timeout_s)
        finally:
            process.kill()
            process.wait()

    def status(self) -> Status:
        return Status.load(self.path / "status.json")

    def states(self) -> dict[str, LedgerState]:
        return {path.name: LedgerState.load(path) for path in sorted((self.path / "ledgers").glob("*.ledger"))}

    def outcomes(self) -> dict[tuple[int, int], Outcome]:
        """(shard, row): outcome."""
        found = {}
        for name, state in self.states().items():
            for row, outcome in state.outcomes.items():
                found[int(name[:4]), row] = outcome
        return found

    def injected_keys(self) -> set[str]:
        """Message keys of the injected rows, hex."""
        starts = [0]
        for lease in self.leases:
            starts.append(starts[-1] + lease.rows)
        return {
            self.rows[starts[shard] + row].message_key.hex()
            for (shard, row), outcome in self.outcomes().items()
            if outcome is Outcome.INJECTED
        }

    def log(self) -> str:
        return "".join(
            path.read_text() for path in (self.path / "agent.log", self.path / "stderr.log") if path.exists()
        )


def sink_server(port: int, mainlog: Path | None, *, connections: int = 4, **more: object) -> SmtpServer:
    """The development sink as the MTA."""
    return SmtpServer(
        host="127.0.0.1",
        port=port,
        helo_name="agent.example",
        connections=connections,
        mta=MtaKind.SINK if mainlog else MtaKind.RELAY,
        mta_log=str(mainlog) if mainlog else None,
        **more,  # type: ignore[arg-type]
    )


def message_ids(maildir: Path) -> list[str]:
    """Message keys in the Message-IDs of a Maildir, one for each message, hex."""
    keys = []
    for folder in ("new", "cur"):
        for path in (maildir / folder).iterdir():
            with path.open("rb") as file:
                for line in file:
                    if line.lower().startswith(b"message-id:"):
                        keys.append(line.split(b"<")[1][:32].decode())
                        break
    return keys
