"""Which attributes a campaign uses decides which columns its shards get."""

import pytest

from mailer_lib.message.campaign import VariantSpec
from mailer_lib.message.merge import merge_fields, used_fields
from tests.message.test_templates import campaign, page


@pytest.mark.parametrize(
    ("source", "attributes"),
    [
        ("{{ contact.tier }} {{ contact.given_name }}", ["tier"]),
        (
            "{{ contact.attributes.city }}{{ contact['vip'] }}{{ contact.attributes['points'] }}",
            ["city", "points", "vip"],
        ),
        ("{% if contact.tier == 'gold' %}{% for x in [contact.a] %}{{ x }}{% endfor %}{% endif %}", ["a", "tier"]),
        ("{# contact.hidden #}{% raw %}{{ contact.raw }}{% endraw %}contact.text", []),
        ("{{ campaign.name }}{{ list_title }}", []),
        ("{{ contact.tier|default(contact.level)|upper }}", ["level", "tier"]),
        ("{{ contact.tier.upper() }}", ["tier"]),
    ],
)
def test_fields_are_read_from_the_tree(source: str, attributes: list[str]) -> None:
    assert used_fields(campaign(page(source))) == attributes


def test_every_template_of_every_variant_counts() -> None:
    made = campaign(
        page("{{ contact.a }}"),
        text="{{ contact.b }}",
        subject="{{ contact.c }}",
        preheader="{{ contact.d }}",
        variants=[VariantSpec(name="A", subject="{{ contact.e }}", preheader="{{ contact.f }}")],
    )

    assert used_fields(made) == ["a", "b", "c", "d", "e", "f"]


@pytest.mark.parametrize("source", ["{{ contact[campaign.key] }}", "{% set c = contact %}{{ c.tier }}"])
def test_a_computed_name_is_said(source: str) -> None:
    assert merge_fields(campaign(page(source))).computed
    assert not merge_fields(campaign(page("{{ contact.tier }}"))).computed
