"""Consent is evidence: triggers refuse to change or delete a consent event, whoever asks.

One change passes: the IP address is taken out, and nothing else. The person was erased (docs/decisions/0303).
"""

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

MESSAGE = "consent_events is append-only"
KEPT = (
    "id", "address_hash", "list_id", "action", "occurred_at", "recorded_at", "method", "source", "wording",
)  # fmt: skip


def upgrade() -> None:
    sqlite = op.get_bind().dialect.name == "sqlite"
    # MySQL compares text by its collation otherwise, and would take a changed case for no change
    same = "NEW.{0} IS OLD.{0}" if sqlite else "BINARY NEW.{0} <=> BINARY OLD.{0}"
    only_the_ip = " AND ".join(["OLD.ip IS NOT NULL AND NEW.ip IS NULL", *(same.format(column) for column in KEPT)])
    for action, passes in (("UPDATE", only_the_ip), ("DELETE", "1 = 0")):
        head = f"CREATE TRIGGER consent_events_no_{action.lower()} BEFORE {action} ON consent_events"
        if sqlite:
            op.execute(f"{head} WHEN NOT ({passes}) BEGIN SELECT RAISE(ABORT, '{MESSAGE}'); END")
        else:
            refuse = f"SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = '{MESSAGE}'"
            op.execute(f"{head} FOR EACH ROW BEGIN IF NOT ({passes}) THEN {refuse}; END IF; END")


def downgrade() -> None:
    for action in ("update", "delete"):
        op.execute(f"DROP TRIGGER consent_events_no_{action}")
