"""The usual Python way, as a peer: Jinja2, ``EmailMessage``, dkimpy, smtplib, one after the other on one connection.

``python -m bench.naive_sender PORT COUNT BUNDLE KEY.pem`` prints one line of JSON. Start-up isn't in its figures.
"""

import json
import smtplib
import sys
import time
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import formatdate
from pathlib import Path

import dkim

from bench.dispatch_job import people
from mailer_lib.message.builder import MessageBuilder
from mailer_lib.message.bundle import Bundle
from mailer_lib.tokens import send_token_key
from tests.support_agent import SEND_ID, TOKEN_KEY


def main(port: int, count: int, bundle: Bundle, key_pem: bytes) -> None:
    builder = MessageBuilder(bundle, dkim_key_pem=None, token_key=send_token_key(TOKEN_KEY, SEND_ID))
    rows = list(people(count))
    builder.render(rows[0]), builder.render(rows[1])  # templates of both variants are compiled
    with smtplib.SMTP("127.0.0.1", port) as client:
        started, before = time.monotonic(), time.process_time()
        for person in rows:
            content = builder.render(person)
            message = EmailMessage(policy=SMTP)
            message["Date"] = formatdate()
            message["From"] = f"{bundle.sender.name} <{bundle.sender.address}>"
            message["To"] = person.address
            message["Subject"] = content.subject
            message["Message-ID"] = f"<{person.message_key.hex()}@{bundle.dkim_domain}>"
            message["List-Unsubscribe"] = f"<{bundle.tracking_url}/u/{person.message_key.hex()}>"
            message["List-Unsubscribe-Post"] = "List-Unsubscribe=One-Click"
            message.set_content(content.text, cte="quoted-printable")
            message.add_alternative(content.html, subtype="html", cte="quoted-printable")
            raw = message.as_bytes()
            selector, domain = bundle.dkim_selector.encode(), bundle.dkim_domain.encode()
            raw = dkim.sign(raw, selector, domain, key_pem, canonicalize=(b"relaxed", b"relaxed")) + raw
            client.sendmail(f"{person.message_key.hex()}@{bundle.return_path_domain}", [person.address], raw)
        used = {"cpu_s": time.process_time() - before, "wall_s": time.monotonic() - started}
    print(json.dumps(used))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Bundle.load(Path(sys.argv[3])), Path(sys.argv[4]).read_bytes())
