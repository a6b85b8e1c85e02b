"""Tells Airflow what Mailfleet adds to it."""

from typing import ClassVar

from airflow.plugins_manager import AirflowPlugin
from mailfleet_airflow.links import PreviewLink


class MailfleetPlugin(AirflowPlugin):
    """Registers the preview button."""

    name = "mailfleet"
    operator_extra_links: ClassVar = [PreviewLink()]
