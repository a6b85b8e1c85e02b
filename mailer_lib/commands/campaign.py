"""``mailfleet campaign``: create, show, preview, pre-flight."""

import os
from pathlib import Path
from typing import Annotated
from urllib.parse import urlencode

import typer
from rich.table import Table

from mailer_lib.commands.context import console, open_context
from mailer_lib.commands.errors import FAILED

app = typer.Typer(help="Campaigns: create, show, preview, pre-flight.")

AIRFLOW_URL = "http://localhost:8080"
Name = Annotated[str, typer.Argument(help="Name of a campaign.")]


@app.command()
def create(
    file: Annotated[Path, typer.Argument(help="campaign.yaml; templates lie beside it.")],
) -> None:
    """Store a campaign with its templates; the same file again changes nothing."""
    from mailer_lib.message.campaign import load_campaign, save_campaign

    campaign = load_campaign(file)
    with open_context() as context:
        changed = save_campaign(context.engine, context.settings, campaign, context.actor)
    console().print(f"campaign {campaign.name}: {'stored' if changed else 'is there already, as given'}")
    console().print(f"Next: mailfleet campaign preflight {campaign.name}")


@app.command()
def show(name: Name) -> None:
    """What a campaign is, and a link to the filled-in form in Airflow."""
    from mailer_lib.database.engine import read
    from mailer_lib.message.campaign import get_campaign
    from mailer_lib.message.merge import merge_fields

    with open_context() as context, read(context.engine) as connection:
        campaign = get_campaign(connection, name)
    fields = merge_fields(campaign)
    table = Table(show_header=False, box=None, pad_edge=False)
    reply_to = campaign.reply_to
    rows = {
        "campaign": f"{campaign.name}  {campaign.title}".rstrip(),
        "list": campaign.list_name,
        "criteria": campaign.criteria,
        "from": f"{campaign.sender.name} <{campaign.sender.address}>".strip(),
        "reply to": f"{reply_to.name} <{reply_to.address}>".strip() if reply_to else "",
        "subject": campaign.subject,
        "preheader": campaign.preheader,
        "sending domain": campaign.sending_domain,
        "sending pool": campaign.sending_pool,
        "template": f"{campaign.template.kind}, {len(campaign.template.source):,} characters"
        + (", text part written" if campaign.template.text is not None else ", text part derived"),
        "tracking": f"links {_on(campaign.tracking.links)}, opens {_on(campaign.tracking.opens)}",
        "merge fields": ", ".join(sorted(fields.columns | fields.attributes)),
        "seed list": campaign.seed_list or "",
        "expires after": str(campaign.expires_after or "never"),
        "approval": "required" if campaign.approval.required else "not required",
    }
    if campaign.schedule is not None:
        rows["schedule"] = campaign.schedule.model_dump_json(exclude_none=True)
    for variant in campaign.variants:
        rows[f"variant {variant.name}"] = f"weight {variant.weight}  {variant.subject or campaign.subject}"
    if campaign.test_slice is not None:
        rows["test slice"] = campaign.test_slice.model_dump_json(exclude_none=True)
    for label, value in rows.items():
        if value:
            table.add_row(label, value)
    output = console()
    output.print(table, markup=False)
    typer.echo(f"trigger: {trigger_link(campaign.name, approval=campaign.approval.required)}")


@app.command("list")
def list_() -> None:
    """Every campaign."""
    from sqlalchemy import select

    from mailer_lib.database.engine import read
    from mailer_lib.database.schema import campaigns, lists, sending_pools

    query = (
        select(campaigns.c.name, lists.c.name.label("list"), sending_pools.c.name.label("pool"), campaigns.c.updated_at)
        .join(lists, lists.c.id == campaigns.c.list_id)
        .join(sending_pools, sending_pools.c.id == campaigns.c.pool_id)
        .order_by(campaigns.c.name)
    )
    with open_context() as context, read(context.engine) as connection:
        rows = connection.execute(query).all()
    table = Table("campaign", "list", "sending pool", "changed")
    for row in rows:
        table.add_row(row.name, row.list, row.pool, f"{row.updated_at:%Y-%m-%d %H:%M}Z")
    console().print(table)


@app.command()
def preview(
    name: Name,
    *,
    contact: Annotated[str, typer.Option(help="Address of the contact whose values are shown.")],
    html: Annotated[Path | None, typer.Option(help="Write the HTML part to this file.")] = None,
    variant: Annotated[str | None, typer.Option(help="Name of a variant.  [the first]")] = None,
) -> None:
    """What a contact would read: subject and text part; with --html, the HTML in a file. Its links do nothing."""
    from mailer_lib.commands.errors import CommandError
    from mailer_lib.database.engine import read
    from mailer_lib.message.preview import draft_bundle, recipient_of, render_preview

    with open_context() as context, read(context.engine) as connection:
        _, bundle = draft_bundle(connection, context.settings, name)
        names = [one.name for one in bundle.variants]
        if variant is not None and variant not in names:
            raise CommandError(f"campaign {name} has no variant {variant!r}; it has {', '.join(names)}")
        recipient = recipient_of(connection, context.settings, contact, names.index(variant) if variant else 0)
    shown = render_preview(bundle, recipient)
    typer.echo(f"Subject: {shown.subject}\n\n{shown.text}")
    if html is not None:
        html.write_text(shown.html, encoding="utf-8")
        typer.echo(f"HTML: {html} ({len(shown.html.encode()) / 1024:.0f} KB)")


@app.command()
def preflight(
    name: Name,
    *,
    test: Annotated[bool, typer.Option("--test", help="As for a test send: an unreachable page is a warning.")] = False,
) -> None:
    """Check everything that can be known to be wrong beforehand. Exit code 1 when there is an error."""
    from mailer_lib.message.preflight import preflight as run
    from mailer_lib.terms import FindingLevel, SendMode

    with open_context() as context:
        findings = run(context.engine, context.settings, name, mode=SendMode.TEST if test else SendMode.SEND)
    colours = {FindingLevel.ERROR: "red", FindingLevel.WARNING: "yellow", FindingLevel.INFO: "green"}
    table = Table(box=None, show_header=False, pad_edge=False)
    for finding in findings:
        table.add_row(f"[{colours[finding.level]}]{finding.level}[/]", finding.code, _escaped(finding.text))
    console().print(table)
    count = {level: sum(finding.level is level for finding in findings) for level in FindingLevel}
    typer.echo(f"{count[FindingLevel.ERROR]} errors, {count[FindingLevel.WARNING]} warnings")
    if count[FindingLevel.ERROR]:
        raise typer.Exit(FAILED)


def trigger_link(campaign: str, *, edition: str = "1", approval: bool = True) -> str:
    """The form of the DAG ``campaign_send``, filled in, in the Airflow of ``AIRFLOW__API__BASE_URL``.

    Airflow 3.3's own form takes no values from its URL, so the page is our plugin's.
    """
    base = os.environ.get("AIRFLOW__API__BASE_URL", AIRFLOW_URL).rstrip("/")
    query = urlencode({"campaign": campaign, "edition": edition, "mode": "send", "approval": str(approval).lower()})
    return f"{base}/mailfleet/trigger?{query}"


def _on(value: bool) -> str:
    return "on" if value else "off"


def _escaped(text: str) -> str:
    from rich.markup import escape

    return escape(text)
