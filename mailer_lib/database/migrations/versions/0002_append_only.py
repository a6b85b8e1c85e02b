"""Consent is evidence: triggers refuse to change or delete a consent event, whoever asks."""

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

MESSAGE = "consent_events is append-only"


def upgrade() -> None:
    for action in ("UPDATE", "DELETE"):
        head = f"CREATE TRIGGER consent_events_no_{action.lower()} BEFORE {action} ON consent_events"
        if op.get_bind().dialect.name == "sqlite":
            op.execute(f"{head} BEGIN SELECT RAISE(ABORT, '{MESSAGE}'); END")
        else:
            op.execute(f"{head} FOR EACH ROW SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = '{MESSAGE}'")


def downgrade() -> None:
    for action in ("update", "delete"):
        op.execute(f"DROP TRIGGER consent_events_no_{action}")
