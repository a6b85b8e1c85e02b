"""``mailfleet contacts|lists|attributes|suppress|seeds`` as an operator types them."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, select

from mailer_lib.database.engine import read
from mailer_lib.database.schema import audit_log

Command = Callable[..., Any]


@pytest.fixture
def shop(mailfleet: Command, sqlite_engine: Engine, tmp_path: Path) -> Path:
    """A list, attributes and a file with three customers, one of them unreadable."""
    assert mailfleet("lists", "add", "newsletter", "--title", "Fjord & Fern News").code == 0
    assert mailfleet("attributes", "declare", "city=text", "points=number").code == 0
    file = tmp_path / "people.csv"
    file.write_text(
        "E-Mail,First name,City,Points,Shoe\nLena@x.org,Lena,Linz,12,39\nbo@x.org,Bo,York,0,44\nnobody,,,,\n"
    )
    return file


def load(mailfleet: Command, file: Path, *more: str) -> Any:
    return mailfleet("contacts", "import", file, "--list", "newsletter", "--consent", "confirmed", *more)


def actions(engine: Engine) -> list[str]:
    with read(engine) as connection:
        return list(connection.scalars(select(audit_log.c.action).order_by(audit_log.c.id)))


def test_import_and_show(mailfleet: Command, shop: Path) -> None:
    ran = load(mailfleet, shop, "--consent-at", "2026-03-01", "--consent-wording", "News, please")
    assert ran.code == 0
    for words in ("3  rows", "2  new contacts", "1  rejected", "columns not imported: Shoe", "people-"):
        assert words in ran.stdout
    ran = mailfleet("contacts", "show", "LENA@x.org")
    assert ran.code == 0
    for words in ("Lena@x.org", "attribute city", "Linz", "confirmed", "News, please", "people.csv"):
        assert words in ran.stdout


def test_columns_by_name(mailfleet: Command, shop: Path) -> None:
    shop.write_text("Kontakt=Mail;Ort\nlena@x.org;Linz\n")
    ran = load(mailfleet, shop, "--map", "Kontakt=Mail=address", "--attribute", "Ort=city", "--delimiter", ";")
    assert ran.code == 0
    assert "1  new contacts" in ran.stdout
    assert "--consent-at" in ran.stdout  # the consent has no date


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--map", "E-Mail"], "write COLUMN=NAME"),
        (["--map", "Mail=address"], "has no column 'Mail'"),
        (["--list", "news"], "there is no list 'news'"),
        (["--encoding", "klingon"], "klingon"),
        (["--attribute", "Shoe=size"], "there is no attribute 'size'"),
    ],
)
def test_mistakes_are_a_sentence(mailfleet: Command, shop: Path, more: list[str], words: str) -> None:
    ran = load(mailfleet, shop, *more)
    assert ran.code in (1, 2)
    assert words in ran.stderr
    assert "Traceback" not in ran.stderr


def test_a_file_that_is_not_there(mailfleet: Command, shop: Path) -> None:
    ran = load(mailfleet, shop.with_name("other.csv"))
    assert ran.code == 1
    assert "other.csv" in ran.stderr


def test_pending_says_what_is_missing_to_ask_them(mailfleet: Command, shop: Path) -> None:
    pending = ("contacts", "import", shop, "--list", "newsletter", "--consent", "pending")
    assert mailfleet(*pending, "--no-send").code == 0
    ran = mailfleet(*pending)
    assert ran.code == 1
    assert "mailfleet domain add" in ran.stderr
    assert "2  wait for confirmation" in ran.stdout
    assert mailfleet("contacts", "confirm-pending", "--list", "newsletter").code == 1


def test_leaving(mailfleet: Command, shop: Path) -> None:
    load(mailfleet, shop, "--consent-at", "2026-03-01")
    assert "1 unsubscribed" in mailfleet("contacts", "unsubscribe", "lena@x.org", "--list", "newsletter").stdout
    assert mailfleet("contacts", "unsubscribe", "lena@x.org", "--file", shop).code == 2
    shop.with_name("left.txt").write_text("lena@x.org\nbo@x.org\n???\n")
    ran = mailfleet("contacts", "unsubscribe", "--file", shop.with_name("left.txt"), "--list", "newsletter")
    assert "1 unsubscribed, 1 were already, 1 lines can't be read" in ran.stdout
    assert "line 3: there is no @ in it" in ran.stdout
    assert "2  stay out: unsubscribed" in load(mailfleet, shop).stdout


def test_suppressing(mailfleet: Command, shop: Path) -> None:
    assert mailfleet("suppress", "check", "lena@x.org").code == 1
    assert mailfleet("suppress", "add", "Lena@x.org").stdout.strip() == "suppressed"
    ran = mailfleet("suppress", "check", "lena@x.org")
    assert ran.code == 0
    assert "everywhere: manual" in ran.stdout
    assert mailfleet("suppress", "lift", "lena@x.org").stdout.strip() == "1 lifted"
    assert mailfleet("suppress", "add", "@X.org").code == 0
    assert "the domain x.org" in mailfleet("suppress", "check", "lena@x.org").stdout
    assert mailfleet("suppress", "lift", "@x.org").code == 0
    assert mailfleet("suppress", "add", "lena").code == 1


def test_suppressing_a_file(mailfleet: Command, shop: Path) -> None:
    ran = mailfleet("suppress", "import", shop)
    assert ran.code == 0
    assert "2 suppressed, 0 were already, 1 lines can't be read" in ran.stdout


def test_declaring_attributes(mailfleet: Command, shop: Path) -> None:
    assert mailfleet("attributes", "declare", "vip=maybe").code == 2
    assert mailfleet("attributes", "declare", "points=text").code == 1
    ran = mailfleet("attributes", "declare", "points=number", "vip=boolean")
    assert "1 declared, 1 were there already" in ran.stdout
    assert "boolean" in mailfleet("attributes", "list").stdout


def test_lists_and_seeds(mailfleet: Command, shop: Path) -> None:
    load(mailfleet, shop)
    assert "Fjord & Fern News" in mailfleet("lists", "list").stdout
    assert "is there already" in mailfleet("lists", "add", "newsletter").stdout
    assert mailfleet("seeds", "add", "team", "ann@x.org", "--name", "Ann").code == 0
    assert "ann@x.org" in mailfleet("seeds", "list", "team").stdout
    assert mailfleet("seeds", "remove", "team", "ann@x.org").code == 0
    assert "ann@x.org" not in mailfleet("seeds", "list").stdout


def test_who_did_what_is_recorded_without_addresses(mailfleet: Command, shop: Path, sqlite_engine: Engine) -> None:
    load(mailfleet, shop)
    mailfleet("contacts", "show", "lena@x.org")
    mailfleet("contacts", "unsubscribe", "lena@x.org")
    mailfleet("suppress", "add", "lena@x.org")
    mailfleet("suppress", "lift", "lena@x.org")
    mailfleet("seeds", "add", "team", "lena@x.org")
    assert actions(sqlite_engine) == [
        "lists.add", "attributes.declare", "attributes.declare", "contacts.import.begin", "contacts.import",
        "contacts.show", "contacts.unsubscribe", "suppress.add", "suppress.lift", "seeds.add",
    ]  # fmt: skip
    with read(sqlite_engine) as connection:
        assert not any("lena" in repr(tuple(row)) for row in connection.execute(select(audit_log)))


def test_export_and_erase(mailfleet: Command, shop: Path, sqlite_engine: Engine) -> None:
    load(mailfleet, shop)
    known = json.loads(mailfleet("contacts", "export", "LENA@x.org").stdout)
    assert (known["contact"]["given_name"], known["subscriptions"][0]["state"]) == ("Lena", "confirmed")
    ran = mailfleet("contacts", "erase", "Lena@X.org")
    assert ran.code == 0, ran.stderr
    assert "erased: 1 contact, 1 subscriptions" in ran.stdout and "also there: backups" in ran.stdout
    assert "lena" not in ran.stdout.lower()
    assert json.loads(mailfleet("contacts", "export", "lena@x.org").stdout)["contact"] is None
    assert mailfleet("suppress", "check", "lena@x.org").code == 0
    assert mailfleet("contacts", "erase", "--finish").code == 0
    assert mailfleet("contacts", "erase").code == 2
    assert mailfleet("contacts", "erase", "lena").code != 0
    assert actions(sqlite_engine)[-4:] == [
        "contacts.export",
        "contacts.erase",
        "contacts.erase.files",
        "contacts.export",
    ]


def test_a_dry_run_and_the_import_itself(mailfleet: Command, shop: Path, sqlite_engine: Engine) -> None:
    ran = load(mailfleet, shop, "--dry-run")
    assert ran.code == 0, ran.stderr
    for words in ("nothing was written", "2  new contacts", "line 4, E-Mail: there is no @ in it"):
        assert words in ran.stdout
    assert mailfleet("contacts", "show", "lena@x.org").code == 1
    assert "contacts.import" not in actions(sqlite_engine)


def test_many_contacts_as_a_file(mailfleet: Command, shop: Path, sqlite_engine: Engine) -> None:
    load(mailfleet, shop, "--consent-at", "2026-03-01")
    rules = shop.with_name("linz.json")
    rules.write_text('{"combinator": "and", "rules": [{"field": "attribute.city", "operator": "=", "value": "Linz"}]}')
    assert mailfleet("criteria", "save", "linz", rules).code == 0
    all_of_list, some = shop.with_name("all.parquet"), shop.with_name("some.csv")
    assert "2 contacts in" in mailfleet("contacts", "export", all_of_list, "--list", "newsletter").stdout
    assert "1 contacts in" in mailfleet("contacts", "export", some, "--criteria", "linz").stdout
    assert some.read_text().splitlines()[1] == "Lena@x.org,Lena,,,,,,,,Linz,12"
    assert load(mailfleet, all_of_list).stdout.count("2  unchanged") == 1
    assert actions(sqlite_engine).count("contacts.export.file") == 2
    assert "exists already" in mailfleet("contacts", "export", some, "--list", "newsletter").stderr


# --- profiles and hash lists ------------------------------------------------------------------------------------------

SHOP_YAML = """\
fields: {address: E-Mail, given_name: First name}
consent: {state: confirmed, at: {value: 2026-03-01}}
lists:
  - list: newsletter
  - {list: offers, column: City, yes: [Linz], no: [York]}
"""


def test_an_import_by_a_profile_reports_by_list(mailfleet: Command, shop: Path, tmp_path: Path) -> None:
    assert mailfleet("lists", "add", "offers", "--title", "Offers").code == 0
    profile = tmp_path / "shop.yaml"
    profile.write_text(SHOP_YAML)
    for more in (["--dry-run"], []):
        ran = mailfleet("contacts", "import", shop, "--profile", profile, *more)
        assert ran.code == 0
        for words in ("2  new contacts", "1  rejected", "2  confirmed for newsletter", "1  confirmed for offers"):
            assert words in ran.stdout
    ran = mailfleet("contacts", "show", "lena@x.org")
    assert "newsletter" in ran.stdout and "offers" in ran.stdout


def test_a_profile_and_options_exclude_each_other(mailfleet: Command, shop: Path, tmp_path: Path) -> None:
    ran = load(mailfleet, shop, "--profile", str(tmp_path / "shop.yaml"))
    assert (ran.code, "--list and --profile: say it in" in ran.stderr) == (2, True)
    ran = mailfleet("contacts", "import", shop)
    assert (ran.code, "or --profile FILE" in ran.stderr) == (2, True)


def test_a_mistake_in_a_profile_is_one_line(mailfleet: Command, shop: Path, tmp_path: Path) -> None:
    profile = tmp_path / "shop.yaml"
    profile.write_text(SHOP_YAML)
    ran = mailfleet("contacts", "import", shop, "--profile", profile)
    assert ran.code == 1
    assert f"{profile}, line 5, lists[1].list: there is no list 'offers'" in ran.stderr.replace("\n", " ")


def test_hash_lists_from_import_to_drop(mailfleet: Command, shop: Path, tmp_path: Path, sqlite_engine: Engine) -> None:
    load(mailfleet, shop)
    file = tmp_path / "partner.txt"
    lena = hashlib.sha256(b"lena@x.org").hexdigest()
    file.write_text(f"{lena.upper()}\nnot-a-hash\n")
    ran = mailfleet("suppress", "import", file, "--hashes", "sha256", "--name", "partner")
    assert ran.code == 0
    for words in ("1 hashes new", "1 lines can't be read", "1 contacts suppressed by it now", "line 2:"):
        assert words in ran.stdout
    (rejects,) = (p for p in tmp_path.rglob("rejects/partner-*.csv"))
    assert "hash,rejected_line" in rejects.read_text(encoding="utf-8-sig") and "not-a-hash,2" in rejects.read_text()
    mended = tmp_path / "mended.csv"
    mended.write_text(rejects.read_text(encoding="utf-8-sig").replace("not-a-hash", lena))
    ran = mailfleet("suppress", "import", mended, "--hashes", "sha256", "--name", "partner")
    assert "0 hashes new, 1 were there, 0 lines" in ran.stdout
    assert "on the hash list partner" in mailfleet("suppress", "check", "lena@x.org").stdout
    assert "partner" in mailfleet("suppress", "lists").stdout
    assert json.loads(mailfleet("contacts", "export", "lena@x.org").stdout)["hash_lists"] == ["partner"]
    assert "1 hashes forgotten, 1 suppressions lifted" in mailfleet("suppress", "drop-list", "partner").stdout
    assert mailfleet("suppress", "check", "lena@x.org").code == 1
    assert {"suppress.import", "suppress.drop-list"} <= set(actions(sqlite_engine))


def test_addresses_that_cannot_be_read_land_in_a_rejects_file(mailfleet: Command, shop: Path, tmp_path: Path) -> None:
    file = tmp_path / "never.txt"
    file.write_text("lena@x.org\nlena@\n")
    ran = mailfleet("suppress", "import", file)
    assert "1 suppressed, 0 were already, 1 lines can't be read" in ran.stdout
    (rejects,) = (p for p in tmp_path.rglob("rejects/never-*.csv"))
    rejects.write_text(rejects.read_text(encoding="utf-8-sig").replace("lena@,", "bo@x.org,"))
    assert "1 suppressed, 0 were already, 0 lines" in mailfleet("suppress", "import", rejects).stdout
