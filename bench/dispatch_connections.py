"""Many connections to a slow receiver: 800 of them, STARTTLS, 200 ms after RCPT and after the last dot, two agents.

Compared with 8 connections to the same server without the waits. The server runs on the same cores; what it takes is
printed.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.dispatch_job import newsletter, run_agents
from bench.dispatch_signed import Medians
from bench.figures import Figures
from bench.smtp_sink import SmtpSink, wait_for
from mailer_lib.agent.job import SmtpServer
from mailer_lib.terms import SmtpSecurity
from tests.support import free_port
from tests.support_agent import sink_server

ROUNDS = 3
PROCESSES = 2
MANY, FEW = 800, 8
DELAY_MS = 200


def run(figures: Figures, _: SmtpSink, count: int) -> None:
    seen, bundle = Medians(), newsletter()
    with tempfile.TemporaryDirectory(prefix="mailfleet-bench-") as temporary:
        folder = Path(temporary)
        certificate = _certificate(folder)
        os.environ["SSL_CERT_FILE"] = str(certificate)  # the agents check it
        try:
            for number in range(ROUNDS):
                for name, connections, delay_ms in (("few", FEW, 0), ("many", MANY, DELAY_MS)):
                    with _slow_sink(certificate, delay_ms) as (port, cpu_s):
                        place = folder / f"{name}{number}"
                        cost = run_agents(place, bundle, count, _server(port, connections), processes=PROCESSES)
                        seen.add(f"{name}_sink", cpu_s() / count * 1e6)
                    seen.add(f"{name}_per_s", cost.per_s)
                    seen.add(f"{name}_cpu", cost.cpu_us)
                    seen.add(f"{name}_injected", cost.injected)
        finally:
            del os.environ["SSL_CERT_FILE"]
    figures.at_least("connections_injected", min(seen.seen["many_injected"]), "messages in each run", count)
    figures.note("connections_few_rate", seen["few_per_s"], f"messages/s, {FEW} connections, no wait")
    figures.note("connections_few_cpu", seen["few_cpu"], "us a message")
    figures.note("connections_sink_cpu", seen["many_sink"], "us a message of the server on the same cores")
    figures.at_least("connections_rate", seen["many_per_s"], f"messages/s, {MANY} connections, {DELAY_MS} ms", 1_200)
    figures.note("connections_cpu", seen["many_cpu"], "us a message")
    figures.at_most("connections_cpu_ratio", seen["many_cpu"] / seen["few_cpu"], f"times that with {FEW}", 1.5)


def _server(port: int, connections: int) -> SmtpServer:
    return sink_server(port, None, connections=connections // PROCESSES, security=SmtpSecurity.STARTTLS)


@contextmanager
def _slow_sink(certificate: Path, delay_ms: int) -> "Iterator[tuple[int, CpuSeconds]]":
    port = free_port()
    command = [sys.executable, "-m", "bench.slow_sink", str(port), str(delay_ms), str(certificate)]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    try:
        wait_for(port)
        yield port, CpuSeconds(process.pid)
    finally:
        process.terminate()
        process.wait()


class CpuSeconds:
    """Of a process, since this was made."""

    def __init__(self, pid: int) -> None:
        self._path = Path(f"/proc/{pid}/stat")
        self._before = self._now()

    def __call__(self) -> float:
        return self._now() - self._before

    def _now(self) -> float:
        fields = self._path.read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _certificate(folder: Path) -> Path:
    """Self-signed for 127.0.0.1, with its key in the same file."""
    path, key = folder / "tls.pem", folder / "tls.key"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
         "-subj", "/CN=slow.test", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(path)],
        check=True, capture_output=True,
    )  # fmt: skip
    path.write_text(path.read_text() + key.read_text())
    return path
