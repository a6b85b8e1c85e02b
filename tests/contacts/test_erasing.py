"""What is taken out of a rejects file, and what of the central rows."""

import pytest

from mailer_lib.contacts import consent
from mailer_lib.contacts.address import normalise
from mailer_lib.contacts.erasing import ErasedRows, erase_rows, without_person
from mailer_lib.contacts.seeds import add_seed
from mailer_lib.database.engine import read, write
from mailer_lib.database.schema import consent_events, subscriptions
from tests.contacts.world import World, at

HEAD = "E-Mail;Name;rejected_line;rejected_column;rejected_reason;rejected_raw\r\n"


def test_rows_that_name_the_person_go_and_others_stay_byte_by_byte() -> None:
    mine = "LEA@x.org;Lea;2;points;no number;\r\n" + ';;4;;an open quote;"7;<lea@X.org>;""oops"\r\n'
    others = "leah@x.org;Léa;3;points;no number;\r\nnobody;;5;E-Mail;there is no @ in it;\r\n"
    for encoding in ("utf-8", "latin-1"):
        data, dropped = without_person((HEAD + mine + others).encode(encoding), normalise("lea@x.org"))
        assert (data, dropped) == ((HEAD + others).encode(encoding), 2)


def erase(world: World, address: str = "lea@x.org") -> ErasedRows:
    person = normalise(address)
    with write(world.engine) as connection:
        return erase_rows(connection, person, world.key(person.normalised), by="ann", at=at("2026-05-01"))


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1", "utf-16"])
def test_an_address_outside_ascii_is_found_in_any_encoding(encoding: str) -> None:
    text = HEAD + "müller@x.org;M;2;points;no number;\r\nmuller@x.org;M;3;points;no number;\r\n"
    data, dropped = without_person(text.encode(encoding), normalise("Müller@x.org"))
    assert dropped == 1
    assert data.decode(encoding) == HEAD + "muller@x.org;M;3;points;no number;\r\n"


def test_the_central_rows_go_and_the_evidence_loses_its_ip(world: World) -> None:
    text = "E-Mail,IP\nlea@x.org,192.0.2.7\nbo@x.org,192.0.2.8\n"
    path = world.settings.home / "people.csv"
    world.load(path, text, consent_at="2026-03-01", consent_ip="IP")
    with write(world.engine) as connection:
        for seed in ("Lea@x.org", "leah@x.org"):
            add_seed(connection, "team", seed)
    assert erase(world) == ErasedRows(contacts=1, subscriptions=1, ip_addresses=1, seeds=1)
    assert world.contact("lea@x.org") is None and world.contact("bo@x.org") is not None
    assert world.evidence("lea@x.org") == [("confirmed", at("2026-03-01"))]
    with read(world.engine) as connection:
        ips = connection.execute(consent_events.select().with_only_columns(consent_events.c.ip)).scalars().all()
        assert sorted(ips, key=str) == ["192.0.2.8", None]
        assert len(connection.execute(subscriptions.select()).all()) == 1
    assert world.active("lea@x.org") == [("erased", 0)]


def test_no_import_brings_them_back(world: World) -> None:
    path = world.settings.home / "people.csv"
    world.load(path, "E-Mail\nlea@x.org\n", consent_at="2026-03-01")
    erase(world)
    world.load(path, consent_at="2026-06-01")
    assert world.contact("lea@x.org") is None


def test_twice_is_the_same_as_once(world: World) -> None:
    for _ in range(2):
        erase(world)
    assert world.active("lea@x.org") == [("erased", 0)]
    assert world.evidence("lea@x.org") == []


def test_their_other_suppressions_stay(world: World) -> None:
    world.do(consent.unsubscribe, "lea@x.org", list_id=None, method="form", source=None, at=at("2026-01-01"))
    erase(world)
    assert world.active("lea@x.org") == [("unsubscribed", 0), ("erased", 0)]
