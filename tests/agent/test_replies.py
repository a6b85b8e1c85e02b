import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailer_lib.agent.replies import ReplyClass, classify, enhanced_code, redact

C = ReplyClass
# Replies as providers and MTAs give them (addresses and hosts changed)
REAL = [
    (C.ACCEPTED, 250, "OK id=1tEFGh-0000A1-2F"),
    (C.ACCEPTED, 250, "2.0.0 Ok: queued as 4Xq1Zk2v3Jz5vKJ"),
    # nobody there
    (
        C.UNKNOWN_MAILBOX,
        550,
        "5.1.1 The email account that you tried to reach does not exist. Please try 5.1.1 double-checking the "
        "recipient's email address for typos or 5.1.1 unnecessary spaces. For more information, go to 5.1.1 "
        "https://support.google.com/mail/?p=NoSuchUser d9443c01a7336-22e8b1si1234 - gsmtp",
    ),
    (
        C.UNKNOWN_MAILBOX,
        550,
        "5.5.0 Requested action not taken: mailbox unavailable (S2017062302). [AM7EUR03FT.eop-EUR03.prod.outlook.com]",
    ),
    (
        C.UNKNOWN_MAILBOX,
        550,
        "5.1.10 RESOLVER.ADR.RecipientNotFound; Recipient not found by SMTP address lookup",
    ),
    (C.UNKNOWN_MAILBOX, 552, "1 Requested mail action aborted, mailbox not found"),
    (C.UNKNOWN_MAILBOX, 554, "delivery error: dd This user doesn't have a yahoo.com account (x@yahoo.com) [-5]"),
    (C.UNKNOWN_MAILBOX, 550, "5.1.1 <x@icloud.example>: user does not exist"),
    (
        C.UNKNOWN_MAILBOX,
        550,
        "5.1.1 <x@isp.example>: Recipient address rejected: User unknown in virtual mailbox table",
    ),
    (C.UNKNOWN_MAILBOX, 550, "Unrouteable address"),
    (C.UNKNOWN_MAILBOX, 550, "5.1.1 sorry, no mailbox here by that name"),
    (C.UNKNOWN_MAILBOX, 550, "Requested action not taken: mailbox unavailable"),
    (C.UNKNOWN_MAILBOX, 550, "5.1.1 unknown user"),
    (C.UNKNOWN_MAILBOX, 550, "5.1.1"),
    (C.UNKNOWN_MAILBOX, 550, "No such user here"),
    (  # Microsoft says this of mailboxes that don't exist, and of others: what is ambiguous suppresses nobody
        C.POLICY,
        550,
        "5.4.1 Recipient address rejected: Access denied. AS(201806281) [DB5EUR03FT.eop-EUR03.prod.outlook.com]",
    ),
    # there, but not now
    (C.INACTIVE_MAILBOX, 550, "5.2.1 The email account that you tried to reach is disabled. - gsmtp"),
    (
        C.INACTIVE_MAILBOX,
        554,
        "5.7.1 delivery error: dd Sorry, your message cannot be delivered. This mailbox is disabled (554.30).",
    ),
    (
        C.MAILBOX_FULL,
        452,
        "4.2.2 The recipient's inbox is out of storage space. Please direct the recipient to - gsmtp",
    ),
    (C.MAILBOX_FULL, 552, "5.2.2 The email account that you tried to reach is over quota"),
    (C.MAILBOX_FULL, 554, "5.2.2 mailbox full; STOREDRV.Deliver.Exception:QuotaExceededException"),
    (C.MAILBOX_FULL, 452, "4.2.2 Mailbox full"),
    # not the person's fault: never suppresses
    (
        C.POLICY,
        550,
        "5.7.1 [203.0.113.7] Our system has detected that this message is likely unsolicited mail. To reduce the "
        "amount of spam sent to Gmail, this message has been blocked. - gsmtp",
    ),
    (
        C.POLICY,
        550,
        "5.7.26 This mail has been blocked because the sender is unauthenticated. Gmail requires all senders "
        "to authenticate with either SPF or DKIM. - gsmtp",
    ),
    (
        C.POLICY,
        550,
        "5.7.515 Access denied, sending domain NEWS.EXAMPLE doesn't meet the required authentication level.",
    ),
    (
        C.POLICY,
        550,
        "5.7.1 Unfortunately, messages from [203.0.113.7] weren't sent. Please contact your Internet service "
        "provider since part of their network is on our block list (S3140).",
    ),
    (C.POLICY, 554, "5.7.1 Service unavailable; Client host [203.0.113.7] blocked using zen.spamhaus.org"),
    (C.POLICY, 550, "5.1.1 <x@isp.example>: Recipient address rejected: blocked, see https://www.spamhaus.org/query"),
    (
        C.POLICY,
        553,
        "5.7.1 [BL21] Connections will not be accepted from 203.0.113.7, because the ip is in Spamhaus's list",
    ),
    (C.POLICY, 550, "relay not permitted"),
    (C.POLICY, 550, "Administrative prohibition"),
    (C.POLICY, 550, "5.7.1 Email rejected per DMARC policy for news.example"),
    (
        C.RATE_LIMITED,
        421,
        "4.7.0 [TSS04] Messages from 203.0.113.7 temporarily deferred due to user complaints - 4.16.55.1",
    ),
    (C.POLICY, 554, "5.4.4 [internal] message refused by local policy"),
    (C.CONTENT, 554, "5.6.0 Message contains a virus"),
    (C.CONTENT, 550, "High probability of spam"),
    (C.TOO_LARGE, 552, "5.3.4 Message size exceeds fixed limit"),
    (C.TOO_LARGE, 552, "5.2.3 Your message exceeded Google's message size limits."),
    (C.BAD_DOMAIN, 550, "5.1.2 The domain does not accept mail: all relevant MX records point to non-existent hosts"),
    (C.BAD_DOMAIN, 556, "5.1.10 Recipient address has a null MX"),
    # later
    (
        C.RATE_LIMITED,
        421,
        "4.7.28 [203.0.113.7 15] Our system has detected an unusual rate of unsolicited mail. - gsmtp",
    ),
    (C.RATE_LIMITED, 450, "4.2.1 The user you are trying to contact is receiving mail too quickly. - gsmtp"),
    (C.RATE_LIMITED, 451, "4.7.500 Server busy. Please try again later from [203.0.113.7]. rate limit exceeded"),
    (C.RATE_LIMITED, 421, "4.7.1 Too many connections from your host"),
    (C.GREYLISTED, 450, "4.2.0 <x@isp.example>: Recipient address rejected: Greylisted, see http://postgrey.example"),
    (C.GREYLISTED, 451, "4.7.1 Greylisting in action, please come back later"),
    (C.DEFERRED, 451, "4.3.0 Temporary lookup failure"),
    (C.DEFERRED, 450, "4.1.1 user unknown"),  # a 4xx never calls anybody unknown
    (C.DEFERRED, 421, "Service not available, closing transmission channel"),
    # us
    (C.PROTOCOL, 503, "5.5.1 bad sequence of commands"),
    (C.PROTOCOL, 530, "5.7.0 Must issue a STARTTLS command first"),
    (C.PROTOCOL, 530, "Authentication required"),
    (C.PROTOCOL, 501, "5.5.4 Syntax: MAIL FROM"),
    (C.PROTOCOL, 0, ""),
    (C.REJECTED, 554, "Transaction failed"),
    (C.REJECTED, 550, "no"),
]  # fmt: skip


@pytest.mark.parametrize(("expected", "code", "text"), REAL, ids=[f"{code} {text[:40]}" for _, code, text in REAL])
def test_real_replies_are_understood(expected: ReplyClass, code: int, text: str) -> None:
    assert classify(code, enhanced_code(code, text), text) is expected


@given(st.integers(0, 999), st.text(max_size=20), st.text(max_size=200))
def test_anything_has_a_class(code: int, enhanced: str, text: str) -> None:
    found = classify(code, enhanced, text)
    if found is ReplyClass.UNKNOWN_MAILBOX:
        assert 500 <= code < 600
    assert (found is ReplyClass.ACCEPTED) == (200 <= code < 400)


@pytest.mark.parametrize(
    ("code", "text", "enhanced"),
    [
        (550, "5.1.1 no", "5.1.1"),
        (250, "2.1.5 OK", "2.1.5"),
        (550, "2.1.5 OK", ""),  # another class than the code's
        (550, "5.1.1x", ""),
        (451, "4.7.650", "4.7.650"),
        (550, "user 5.1.1", ""),
        (550, "", ""),
    ],
)
def test_enhanced_codes(code: int, text: str, enhanced: str) -> None:
    assert enhanced_code(code, text) == enhanced


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("<ann@example.org>: user unknown", "<address>: user unknown"),
        ("user ann.b+c@example.org unknown", "user <address> unknown"),
        ("mail to <ann> refused", "mail to <address> refused"),
        ('"odd name"@example.org', "<address>"),
        ("queued as 4Xq1Zk2v3Jz5vKJ", "queued as 4Xq1Zk2v3Jz5vKJ"),
        ("müller@exämple.org ist unbekannt", "<address> ist unbekannt"),
        ("from bounce-ann=example.org@list.example: no", "from <address>: no"),
        ("see http://x.example/u/" + "A" * 60, "see http://x.example/u/…"),
    ],
)
def test_replies_lose_their_addresses(text: str, clean: str) -> None:
    assert redact(text) == clean


@given(st.emails(), st.text(max_size=30))
def test_no_address_survives(address: str, around: str) -> None:
    assert address not in redact(f"{around} <{address}> {around}")
    assert address not in redact(f"for {address} refused")
