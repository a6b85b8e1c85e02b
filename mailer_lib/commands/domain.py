"""``mailfleet domain``: sending domains."""

from typing import Annotated

import typer
from rich.table import Table

from mailer_lib.commands.context import console, error_console, open_context

app = typer.Typer(help="Sending domains, DKIM keys and the DNS records to publish.")

Name = Annotated[str, typer.Argument(help="From domain, which is also DKIM's d=.")]


@app.command()
def add(
    name: Name,
    *,
    selector: Annotated[str, typer.Option(help="DKIM selector.")] = "mf1",
    key_ref: Annotated[
        str | None, typer.Option(help="Where the private key is: env:NAME or file:PATH. Without it one is generated.")
    ] = None,
    return_path: Annotated[str | None, typer.Option(help="Domain of the return path.  [bounce.DOMAIN]")] = None,
    tracking_url: Annotated[str | None, typer.Option(help="Base URL of links.  [MAILFLEET_PUBLIC_URL]")] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Change a domain that is there already.")] = False,
) -> None:
    """Add a sending domain; makes its DKIM key below MAILFLEET_HOME/keys/dkim when there is none."""
    from mailer_lib.database.engine import write
    from mailer_lib.fleet import domains

    with open_context() as context, write(context.engine) as connection:
        stored, changed = domains.add(
            connection,
            context.settings,
            name,
            selector=selector,
            key_ref=key_ref,
            return_path_domain=return_path,
            tracking_url=tracking_url,
            actor=context.actor,
            replace=replace,
        )
    console().print(f"sending domain {stored.name}: {'stored' if changed else 'is there already, as given'}")
    console().print(f"DKIM key: {stored.dkim_key_ref}. Publish what `mailfleet domain dns {stored.name}` prints.")


@app.command("list")
def list_() -> None:
    """Sending domains with selector, return path and links."""
    from mailer_lib.database.engine import read
    from mailer_lib.fleet import domains

    with open_context() as context, read(context.engine) as connection:
        found = domains.list_domains(connection)
    table = Table("sending domain", "DKIM selector", "DKIM key", "return path", "links")
    for domain in found:
        links = domain.tracking_url or str(context.settings.public_url).rstrip("/")
        table.add_row(domain.name, domain.dkim_selector, domain.dkim_key_ref, domain.return_path_domain, links)
    console().print(table)


@app.command()
def dns(
    name: Name,
    bounce_host: Annotated[
        str | None, typer.Option(help="Host that takes bounces.  [the host of MAILFLEET_PUBLIC_URL]")
    ] = None,
) -> None:
    """Print the DNS records to publish, as a zone file has them."""
    from mailer_lib.database.engine import read
    from mailer_lib.fleet import dkim_keys, dns, domains, servers

    with open_context() as context, read(context.engine) as connection:
        domain = domains.get(connection, name)
        outgoing = servers.outgoing_names(connection)
        keys = dkim_keys.keys_of(connection, domain_id=domain.id)
    serving = context.settings.public_url.host or ""
    if bounce_host is None and dns.is_name(serving) and serving != "localhost":
        bounce_host = serving
    made = dns.records(
        domain,
        domains.public_key_of(domains.dkim_private_key(context.settings, domain)),
        outgoing=outgoing,
        bounce_host=bounce_host,
        public_url=str(context.settings.public_url),
    )
    made += [
        dns.dkim_record(key.of(domain), key.public(context.settings), f" of {key.server}, {key.state}") for key in keys
    ]
    for record in made:
        console().print(f"; {record.why}", markup=False, soft_wrap=True)
        console().print(record.zone_line(), markup=False, soft_wrap=True)
    if bounce_host is None:
        error_console().print(
            "The MX of the return path is missing above: say which host takes bounces, --bounce-host."
        )
    if not outgoing:
        error_console().print("There is no dispatch server yet: SPF above lets nobody send. Add servers, print again.")
    if dns.too_many_lookups(outgoing):
        error_console().print("SPF above needs more than 10 look-ups (RFC 7208 §4.6.4): write ip4: and ip6: ranges.")
