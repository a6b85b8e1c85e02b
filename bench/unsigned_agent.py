"""The agent without DKIM: ``python -m bench.unsigned_agent JOB_FOLDER``. The shipped one always signs."""

import sys
from typing import Any

if __name__ == "__main__":
    sys.modules.setdefault("numpy", None)  # type: ignore[arg-type]  # as the shipped one does

from mailer_lib.agent import agent
from mailer_lib.agent.__main__ import main
from mailer_lib.message.builder import MessageBuilder
from mailer_lib.message.bundle import Bundle


def _unsigned(bundle: Bundle, **given: Any) -> MessageBuilder:
    return MessageBuilder(bundle, **{**given, "dkim_key_pem": None})


if __name__ == "__main__":
    agent.MessageBuilder = _unsigned  # type: ignore[assignment,misc]
    sys.exit(main())
