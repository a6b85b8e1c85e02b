"""The page behind the link that ``mailfleet campaign show`` prints: the form of campaign_send, filled in from its URL.

Airflow 3.3's own form takes no values from its URL. The page only shows a form; what it sends goes to Airflow's public
API with the reader's own session, so Airflow's permissions decide who may trigger.
"""

from __future__ import annotations

from html import escape

from mailer_lib.terms import SendMode

_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>Send a campaign</title>
<style>
:root {{ color-scheme: light dark; font: 15px/1.5 system-ui, sans-serif }}
body {{ margin: 1.5rem; max-width: 32rem }} label {{ display: block; margin: .8rem 0 }}
input:not([type=checkbox]), select {{ display: block; width: 100%; padding: .35rem; font: inherit }}
* {{ box-sizing: border-box }}
button {{ font: inherit; padding: .45rem 1.2rem }} #said {{ margin-top: 1rem }}
</style>
<h1>Send a campaign</h1>
<p>This triggers the DAG <em>campaign_send</em>; nothing is sent before the approval, if it is asked for.</p>
<form id="form">
<label>Campaign <input name="campaign" required value="{campaign}"></label>
<label>Edition <input name="edition" required value="{edition}"></label>
<label>Mode <select name="mode">{modes}</select></label>
<label><input type="checkbox" name="approval"{approval}> ask somebody before anything is sent</label>
<button>Trigger</button>
</form>
<p id="said" role="status"></p>
<script>
const form = document.getElementById("form"), said = document.getElementById("said");
form.addEventListener("submit", async event => {{
  event.preventDefault();
  const fields = form.elements;
  const conf = {{campaign: fields.campaign.value, edition: fields.edition.value, mode: fields.mode.value,
                approval: fields.approval.checked}};
  const answer = await fetch("../api/v2/dags/campaign_send/dagRuns", {{
    method: "POST", credentials: "same-origin", headers: {{"Content-Type": "application/json"}},
    body: JSON.stringify({{logical_date: null, conf}})}});
  const body = await answer.json().catch(() => ({{}}));
  if (!answer.ok) {{
    said.textContent = `Airflow refuses (${{answer.status}}): ${{JSON.stringify(body.detail ?? body)}}`;
    return;
  }}
  const link = document.createElement("a");
  link.href = `../dags/campaign_send/runs/${{encodeURIComponent(body.dag_run_id)}}`;
  link.target = "_top";
  link.textContent = `Triggered: ${{body.dag_run_id}}`;
  said.replaceChildren(link);
}});
</script></html>"""


def trigger_page(campaign: str, edition: str, mode: SendMode, *, approval: bool) -> str:
    """The filled-in form as HTML; every value is escaped."""
    modes = "".join(
        f'<option value="{one.value}"{" selected" if one is mode else ""}>{one.value}</option>' for one in SendMode
    )
    return _PAGE.format(
        campaign=escape(campaign),
        edition=escape(edition),
        modes=modes,
        approval=" checked" if approval else "",
    )
