"""The page on which a person decides what the rest of a test slice gets: the figures at hand, and a button for each.

Reading it takes what reading the page *Sends* takes. Deciding takes what triggering the DAG campaign_control takes,
which is the other way to decide in Airflow; the audit names the person who is logged in.
"""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from airflow.api_fastapi.auth.managers.models.resource_details import DagAccessEntity
from airflow.api_fastapi.core_api.security import GetUserDep, requires_access_dag
from fastapi import APIRouter, Depends, HTTPException, Request
from fastapi.responses import HTMLResponse
from pydantic import BaseModel

from mailfleet_airflow.installation import installation

if TYPE_CHECKING:
    from mailer_lib.dispatch.sends import SendRecord

may_decide = requires_access_dag(method="POST", access_entity=DagAccessEntity.RUN, param_dag_id="campaign_control")
_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>Decide</title>
<style>
:root {{ color-scheme: light dark; font: 15px/1.5 system-ui, sans-serif }}
body {{ margin: 1.5rem }} pre {{ white-space: pre-wrap }} button {{ font: inherit; padding: .45rem 1.2rem }}
</style>
<h1>{send}</h1>
<pre>{question}</pre>
<form id="form" data-send="{send}">{choices}</form>
<p id="said" role="status"></p>
<script>
const form = document.getElementById("form"), said = document.getElementById("said");
form.addEventListener("submit", async event => {{
  event.preventDefault();
  const variant = event.submitter.value;
  if (!confirm(`Give variant ${{variant}} to the rest of ${{form.dataset.send}}? It can't be changed.`)) return;
  const answer = await fetch("decide", {{
    method: "POST", credentials: "same-origin", headers: {{"Content-Type": "application/json"}},
    body: JSON.stringify({{send: form.dataset.send, variant}})}});
  const body = await answer.json().catch(() => ({{}}));
  said.textContent = answer.ok ? body.said : `Refused (${{answer.status}}): ${{JSON.stringify(body.detail ?? body)}}`;
}});
</script></html>"""

router = APIRouter()


class Decision(BaseModel):
    """What the page sends."""

    send: str
    variant: str


def own_page_only(request: Request) -> None:
    """Another site's page must not decide with the reader's session. Browsers say whose page asks; the cookie's
    SameSite rule is the first lock, this the second."""
    if request.headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
        raise HTTPException(403, "asked by a page of another site")


@router.get("/decide", response_class=HTMLResponse)
def ask(send: str) -> str:
    from mailer_lib.database.engine import read
    from mailer_lib.dispatch.decision import question
    from mailer_lib.dispatch.sends import SendError, find_send
    from mailer_lib.message.campaign import CampaignError
    from mailer_lib.message.compile import load_bundle

    engine, settings = installation()
    try:
        with read(engine) as connection:
            found = find_send(connection, send)
        text = question(engine, settings, found)
    except (SendError, CampaignError) as error:
        raise HTTPException(404, str(error)) from None
    assert found.content_hash is not None  # there is no question without a message
    tested = [one.name for one in load_bundle(settings, found.content_hash).variants if one.weight]
    return page(found, text, tested)


@router.post("/decide", dependencies=[Depends(may_decide), Depends(own_page_only)])
def decide(decision: Decision, user: GetUserDep) -> dict[str, str]:
    from mailer_lib.dispatch import decision as decisions
    from mailer_lib.dispatch.sends import SendError
    from mailer_lib.message.campaign import CampaignError

    actor = user.get_name()
    try:
        decided = decisions.decide(*installation(), decision.send, decision.variant, actor)
    except (SendError, CampaignError) as error:
        raise HTTPException(409, str(error)) from None
    return {"said": f"{decided.ref}: the rest gets variant {decision.variant}, decided by {decided.decided_by}"}


def page(send: SendRecord, question: str, variants: list[str]) -> str:
    """The question as HTML, with a button for each variant unless it was decided; every value is escaped."""
    buttons = [f'<button value="{escape(name)}">Variant {escape(name)}</button>' for name in variants]
    if send.decided_variant is not None:
        buttons = [f"<p>{escape(send.decided_by or 'somebody')} has decided; it stands.</p>"]
    return _PAGE.format(send=escape(send.ref), question=escape(question), choices="\n".join(buttons))
