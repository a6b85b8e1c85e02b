"""The audience at scale: ``make bench-audience``; N=5000000 in the environment for more people (default 1,000,000).

One private MariaDB serves all sections, each in a database of its own. A section is a module with
``run(figures, url, people)``.
"""

import os
import platform
import sys

from bench import audience_criteria, audience_import, audience_questions, audience_snapshot
from bench.bytecode import keep_bytecode
from bench.figures import Figures
from bench.private_mariadb import BUFFER_POOL_MB, NoMariadbError, private_mariadb

SECTIONS = {
    "snapshot": audience_snapshot,
    "import": audience_import,
    "criteria": audience_criteria,
    "questions": audience_questions,
}


def main(names: list[str]) -> int:
    people = int(os.environ.get("N", "1000000"))
    keep_bytecode()
    figures = Figures()
    figures.note("machine", f"{os.cpu_count()} cores, Linux {platform.release()}, Python {platform.python_version()}")
    figures.note("people", people, "contacts")
    try:
        with private_mariadb(BUFFER_POOL_MB * max(1, people // 1_000_000)) as server:
            for name in names or SECTIONS:
                SECTIONS[name].run(figures, server.database(name), people)
    except NoMariadbError as error:
        print(error, file=sys.stderr)
        return 1
    return figures.exit_status()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
