"""The quick way of reading rows gives what the exact way gives, or leaves the row to it."""

import hashlib
import json
from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st

from mailer_lib.contacts.columns import map_columns
from mailer_lib.contacts.plain_rows import FIELDS, PlainReader
from mailer_lib.contacts.providers import provider_of
from mailer_lib.contacts.rows import ConsentDefaults, RowParser, RowProblemError
from mailer_lib.database.bulk import moment_text
from mailer_lib.terms import AttributeType

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
TYPES = {
    "city": AttributeType.TEXT, "since": AttributeType.DATE, "points": AttributeType.NUMBER,
    "vip": AttributeType.BOOLEAN, "size": AttributeType.ENUM, "likes": AttributeType.TEXT_LIST,
}  # fmt: skip
HEADER = [
    "E-Mail", "First name", "Last name", "Language", "Time zone", "City", "Since", "Points", "VIP", "Size", "Likes",
    "Signed up at", "Signed up from", "Consent wording", "Sign-up IP",
]  # fmt: skip
TEXT = st.sampled_from(
    ["", " ", "Lena", " Lena  Ann ", "J\u00fcrgen", "Ju\u0308rgen", "a\tb", "a\nb", "a\x00b", "\x85", "\u2028", "NULL",
     "\\N", "\\", '"', "x" * 201, "\udcfc", "🌿"]
) | st.text(max_size=6)  # fmt: skip
ADDRESS = st.sampled_from(
    ["lena@example.org", " Lena@Example.org ", "LENA@bücher.example", "müller@x.org", "ß@x.org", "a..b@x.org", "a@b",
     "x", "", "a b@x.org", '"a"@x.org', "a@[1.2.3.4]", "a@x.org.", "a@-x.org", "a@xn--bcher-kva.example", "a@x.123",
     "\\@x.org",
         "a" * 65 + "@x.org"]
) | st.from_regex(r"[a-zA-Z.+_é-]{1,8}@[a-zA-Z-]{1,4}\.[a-z]{2}", fullmatch=True)  # fmt: skip
MOMENT = st.sampled_from(
    ["", "2025-01-02", "2025-01-02T03:04:05Z", "2025-01-02 03:04", "31.12.2024", "31.12.2024 18:00", "20250101",
     "2025-01-02T03:04:05+05:30", "2025-W09-6T10:22:33Z", "1989-12-31", "1990-01-01", "1990-01-01T00:00:00+01:00",
     "2026-11-25T11:59", "2026-11-25T12:01", "2999-01-01", "0001-01-01T00:00+05:00", " 2025-01-02 ", "soon"]
) | st.datetimes().map(lambda m: m.isoformat())  # fmt: skip
ROW = st.tuples(
    ADDRESS, TEXT, TEXT, st.sampled_from(["", "de", "de_at", "klingon!"]),
    st.sampled_from(["", "europe/berlin", "Mars/x"]), TEXT,
    st.sampled_from(["", "2024-12-31", "31.12.2024", "12/31/2024", "2024-02-30"]),
    st.sampled_from(["", "12", "12.50", "-3", "1e3", "1,5", "007"]), st.sampled_from(["", "yes", "Nein", "perhaps"]),
    st.sampled_from(["", "small", "Small"]), st.sampled_from(["", "a|b| a", "|", "a\u0085"]), MOMENT, TEXT, TEXT,
    st.sampled_from(["", "192.0.2.1", "2001:DB8::1", "1.2.3"]),
).map(list)  # fmt: skip
ROWS = st.lists(ROW | ROW.map(lambda row: row[:-1]), max_size=12)


def address_hash(normalised: str) -> bytes:
    return hashlib.blake2b(normalised.encode(), digest_size=16).digest()


@given(rows=ROWS, again=ROWS, default_at=st.sampled_from([None, datetime(2025, 5, 1, tzinfo=UTC)]))
def test_a_plain_row_says_what_the_exact_way_says(
    rows: list[list[str]], again: list[list[str]], default_at: datetime | None
) -> None:
    columns = map_columns("people.csv", HEADER, TYPES, {}, {})
    defaults = ConsentDefaults(default_at, "people.csv", "News, please")
    parser = RowParser(columns, TYPES, defaults, NOW, {"size": ["small", "large"]})
    reader = PlainReader(parser, address_hash)
    for batch in (rows, again):  # what a reader remembers of one batch must be true of the next
        plain = reader.read(batch)
        for index, place in enumerate(plain.places):
            exact = parser.parse(batch[place])
            assert (plain.given[index], plain.normalised[index], plain.domains[index]) == (
                exact.address.given, exact.address.normalised, exact.address.domain,
            )  # fmt: skip
            assert plain.keys[index] == address_hash(exact.address.normalised)
            assert plain.providers[index] == provider_of(exact.address.domain)
            fields = (plain.given_names, plain.family_names, plain.locales, plain.timezones)
            assert {
                f.value: c[index] for f, c in zip(FIELDS, fields, strict=True) if c[index] is not None
            } == exact.fields
            assert plain.attributes[index] == json.dumps(exact.attributes, ensure_ascii=False, sort_keys=True)
            evidence = exact.evidence[0]
            assert (plain.at[index], plain.sources[index], plain.wordings[index], plain.ips[index]) == (
                moment_text(evidence.at), evidence.source, evidence.wording, evidence.ip,
            )  # fmt: skip
        for place in set(range(len(batch))) - set(plain.places):
            try:
                parser.parse(batch[place])
            except RowProblemError:
                continue
            assert not "".join(batch[place]).isascii(), "the usual row is left to the exact way"
