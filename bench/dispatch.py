"""The dispatch engine: ``make bench-dispatch``; N=5000 in the environment for a shorter run (20,000 recipients else).

The newsletter of examples/spring-sale (MJML, 19 fields, 11 tracked links, pixel, VERP), rendered for each recipient,
with ledger, suppression list and pace on, goes from real agent processes to real servers on the loopback. A section is
a module with ``run(figures, sink, count)``; name some to run only those: ``python -m bench.dispatch signed mta``.
"""

import os
import platform
import sys

from bench import dispatch_connections, dispatch_loops, dispatch_memory, dispatch_mta, dispatch_signed
from bench.bytecode import keep_bytecode
from bench.figures import Figures
from bench.smtp_sink import NoPostfixError, find

SECTIONS = {
    "signed": dispatch_signed,
    "loops": dispatch_loops,
    "connections": dispatch_connections,
    "mta": dispatch_mta,
    "memory": dispatch_memory,
}


def main(names: list[str]) -> int:
    count = int(os.environ.get("N", "20000"))
    figures = Figures()
    try:
        sink = find()
    except NoPostfixError as error:
        print(error, file=sys.stderr)
        return 1
    keep_bytecode()
    load = os.getloadavg()[0]
    figures.note("machine", f"{os.cpu_count()} cores, Linux {platform.release()}, Python {platform.python_version()}")
    figures.note("load", load, "processes wanted a core in the minute before")
    figures.note("sink", f"smtp-sink of {sink.version}")
    figures.note("rows", count, "recipients")
    for name in names or SECTIONS:
        SECTIONS[name].run(figures, sink, count)
    return figures.exit_status()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
