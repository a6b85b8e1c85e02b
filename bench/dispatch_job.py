"""What every part of the dispatch benchmark sends, and how: the newsletter, its readers, real agent processes.

CPU time is a process's whole life as the kernel counted it (``wait4``), start-up included. Python's bytecode is kept in
a folder of ours and made before anything is measured: an installed agent has it too.
"""

import os
import random
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from mailer_lib.agent.agent import ExitCode
from mailer_lib.agent.job import Limits, SmtpServer
from mailer_lib.fleet.domains import SendingDomain
from mailer_lib.identity import message_key
from mailer_lib.message.bundle import Bundle
from mailer_lib.message.campaign import load_campaign
from mailer_lib.message.compile import make_bundle
from mailer_lib.settings import Settings
from mailer_lib.shard.recipient import Recipient
from mailer_lib.terms import AttributeType
from tests.support_agent import IDENTITY, SEND_ID, JobBuilder

CAMPAIGN = Path(__file__).parent.parent / "examples/spring-sale/campaign.yaml"
CACHE = Path(__file__).parent.parent / ".demo"
SHARD_ROWS = 5_000
SUPPRESSED = 10_000  # people who left after the freezing; none of ours
ATTRIBUTES = {
    "city": AttributeType.TEXT,
    "customer_since": AttributeType.DATE,
    "favourite_category": AttributeType.TEXT,
    "points": AttributeType.NUMBER,
    "tier": AttributeType.TEXT,
    "vip": AttributeType.BOOLEAN,
}
WITH_LIST = {**ATTRIBUTES, "favourites": AttributeType.TEXT_LIST}  # for the version with loops
_CATEGORIES = ("Hiking", "Camping", "Climbing", "Paddling", "Ski touring")
_GIVEN = ("Åse", "Jonas", "Zoë", "María", "Łukasz", "Anna", "Tom")
_THINGS = ("Lofoten 38", "Hallingdal", "Fonn", "Sval", "Glo", "Tindved")


def newsletter(campaign: Path = CAMPAIGN) -> Bundle:
    domain = SendingDomain(
        id=1,
        name="news.fjordfern.example",
        dkim_key_ref="",
        dkim_selector="mf1",
        return_path_domain="bounce.news.fjordfern.example",
        tracking_url=None,
    )
    return make_bundle(
        Settings(), load_campaign(campaign), domain, list_title="Fjord & Fern News", edition="1", send_id=SEND_ID
    )


def people(count: int) -> Iterator[Recipient]:
    choose = random.Random(7)
    send_key = IDENTITY.send_key("spring-sale", "1")
    for row in range(count):
        provider = "gmail" if row % 3 else "other"
        address = f"person{row}@{provider}.example"
        address_hash = IDENTITY.address_hash(address)
        yield Recipient(
            contact_id=row + 1,
            message_key=message_key(send_key, address_hash),
            address_hash=address_hash,
            address=address,
            domain=f"{provider}.example",
            provider=provider,
            variant=row % 2,
            given_name=choose.choice(_GIVEN),
            family_name=f"Sørensen{row}",
            locale="en",
            attributes={
                "city": "Bergen",
                "customer_since": "2021-05-17",
                "favourite_category": choose.choice(_CATEGORIES),
                "favourites": choose.sample(_THINGS, choose.randrange(2, 6)),
                "points": float(choose.randrange(20_000)),
                "tier": choose.choice(("bronze", "silver", "gold")),
                "vip": choose.random() < 0.1,
            },
        )


@dataclass(frozen=True)
class Run:
    """Some agents that shared the work, each with its own shards and ledgers."""

    cpu_s: float
    kernel_s: float  # of it
    peak_mb: float  # of the largest
    injected: int
    sending_s: float  # from the first intent to the last

    @property
    def cpu_us(self) -> float:
        """A message."""
        return self.cpu_s / self.injected * 1e6

    @property
    def per_s(self) -> float:
        return self.injected / self.sending_s if self.sending_s else 0.0


def run_agents(
    folder: Path,
    bundle: Bundle,
    count: int,
    server: SmtpServer,
    *,
    processes: int = 1,
    module: str = "mailer_lib.agent",
    attributes: dict[str, AttributeType] = ATTRIBUTES,
) -> Run:
    """``count`` people shared among so many agents; ``server.connections`` each.

    Raises:
        RuntimeError: an agent failed; the sentence holds its log.
    """
    jobs = [JobBuilder(folder / str(number), server, bundle).write() for number in range(processes)]
    everybody, shard = people(count), 0
    size = min(SHARD_ROWS, -(-count // processes))
    while rows := list(islice(everybody, size)):
        jobs[shard % processes].add_shard(rows, attributes=attributes)
        jobs[shard % processes].rows.clear()
        shard += 1
    strangers = random.Random(1)
    for job in jobs:
        job.suppress(*(strangers.randbytes(16).hex() for _ in range(SUPPRESSED)))
        job.control(limits=Limits(per_s=100_000, provider_per_s={"gmail": 100_000, "other": 100_000}))
    running = {process.pid: process for process in [job.start(module) for job in jobs]}
    peak_kb = dict.fromkeys(running, 0)
    cpu_s = kernel_s = 0.0
    while running:
        time.sleep(0.05)
        for pid, process in list(running.items()):
            peak_kb[pid] = max(peak_kb[pid], _peak_kb(pid))
            ended, status, used = os.wait4(pid, os.WNOHANG)
            if ended:
                process.returncode = os.waitstatus_to_exitcode(status)
                cpu_s += used.ru_utime + used.ru_stime
                kernel_s += used.ru_stime
                del running[pid]
                if process.returncode != ExitCode.DONE:
                    logs = "\n".join(job.log() for job in jobs)
                    raise RuntimeError(f"an agent ended with {process.returncode}:\n{logs[-3000:]}")
    times = [time_ms for job in jobs for path in (job.path / "ledgers").iterdir() for time_ms in _ends(path)]
    injected = sum(job.status().injected for job in jobs)
    return Run(cpu_s, kernel_s, max(peak_kb.values()) / 1024, injected, (max(times) - min(times)) / 1000)


def _peak_kb(pid: int) -> int:
    """VmHWM of a process, 0 when it has ended. (ru_maxrss of a child counts its parent's memory before exec.)"""
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    match = re.search(r"VmHWM:\s+(\d+) kB", text)
    return int(match[1]) if match else 0


def _ends(ledger: Path) -> list[int]:
    """Times of the first and the last intent, Unix milliseconds."""
    found = re.findall(rb"^I(?:\t[^\t]*){4}\t(\d{13})\t", ledger.read_bytes(), re.MULTILINE)
    return [int(found[0]), int(found[-1])] if found else []
