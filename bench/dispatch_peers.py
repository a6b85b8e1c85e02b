"""The peers and the limit: ``openssl speed``, nodemailer, smtplib with dkimpy. Each in a process of its own."""

import json
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from bench.dispatch_job import CACHE, people
from mailer_lib.message.builder import MessageBuilder
from mailer_lib.message.bundle import Bundle
from mailer_lib.tokens import send_token_key
from tests.support_agent import SEND_ID, TOKEN_KEY, dkim_key_pem

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Peer:
    """A peer's cost without its start-up, a message."""

    cpu_us: float
    wall_us: float


def rsa_signs_a_second() -> float:
    """RSA-2048 signatures a second of one core, by CPU time."""
    speed = subprocess.run(
        ["openssl", "speed", "-seconds", "3", "rsa2048"], capture_output=True, text=True, check=True
    ).stdout
    line = next(line for line in speed.splitlines() if re.match(r"rsa\s+2048 bits", line))
    return float(line.split()[-2])


def openssl_version() -> str:
    return subprocess.run(["openssl", "version"], capture_output=True, text=True, check=True).stdout.split()[1]


def write_files(folder: Path, bundle: Bundle, count: int) -> None:
    """What the peers read: the key, the bundle, and as many readers' messages, rendered before anything is measured."""
    builder = MessageBuilder(bundle, dkim_key_pem=None, token_key=send_token_key(TOKEN_KEY, SEND_ID))
    messages = []
    for person in people(count):
        content, built = builder.render(person), builder.build(person)
        messages.append(
            {
                "to": person.address,
                "sender": built.envelope_from,
                "subject": content.subject,
                "html": content.html,
                "text": content.text,
                "unsubscribe": re.findall(rb"List-Unsubscribe: (\S+)", built.data)[0].decode(),
                "raw": built.data.decode("latin1"),
            }
        )
    sender = f"{bundle.sender.name} <{bundle.sender.address}>"
    content_of_all = {"domain": bundle.dkim_domain, "selector": bundle.dkim_selector, "from": sender}
    (folder / "messages.json").write_text(json.dumps({**content_of_all, "messages": messages}))
    (folder / "key.pem").write_text(dkim_key_pem())
    (folder / "bundle.json").write_bytes(bundle.dump())


def nodemailer_modules() -> Path | None:
    """nodemailer's folder, or None where npm or its registry can't be reached."""
    if shutil.which("npm") is None or shutil.which("node") is None:
        return None
    cache = CACHE / "nodemailer"
    cache.mkdir(parents=True, exist_ok=True)
    if not (cache / "node_modules/nodemailer").exists():
        command = ["npm", "install", "--no-audit", "--no-fund", "--prefix", str(cache), "nodemailer"]
        if subprocess.run(command, capture_output=True, check=False).returncode != 0:
            return None
    return cache / "node_modules"


def nodemailer_version(modules: Path) -> str:
    package = json.loads((modules / "nodemailer/package.json").read_text())
    node = subprocess.run(["node", "--version"], capture_output=True, text=True, check=True).stdout.strip()
    return f"{package['version']} on Node {node}"


def nodemailer(modules: Path, folder: Path, port: int, count: int, way: str) -> Peer:
    """``way``: "dkim" composes and signs, "raw" hands over finished bytes."""
    script = HERE / "nodemailer_pool.cjs"
    files = [folder / "key.pem", folder / "messages.json"]
    return _peer(["node", script, modules, port, count, way, *files], count)


def naive(folder: Path, port: int, count: int) -> Peer:
    """smtplib + EmailMessage + dkimpy."""
    module = [sys.executable, "-m", "bench.naive_sender"]
    return _peer([*module, port, count, folder / "bundle.json", folder / "key.pem"], count)


def _peer(command: list[object], count: int) -> Peer:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=True)
    used: dict[str, object] = json.loads(done.stdout)
    return Peer(float(str(used["cpu_s"])) / count * 1e6, float(str(used["wall_s"])) / count * 1e6)
