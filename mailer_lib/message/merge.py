"""Which merge fields a campaign uses: read from the syntax tree, so a field in a comment or a text isn't one."""

from dataclasses import dataclass

from mailer_lib.message.campaign import Campaign
from mailer_lib.message.fields import contact_fields
from mailer_lib.message.language import TemplateLanguage

CONTACT_COLUMNS = frozenset({"address", "given_name", "family_name", "locale", "timezone"})


@dataclass(frozen=True)
class MergeFields:
    attributes: frozenset[str]  # keys of declared attributes, or of nothing that there is
    columns: frozenset[str]  # of CONTACT_COLUMNS
    computed: bool = False  # a field's name is computed, so nobody can say which ones are used


def used_fields(campaign: Campaign) -> list[str]:
    """Keys of the attributes that the campaign's templates use, sorted: the shards' ``attribute.…`` columns."""
    return sorted(merge_fields(campaign).attributes)


def merge_fields(campaign: Campaign) -> MergeFields:
    """Over subject, preheader, template and text part of every variant.

    Raises:
        jinja2.TemplateSyntaxError: a template is malformed.
    """
    language = TemplateLanguage(autoescape=True)
    names: set[str] = set()
    computed = False
    for source in sources(campaign):
        for name in contact_fields(language.parse(source)):
            if name is None:
                computed = True
            else:
                names.add(name)
    return MergeFields(frozenset(names - CONTACT_COLUMNS), frozenset(names & CONTACT_COLUMNS), computed)


def sources(campaign: Campaign) -> list[str]:
    """Every Jinja2 source of a campaign."""
    found = [campaign.subject, campaign.preheader]
    for variant in campaign.variants:
        found += [variant.subject or "", variant.preheader or ""]
    for template in campaign.template_sources():
        found += [template.source, template.text or ""]
    return found
