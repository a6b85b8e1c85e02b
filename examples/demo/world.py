"""The demo's world: the shop Fjord & Fern, its folders, ports and addresses. All state is below ``.demo``."""

import json
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from examples.demo.processes import Processes
from examples.demo.stack import PROJECT, Stack, free_port
from mailer_lib.settings import Settings, load_settings

EXAMPLES = PROJECT / "examples"
PEOPLE = 20_000
LIST, LIST_TITLE = "newsletter", "Fjord & Fern News"
DOMAIN, RETURN_PATH = "news.fjordfern.example", "bounce.news.fjordfern.example"
POOL = "main"
SERVERS = ("local-1", "local-2", "local-3")
SEED_LIST = "team"
SEEDS = ("mia@fjordfern.example", "jonas@fjordfern.example")
SINK = "demo"
ATTRIBUTES = {
    "city": "text",
    "customer_since": "date",
    "tier": "text",
    "points": "number",
    "favourite_category": "text",
    "vip": "boolean",
}
# One mailbox provider (GMX with web.de) greylists a third of its people once, refuses a few, and has lost some.
SINK_RULES = """\
domains:
  gmx.de: &moody
    defer: {code: 451, enhanced: 4.7.1, text: "Greylisted, try again in a moment", share: 0.3, first: 1}
    refuse: {code: 550, enhanced: 5.7.1, text: "Refused by local policy", share: 0.03}
    unknown: {pattern: "7"}
  gmx.net: *moody
  web.de: *moody
"""
_PORT_NAMES = ("airflow", "serve", "inbox", "smtp-1", "smtp-2", "smtp-3")


@dataclass(frozen=True)
class World:
    """Everything the demo needs to find, the same in each run of it."""

    root: Path
    people: int = PEOPLE

    @property
    def shard_rows(self) -> int:
        """Small, so that three servers have several shards each, and somebody's turn comes late."""
        return max(10, self.people // 20)

    @property
    def home(self) -> Path:
        """MAILFLEET_HOME."""
        return self.root / "home"

    @property
    def data(self) -> Path:
        """The generated CSV files."""
        return self.root / "contacts"

    @property
    def sink(self) -> Path:
        return self.home / "sink" / SINK

    @property
    def maildir(self) -> Path:
        return self.sink / "Maildir"

    @cached_property
    def ports(self) -> dict[str, int]:
        """Chosen once and kept, because links in mail that was sent hold one of them."""
        path = self.root / "ports.json"
        if not path.exists():
            self.root.mkdir(parents=True, exist_ok=True, mode=0o700)
            chosen: dict[str, int] = {}
            for name in _PORT_NAMES:
                port = free_port()
                while port in chosen.values():
                    port = free_port()
                chosen[name] = port
            path.write_text(json.dumps(chosen, indent=1) + "\n")
        found: dict[str, int] = json.loads(path.read_text())
        return found

    @property
    def serve_url(self) -> str:
        return f"http://127.0.0.1:{self.ports['serve']}"

    @property
    def inbox_url(self) -> str:
        return f"http://127.0.0.1:{self.ports['inbox']}"

    @property
    def env(self) -> dict[str, str]:
        """MAILFLEET_… for every process of the demo."""
        return {
            "MAILFLEET_HOME": str(self.home),
            "MAILFLEET_PUBLIC_URL": self.serve_url,
            "MAILFLEET_SERVE_PORT": str(self.ports["serve"]),
            "MAILFLEET_SHARD_ROWS": str(self.shard_rows),
            "MAILFLEET_LOG_LEVEL": "WARNING",
        }

    @cached_property
    def settings(self) -> Settings:
        self.adopt()
        return load_settings()

    def adopt(self) -> None:
        """Make this process work in the demo's world, whatever MAILFLEET_… it was started with."""
        for name in [name for name in os.environ if name.startswith("MAILFLEET_")]:
            del os.environ[name]
        os.environ |= self.env
        load_settings.cache_clear()

    @cached_property
    def services(self) -> Processes:
        """Sink and `mailfleet serve`."""
        return Processes(self.root / "run")

    @cached_property
    def stack(self) -> Stack:
        return Stack(self.home / "airflow", self.ports["airflow"], self.env)


def demo_world() -> World:
    """The world of `make demo`, below the checkout; MAILFLEET_DEMO and MAILFLEET_DEMO_PEOPLE move or shrink it."""
    root = Path(os.environ.get("MAILFLEET_DEMO") or PROJECT / ".demo").absolute()
    return World(root, int(os.environ.get("MAILFLEET_DEMO_PEOPLE", PEOPLE)))
