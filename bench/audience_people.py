"""People to measure with: made by the server itself, 27 s for a million."""

from sqlalchemy import Engine, text

from mailer_lib.contacts import attributes
from mailer_lib.contacts.lists import ensure_list
from mailer_lib.database.engine import write
from mailer_lib.terms import AttributeType

TYPES = {
    "city": AttributeType.TEXT,
    "customer_since": AttributeType.DATE,
    "points": AttributeType.NUMBER,
    "tier": AttributeType.TEXT,
    "vip": AttributeType.BOOLEAN,
}

# The address hash is an MD5: any 16 bytes will do for reading.
_FILL = """
INSERT INTO contacts (id, address_given, address, address_hash, domain, provider, given_name, family_name, locale,
                      timezone, attributes, state, created_at, updated_at)
SELECT seq, given, LOWER(given), UNHEX(MD5(LOWER(given))), domain,
       CASE domain WHEN 'gmail.com' THEN 'gmail' WHEN 'outlook.com' THEN 'outlook' WHEN 'hotmail.com' THEN 'outlook'
                   WHEN 'yahoo.com' THEN 'yahoo' ELSE 'other' END,
       ELT(1 + seq % 7, 'Åse', 'Jonas', 'Zoë', NULL, 'Łukasz', 'Anna', 'Tom'),
       IF(seq % 5, CONCAT('Sørensen', seq % 9973), NULL),
       ELT(1 + seq % 4, 'de', 'en', 'fr-CH', NULL), ELT(1 + seq % 3, 'Europe/Oslo', 'Europe/Berlin', NULL),
       JSON_OBJECT('city', ELT(1 + seq % 6, 'Bergen', 'Ålesund', 'Zürich', 'Berlin', 'Lyon', 'Wien'),
                   'customer_since', DATE_FORMAT('2015-01-01' + INTERVAL (seq * 7919) % 3650 DAY, '%Y-%m-%d'),
                   'points', (seq * 7919) % 20000 / 2, 'vip', seq % 10 = 0,
                   'tier', ELT(1 + seq % 3, 'bronze', 'silver', 'gold')),
       CASE WHEN seq % 97 = 0 THEN 'bounced' ELSE 'active' END, '2025-03-01 12:00:00', '2025-03-01 12:00:00'
FROM (SELECT seq, domain, CONCAT(IF(seq % 11, 'person.', 'Person.'), seq, '@', domain) AS given
      FROM (SELECT seq, CASE WHEN seq * 31 % 100 < 67 THEN 'gmail.com' WHEN seq * 31 % 100 < 72 THEN 'outlook.com'
                             WHEN seq * 31 % 100 < 76 THEN 'hotmail.com' WHEN seq * 31 % 100 < 82 THEN 'yahoo.com'
                             ELSE CONCAT('firm', seq % 4999, '.example') END AS domain
            FROM seq_1_to_{people}) AS domains) AS named
"""

_SUBSCRIBE = """
INSERT INTO subscriptions (contact_id, list_id, state, source, confirmed_at, updated_at)
SELECT seq, 1, CASE WHEN seq % 25 = 3 THEN 'pending' WHEN seq % 25 = 7 THEN 'unsubscribed' ELSE 'confirmed' END,
       'https://example.org/sign-up', '2025-03-01 12:00:00', '2025-03-01 12:00:00'
FROM seq_1_to_{people} WHERE seq % 10 < 6
UNION ALL
SELECT seq, 2, 'confirmed', NULL, '2025-03-01 12:00:00', '2025-03-01 12:00:00'
FROM seq_1_to_{people} WHERE seq % 5 = 1
"""

_SUPPRESS = """
INSERT INTO suppressions (address_hash, list_id, reason, created_at)
SELECT address_hash, IF(id % 2, 0, 1), IF(id % 3, 'hard-bounce', 'complained'), '2025-04-01 12:00:00'
FROM contacts WHERE id % 50 = 11
"""


def fill(engine: Engine, people: int) -> None:
    """Contacts with the ids 1 to ``people``; 60 % of them are on the list ``newsletter``, a tenth of those barred."""
    with write(engine) as connection:
        for number, name in enumerate(("newsletter", "offers"), 1):
            assert ensure_list(connection, name, name.title()) == number
        for key, type_ in TYPES.items():
            attributes.declare(connection, key, type_)
        for statement in (_FILL, _SUBSCRIBE, _SUPPRESS):
            connection.execute(text(statement.format(people=people)))
        for table in ("contacts", "subscriptions", "suppressions"):
            connection.execute(text(f"ANALYZE TABLE {table}"))
