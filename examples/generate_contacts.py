"""Make up the customers of Fjord & Fern: CSV files as a shop's export would be, with everything that goes wrong in one.

    python examples/generate_contacts.py FOLDER [--people 20000] [--seed 7]

The same seed gives the same files, byte for byte. Nobody in them exists; the domains of real mailbox providers are
there for a realistic mix, and all mail of the demo stays on this machine.

    contacts.csv      confirmed customers; about 150 rows can't be imported, about 150 come twice
    pending.csv       signed up, never confirmed
    unsubscribed.csv  customers who left at the old system
    suppressed.csv    addresses and domains that must never get mail
"""

import argparse
import csv
import io
import random
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

from faker import Faker

COLUMNS = (
    "E-Mail", "First name", "Last name", "Language", "Time zone", "City", "Customer since", "Tier", "Points",
    "Favourite category", "VIP", "Signed up at", "Signed up from", "Sign-up IP",
)  # fmt: skip
AS_OF = date(2025, 10, 31)  # fixed, so that the files don't depend on the day they are made
FIRST_NAMES, LAST_NAMES, CITIES = 220, 320, 60

# locale of the names, language tag, time zone, share in per mille
LOCALES = (
    ("en_GB", "en-GB", "Europe/London", 250),
    ("en_US", "en-US", "America/New_York", 90),
    ("de_DE", "de", "Europe/Berlin", 210),
    ("de_AT", "de-AT", "Europe/Vienna", 35),
    ("fr_FR", "fr", "Europe/Paris", 80),
    ("it_IT", "it", "Europe/Rome", 50),
    ("es_ES", "es", "Europe/Madrid", 50),
    ("pl_PL", "pl", "Europe/Warsaw", 45),
    ("no_NO", "nb", "Europe/Oslo", 60),
    ("sv_SE", "sv", "Europe/Stockholm", 40),
    ("nl_NL", "nl", "Europe/Amsterdam", 30),
    ("tr_TR", "tr", "Europe/Istanbul", 15),
    ("el_GR", "el", "Europe/Athens", 15),
    ("uk_UA", "uk", "Europe/Kyiv", 15),
    ("ja_JP", "ja", "Asia/Tokyo", 15),
)
# domain, share in per mille: gmail 67 %, outlook and hotmail 9 %, yahoo 6 %, the rest spread
DOMAINS = (
    ("gmail.com", 655), ("googlemail.com", 15), ("outlook.com", 38), ("hotmail.com", 32), ("hotmail.co.uk", 10),
    ("live.nl", 4), ("outlook.fr", 6), ("yahoo.com", 40), ("yahoo.co.uk", 12), ("yahoo.fr", 8), ("gmx.de", 18),
    ("gmx.net", 8), ("web.de", 20), ("t-online.de", 9), ("freenet.de", 4), ("icloud.com", 22), ("me.com", 4),
    ("orange.fr", 9), ("free.fr", 7), ("laposte.net", 4), ("libero.it", 9), ("aol.com", 6), ("proton.me", 8),
    ("wp.pl", 8), ("onet.pl", 5), ("btinternet.com", 6), ("comcast.net", 4),
    ("fjellpost.example", 6), ("nordlys-post.example", 5), ("wald-und-wiese.example", 4), ("studio-linden.example", 3),
    ("harbour-cycles.example", 3), ("bergschule-tirol.example", 2), ("müller-söhne.example", 2),
    ("café-brûlé.example", 1), ("blåbær.example", 1), ("πρωινό.example", 1), ("例え.example", 1),
)  # fmt: skip
# What a provider with a country's domain is used for: elsewhere people take one of the international ones.
HOME_OF = {
    "hotmail.co.uk": ("en",), "yahoo.co.uk": ("en",), "btinternet.com": ("en",), "comcast.net": ("en",),
    "live.nl": ("nl",),
    "outlook.fr": ("fr",), "yahoo.fr": ("fr",), "orange.fr": ("fr",), "free.fr": ("fr",), "laposte.net": ("fr",),
    "gmx.de": ("de",), "gmx.net": ("de",), "web.de": ("de",), "t-online.de": ("de",), "freenet.de": ("de",),
    "libero.it": ("it",), "wp.pl": ("pl",), "onet.pl": ("pl",), "πρωινό.example": ("el",), "例え.example": ("ja",),
    "fjellpost.example": ("nb", "sv"), "nordlys-post.example": ("nb", "sv"), "blåbær.example": ("nb", "sv"),
    "wald-und-wiese.example": ("de",), "bergschule-tirol.example": ("de",), "müller-söhne.example": ("de",),
    "café-brûlé.example": ("fr",),
}  # fmt: skip
# faker's Italian cities come in another order in each process
CITIES_OF = {
    "it_IT": ["Torino", "Milano", "Aosta", "Bolzano", "Trento", "Verona", "Bologna", "Firenze", "Roma", "Lecco"]
}
CATEGORIES = ("Hiking", "Climbing", "Camping", "Trail running", "Kayaking", "Ski touring", "Cycling", "Fishing")
SIGNUP_PAGES = (
    "https://fjordfern.example/newsletter", "https://fjordfern.example/checkout", "shop Oslo", "shop Hamburg",
    "https://fjordfern.example/trail-guide", "spring fair 2024",
)  # fmt: skip
SPECIAL = str.maketrans({"ø": "o", "ł": "l", "æ": "ae", "ß": "ss", "ı": "i", "đ": "d", "œ": "oe", "å": "aa"})
NICKS = ("trail", "fjord", "pine", "summit", "river", "moss", "granite", "lichen")
ANIMALS = ("fox", "heron", "otter", "lynx", "marten", "puffin", "elk", "wren")

Row = list[str]


@dataclass(frozen=True)
class Pool:
    """Names of one locale, drawn once: asking faker for every row would take a minute."""

    language: str
    timezone: str
    first: list[str]
    last: list[str]
    cities: list[str]


class People:
    """A stream of made-up customers whose addresses are all different."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self._pools = [_pool(locale, language, zone, seed) for locale, language, zone, _ in LOCALES]
        self._domains = {tag.split("-")[0]: domains_of(tag.split("-")[0]) for _, tag, _, _ in LOCALES}
        self._taken: set[str] = set()

    def row(self) -> Row:
        r = self.random
        (pool,) = r.choices(self._pools, [share for *_, share in LOCALES])
        first, last = r.choice(pool.first), r.choice(pool.last)
        (domain,) = r.choices(*self._domains[pool.language.split("-")[0]])
        since = AS_OF - timedelta(days=int(r.triangular(0, 2400, 300)))
        signed_up = datetime(since.year, since.month, since.day, tzinfo=UTC) + timedelta(seconds=r.randrange(86_400))
        (tier,) = r.choices(("bronze", "silver", "gold"), (70, 22, 8))
        points = int(r.expovariate(1 / {"bronze": 250, "silver": 1200, "gold": 4200}[tier]))
        return [
            self._address(first, last, domain), first, last, pool.language, pool.timezone, r.choice(pool.cities),
            since.isoformat(), tier, str(points), r.choice(CATEGORIES),
            "yes" if tier == "gold" and r.random() < 0.4 else "no",
            signed_up.isoformat().replace("+00:00", "Z"), r.choice(SIGNUP_PAGES), _ip(r),
        ]  # fmt: skip

    def _address(self, first: str, last: str, domain: str) -> str:
        r = self.random
        one, two = _ascii(first), _ascii(last)
        if not one or not two:  # a script that doesn't fold to ASCII: people choose a nickname
            one, two = r.choice(NICKS), r.choice(ANIMALS)
        style = r.randrange(5)
        local = (f"{one}.{two}", f"{one}{two}", f"{one[0]}.{two}", f"{one}_{two}", f"{two}.{one}")[style]
        if r.random() < 0.03:
            local += "+news"
        if r.random() < 0.05:
            local = local.title()
        while f"{local}@{domain}".casefold() in self._taken:
            local = f"{local}{r.randrange(10)}"
        self._taken.add(f"{local}@{domain}".casefold())
        return f"{local}@{domain}"


def domains_of(language: str) -> tuple[list[str], list[float]]:
    """Domains and weights for speakers of a language: a country's own providers only at home, where they count more.

    The weight of a home provider is divided by the share of its country: the whole keeps the mix of ``DOMAINS``.
    """
    spoken: dict[str, int] = {}
    for _, tag, _, count in LOCALES:
        spoken[tag.split("-")[0]] = spoken.get(tag.split("-")[0], 0) + count
    names, weights = [], []
    for name, share in DOMAINS:
        homes = HOME_OF.get(name)
        if homes is None:
            names.append(name)
            weights.append(float(share))
        elif language in homes:
            names.append(name)
            weights.append(share * 1000 / sum(count for lang, count in spoken.items() if lang in homes))
    return names, weights


def _pool(locale: str, language: str, timezone: str, seed: int) -> Pool:
    fake = Faker(locale)
    fake.seed_instance(f"{seed}/{locale}")
    return Pool(
        language,
        timezone,
        [fake.first_name() for _ in range(FIRST_NAMES)],
        [fake.last_name() for _ in range(LAST_NAMES)],
        CITIES_OF.get(locale) or [fake.city() for _ in range(CITIES)],
    )


def _ascii(name: str) -> str:
    folded = unicodedata.normalize("NFKD", name.lower().translate(SPECIAL)).encode("ascii", "ignore").decode()
    return "".join(c for c in folded if c.isalnum())


def _ip(r: random.Random) -> str:
    """From the ranges that documentation may use (RFC 5737, RFC 3849)."""
    if r.random() < 0.15:
        return f"2001:db8:{r.randrange(65536):x}::{r.randrange(1, 65536):x}"
    return f"{r.choice(('192.0.2', '198.51.100', '203.0.113'))}.{r.randrange(1, 255)}"


def line(row: Row) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\r\n").writerow(row)
    return text.getvalue().encode()


def _with(column: str, value: Callable[[str], str]) -> Callable[[Row], bytes]:
    index = COLUMNS.index(column)
    return lambda row: line([*row[:index], value(row[index]), *row[index + 1 :]])


def _latin1(row: Row) -> bytes:
    row = [*row[:1], "Jürgen", "Großmann", *row[3:]]
    return line(row).decode().encode("latin-1", "replace")


# Each makes one row that can't be imported, and why.
BROKEN: tuple[tuple[str, Callable[[Row], bytes]], ...] = (
    ("no @", _with("E-Mail", lambda a: a.replace("@", " at "))),
    ("two @", _with("E-Mail", lambda a: a.replace("@", "@@"))),
    ("a space in the address", _with("E-Mail", lambda a: a.replace("@", " @"))),
    ("nothing after the @", _with("E-Mail", lambda a: a.split("@")[0] + "@")),
    ("a domain without a dot", _with("E-Mail", lambda a: a.split("@")[0] + "@localhost")),
    ("a dot before the @", _with("E-Mail", lambda a: a.replace("@", ".@"))),
    ("a comma in the domain", _with("E-Mail", lambda a: a.rsplit(".", 1)[0] + ",com")),
    ("no address", _with("E-Mail", lambda _: "")),
    ("name and address", _with("E-Mail", lambda a: f"Customer <{a}>")),
    ("an address that is too long", _with("E-Mail", lambda a: "x" * 70 + a)),
    ("an American date", _with("Customer since", lambda d: f"{d[5:7]}/{d[8:10]}/{d[:4]}")),
    ("a day that doesn't exist", _with("Customer since", lambda d: f"{d[:4]}-02-30")),
    ("points with a comma", _with("Points", lambda p: f"{p},5")),
    ("points in words", _with("Points", lambda _: "many")),
    ("neither yes nor no", _with("VIP", lambda _: "maybe")),
    ("a time zone of another planet", _with("Time zone", lambda _: "Mars/Olympus_Mons")),
    ("a language in words", _with("Language", lambda _: "English (UK)")),
    ("consent in the future", _with("Signed up at", lambda d: "2206" + d[4:])),
    ("a wrong IP address", _with("Sign-up IP", lambda _: "300.1.2.3")),
    ("a control character", _with("First name", lambda n: f"{n}\x07")),
    ("a NUL byte", _with("Last name", lambda n: f"{n[:1]}\0{n[1:]}")),
    ("a name that is too long", _with("Last name", lambda n: n * 60 + "-" * 200)),
    ("a column too many", lambda row: line([*row, "?"])),
    ("columns missing", lambda row: line(row[:9])),
    ("Latin-1 in a UTF-8 file", _latin1),
    ("a quote that is never closed", lambda row: b'"' + line(row)),
)


def broken(people: People, count: int) -> Iterator[bytes]:
    for number in range(count):
        _, spoil = BROKEN[number % len(BROKEN)]
        yield spoil(people.row())


def again(r: random.Random, row: Row) -> Row:
    """The same customer once more, as shops have them: other capitals, another city, a name missing."""
    address = row[0].upper() if r.random() < 0.5 and row[0].isascii() else row[0]
    return [
        address,
        row[1],
        row[2] if r.random() < 0.7 else "",
        *row[3:5],
        row[5],
        *row[6:8],
        str(int(row[8]) + 50),
        *row[9:],
    ]


def generate(folder: Path, people_count: int = 20_000, seed: int = 7) -> dict[str, int]:
    """Write the four files into ``folder`` and return their rows. ``people_count`` is contacts.csv and pending.csv."""
    folder.mkdir(parents=True, exist_ok=True)
    people = People(seed)
    r = people.random
    share = people_count / 20_000
    pending = [people.row() for _ in range(round(400 * share))]
    bad = list(broken(people, round(150 * share)))
    twice_count = round(150 * share)
    good = [people.row() for _ in range(people_count - len(pending) - len(bad) - twice_count)]
    lines = [line(row) for row in good] + bad
    r.shuffle(lines)
    lines += [line(again(r, row)) for row in r.sample(good, twice_count)]  # after the first, which they replace
    leavers = r.sample(good, round(500 * share))
    left = {row[0] for row in leavers}
    barred = r.sample([row for row in good if row[0] not in left], round(240 * share))

    head = line(list(COLUMNS))
    (folder / "contacts.csv").write_bytes(b"\xef\xbb\xbf" + head + b"".join(lines))  # with a BOM, as Excel writes it
    (folder / "pending.csv").write_bytes(head + b"".join(map(line, pending)))
    (folder / "unsubscribed.csv").write_bytes(line(["E-Mail"]) + b"".join(line([row[0]]) for row in leavers))
    domains = ["@studio-linden.example", "@spamtrap.example"]
    suppressed = [row[0] for row in barred] + domains
    (folder / "suppressed.csv").write_bytes(line(["E-Mail"]) + b"".join(line([text]) for text in suppressed))
    return {
        "contacts.csv": len(lines),
        "pending.csv": len(pending),
        "unsubscribed.csv": len(leavers),
        "suppressed.csv": len(suppressed),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Make up the customers of Fjord & Fern.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--people", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=7)
    options = parser.parse_args()
    for name, rows in generate(options.folder, options.people, options.seed).items():
        print(f"{options.folder / name}: {rows:,} rows")


if __name__ == "__main__":
    main()
