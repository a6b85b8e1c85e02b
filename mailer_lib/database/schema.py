"""The central database: tables, and nothing else (docs/architecture.md, "Central database").

Portable between SQLite and MySQL/MariaDB. Times are UTC (``UtcDateTime``). Addresses are unique under a *binary*
collation: an accent-insensitive one merges müller@ and muller@. People are keyed by ``address_hash``
(``identity.IdentityKey.address_hash``, 16 bytes), so that suppressions outlive an erased contact.
"""

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    DateTime,
    Dialect,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    String,
    Table,
    Text,
    UniqueConstraint,
)
from sqlalchemy.dialects import mysql
from sqlalchemy.types import TypeDecorator

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "pk": "pk_%(table_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
    }
)


class UtcDateTime(TypeDecorator[datetime]):
    """An aware UTC ``datetime``, stored without its zone, to the microsecond."""

    impl = DateTime
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> Any:
        return dialect.type_descriptor(mysql.DATETIME(fsp=6) if dialect.name in ("mysql", "mariadb") else DateTime())

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("a datetime without a time zone reached the database")
        return value.astimezone(UTC).replace(tzinfo=None)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        return None if value is None else value.replace(tzinfo=UTC)


Id = BigInteger().with_variant(Integer, "sqlite")  # only INTEGER PRIMARY KEY is SQLite's rowid
Hash16 = LargeBinary(16).with_variant(mysql.BINARY(16), "mysql", "mariadb")
Name = String(128)
LongText = Text().with_variant(mysql.LONGTEXT(), "mysql", "mariadb")


def Exact(length: int) -> Any:
    """Text compared byte by byte on every database."""
    return String(length).with_variant(
        mysql.VARCHAR(length, charset="utf8mb4", collation="utf8mb4_bin"), "mysql", "mariadb"
    )


_MYSQL: dict[str, Any] = {
    "mysql_engine": "InnoDB",
    "mysql_charset": "utf8mb4",
    "mariadb_engine": "InnoDB",
    "mariadb_charset": "utf8mb4",
}

# --- contacts, lists, consent -----------------------------------------------------------------------------------------

contacts = Table(
    "contacts",
    metadata,
    Column("id", Id, primary_key=True, autoincrement=True),
    Column("address_given", String(320), nullable=False, comment="as the person wrote it"),
    Column("address", Exact(320), nullable=False, comment="normalised: IDNA lower-case domain, case-folded local part"),
    Column("address_hash", Hash16, nullable=False),  # unique, for the address too: as good as it, and shorter (0204)
    Column("domain", Exact(253), nullable=False),
    Column("provider", Exact(32), nullable=False, comment="mailbox provider: gmail, outlook, …, other"),
    Column("given_name", String(200)),
    Column("family_name", String(200)),
    Column("locale", Exact(35), comment="BCP 47"),
    Column("timezone", Exact(64), comment="IANA name"),
    Column("attributes", JSON, nullable=False),
    Column("state", Exact(16), nullable=False, server_default="active", comment="terms.ContactState"),
    Column("created_at", UtcDateTime, nullable=False),
    Column("updated_at", UtcDateTime, nullable=False),
    UniqueConstraint("address_hash"),
    Index("ix_contacts_domain", "domain"),
    Index("ix_contacts_provider", "provider"),
    sqlite_autoincrement=True,  # an erased person's id is never given again: links and behaviour name it (0309)
    **_MYSQL,
)

attribute_types = Table(
    "attribute_types",
    metadata,
    Column("key", Exact(64), primary_key=True),
    Column("type", Exact(16), nullable=False, comment="terms.AttributeType"),
    Column("label", Name),
    Column("choices", JSON(none_as_null=True), comment="type enum: array of texts"),
    Column("indexed", SmallInteger, nullable=False, server_default="0", comment="1: contacts has a generated column"),
    Column("created_at", UtcDateTime, nullable=False),
    **_MYSQL,
)

lists = Table(
    "lists",
    metadata,
    Column("id", Id, primary_key=True, autoincrement=True),
    Column("name", Exact(64), nullable=False, unique=True),
    Column("title", Name, nullable=False, comment="what recipients read"),
    Column("created_at", UtcDateTime, nullable=False),
    **_MYSQL,
)

subscriptions = Table(
    "subscriptions",
    metadata,
    Column("contact_id", Id, ForeignKey("contacts.id", ondelete="CASCADE"), primary_key=True),
    Column("list_id", Id, ForeignKey("lists.id"), primary_key=True),
    Column("state", Exact(16), nullable=False, comment="terms.SubscriptionState"),
    Column("source", String(200)),
    Column("confirmed_at", UtcDateTime),
    Column("unsubscribed_at", UtcDateTime),
    Column("confirmation_sent_at", UtcDateTime, comment="the one double opt-in mail"),
    Column("updated_at", UtcDateTime, nullable=False),
    Index("ix_subscriptions_list_state", "list_id", "state", "contact_id"),
    **_MYSQL,
)

consent_events = Table(  # append-only: triggers refuse UPDATE and DELETE
    "consent_events",
    metadata,
    Column("id", Id, primary_key=True, autoincrement=True),
    Column("address_hash", Hash16, nullable=False),
    # No foreign key to lists, for it would need an index of its own (0204).
    Column("list_id", Id, nullable=True, comment="NULL: every list"),
    Column("action", Exact(16), nullable=False, comment="terms.ConsentAction"),
    Column("occurred_at", UtcDateTime, nullable=False, comment="when the person did it"),
    Column("recorded_at", UtcDateTime, nullable=False),
    Column("method", String(64), nullable=False, comment="how: form, import, one-click, confirmation-link, …"),
    Column("source", String(200), comment="where: a page, a file, a send"),
    Column("wording", Text, comment="what the person agreed to"),
    Column("ip", Exact(45)),
    Index("ix_consent_events_address", "address_hash", "list_id", "occurred_at"),
    **_MYSQL,
)

suppressions = Table(  # append-only but for ``refused_at`` (it grows) and ``lifted_at``; active = lifted_at IS NULL
    "suppressions",
    metadata,
    Column("id", Id, primary_key=True, autoincrement=True),
    Column("address_hash", Hash16, nullable=False),
    Column("list_id", Id, nullable=False, server_default="0", comment="0: everywhere"),
    Column("reason", Exact(16), nullable=False, comment="terms.SuppressionReason"),
    Column("source", String(200)),
    Column("refused_at", UtcDateTime, comment="when it happened: only a newer consent lifts it. NULL: at created_at"),
    Column("created_at", UtcDateTime, nullable=False, comment="when it was recorded, whatever it is about"),
    Column("lifted_at", UtcDateTime),
    Column("lifted_by", String(200)),
    Index("ix_suppressions_address", "address_hash", "list_id", "lifted_at"),
    Index("ix_suppressions_created", "created_at"),
    **_MYSQL,
)

domain_suppressions = Table(
    "domain_suppressions",
    metadata,
    Column("domain", Exact(253), primary_key=True),
    Column("source", String(200)),
    Column("created_at", UtcDateTime, nullable=False),
    Index("ix_domain_suppressions_created", "created_at"),
    **_MYSQL,
)

hash_lists = Table(  # suppression lists that others hand out as hashes of addresses (0206)
    "hash_lists",
    metadata,
    Column("id", Id, primary_key=True, autoincrement=True),
    Column("name", Exact(128), nullable=False, unique=True),
    Column("algorithm", Exact(16), nullable=False, comment="terms.HashAlgorithm"),
    Column("read_at", UtcDateTime, nullable=False, comment="when a file of it was read last"),
    **_MYSQL,
)

listed_hashes = Table(  # whom the lists name, contacts or not: looked up for everybody who is imported
    "listed_hashes",
    metadata,
    Column("digest", LargeBinary(32).with_variant(mysql.VARBINARY(32), "mysql", "mariadb"), primary_key=True),
    Column("hash_list_id", Id, ForeignKey("hash_lists.id"), primary_key=True),
    Index("ix_listed_hashes_list", "hash_list_id"),
    **_MYSQL,
)

import_jobs = Table(  # imports that haven't reached the end of their file; a re-run goes on from here
    "import_jobs",
    metadata,
    Column("id", Id, primary_key=True, autoincrement=True),
    Column("fingerprint", Exact(64), nullable=False, unique=True, comment="sha256 of file and options"),
    Column("started_at", UtcDateTime, nullable=False),
    Column("updated_at", UtcDateTime, nullable=False),
    Column("rows", Id, nullable=False, comment="records behind, all of them stored"),
    Column("seen", Id, nullable=False, comment="addresses noted, for counting duplicates"),
    Column("rejects", String(500), comment="file of rejected rows"),
    Column("rejects_bytes", Id, nullable=False, comment="its length at that point"),
    Column("counts", JSON, nullable=False, comment="contacts.importer.Counts"),
    **_MYSQL,
)

# --- what to send -----------------------------------------------------------------------------------------------------

criteria = Table(
    "criteria",
    metadata,
    Column("id", Id, primary_key=True, autoincrement=True),
    Column("name", Exact(128), nullable=False, unique=True),
    Column("rules", JSON, nullable=False, comment="react-querybuilder tree"),
    Column("description", Text),
    Column("updated_at", UtcDateTime, nullable=False),
    Column("updated_by", String(200), nullable=False),
    **_MYSQL,
)

templates = Table(
    "templates",
    metadata,
    Column("id", Id, primary_key=True, autoincrement=True),
    Column("name", Exact(128), nullable=False, unique=True),
    Column("kind", Exact(8), nullable=False, comment="mjml or html"),
    Column("source", LongText, nullable=False),
    Column("text_source", LongText, comment="the written text part; derived when NULL"),
    Column("updated_at", UtcDateTime, nullable=False),
    Column("updated_by", String(200), nullable=False),
    **_MYSQL,
)

sending_domains = Table(
    "sending_domains",
    metadata,
    Column("id", Id, primary_key=True, autoincrement=True),
    Column("name", Exact(253), nullable=False, unique=True, comment="From domain = DKIM d="),
    Column("dkim_selector", Exact(63), nullable=False),
    Column("dkim_key_ref", Exact(500), nullable=False, comment="env:NAME or file:PATH, below home when relative"),
    Column("return_path_domain", Exact(253), nullable=False),
    Column("tracking_url", String(500), comment="base URL of links; settings.public_url when NULL"),
    Column("created_at", UtcDateTime, nullable=False),
    **_MYSQL,
)

seed_addresses = Table(
    "seed_addresses",
    metadata,
    Column("list_name", Exact(64), primary_key=True),
    Column("address", Exact(320), primary_key=True),
    Column("given_name", String(200)),
    Column("created_at", UtcDateTime, nullable=False),
    **_MYSQL,
)

campaigns = Table(
    "campaigns",
    metadata,
    Column("id", Id, primary_key=True, autoincrement=True),
    Column("name", Exact(128), nullable=False, unique=True),
    Column("definition", JSON, nullable=False, comment="message.campaign.Campaign"),
    Column("list_id", Id, ForeignKey("lists.id"), nullable=False),
    Column("pool_id", Id, ForeignKey("sending_pools.id"), nullable=False),
    Column("starts_at", UtcDateTime, comment="a one-off's time; with cron, not before"),
    Column("cron", Exact(100), comment="recurring, an edition for each slot"),
    Column("timezone", Exact(64), comment="of cron"),
    Column("created_at", UtcDateTime, nullable=False),
    Column("updated_at", UtcDateTime, nullable=False),
    Column("updated_by", String(200), nullable=False),
    **_MYSQL,
)

# --- the fleet --------------------------------------------------------------------------------------------------------

sending_pools = Table(
    "sending_pools",
    metadata,
    Column("id", Id, primary_key=True, autoincrement=True),
    Column("name", Exact(64), nullable=False, unique=True),
    Column("warmup", JSON(none_as_null=True), comment="ramp: messages on each day; NULL: fleet.warmup.DEFAULT_RAMP"),
    Column("created_at", UtcDateTime, nullable=False),
    **_MYSQL,
)

dispatch_servers = Table(
    "dispatch_servers",
    metadata,
    Column("id", Id, primary_key=True, autoincrement=True),
    Column("name", Exact(64), nullable=False, unique=True),
    Column("pool_id", Id, ForeignKey("sending_pools.id"), nullable=False),
    Column("state", Exact(16), nullable=False, comment="terms.ServerState"),
    Column("channel", Exact(8), nullable=False, comment="terms.ChannelKind"),
    Column("host", Exact(253), comment="channel ssh"),
    Column("ssh_port", Integer, nullable=False, server_default="22"),
    Column("ssh_user", Exact(64), nullable=False, server_default="mailfleet"),
    Column("host_key", Exact(1000), comment="pinned: type and key, as in known_hosts; NULL: nobody logs in"),
    Column("agent_python", String(500), nullable=False, server_default="/opt/mailfleet/venv/bin/python"),
    Column("remote_jobs_dir", String(500), nullable=False, server_default="/var/lib/mailfleet/jobs"),
    Column("slots", SmallInteger, nullable=False, server_default="1", comment="agent processes"),
    Column("mta", Exact(8), nullable=False, comment="terms.MtaKind"),
    Column("mta_log", String(500), comment="main log, for settling"),
    Column("mta_spool", String(500), comment="spool folder, for settling"),
    Column("mta_queues", Boolean, nullable=False, server_default="0", comment="each send has a queue of its own"),
    Column("mta_command", String(500), comment="of an Exim that isn't /usr/sbin/exim4"),
    Column("smtp_host", Exact(253), nullable=False),
    Column("smtp_port", Integer, nullable=False),
    Column("smtp_security", Exact(16), nullable=False, comment="terms.SmtpSecurity"),
    Column("smtp_user", String(200)),
    Column("smtp_password_ref", Exact(500), comment="env:NAME or file:PATH"),
    Column("helo_name", Exact(253), nullable=False),
    Column("connections", SmallInteger, nullable=False, server_default="4"),
    Column("per_hour", Integer, comment="NULL: no limit of its own"),
    Column("per_day", Integer, comment="rows granted on a day in UTC; NULL: no cap of its own"),
    Column("warmup", JSON(none_as_null=True), comment="ramp: messages on each day; NULL: the sending pool's"),
    Column("provisioned_at", UtcDateTime, comment="when our playbook was last through; NULL: its owner installs it"),
    Column("unreconciled", Boolean, nullable=False, server_default="0", comment="lost, and not read since"),
    Column("warming_from", UtcDateTime, comment="midnight of the first day that something was granted while warming"),
    Column("served_until", UtcDateTime, comment="when it last left the state active: its address is warm for a while"),
    Column("machine_from", Exact(16), nullable=False, server_default="inventory", comment="terms.HostProvider"),
    Column("machine_id", Exact(64), comment="what that provider calls the machine; NULL: one of one's own"),
    Column("created_at", UtcDateTime, nullable=False),
    Column("updated_at", UtcDateTime, nullable=False),
    CheckConstraint("slots BETWEEN 1 AND 64", name="slots"),
    CheckConstraint("connections BETWEEN 1 AND 1000", name="connections"),
    **_MYSQL,
)

server_checks = Table(  # each verification of a server: what was found, and about what
    "server_checks",
    metadata,
    Column("id", Id, primary_key=True, autoincrement=True),
    Column("server_id", Id, ForeignKey("dispatch_servers.id"), nullable=False),
    Column("at", UtcDateTime, nullable=False),
    Column("actor", String(200), nullable=False),
    Column("errors", SmallInteger, nullable=False, comment="findings that forbid sending"),
    Column("subject", JSON, nullable=False, comment="host, EHLO name …: a server that differs was not verified"),
    Column("findings", JSON, nullable=False, comment="fleet.findings.Finding"),
    Index("ix_server_checks_server", "server_id", "at"),
    **_MYSQL,
)

server_sources = Table(  # addresses that a server's mail leaves from, when it has several
    "server_sources",
    metadata,
    Column("address", Exact(45), primary_key=True),
    Column("server_id", Id, ForeignKey("dispatch_servers.id"), nullable=False, index=True),
    Column("helo_name", Exact(253), nullable=False),
    Column("warmed", Boolean, nullable=False, server_default="0", comment="mailbox providers know it"),
    Column("in_use", Boolean, nullable=False, server_default="0", comment="Exim there is configured with it"),
    Column("warming_from", UtcDateTime, comment="midnight of the first day that its server was granted something"),
    Column("created_at", UtcDateTime, nullable=False),
    **_MYSQL,
)

dkim_keys = Table(  # of one server for one sending domain; without one it signs with the domain's
    "dkim_keys",
    metadata,
    Column("id", Id, primary_key=True, autoincrement=True),
    Column("domain_id", Id, ForeignKey("sending_domains.id"), nullable=False),
    Column("server_id", Id, ForeignKey("dispatch_servers.id"), nullable=False),
    Column("selector", Exact(63), nullable=False),
    Column("key_ref", Exact(500), nullable=False, comment="file:PATH below home"),
    Column("state", Exact(8), nullable=False, comment="terms.DkimKeyState"),
    Column("created_at", UtcDateTime, nullable=False),
    Column("changed_at", UtcDateTime, nullable=False, comment="of the state"),
    UniqueConstraint("domain_id", "selector"),
    **_MYSQL,
)

provider_limits = Table(
    "provider_limits",
    metadata,
    Column("pool_id", Id, ForeignKey("sending_pools.id"), primary_key=True),
    Column("provider", Exact(32), primary_key=True),
    Column("per_hour", Integer, comment="for each server of the sending pool; NULL: no such limit"),
    Column("shared_per_hour", Integer, comment="for all its servers together; NULL: no such limit"),
    Column("hourly_cap", Integer, comment="rows granted in an hour to all its servers together; NULL: no cap"),
    Column("daily_cap", Integer, comment="rows granted on a day in UTC to all its servers together; NULL: no cap"),
    **_MYSQL,
)

grant_counts = Table(  # caps and warm-up quotas are held by it: it grows in the transaction that grants rows
    "grant_counts",
    metadata,
    Column("server_id", Id, ForeignKey("dispatch_servers.id"), primary_key=True),
    Column("span", Exact(8), primary_key=True, comment="terms.CapSpan"),
    Column("starts_at", UtcDateTime, primary_key=True),
    Column("rows", Integer, nullable=False, comment="granted since; a granted row is never taken back"),
    **_MYSQL,
)

provider_grant_counts = Table(  # likewise for the caps by mailbox provider, over all servers of a sending pool
    "provider_grant_counts",
    metadata,
    Column("pool_id", Id, ForeignKey("sending_pools.id"), primary_key=True),
    Column("provider", Exact(32), primary_key=True),
    Column("span", Exact(8), primary_key=True, comment="terms.CapSpan"),
    Column("starts_at", UtcDateTime, primary_key=True),
    Column("rows", Integer, nullable=False, comment="granted since, or handed over before the cap was set"),
    **_MYSQL,
)

server_health = Table(  # one row for each look; old ones are dropped by the look itself
    "server_health",
    metadata,
    Column("server_id", Id, ForeignKey("dispatch_servers.id"), primary_key=True, autoincrement=False),
    Column("at", UtcDateTime, primary_key=True),
    Column("verdict", Exact(16), nullable=False, comment="terms.HealthVerdict"),
    Column("reasons", JSON, nullable=False, comment="sentences"),
    Column("queued", Integer, comment="messages in the MTA's queue; NULL: nobody could look"),
    Column("deferred", Integer, comment="of them, tried at least once"),
    Column("oldest_s", Integer, comment="age of the oldest"),
    Column("facts", JSON, comment="fleet.health.Facts; NULL: it didn't answer"),
    **_MYSQL,
)

scale_decisions = Table(
    "scale_decisions",
    metadata,
    Column("id", Id, primary_key=True, autoincrement=True),
    Column("at", UtcDateTime, nullable=False),
    Column("pool_id", Id, ForeignKey("sending_pools.id"), nullable=False),
    Column("action", Exact(16), nullable=False, comment="terms.ScaleAction"),
    Column("finding", Exact(24), nullable=False, comment="terms.ScaleFinding"),
    Column("server", Exact(64), comment="which one; NULL: none, or one that is to be made"),
    Column("machine_from", Exact(16), comment="terms.HostProvider, of a machine that is to be rented"),
    Column("reason", Text, nullable=False),
    Column("numbers", JSON, nullable=False, comment="what the decision was made from"),
    Column("state", Exact(16), nullable=False, comment="terms.ScaleState"),
    Column("decided_by", String(200)),
    Column("changed_at", UtcDateTime, nullable=False, comment="of the state; of a look without an action: the last"),
    Column("outcome", Text, comment="what applying it came to"),
    Index("ix_scale_decisions_pool_id", "pool_id", "at"),
    **_MYSQL,
)

# --- sends ------------------------------------------------------------------------------------------------------------

sends = Table(
    "sends",
    metadata,
    Column("id", Id, primary_key=True, autoincrement=True),
    Column("campaign_id", Id, ForeignKey("campaigns.id"), nullable=False),
    Column("edition", Exact(64), nullable=False),
    Column("mode", Exact(8), nullable=False, comment="terms.SendMode"),
    Column("state", Exact(24), nullable=False, comment="terms.SendState"),
    Column("control", Exact(8), nullable=False, server_default="run", comment="terms.Control"),
    Column("pace_per_s", Float, comment="of the whole send; NULL: as fast as the limits allow"),
    Column("send_window", JSON(none_as_null=True), comment="message.send_window.SendWindow; NULL: at any time"),
    Column("over_quota", Exact(8), nullable=False, server_default="moves", comment="terms.OverQuota"),
    Column("forecast", JSON(none_as_null=True), comment="dispatch.forecast.Forecast, as it was shown for approval"),
    Column("content_hash", Exact(64), comment="sha256 of message.json"),
    Column("expires_at", UtcDateTime),
    Column("launched_by", String(200)),
    Column("approved_by", String(200)),
    Column("approved_at", UtcDateTime),
    Column("approval_digest", Exact(64), comment="sha256 over content hash and snapshot checksum"),
    Column("decide_by", UtcDateTime, comment="while judging: when the campaign's `otherwise` is done; NULL: never"),
    Column("decided_variant", SmallInteger, comment="what the rest gets after the test slice; bound once"),
    Column("decided_by", String(200)),
    Column("decided_at", UtcDateTime),
    Column("reason", Text, comment="why it failed, stopped or was rejected"),
    Column("claim", Exact(64), comment="who executes it now: one live execution of a send"),
    Column("claimed_at", UtcDateTime),
    Column("created_at", UtcDateTime, nullable=False),
    Column("started_at", UtcDateTime),
    Column("first_injected_at", UtcDateTime),
    Column("finished_at", UtcDateTime),
    UniqueConstraint("campaign_id", "edition"),
    **_MYSQL,
)

send_links = Table(
    "send_links",
    metadata,
    Column("send_id", Id, ForeignKey("sends.id"), primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("url", Text, nullable=False),
    **_MYSQL,
)

snapshots = Table(
    "snapshots",
    metadata,
    Column("id", Id, primary_key=True, autoincrement=True),
    Column("send_id", Id, ForeignKey("sends.id"), nullable=False),
    Column("phase", SmallInteger, nullable=False, comment="1, then one more for each top-up"),
    Column("state", Exact(16), nullable=False, comment="terms.SnapshotState"),
    Column("path", String(500), nullable=False, comment="below the snapshot store"),
    Column("as_of", UtcDateTime, nullable=False, comment="'now' of every range"),
    Column("max_contact_id", Id, nullable=False),
    Column("manifest_sha256", Exact(64)),
    Column("frozen", Integer),
    Column("excluded", Integer),
    Column("shard_count", Integer, comment="a person's shard is their address hash mod this"),
    Column("created_at", UtcDateTime, nullable=False),
    Column("published_at", UtcDateTime),
    UniqueConstraint("send_id", "phase"),
    **_MYSQL,
)

shards = Table(
    "shards",
    metadata,
    Column("id", Id, primary_key=True, autoincrement=True),
    Column("snapshot_id", Id, ForeignKey("snapshots.id"), nullable=False),
    Column("send_id", Id, ForeignKey("sends.id"), nullable=False),
    Column("number", Integer, nullable=False),
    Column("path", String(500), nullable=False, comment="below the snapshot's folder"),
    Column("rows", Integer, nullable=False),
    Column("slice_rows", Integer, comment="the first of them, which need no decision; NULL: no test slice, so all"),
    Column("zone", Exact(64), comment="time zone whose clock the send window is read off; NULL: the window's own"),
    Column("provider", Exact(32), comment="of everybody in it; NULL: of all that had no limit when it was frozen"),
    Column("sha256", Exact(64), nullable=False),
    Column("state", Exact(16), nullable=False, comment="terms.ShardState"),
    Column("epoch", Integer, nullable=False, server_default="0", comment="of the newest lease"),
    Column("next_row", Integer, nullable=False, server_default="0", comment="first row that was never granted"),
    UniqueConstraint("snapshot_id", "number"),
    Index("ix_shards_send_state", "send_id", "state"),
    **_MYSQL,
)

leases = Table(
    "leases",
    metadata,
    Column("id", Id, primary_key=True, autoincrement=True),
    Column("shard_id", Id, ForeignKey("shards.id"), nullable=False),
    Column("send_id", Id, ForeignKey("sends.id"), nullable=False),
    Column("epoch", Integer, nullable=False),
    Column(
        "server_id",
        Id,
        ForeignKey("dispatch_servers.id"),
        nullable=True,
        comment="NULL: central, for what nobody may send",
    ),
    Column("slot", SmallInteger, nullable=False, server_default="0"),
    Column("state", Exact(16), nullable=False, comment="terms.LeaseState"),
    Column("first_row", Integer, nullable=False),
    Column("granted_through", Integer, nullable=False, comment="rows [first_row, granted_through) may be sent"),
    Column("ledger_bytes", Id, nullable=False, server_default="0", comment="synced so far"),
    Column("injected", Integer, nullable=False, server_default="0"),
    Column("rejected", Integer, nullable=False, server_default="0"),
    Column("suppressed", Integer, nullable=False, server_default="0"),
    Column("failed", Integer, nullable=False, server_default="0"),
    Column("expired", Integer, nullable=False, server_default="0"),
    Column("cancelled", Integer, nullable=False, server_default="0"),
    Column("unknown", Integer, nullable=False, server_default="0"),
    Column("deferrals", Integer, nullable=False, server_default="0", comment="4xx replies, retried"),
    Column("created_at", UtcDateTime, nullable=False),
    Column("synced_at", UtcDateTime),
    Column("ended_at", UtcDateTime),
    UniqueConstraint("shard_id", "epoch"),
    Index("ix_leases_send_state", "send_id", "state"),
    **_MYSQL,
)

slot_reports = Table(  # the last word of each slot of a send, for `send watch` and for sharing a pace among live slots
    "slot_reports",
    metadata,
    Column("send_id", Id, ForeignKey("sends.id"), primary_key=True),
    Column("server_id", Id, ForeignKey("dispatch_servers.id"), primary_key=True),
    Column("slot", SmallInteger, primary_key=True, autoincrement=False),
    Column("state", Exact(16), nullable=False, comment="dispatch.slot.SlotState"),
    Column("reason", Text, comment="of waiting, a sentence"),
    Column("per_s", Float, nullable=False, server_default="0", comment="settled a second, over the last few seconds"),
    Column("in_flight", Integer, nullable=False, server_default="0"),
    Column("deferred", Integer, nullable=False, server_default="0", comment="rows that wait for another attempt"),
    Column("at", UtcDateTime, nullable=False),
    **_MYSQL,
)

rollups_hourly = Table(
    "rollups_hourly",
    metadata,
    Column("send_id", Id, ForeignKey("sends.id"), primary_key=True),
    Column("variant", SmallInteger, primary_key=True, autoincrement=False),
    Column("provider", Exact(32), primary_key=True),
    Column("server_id", Id, primary_key=True, autoincrement=False),
    Column("hour", UtcDateTime, primary_key=True),
    Column("metric", Exact(16), primary_key=True, comment="an Outcome, or deferral, open, click, unsubscribe"),
    Column("count", Integer, nullable=False),
    **_MYSQL,
)

# --- who did what -----------------------------------------------------------------------------------------------------

audit_log = Table(
    "audit_log",
    metadata,
    Column("id", Id, primary_key=True, autoincrement=True),
    Column("at", UtcDateTime, nullable=False),
    Column("actor", String(200), nullable=False),
    Column("action", Exact(64), nullable=False),
    Column("object", String(200), nullable=False, comment="kind:name"),
    Column("detail", JSON),
    Index("ix_audit_log_object", "object", "at"),
    **_MYSQL,
)
