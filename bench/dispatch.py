"""The agent against the cost of the signature alone, and against nodemailer: ``python -m bench.dispatch``.

The newsletter of examples/spring-sale (MJML, 11 tracked links, pixel, VERP), rendered for each recipient, signed
RSA-2048, with ledger, suppression list and pace on, goes from a real agent process to Postfix's smtp-sink on the
loopback. CPU time is the agent's whole life, start-up included, as the kernel counted it. In the same run: ``openssl
speed rsa2048``, and nodemailer's pool with DKIM, 500 prebuilt messages of the same size. 200 random messages of a
second, captured run are verified with dkimpy.

N=20000 in the environment for a longer run (default 5,000).
"""

import json
import os
import platform
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import dkim
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from bench.figures import Figures
from bench.smtp_sink import NoPostfixError, SmtpSink, find
from mailer_lib.agent.agent import ExitCode
from mailer_lib.agent.job import Limits
from mailer_lib.fleet.domains import SendingDomain
from mailer_lib.message.builder import MessageBuilder
from mailer_lib.message.bundle import Bundle
from mailer_lib.message.campaign import load_campaign
from mailer_lib.message.compile import make_bundle
from mailer_lib.settings import Settings
from mailer_lib.shard.recipient import AttributeValue, Recipient
from mailer_lib.terms import AttributeType, Outcome
from mailer_lib.tokens import send_token_key
from tests.support_agent import SEND_ID, TOKEN_KEY, JobBuilder, dkim_key_pem, recipients, sink_server

CAMPAIGN = Path(__file__).parent.parent / "examples/spring-sale/campaign.yaml"
SHARD_ROWS = 5_000
CONNECTIONS = 8
VERIFIED = 200
PEER_MESSAGES = 500
RSA_SHARE_BAR = 0.20
NODEMAILER_BAR = 3.0
ATTRIBUTES = {
    "city": AttributeType.TEXT,
    "customer_since": AttributeType.DATE,
    "favourite_category": AttributeType.TEXT,
    "points": AttributeType.NUMBER,
    "tier": AttributeType.TEXT,
    "vip": AttributeType.BOOLEAN,
}
_CATEGORIES = ("Hiking", "Camping", "Climbing", "Paddling", "Ski touring")
_GIVEN = ("Åse", "Jonas", "Zoë", "María", "Łukasz", "Anna", "Tom")


def newsletter() -> Bundle:
    domain = SendingDomain(
        id=1,
        name="news.fjordfern.example",
        dkim_key_ref="",
        dkim_selector="mf1",
        return_path_domain="bounce.news.fjordfern.example",
        tracking_url=None,
    )
    return make_bundle(
        Settings(), load_campaign(CAMPAIGN), domain, list_title="Fjord & Fern News", edition="1", send_id=SEND_ID
    )


def people(count: int) -> list[Recipient]:
    choose = random.Random(7)
    made = []
    for row, person in enumerate(recipients(count, lambda row: "gmail" if row % 3 else "other")):
        attributes: dict[str, AttributeValue] = {
            "city": "Bergen",
            "customer_since": "2021-05-17",
            "favourite_category": choose.choice(_CATEGORIES),
            "points": float(choose.randrange(20_000)),
            "tier": choose.choice(("bronze", "silver", "gold")),
            "vip": choose.random() < 0.1,
        }
        made.append(
            Recipient(
                **{
                    **{name: getattr(person, name) for name in Recipient.__slots__},
                    "given_name": choose.choice(_GIVEN),
                    "family_name": f"Sørensen{row}",
                    "locale": "en",
                    "variant": row % 2,
                    "attributes": attributes,
                }
            )
        )
    return made


@dataclass(frozen=True)
class Run:
    wall_s: float
    cpu_s: float
    peak_mb: float
    injected: int
    sending_s: float  # from the first intent to the last outcome


def run_agent(folder: Path, bundle: Bundle, rows: list[Recipient], port: int) -> Run:
    """One agent process over ``rows``; CPU time from wait4(2)."""
    job = JobBuilder(folder, sink_server(port, None, connections=CONNECTIONS), bundle).write()
    for first in range(0, len(rows), SHARD_ROWS):
        job.add_shard(rows[first : first + SHARD_ROWS], attributes=ATTRIBUTES)
    strangers = random.Random(1)
    job.suppress(*(strangers.randbytes(16).hex() for _ in range(10_000)))
    job.control(limits=Limits(per_s=100_000, provider_per_s={"gmail": 100_000, "other": 100_000}))
    started = time.monotonic()
    process = job.start()
    peak_kb, pid = 0, 0
    while not pid:
        peak_kb = _peak_kb(process.pid) or peak_kb
        time.sleep(0.05)
        pid, status, used = os.wait4(process.pid, os.WNOHANG)
    process.returncode = os.waitstatus_to_exitcode(status)
    wall_s = time.monotonic() - started
    if process.returncode != ExitCode.DONE:
        raise RuntimeError(f"the agent ended with {process.returncode}:\n{job.log()}")
    injected = sum(outcome is Outcome.INJECTED for outcome in job.outcomes().values())
    times = [int(t) for path in (folder / "ledgers").iterdir() for t in _times(path)]
    return Run(wall_s, used.ru_utime + used.ru_stime, peak_kb / 1024, injected, (max(times) - min(times)) / 1000)


def _peak_kb(pid: int) -> int:
    """VmHWM of a process, 0 when it has ended. (ru_maxrss of a child counts its parent's memory before exec.)"""
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    match = re.search(r"VmHWM:\s+(\d+) kB", text)
    return int(match[1]) if match else 0


def _times(ledger: Path) -> list[str]:
    return re.findall(r"^I(?:\t[^\t]*){4}\t(\d{13})\t", ledger.read_text(), re.MULTILINE)


def rsa_signs_a_second() -> tuple[float, str]:
    """RSA-2048 signatures a second of one core, by CPU time, and OpenSSL's version."""
    speed = subprocess.run(
        ["openssl", "speed", "-seconds", "3", "rsa2048"], capture_output=True, text=True, check=True
    ).stdout
    line = next(line for line in speed.splitlines() if re.match(r"rsa\s+2048 bits", line))
    version = subprocess.run(["openssl", "version"], capture_output=True, text=True, check=True).stdout.split()[1]
    return float(line.split()[-2]), version


def nodemailer(folder: Path, sink: SmtpSink, message: dict[str, str], key_pem: str) -> dict[str, object] | None:
    """nodemailer's figures, or None where npm or its registry can't be reached."""
    if shutil.which("npm") is None or shutil.which("node") is None:
        return None
    cache = Path(__file__).parent.parent / ".demo" / "nodemailer"
    cache.mkdir(parents=True, exist_ok=True)
    if not (cache / "node_modules/nodemailer").exists():
        done = subprocess.run(
            ["npm", "install", "--no-audit", "--no-fund", "--prefix", str(cache), "nodemailer"],
            capture_output=True,
            check=False,
        )
        if done.returncode != 0:
            return None
    (folder / "key.pem").write_text(key_pem)
    (folder / "message.json").write_text(json.dumps(message))
    with sink.serve() as port:
        script = Path(__file__).with_name("nodemailer_pool.cjs")
        arguments = [cache / "node_modules", port, PEER_MESSAGES, folder / "key.pem", folder / "message.json"]
        done_run = subprocess.run(
            ["node", str(script), *map(str, arguments)], capture_output=True, text=True, check=True
        )
    figures: dict[str, object] = json.loads(done_run.stdout)
    return figures


def verify(dumps: Path, key_pem: str) -> tuple[int, int]:
    """(verified, looked at): up to 200 random messages, with dkimpy."""
    public = load_pem_private_key(key_pem.encode(), None).public_key()
    encoded = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
    record = "v=DKIM1; k=rsa; p=" + "".join(encoded.splitlines()[1:-1])
    files = sorted(dumps.iterdir())
    chosen = random.Random(2).sample(files, min(VERIFIED, len(files)))
    good = 0
    for path in chosen:
        raw = re.sub(rb"\r?\n", b"\r\n", path.read_bytes())
        good += bool(dkim.verify(raw, dnsfunc=lambda *_, **__: record.encode()))
    return good, len(chosen)


def main() -> int:
    count = int(os.environ.get("N", "5000"))
    figures = Figures()
    try:
        sink = find()
    except NoPostfixError as error:
        print(error, file=sys.stderr)
        return 1
    key_pem = dkim_key_pem()
    bundle = newsletter()
    rows = people(count)
    sample = MessageBuilder(bundle, dkim_key_pem=key_pem, token_key=send_token_key(TOKEN_KEY, SEND_ID))
    built = sample.build(rows[0])
    figures.note("machine", f"{os.cpu_count()} cores, Linux {platform.release()}, Python {platform.python_version()}")
    figures.note("sink", f"smtp-sink of {sink.version}")
    figures.note("message_bytes", len(built.data), "bytes")
    figures.note("tracked_links", len(bundle.links), "links")
    figures.note("rendered_share", sample.dynamic_share(rows[0]) * 100, "%")
    figures.note("rows", count, "recipients")

    with tempfile.TemporaryDirectory(prefix="mailfleet-bench-") as temporary:
        folder = Path(temporary)
        signs_before, openssl = rsa_signs_a_second()
        with sink.serve() as port:
            start_up = run_agent(folder / "start", bundle, rows[:CONNECTIONS], port)
            run = run_agent(folder / "job", bundle, rows, port)
        signs_after, _ = rsa_signs_a_second()
        signs = max(signs_before, signs_after)
        dumps = folder / "dumps"
        dumps.mkdir()
        with sink.serve(dumps) as port:
            run_agent(folder / "captured", bundle, random.Random(3).sample(rows, min(VERIFIED, count)), port)
        verified, looked_at = verify(dumps, key_pem)
        content = sample.render(rows[0])
        peer = nodemailer(
            folder,
            sink,
            {
                "domain": bundle.dkim_domain,
                "selector": bundle.dkim_selector,
                "from": f"{bundle.sender.name} <{bundle.sender.address}>",
                "subject": content.subject,
                "html": content.html,
                "text": content.text,
            },
            key_pem,
        )

    cpu_us = run.cpu_s / run.injected * 1e6
    net_us = (run.cpu_s - start_up.cpu_s) / (run.injected - start_up.injected) * 1e6
    figures.note("openssl_rsa2048", signs, f"signs/s a core (OpenSSL {openssl})")
    figures.note("agent_rate", run.injected / run.sending_s, "messages/s wall")
    figures.note("agent_cpu", cpu_us, "us a message, start-up included")
    figures.note("agent_cpu_steady", net_us, f"us a message without the {start_up.cpu_s:.2f} s of start-up")
    figures.note("agent_peak_memory", run.peak_mb, "MB")
    figures.at_least("injected", run.injected, "messages", count)
    figures.at_least("verified", verified, f"of {looked_at} signatures", min(VERIFIED, count))
    figures.at_least(
        "share_of_rsa_limit", 1e6 / cpu_us / signs * 100, "% of a core's RSA-2048 rate", RSA_SHARE_BAR * 100
    )
    if peer is None:
        print("nodemailer can't be installed here (npm or its registry is missing): its bar can't be judged")
        figures.short.append("nodemailer")
    else:
        peer_us = float(str(peer["cpu_s"])) / PEER_MESSAGES * 1e6
        figures.note("nodemailer", f"{peer['version']} on Node {peer['node']}")
        figures.note("nodemailer_cpu", peer_us, "us a message")
        figures.at_least("cpu_against_nodemailer", peer_us / cpu_us, "times cheaper", NODEMAILER_BAR)
    return figures.exit_status()


if __name__ == "__main__":
    sys.exit(main())
