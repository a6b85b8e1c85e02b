"""An installation of Mailfleet with the customers of Fjord & Fern, made with the commands that anybody would use."""

from rich.console import Console

from examples.demo.commands import mailfleet
from examples.demo.world import (
    ATTRIBUTES,
    DOMAIN,
    EXAMPLES,
    LIST,
    LIST_TITLE,
    POOL,
    RETURN_PATH,
    SEED_LIST,
    SEEDS,
    SERVERS,
    World,
)


def generate(world: World, console: Console) -> None:
    """The shop's exports: made up, the same in each run."""
    from examples.generate_contacts import generate as make_files

    if not (world.data / "suppressed.csv").exists():
        rows = make_files(world.data, world.people)
        console.print("  " + ", ".join(f"{name} {count:,}" for name, count in rows.items()), style="dim")


def set_up(world: World, console: Console) -> None:
    """Keys and database, list, attributes, fleet, sending domain, seed list. Idempotent."""
    mailfleet(console, "init")
    mailfleet(console, "lists", "add", LIST, "--title", LIST_TITLE)
    mailfleet(console, "attributes", "declare", *[f"{key}={type_}" for key, type_ in ATTRIBUTES.items()])
    mailfleet(console, "domain", "add", DOMAIN, "--return-path", RETURN_PATH)
    mailfleet(console, "pool", "add", POOL)
    for number, server in enumerate(SERVERS, 1):
        smtp = ("--smtp-port", str(world.ports[f"smtp-{number}"]), "--mta", "sink", "--replace")
        log = ("--mta-log", str(world.sink / "mainlog"))
        helo = f"{server}.{DOMAIN}"
        mailfleet(console, "server", "add", server, "--pool", POOL, "--helo-name", helo, *smtp, *log, show=number == 1)
    for address in SEEDS:
        mailfleet(console, "seeds", "add", SEED_LIST, address, "--name", address.split("@")[0].title(), show=False)


def import_people(world: World, console: Console) -> None:
    """Customers with their evidence of consent; then who left the old system, and who must never get mail."""
    evidence = ("--consent-at", "Signed up at", "--consent-source", "Signed up from", "--consent-ip", "Sign-up IP")
    into = ("--list", LIST)
    mailfleet(
        console, "contacts", "import", str(world.data / "contacts.csv"), *into, "--consent", "confirmed", *evidence
    )
    mailfleet(
        console,
        *("contacts", "import", str(world.data / "pending.csv"), *into),
        *("--consent", "pending", "--no-send", *evidence),
        lines=4,
    )
    mailfleet(
        console,
        *("contacts", "unsubscribe", "--file", str(world.data / "unsubscribed.csv"), *into),
        *("--source", "old newsletter system"),
    )
    mailfleet(console, "suppress", "import", str(world.data / "suppressed.csv"))


def make_campaigns(console: Console) -> None:
    """Criteria and campaign files of ``examples/``."""
    for criteria, folder in (("spring-shoppers", "spring-sale"), ("regulars", "welcome")):
        shown = folder == "spring-sale"
        mailfleet(console, "criteria", "save", criteria, str(EXAMPLES / folder / "criteria.json"), show=shown)
    for folder in ("welcome", "summer-preview", "spring-sale"):
        shown = folder == "spring-sale"
        mailfleet(console, "campaign", "create", str(EXAMPLES / folder / "campaign.yaml"), show=shown)
    mailfleet(console, "criteria", "count", "spring-shoppers")
