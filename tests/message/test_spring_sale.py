"""The example is what the demo sends and the benchmark measures: its size and its fields are promises."""

import json
import re
from pathlib import Path

import pytest

from mailer_lib.audience.catalogue import Catalogue
from mailer_lib.audience.rules import parse
from mailer_lib.message.campaign import load_campaign
from mailer_lib.message.merge import merge_fields, sources
from mailer_lib.message.templates import compile_campaign
from mailer_lib.terms import AttributeType
from tests.message.world import builder, bundle, parts, recipient, verifies

FOLDER = Path(__file__).parents[2] / "examples" / "spring-sale"
CAMPAIGN = load_campaign(FOLDER / "campaign.yaml")
COMPILED = compile_campaign(CAMPAIGN)
BUNDLE = bundle(
    variants=COMPILED.variants, links=COMPILED.links, defaults=CAMPAIGN.defaults, values=CAMPAIGN.values,
    postal_address=CAMPAIGN.postal_address,
)  # fmt: skip
PERSON = recipient(
    attributes={"city": "Ålesund", "customer_since": "2024-03-04", "tier": "gold", "points": 1234.0,
                "favourite_category": "Hiking", "vip": True},
)  # fmt: skip


def test_size_links_and_fields() -> None:
    built = builder(BUNDLE).build(PERSON)
    html = parts(built)[1]

    assert 25_000 <= len(html.encode()) <= 35_000
    assert len(COMPILED.links) == len(set(COMPILED.links)) == 11
    assert COMPILED.untracked == ()
    assert not COMPILED.footer_added
    printed = re.findall(
        r"\{\{ contact\.\w+", " ".join([CAMPAIGN.subject, CAMPAIGN.preheader, CAMPAIGN.template.source])
    )
    assert 17 <= len(printed) <= 21
    assert builder(BUNDLE).dynamic_share(PERSON) <= 0.20


def test_whoever_we_know_nothing_about_gets_a_whole_letter() -> None:
    text, html = parts(builder(BUNDLE).build(recipient(given_name=None, family_name=None)))

    assert "Dear friend," in text and "Dear friend," in html
    assert "None" not in html


@pytest.mark.parametrize(
    ("variant", "subject"), [(0, "Ann, your spring"), (1, "Frühlingsfrisch: −20 % on hiking, Ann")]
)
def test_both_variants_verify(variant: int, subject: str) -> None:
    person = recipient(variant=variant, attributes=dict(PERSON.attributes))
    assert builder(BUNDLE).render(person).subject.startswith(subject)
    assert verifies(builder(BUNDLE, signed=True).build(person).data)


def test_its_criteria_fit_its_attributes() -> None:
    types = {"points": AttributeType.NUMBER, "tier": AttributeType.TEXT, "vip": AttributeType.BOOLEAN}
    tree = json.loads((FOLDER / "criteria.json").read_text())

    assert parse(tree, Catalogue(types, {"newsletter": 1})).members
    assert merge_fields(CAMPAIGN).attributes == {
        "city", "customer_since", "favourite_category", "points", "tier", "vip",
    }  # fmt: skip
    assert not merge_fields(CAMPAIGN).computed
    assert len(sources(CAMPAIGN)) > 4
