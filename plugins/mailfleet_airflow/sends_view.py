"""The pages of Mailfleet inside Airflow: *Sends* in the navigation (what was sent lately, and what is under way), and
the filled-in form behind ``mailfleet campaign show``.

Whoever may read the DAG campaign_send may read it. A plugin's application is open to the world unless each route is
guarded, so the guard is a dependency of the whole application; tests/plugins/test_sends_view.py asks without a token.
"""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING
from urllib.parse import quote

from airflow.api_fastapi.core_api.security import requires_access_dag
from fastapi import Depends, FastAPI
from fastapi.responses import HTMLResponse

from mailer_lib.terms import SendMode, SendState
from mailfleet_airflow.decision_page import router
from mailfleet_airflow.installation import installation
from mailfleet_airflow.trigger_page import trigger_page

if TYPE_CHECKING:
    from mailer_lib.dispatch.sends import SendRecord

PREFIX = "/mailfleet"
SHOWN = 50
_COLUMNS = ("Send", "Mode", "State", "Control", "Launched by", "Approved by", "First message", "Ended", "Reason", "")
_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>Sends</title>
<style>
:root {{ color-scheme: light dark; font: 15px/1.5 system-ui, sans-serif }}
body {{ margin: 1.5rem }} table {{ border-collapse: collapse }}
th, td {{ text-align: left; padding: .35rem .9rem .35rem 0; border-bottom: 1px solid #8883; vertical-align: top }}
</style>
<h1>Sends</h1>
<p>The newest {shown}. Pause, resume, stop or slow one down with the DAG <em>campaign_control</em>;
<code>mailfleet send books SEND</code> shows its books.</p>
<table><tr>{head}</tr>
{rows}
</table></html>"""


def sends_app() -> FastAPI:
    """The guarded application, mounted under ``PREFIX``."""
    app = FastAPI(
        title="Mailfleet",
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        dependencies=[Depends(requires_access_dag(method="GET", param_dag_id="campaign_send"))],
    )

    @app.get("/sends", response_class=HTMLResponse)
    def sends() -> str:
        from mailer_lib.database.engine import read
        from mailer_lib.dispatch.sends import list_sends

        engine, _ = installation()
        with read(engine) as connection:
            return page(list_sends(connection, SHOWN))

    @app.get("/trigger", response_class=HTMLResponse)
    def trigger(
        campaign: str = "", edition: str = "1", mode: SendMode = SendMode.DRY_RUN, approval: bool = True
    ) -> str:
        return trigger_page(campaign, edition, mode, approval=approval)

    app.include_router(router)
    return app


def page(sends: list[SendRecord]) -> str:
    """The list as HTML; every value is escaped."""
    head = "".join(f"<th>{escape(name)}</th>" for name in _COLUMNS)
    rows = "\n".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in _cells(send)) + f"<td>{_ask(send)}</td></tr>"
        for send in sends
    )
    return _PAGE.format(shown=SHOWN, head=head, rows=rows or f'<tr><td colspan="{len(_COLUMNS)}">none yet</td></tr>')


def _ask(send: SendRecord) -> str:
    """A link to the question that waits for an answer."""
    if send.state != SendState.JUDGING:
        return ""
    return f'<a href="decide?send={quote(send.ref, safe="")}">decide</a>'


def _cells(send: SendRecord) -> tuple[str, ...]:
    def moment(value: object) -> str:
        return f"{value:%Y-%m-%d %H:%M:%S} UTC" if value else ""

    return (
        send.ref,
        send.mode,
        send.state,
        send.control,
        send.launched_by or "",
        send.approved_by or "",
        moment(send.first_injected_at),
        moment(send.finished_at),
        send.reason or "",
    )
