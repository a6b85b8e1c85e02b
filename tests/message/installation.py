"""What a campaign needs in the database before it can be saved."""

from sqlalchemy import Engine, insert

from mailer_lib.contacts.address import normalise
from mailer_lib.contacts.attributes import declare
from mailer_lib.contacts.lists import ensure_list
from mailer_lib.database.engine import now, write
from mailer_lib.database.schema import contacts, subscriptions
from mailer_lib.fleet import domains, pools
from mailer_lib.settings import Settings
from mailer_lib.terms import AttributeType, SubscriptionState
from tests.message.world import DOMAIN, key_pem


def furnish(engine: Engine, settings: Settings) -> None:
    """The list ``newsletter``, the pools ``main`` and ``bulk``, the sending domain with a key, some attributes."""
    key = settings.keys_dir / "dkim" / f"{DOMAIN}.mf1.pem"
    key.parent.mkdir(parents=True, exist_ok=True)
    key.write_text(key_pem())
    with write(engine) as connection:
        ensure_list(connection, "newsletter", "Fjord & Fern News")
        for pool in ("main", "bulk"):
            pools.ensure(connection, pool, actor="test")
        domains.add(connection, settings, DOMAIN, actor="test")
        for name, type_ in {
            "tier": AttributeType.TEXT,
            "points": AttributeType.NUMBER,
            "vip": AttributeType.BOOLEAN,
            "city": AttributeType.TEXT,
            "customer_since": AttributeType.DATE,
            "favourite_category": AttributeType.TEXT,
        }.items():
            declare(connection, name, type_)


def subscribe(engine: Engine, settings: Settings, address: str, **attributes: object) -> int:
    """A confirmed contact of ``newsletter``; returns its id."""
    parsed = normalise(address)
    with write(engine) as connection:
        list_id = ensure_list(connection, "newsletter", "Fjord & Fern News")
        made = connection.execute(
            insert(contacts).values(
                address_given=parsed.given,
                address=parsed.normalised,
                address_hash=settings.identity().address_hash(parsed.normalised),
                domain=parsed.domain,
                provider="other",
                given_name="Ann",
                locale="en",
                attributes=attributes,
                created_at=now(),
                updated_at=now(),
            )
        )
        contact_id = int(made.inserted_primary_key[0])
        connection.execute(
            insert(subscriptions).values(
                contact_id=contact_id, list_id=list_id, state=SubscriptionState.CONFIRMED, updated_at=now()
            )
        )
    return contact_id
