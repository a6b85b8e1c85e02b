"""The nouns of ``mailfleet …``: one module each, thin over library functions, imported only when called."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Noun:
    """A first word of the command line. ``commands.<module>.app`` is its typer app."""

    name: str
    help: str
    panel: str
    single: bool = False  # a command by itself, without verbs

    @property
    def module(self) -> str:
        return f"mailer_lib.commands.{self.name}"


NOUNS = (
    Noun("init", "Make keys, folders and database; safe to run again.", "Set up", single=True),
    Noun("doctor", "Say what is configured, reachable and missing.", "Set up", single=True),
    Noun("db", "Bring the database to this release's tables.", "Set up"),
    Noun("backup", "Back up and restore database and keys.", "Set up"),
    Noun("contacts", "Import and look up contacts.", "Who"),
    Noun("lists", "Lists that people subscribe to.", "Who"),
    Noun("attributes", "Declare the attributes that criteria and templates use.", "Who"),
    Noun("suppress", "Addresses and domains that never get mail.", "Who"),
    Noun("criteria", "Stored sample criteria: who is to be picked.", "Who"),
    Noun("behaviour", "What people did, for criteria to ask.", "Who"),
    Noun("snapshot", "Frozen recipients: build, show, verify, ask.", "Who"),
    Noun("seeds", "Seed lists for test sends.", "Who"),
    Noun("campaign", "Campaigns: create, show, preview, pre-flight.", "What"),
    Noun("send", "Launch, approve, watch, pause and stop sends.", "What"),
    Noun("server", "Dispatch servers.", "From where"),
    Noun("fleet", "More or fewer dispatch servers: what is decided, and why.", "From where"),
    Noun("pool", "Sending pools and their limits by mailbox provider.", "From where"),
    Noun("domain", "Sending domains, DKIM keys and the DNS records to publish.", "From where"),
    Noun("serve", "Answer unsubscribe, click, open and preview links.", "Run", single=True),
    Noun("sink", "The development mail sink.", "Run"),
)
