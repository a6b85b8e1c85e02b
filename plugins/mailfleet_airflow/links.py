"""The button in the task's page that opens the rendered message."""

from __future__ import annotations

from typing import TYPE_CHECKING

from airflow.sdk import BaseOperatorLink
from airflow.sdk.execution_time.xcom import XCom

if TYPE_CHECKING:
    from airflow.sdk import BaseOperator
    from airflow.sdk.types import TaskInstanceKey


class PreviewLink(BaseOperatorLink):
    """The message as its first recipient will see it, served by ``mailfleet serve`` under a signed token."""

    name = "Preview of the message"

    def get_link(self, operator: BaseOperator, *, ti_key: TaskInstanceKey) -> str:
        url = XCom.get_value(ti_key=ti_key, key=self.xcom_key)
        return str(url or "")
