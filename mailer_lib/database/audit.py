"""Who changed what: one row in ``audit_log``, in the transaction of the change itself."""

import getpass
import os
from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, insert

from mailer_lib.database.engine import now
from mailer_lib.database.schema import audit_log


def record(connection: Connection, actor: str, action: str, obj: str, detail: Mapping[str, Any] | None = None) -> None:
    """Note that ``actor`` did ``action`` to ``obj`` (``kind:name``). ``detail`` holds no address and no secret."""
    connection.execute(
        insert(audit_log).values(
            at=now(), actor=actor, action=action, object=obj, detail=dict(detail) if detail is not None else None
        )
    )


def current_actor() -> str:
    """Who runs this process, for commands: ``MAILFLEET_ACTOR`` or the system user."""
    return os.environ.get("MAILFLEET_ACTOR") or f"cli:{getpass.getuser()}"
