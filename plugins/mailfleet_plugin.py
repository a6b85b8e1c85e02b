"""Tells Airflow what Mailfleet adds to it: the preview button of a task, and the page *Sends* in the navigation."""

from typing import ClassVar

from airflow.configuration import conf
from airflow.plugins_manager import AirflowPlugin
from mailfleet_airflow.links import PreviewLink
from mailfleet_airflow.sends_view import PREFIX, sends_app


class MailfleetPlugin(AirflowPlugin):
    """Registers the preview button and the page of sends."""

    name = "mailfleet"
    operator_extra_links: ClassVar = [PreviewLink()]
    fastapi_apps: ClassVar = [{"app": sends_app(), "url_prefix": PREFIX, "name": "mailfleet"}]
    external_views: ClassVar = [
        {
            "name": "Sends",
            "href": conf.get("api", "base_url", fallback="/").rstrip("/") + f"{PREFIX}/sends",
            "destination": "nav",
            "url_route": "mailfleet-sends",
        }
    ]
