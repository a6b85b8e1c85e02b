"""Peak memory of an agent with 10,000 and with 300,000 recipients. Unsigned, to be quick: a signature keeps nothing."""

import tempfile
from pathlib import Path

from bench.dispatch_job import newsletter, run_agents
from bench.figures import Figures
from bench.smtp_sink import SmtpSink
from tests.support_agent import sink_server

FEW, MANY = 10_000, 300_000


def run(figures: Figures, sink: SmtpSink, _: int) -> None:
    bundle = newsletter()
    with tempfile.TemporaryDirectory(prefix="mailfleet-bench-") as temporary, sink.serve() as port:
        server = sink_server(port, None, connections=8)
        few, many = (
            run_agents(Path(temporary) / str(count), bundle, count, server, module="bench.unsigned_agent")
            for count in (FEW, MANY)
        )
    figures.at_least("many_injected", many.injected, "messages", MANY)
    figures.note("peak_few", few.peak_mb, f"MB with {FEW:,} recipients")
    figures.at_most("peak_many", many.peak_mb, f"MB with {MANY:,} recipients", 200)
    figures.at_most("peak_growth", many.peak_mb / few.peak_mb, "times that with the few", 1.15)
