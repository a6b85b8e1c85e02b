"""The newsletter, signed, agent → smtp-sink: against the RSA limit, two processes, nodemailer, smtplib; then unsigned.

Everything that is compared runs in each round, one after the other; figures are the rounds' medians.
"""

import random
import re
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import dkim
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from bench import dispatch_peers as peers
from bench.dispatch_job import newsletter, people, run_agents
from bench.figures import Figures
from bench.smtp_sink import SmtpSink
from mailer_lib.message.builder import MessageBuilder
from mailer_lib.shard.recipient import Recipient
from mailer_lib.tokens import send_token_key
from tests.support_agent import SEND_ID, TOKEN_KEY, dkim_key_pem, sink_server

ROUNDS = 3
CONNECTIONS = 8
VERIFIED = 200
PEER_MESSAGES = 500
RAW_MESSAGES = 2_000
NAIVE_MESSAGES = 60
UNSIGNED = "bench.unsigned_agent"


@dataclass
class Medians:
    seen: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    def add(self, name: str, value: float) -> None:
        self.seen[name].append(value)

    def __getitem__(self, name: str) -> float:
        return statistics.median(self.seen[name])


def run(figures: Figures, sink: SmtpSink, count: int) -> None:
    bundle, key_pem = newsletter(), dkim_key_pem()
    sample = MessageBuilder(bundle, dkim_key_pem=key_pem, token_key=send_token_key(TOKEN_KEY, SEND_ID))
    reader = next(people(1))
    figures.note("message_bytes", len(sample.build(reader).data), "bytes")
    figures.note("tracked_links", len(bundle.links), "links")
    figures.at_most("rendered_share", sample.dynamic_share(reader) * 100, "% of the body", 20)
    modules = peers.nodemailer_modules()
    seen, injected = Medians(), []
    with tempfile.TemporaryDirectory(prefix="mailfleet-bench-") as temporary:
        folder = Path(temporary)
        peers.write_files(folder, bundle, PEER_MESSAGES)
        with sink.serve() as port:
            server = sink_server(port, None, connections=CONNECTIONS)
            run_agents(folder / "bytecode", bundle, CONNECTIONS, server)
            for number in range(ROUNDS):
                place = folder / str(number)
                seen.add("signs", peers.rsa_signs_a_second())
                seen.add("start_s", run_agents(place / "start", bundle, CONNECTIONS, server).cpu_s)
                one = run_agents(place / "one", bundle, count, server)
                two = run_agents(place / "two", bundle, count, server, processes=2)
                unsigned = run_agents(place / "unsigned", bundle, count, server, module=UNSIGNED)
                injected += [one.injected, two.injected, unsigned.injected]
                for name, run in (("one", one), ("two", two), ("unsigned", unsigned)):
                    seen.add(name, run.cpu_us)
                    seen.add(f"{name}_per_s", run.per_s)
                    seen.add(f"{name}_mb", run.peak_mb)
                seen.add("kernel", one.kernel_s / one.injected * 1e6)
                if modules is not None:
                    for way, messages in (("dkim", PEER_MESSAGES), ("raw", RAW_MESSAGES)):
                        peer = peers.nodemailer(modules, folder, port, messages, way)
                        seen.add(way, peer.cpu_us)
                        seen.add(f"{way}_wall", peer.wall_us)
                naive = peers.naive(folder, port, NAIVE_MESSAGES)
                seen.add("naive", naive.cpu_us)
        dumps = folder / "dumps"
        dumps.mkdir()
        with sink.serve(dumps) as port:
            run_agents(
                folder / "kept", bundle, min(count, 10 * VERIFIED), sink_server(port, None, connections=CONNECTIONS)
            )
        verified, looked_at = _verify(dumps, key_pem)

    figures.at_least("injected", min(injected), "messages in each run", count)
    figures.at_least("verified", verified, f"of {looked_at} random signatures", min(VERIFIED, count))
    figures.note("openssl_rsa2048", seen["signs"], f"signs/s a core (OpenSSL {peers.openssl_version()})")
    figures.note("one_cpu", seen["one"], f"us a message, {seen['start_s']:.2f} s of start-up included")
    figures.note("one_rate", seen["one_per_s"], "messages/s wall")
    figures.at_least("rsa_share", 1e6 / seen["one"] / seen["signs"] * 100, "% of a core's RSA-2048 rate", 50)
    _rest(figures, seen, count)
    figures.note("two_rate", seen["two_per_s"], "messages/s wall, two processes")
    figures.at_most("two_processes", seen["two"] / seen["one"], "times the CPU a message of one", 1.15)
    figures.at_most("peak_memory", max(max(seen.seen[f"{n}_mb"]) for n in ("one", "two", "unsigned")), "MB", 200)
    figures.note("smtplib_cpu", seen["naive"], "us a message: Jinja2, EmailMessage, dkimpy, smtplib")
    figures.at_least("against_smtplib", seen["naive"] / seen["one"], "times cheaper", 20)
    figures.note("unsigned_cpu", seen["unsigned"], "us a message")
    if modules is None:
        print("nodemailer can't be installed here (npm or its registry is missing): its bars can't be judged")
        figures.short += ["against_nodemailer", "unsigned_against_nodemailer"]
        return
    figures.note("nodemailer", peers.nodemailer_version(modules))
    figures.note("nodemailer_cpu", seen["dkim"], f"us a message, {PEER_MESSAGES} signed by its pool")
    figures.at_least("against_nodemailer", seen["dkim"] / seen["one"], "times cheaper, by CPU", 7)
    figures.note("against_nodemailer_bound", seen["dkim"] * seen["signs"] / 1e6, "times, if we only signed")
    figures.note("against_nodemailer_wall", seen["dkim_wall"] * seen["one_per_s"] / 1e6, "times faster, one process")
    figures.note("against_nodemailer_wall2", seen["dkim_wall"] * seen["two_per_s"] / 1e6, "times faster, two processes")
    figures.note("nodemailer_raw_cpu", seen["raw"], f"us a message, {RAW_MESSAGES} finished ones handed over")
    figures.at_least("unsigned_against_nodemailer", seen["raw"] / seen["unsigned"], "times cheaper, by CPU", 3)


def _rest(figures: Figures, seen: Medians, count: int) -> None:
    """What a message costs beside its RSA signature. The first three are measured in this process, alone."""
    rsa_us = 1e6 / seen["signs"]
    build_us, signed_us = _build_us()
    start_us = seen["start_s"] / count * 1e6
    figures.note("spent_rsa", rsa_us, "us: openssl speed")
    figures.note("spent_build", build_us, "us: islands, encoding, tokens, headers")
    figures.note("spent_sign", max(0.0, signed_us - build_us - rsa_us), "us: SHA-256, and what is around the RSA")
    figures.note("spent_start", start_us, "us: start-up of the process")
    figures.note("spent_kernel", seen["kernel"], "us: system calls, nearly all of them the socket's and the ledger's")
    agent_us = seen["one"] - signed_us - start_us - seen["kernel"]
    figures.note("spent_agent", agent_us, "us: choice, SMTP client, ledger")


def _build_us() -> tuple[float, float]:
    """CPU of building a message: unsigned, signed."""
    key = send_token_key(TOKEN_KEY, SEND_ID)
    bundle = newsletter()
    plain = MessageBuilder(bundle, dkim_key_pem=None, token_key=key)
    signed = MessageBuilder(bundle, dkim_key_pem=dkim_key_pem(), token_key=key)
    rows = list(people(3_000))
    seen = Medians()
    for first in range(0, len(rows), 500):
        for name, builder in (("plain", plain), ("signed", signed)):
            seen.add(name, _cpu_us(builder.build, rows[first : first + 500]))
    return seen["plain"], seen["signed"]


def _cpu_us(do: Callable[..., object], over: list[Recipient]) -> float:
    start = time.process_time()
    for item in over:
        do(item)
    return (time.process_time() - start) / len(over) * 1e6


def _verify(dumps: Path, key_pem: str) -> tuple[int, int]:
    """(verified, looked at): 200 random messages, with dkimpy."""
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
