"""Text as MIME wants it, already in the form that DKIM's relaxed canonicalisation gives.

Bodies: quoted-printable (RFC 2045 §6.7), at most 76 columns, CRLF. A *segment* (a static run or one value) ends with a
soft line break, so it starts and ends at column 0 and segments can be joined in any order. What relaxed
canonicalisation would change (RFC 6376 §3.4.4: runs of white space, white space at a line's end) is encoded, and so is
a dot at a line's start (RFC 5321 §4.5.2) and "From " there (mbox), so nothing on the road has a reason to touch a line.

Headers: RFC 2047 encoded-words. Whatever comes from data is cleaned first: a CR, LF, NUL or other control character
never reaches a header.
"""

import binascii
import re

SOFT_BREAK = b"=\r\n"
LINE_CHARS = 75  # and the "=" of the soft break
HEADER_LINE_CHARS = 76  # RFC 2047 §2: lines that hold encoded-words
ENCODED_WORD_CHARS = 75

_UNSAFE = re.compile(rb"[^ !-<>-~]")
_SPACES = re.compile(rb"  +")
_PLAIN_VALUE = re.compile(r"(?!From )[!-\-/-<>-~](?: ?[!-<>-~])*")
_HEX = {bytes([code]): b"=%02X" % code for code in range(256)}
_DOT, _SPACE, _EQUALS = 0x2E, 0x20, 0x3D

_FOLDED = "\r\n "
_CONTROL = re.compile("[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\ud800-\udfff]")
_ATOMS = re.compile(r"[A-Za-z0-9!#$%&'*+\-/=?^_`{|}~]+(?: [A-Za-z0-9!#$%&'*+\-/=?^_`{|}~]+)*")
_ASCII_WORDS = re.compile(r"[ -~]*")


def quoted_printable(text: str, *, last: bool = False) -> bytes:
    """One segment of a body. ``text`` has "\\n" for a line break; a stray "\\r" is kept, encoded.

    The segment ends with a soft break, or with CRLF when it is the ``last`` of its part: an encoded object must not end
    with a soft break (RFC 2045 §6.7, note 3). An empty text is an empty segment.
    """
    out: list[bytes] = []
    lines = text.split("\n")
    for number, line in enumerate(lines, 1):
        raw = _UNSAFE.sub(lambda match: _HEX[match[0]], line.encode("utf-8", "replace"))
        raw = _SPACES.sub(lambda match: b" " + b"=20" * (len(match[0]) - 1), raw)
        hard = last or number < len(lines)
        if hard and raw.endswith(b" "):
            raw = raw[:-1] + b"=20"
        start, size = 0, len(raw)
        while True:
            head = b""
            if start < size:
                if raw[start] in {_SPACE, _DOT}:
                    head, start = _HEX[raw[start : start + 1]], start + 1
                elif raw.startswith(b"From ", start):
                    head, start = b"=46", start + 1
            end = start + LINE_CHARS - len(head)
            if end >= size:
                break
            if raw[end - 1] == _EQUALS:  # never inside =XX
                end -= 1
            elif raw[end - 2] == _EQUALS:
                end -= 2
            out += (head, raw[start:end], SOFT_BREAK)
            start = end
        out += (head, raw[start:])
        if hard:
            out.append(b"\r\n")
        elif head or start < size:
            out.append(SOFT_BREAK)
    return b"".join(out)


def quoted_printable_value(text: str) -> bytes:
    """``quoted_printable``, quick for what most values are: a short line of plain ASCII."""
    if len(text) <= LINE_CHARS and _PLAIN_VALUE.fullmatch(text):
        return text.encode("ascii") + SOFT_BREAK
    return quoted_printable(text)


def clean(text: str) -> str:
    """One line for a header: control characters and lone surrogates go, every run of white space becomes one space."""
    if text.isascii() and text.isprintable() and "  " not in text:
        return text.strip(" ")
    return " ".join(_CONTROL.sub(" ", text).split())


def unstructured(text: str, name_chars: int) -> str:
    """The value of a header such as Subject, folded with CRLF + space; ``name_chars`` is the length of "Subject: "."""
    text = clean(text)
    if _ASCII_WORDS.fullmatch(text) and "=?" not in text:
        if len(text) + name_chars <= HEADER_LINE_CHARS:
            return text
        words = text.split(" ")
        if max(map(len, words)) + name_chars <= HEADER_LINE_CHARS:
            return _fold(words, name_chars)
    return encoded_words(text, name_chars)


def mailbox(name: str, address: str, name_chars: int) -> str:
    """``display name <address>`` for From, To, Reply-To; ``address`` has been checked by the caller."""
    before = phrase(name, name_chars)
    if not before:
        return address
    fits = _FOLDED not in before and name_chars + len(before) + len(address) + 2 <= HEADER_LINE_CHARS
    return f"{before}<{address}>" if fits else f"{before[:-1]}{_FOLDED}<{address}>"


def phrase(name: str, name_chars: int) -> str:
    """A display name with a space after it, ready for what stands in angle brackets; empty for an empty name."""
    name = clean(name)
    if not name:
        return ""
    if name.isascii() and "=?" not in name and len(name) + name_chars <= HEADER_LINE_CHARS - len('"" '):
        if _ATOMS.fullmatch(name):
            return f"{name} "
        return '"' + name.replace("\\", "\\\\").replace('"', '\\"') + '" '
    return encoded_words(name, name_chars) + " "


def encoded_words(text: str, name_chars: int) -> str:
    """RFC 2047 "B" words, each of whole characters, one a line."""
    raw = text.encode("utf-8", "replace")
    words, start, room = [], 0, _base64_room(HEADER_LINE_CHARS - name_chars)
    while True:
        end = start + room
        while end < len(raw) and raw[end] & 0xC0 == 0x80:  # a continuation byte: not between characters
            end -= 1
        words.append(f"=?utf-8?b?{binascii.b2a_base64(raw[start:end], newline=False).decode()}?=")
        if end >= len(raw):
            return _FOLDED.join(words)
        start, room = end, _base64_room(HEADER_LINE_CHARS - 1)


def _base64_room(chars: int) -> int:
    """Bytes that fit an encoded-word of so many characters."""
    return max(4, (min(chars, ENCODED_WORD_CHARS) - len("=?utf-8?b??=")) // 4 * 3)


def _fold(words: list[str], name_chars: int) -> str:
    out, column = [words[0]], name_chars + len(words[0])
    for word in words[1:]:
        if column + 1 + len(word) > HEADER_LINE_CHARS:
            out.append("\r\n ")
            column = 1 + len(word)
        else:
            out.append(" ")
            column += 1 + len(word)
        out.append(word)
    return "".join(out)
