"""What an MTA's or a provider's reply means: pure classification by code, enhanced code (RFC 3463, RFC 5248) and text.

Only ``UNKNOWN_MAILBOX`` may ever suppress an address, so it is the narrowest class: whatever also speaks of blocking,
policy or reputation is ``POLICY``, even when its code says that the mailbox is the trouble.
"""

import re
from enum import StrEnum


class ReplyClass(StrEnum):
    ACCEPTED = "accepted"
    DEFERRED = "deferred"  # a 4xx without a better name: try again
    GREYLISTED = "greylisted"
    RATE_LIMITED = "rate-limited"  # slow down
    UNKNOWN_MAILBOX = "unknown-mailbox"
    INACTIVE_MAILBOX = "inactive-mailbox"  # disabled, expired, suspended: may come back
    MAILBOX_FULL = "mailbox-full"
    BAD_DOMAIN = "bad-domain"  # no such host, no MX, null MX
    POLICY = "policy"  # blocked, unauthenticated, reputation: says something about us, not about the person
    CONTENT = "content"  # taken for spam, a virus, a forbidden attachment
    TOO_LARGE = "too-large"
    PROTOCOL = "protocol"  # syntax, sequence, missing AUTH or TLS: our set-up is wrong
    REJECTED = "rejected"  # a 5xx without a better name


_ENHANCED = re.compile(r"^([245])\.(\d{1,3})\.(\d{1,3})(?=\s|$)")

# Words decide before codes: providers put 5.1.1, 5.7.1 and plain 550 on anything. First match wins.
_POLICY = re.compile(
    r"block(?:ed|list)|black ?list|deny ?list|spamhaus|barracuda|spamcop|sorbs|cloudmark|\brbl\b|dnsbl|reputation|"
    r"policy|polic(?:y|ies)|\bdmarc\b|\bspf\b|\bdkim\b|not authenticated|unauthenticated|"
    r"authentication (?:checks?|results?|required by)|"
    r"unsolicited|banned|prohibited|not allowed to send|access denied|sender (?:denied|rejected|not allowed)|"
    r"relay(?:ing)? (?:access )?(?:denied|not permitted|not allowed|prohibited)|reverse dns|\bptr\b|complaints|abuse|"
    r"not accepting (?:mail|messages|email) from|refused by local|administrative prohibition|s3150|s3140|proofpoint|"
    r"mail from .{0,60} (?:rejected|refused)|sending (?:ip|domain)|restricted",
    re.I,
)
_CONTENT = re.compile(
    r"\bspam\b|spam[- ]like|junk|virus|malware|phish|content (?:rejected|filter)|message content|attachment|suspicious",
    re.I,
)
_RATE = re.compile(
    r"rate[ -]?limit|too many (?:messages|connections|emails|recipients|concurrent|errors)|too (?:fast|quickly)|"
    r"throttl|"
    r"unusual rate|exceeded .{0,40}(?:limit|rate)|slow down|temporarily deferred due to|try again later.{0,40}volume|"
    r"\[TSS?0\d\]|concurrent",
    re.I,
)
_GREY = re.compile(r"gr[ea]y-?list|please try again in \d+|retry (?:later )?in \d+ (?:seconds|minutes)", re.I)
_FULL = re.compile(
    r"mailbox (?:is )?full|over ?quota|quota exceeded|exceeded .{0,40}quota|out of (?:storage|disk) ?(?:space)?|"
    r"insufficient (?:system )?storage|storage (?:space|allocation)|mailbox size limit|inbox (?:is )?full",
    re.I,
)
_LARGE = re.compile(
    r"message (?:size|file size|is) .{0,30}(?:exceed|too (?:large|big))|too (?:large|big)|size (?:limit )?exceed|"
    r"exceeds (?:the )?(?:maximum|fixed|size)",
    re.I,
)
_INACTIVE = re.compile(
    r"(?:account|mailbox|user|recipient|address).{0,40}(?:disabled|inactive|suspended|deactivated|expired|locked|"
    r"no longer active|not active|discontinued|closed)|dormant",
    re.I,
)
_UNKNOWN = re.compile(
    r"user (?:is )?(?:unknown|not found|doesn'?t exist|does not exist)|"
    r"unknown (?:user|mailbox|recipient|local[- ]part|address)|"
    r"no such (?:user|mailbox|recipient|person|address|account|local)|no mailbox (?:here )?by that name|"
    r"(?:mailbox|account|address|recipient|user|email).{0,60}(?:does not exist|doesn'?t exist|not found|unknown|"
    r"no longer (?:available|valid|exists)|not known)|"
    r"(?:doesn'?t|does not) have an? .{0,40}account|invalid (?:recipient|mailbox|user)|mailbox unavailable|"
    r"recipient (?:address )?(?:rejected: )?(?:undeliverable|unknown|not found|address rejected)|"
    r"recipientnotfound|recipient not found|unrouteable address|not a (?:valid|known) (?:user|mailbox|recipient)|"
    r"bad destination mailbox|is not (?:a )?(?:known|valid)|adresse.{0,20}inconnue|unbekannt",
    re.I,
)
_DOMAIN = re.compile(
    r"(?:domain|host) (?:name )?(?:.{0,60} )?(?:not found|does not exist|unknown|doesn'?t exist|has no mx)|"
    r"no mx|null ?mx|"
    r"does not accept (?:mail|email)|all relevant mx|nxdomain|unrouteable mail domain",
    re.I,
)
_PROTOCOL = re.compile(
    r"bad sequence|syntax|unrecogni[sz]ed command|command not|must issue a starttls|starttls (?:first|required)|"
    r"authentication (?:is )?required|auth(?:entication)? (?:required|needed)|nested mail|need (?:mail|rcpt)",
    re.I,
)

_BY_SUBJECT: dict[tuple[int, int], ReplyClass] = {
    (1, 1): ReplyClass.UNKNOWN_MAILBOX,
    (1, 2): ReplyClass.BAD_DOMAIN,
    (1, 3): ReplyClass.UNKNOWN_MAILBOX,  # bad destination mailbox address syntax
    (1, 6): ReplyClass.UNKNOWN_MAILBOX,  # moved, no forwarding address
    (1, 7): ReplyClass.POLICY,  # about the sender's address
    (1, 8): ReplyClass.POLICY,
    (1, 10): ReplyClass.BAD_DOMAIN,  # null MX, RFC 7505
    (2, 0): ReplyClass.INACTIVE_MAILBOX,
    (2, 1): ReplyClass.INACTIVE_MAILBOX,
    (2, 2): ReplyClass.MAILBOX_FULL,
    (4, 4): ReplyClass.BAD_DOMAIN,
    (6, 0): ReplyClass.CONTENT,
}
_TRANSIENT_NAMES = {ReplyClass.MAILBOX_FULL, ReplyClass.GREYLISTED, ReplyClass.RATE_LIMITED, ReplyClass.POLICY}


def enhanced_code(code: int, text: str) -> str:
    """The enhanced status code that opens a reply's text, or "" (RFC 2034 §4: its class must match the code's)."""
    match = _ENHANCED.match(text)
    if match is None or match[1] != str(code)[:1]:
        return ""
    return match[0]


def classify(code: int, enhanced: str, text: str) -> ReplyClass:
    """What a reply means. ``code`` 0 or anything outside 200–599 is ``PROTOCOL``."""
    if 200 <= code < 400:
        return ReplyClass.ACCEPTED
    if not 400 <= code < 600:
        return ReplyClass.PROTOCOL
    named = _by_words(code, enhanced, text)
    if code < 500:
        if named is ReplyClass.CONTENT:
            return ReplyClass.POLICY
        return named if named in _TRANSIENT_NAMES else ReplyClass.DEFERRED
    return named or ReplyClass.REJECTED


def _by_words(code: int, enhanced: str, text: str) -> ReplyClass | None:
    subject = _subject(enhanced)
    if code < 500 and _GREY.search(text):
        return ReplyClass.GREYLISTED
    if subject in {(2, 3), (3, 4)}:
        return ReplyClass.TOO_LARGE
    if _RATE.search(text) or subject in {(7, 28), (4, 5), (3, 2)}:
        return ReplyClass.RATE_LIMITED if code < 500 else ReplyClass.POLICY
    if _FULL.search(text) or subject == (2, 2):
        return ReplyClass.MAILBOX_FULL
    if code in {500, 501, 502, 503, 504, 530, 534, 535, 538} and subject[0] not in {1, 2}:
        return ReplyClass.PROTOCOL
    if _LARGE.search(text):
        return ReplyClass.TOO_LARGE
    if subject == (1, 1) and _UNKNOWN.search(text) and not re.search(r"block|spamhaus|reputation|rbl", text, re.I):
        return ReplyClass.UNKNOWN_MAILBOX  # "5.1.1 … access denied … user unknown": the code and the words agree
    if _POLICY.search(text):
        return ReplyClass.POLICY
    if _CONTENT.search(text):
        return ReplyClass.CONTENT
    if _DOMAIN.search(text):
        return ReplyClass.BAD_DOMAIN
    if _INACTIVE.search(text):
        return ReplyClass.INACTIVE_MAILBOX
    if subject[0] == 7:
        return ReplyClass.POLICY
    if _UNKNOWN.search(text):
        return ReplyClass.UNKNOWN_MAILBOX
    if subject in _BY_SUBJECT:
        return _BY_SUBJECT[subject]
    if _PROTOCOL.search(text) or subject[0] == 5:
        return ReplyClass.PROTOCOL
    return ReplyClass.TOO_LARGE if code == 552 else None


def _subject(enhanced: str) -> tuple[int, int]:
    match = _ENHANCED.match(enhanced)
    return (int(match[2]), int(match[3])) if match else (0, 0)


_ADDRESS = re.compile(
    r"""(?:"[^"@\r\n]{0,64}"|[^\s<>"(),:;\[\]@]{1,128})@(?:[^\s<>"'(),:;\[\]=@]{1,255}|\[[^\]\s]{1,64}\])"""
)
_BARE_USER = re.compile(r"(?<=<)[^<>\s]{1,320}(?=>)")
_TOKEN = re.compile(r"[A-Za-z0-9_-]{60,}")


def redact(text: str) -> str:
    """The reply with every address, and everything in angle brackets, replaced by ``<address>``; long tokens cut."""
    if "@" in text or "<" in text:
        text = _ADDRESS.sub("<address>", text)
        text = _BARE_USER.sub("address", text)
        text = text.replace("<<address>>", "<address>")
    return _TOKEN.sub("…", text)
