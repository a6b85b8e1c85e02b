"""A verifier that isn't Python's and shares no line with ours or with dkimpy: Perl's Mail::DKIM."""

import dataclasses
import shutil
import subprocess
from pathlib import Path

import pytest

from mailer_lib.message.dkim import DkimSigner, sign_message
from tests.message.world import DOMAIN, builder, bundle, key_pem, recipient
from tests.support import require

SCRIPT = Path(__file__).with_name("verify.pl")
RAW = (
    f"From: Fjord & Fern <hello@{DOMAIN}>\r\nTo: ann@example.com\r\nSubject: Please\r\n  confirm\r\n\r\n"
    "Hello  Ann \r\n\r\n.bye\r\n\r\n\r\n"
).encode()


@pytest.fixture(autouse=True)
def _mail_dkim() -> None:
    perl = shutil.which("perl")
    found = perl and subprocess.run([perl, "-MMail::DKIM::Verifier", "-e1"], capture_output=True, check=False)
    require(found and found.returncode == 0, "Perl's Mail::DKIM is needed: `apt-get install libmail-dkim-perl`")


def results(folder: Path, messages: list[bytes]) -> list[str]:
    """What Mail::DKIM says of each: "pass", or "fail (…)"."""
    files = [folder / str(number) for number in range(len(messages))]
    for path, raw in zip(files, messages, strict=True):
        path.write_bytes(raw)
    record = f"v=DKIM1; k=rsa; p={DkimSigner(DOMAIN, 'mf1', key_pem()).public_key()}"
    said = subprocess.run(
        ["perl", str(SCRIPT), f"mf1._domainkey.{DOMAIN}", record, *map(str, files)],
        capture_output=True, text=True, check=True,
    ).stdout.splitlines()  # fmt: skip
    assert len(said) == len(files)
    return [line.partition(" ")[2] for line in said]


def test_mail_dkim_accepts_what_the_islands_made(tmp_path: Path) -> None:
    html = (
        "<p>Hello  {{ contact.given_name }},</p>\n.dot\n{% for thing in contact.things %}<b>{{ thing }}</b>{% endfor %}"
        '{{ contact.given_name * 40 }} <a href="{{ unsubscribe_url }}">leave</a>\n\n\n'
    )
    build = builder(bundle(html, "Hello {{ contact.given_name }} \n\n", "{{ contact.given_name }}, news"), signed=True)
    people = [
        dataclasses.replace(recipient(), given_name=name, attributes={"things": [name, "", "a  b ", "=" * 90]})
        for name in ("Ann", "Åse Ødegård", "...", " two  spaces ", "<b>&", "From me", "x" * 300)
    ]

    assert results(tmp_path, [build.build(person).data for person in people]) == ["pass"] * len(people)


def test_mail_dkim_accepts_any_message_and_no_change_of_it(tmp_path: Path) -> None:
    signed = sign_message(RAW, DOMAIN, "mf1", key_pem())
    head_end = signed.index(b"From: Fjord")
    changed = [
        signed.replace(b"Ann", b"Eve"),
        signed.replace(b"Please", b"Pleade"),
        signed[:head_end] + b"Subject: You won\r\n" + signed[head_end:],
        signed[:head_end] + b"List-Unsubscribe: <https://evil.example/>\r\n" + signed[head_end:],
    ]
    whole, *others = results(tmp_path, [signed, *changed])

    assert whole == "pass"
    assert all(result.startswith("fail") for result in others), others
