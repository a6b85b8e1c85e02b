"""Tells people when a dispatch server turns sick, and the task that looks at the servers."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseNotifier, get_current_context, task

from mailfleet_airflow.installation import installation

if TYPE_CHECKING:
    from airflow.sdk import Context

log = logging.getLogger(__name__)


class SickServerNotifier(BaseNotifier):
    """Says one sentence in the task's log, and to the address that ``MAILFLEET_NOTIFY_URL_REF`` points to.

    It can be given to any task as a callback as well: then it says which task failed.

    Args:
        sentence: what to say; as a callback's template it may use the task's context.
    """

    template_fields = ("sentence",)

    def __init__(self, sentence: str = "The task {{ ti.task_id }} of {{ ti.dag_id }} failed") -> None:
        super().__init__()
        self.sentence = sentence

    def notify(self, context: Context) -> None:
        from mailer_lib.fleet.notice import NoticeError, send_notice
        from mailer_lib.secret_refs import SecretRefError

        log.warning("%s", self.sentence)
        _, settings = installation()
        try:
            if not send_notice(settings, self.sentence):
                log.info("Nobody else is told: MAILFLEET_NOTIFY_URL_REF isn't set.")
        except (NoticeError, SecretRefError) as error:  # the look itself stands
            log.error("%s", error)


@task(task_id="look")
def look_at_servers() -> dict[str, Any]:
    """Ask each server how it is; tell people of those that have just turned sick, or silent."""
    from mailer_lib.fleet import health_book

    looks = health_book.look(*installation())
    for one in looks:
        log.info("%s", one)
    for one in looks:
        if one.turned:
            SickServerNotifier(f"Dispatch server {one}")(get_current_context())
    return {one.server: one.health.verdict.value for one in looks}
