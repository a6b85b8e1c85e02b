"""Through a real Exim, which only accepts, and a real Postfix, which also hands on: our rate beside smtp-source's.

The same server, as many connections, messages of the same size, one after the other, who is first changes from round to
round; each begins with nothing left for the server to do. smtp-source sends one text again and again; ours are
rendered and signed on the cores that the server runs on, by two agents. A rate is counted from the first message to the
last, so it is wall time: other work on the machine takes from ours twice, from the agents and from the server.
"""

import subprocess
import tempfile
import time
from pathlib import Path

from bench.dispatch_job import newsletter, people, run_agents
from bench.dispatch_signed import Medians
from bench.figures import Figures
from bench.smtp_sink import SmtpSink
from mailer_lib.message.builder import MessageBuilder
from mailer_lib.tokens import send_token_key
from tests.mta.exim import Exim
from tests.mta.postfix import Postfix
from tests.support_agent import SEND_ID, TOKEN_KEY, dkim_key_pem, sink_server

ROUNDS = 5
PROCESSES = 2
CONNECTIONS = 16  # of both together
MESSAGES = 2_000
DELIVERY_TIMEOUT_S = 120


def run(figures: Figures, sink: SmtpSink, _: int) -> None:
    bundle = newsletter()
    builder = MessageBuilder(bundle, dkim_key_pem=dkim_key_pem(), token_key=send_token_key(TOKEN_KEY, SEND_ID))
    size = len(builder.build(next(people(1))).data)
    with tempfile.TemporaryDirectory(prefix="mailfleet-bench-") as temporary, sink.serve() as onward:
        folder = Path(temporary)
        for name, mta in (("exim", Exim(folder / "exim")), ("postfix", Postfix(folder / "postfix", onward))):
            seen = Medians()
            with mta:
                server = sink_server(mta.port, None, connections=CONNECTIONS // PROCESSES)
                for number in range(ROUNDS):
                    for way in ("source", "ours") if number % 2 else ("ours", "source"):
                        if way == "source":
                            seen.add(way, _source_rate(sink, mta.port, size))
                        else:
                            place = folder / f"{name}{number}"
                            ours = run_agents(place, bundle, MESSAGES, server, processes=PROCESSES)
                            seen.add(way, ours.per_s)
                            seen.add("injected", ours.injected)
                        if isinstance(mta, Postfix):
                            _wait_until_delivered(mta)
                    seen.add("ratio", seen.seen["ours"][-1] / seen.seen["source"][-1])
            figures.at_least(f"{name}_injected", min(seen.seen["injected"]), "messages in each run", MESSAGES)
            figures.note(
                f"{name}_smtp_source", seen["source"], f"messages/s of {size} bytes, {CONNECTIONS} connections"
            )
            figures.note(f"{name}_ours", seen["ours"], "messages/s")
            figures.at_least(f"{name}_ratio", seen["ratio"], "times smtp-source's rate, median of the rounds'", 0.8)


def _source_rate(sink: SmtpSink, port: int, size: int) -> float:
    program, environment = sink.program_beside("smtp-source")
    started = time.monotonic()
    subprocess.run(
        [*program, "-d", "-s", str(CONNECTIONS), "-m", str(MESSAGES), "-l", str(size), "-f", "a@sender.example",
         "-t", "b@other.example", f"127.0.0.1:{port}"],
        check=True, env=environment, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    return MESSAGES / (time.monotonic() - started)


def _wait_until_delivered(postfix: Postfix) -> None:
    until = time.monotonic() + DELIVERY_TIMEOUT_S
    while any(
        path.is_file() for name in ("incoming", "active") for path in (postfix.folder / "spool" / name).rglob("*")
    ):
        if time.monotonic() > until:
            raise RuntimeError(f"Postfix delivers nothing more: {postfix.log.read_text()[-800:]}")
        time.sleep(0.2)
