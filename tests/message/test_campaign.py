"""Campaign files: what is written, what is kept, and how mistakes are named."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import Engine, func, select

from mailer_lib.audience.plan import ControlGroup, Exclude, FrequencyCap
from mailer_lib.database.engine import read
from mailer_lib.database.schema import audit_log, campaigns, templates
from mailer_lib.dispatch.steps import left_out
from mailer_lib.message.campaign import (
    Campaign,
    CampaignError,
    campaign_names,
    get_campaign,
    load_campaign,
    save_campaign,
)
from mailer_lib.settings import Settings
from mailer_lib.terms import TemplateKind
from tests.message.installation import furnish

YAML = """\
name: spring
list: newsletter
criteria: everybody
from: {name: Fjord & Fern, address: Hello@NEWS.fjordfern.example}
subject: "Hi {{ contact.given_name }}"
template: {html: page.html}
sending_domain: news.fjordfern.example
"""
PAGE = '<html><body><p>Hi {{ contact.given_name }}</p><a href="{{ unsubscribe_url }}">x</a></body></html>'


def write_files(folder: Path, yaml: str = YAML, **files: str) -> Path:
    for name, content in {"page.html": PAGE, **{k.replace("_", "."): v for k, v in files.items()}}.items():
        (folder / name).write_text(content)
    path = folder / "campaign.yaml"
    path.write_text(yaml)
    return path


def test_a_short_file_is_enough(tmp_path: Path) -> None:
    made = load_campaign(write_files(tmp_path))

    assert made.name == "spring"
    assert made.sender.address == "Hello@news.fjordfern.example"
    assert made.template.kind is TemplateKind.HTML
    assert made.template.source == PAGE
    assert made.template.text is None
    assert [v.name for v in made.effective_variants] == ["A"]
    assert made.approval.required
    assert made.expires_after is None


def test_whom_a_campaign_leaves_out(tmp_path: Path) -> None:
    more = """\
class: newsletter
exclude: {lists: [staff], criteria: [recent-buyers]}
frequency_cap: {messages: 2, days: 7}
control_group: {percent: 5}
"""
    made = load_campaign(write_files(tmp_path, YAML + more))
    assert (made.exclude.lists, made.exclude.criteria) == (("staff",), ("recent-buyers",))
    assert made.definition()["class"] == "newsletter"
    assert left_out(made) == Exclude(
        lists=("staff",),
        criteria=("recent-buyers",),
        frequency_cap=FrequencyCap(messages=2, days=7, campaign_class="newsletter"),
        control_group=ControlGroup(percent=5, seed="spring"),
    )
    assert left_out(load_campaign(write_files(tmp_path))) == Exclude()
    with pytest.raises(CampaignError, match=r"line 9, frequency_cap.days"):
        load_campaign(write_files(tmp_path, YAML + "\nfrequency_cap: {messages: 2, days: 0}\n"))


def test_everything_that_can_be_written(tmp_path: Path) -> None:
    made = load_campaign(
        write_files(
            tmp_path,
            YAML.replace("{html: page.html}", "{mjml: page.mjml, text: page.txt}")
            + """\
title: Spring
reply_to: {address: care@fjordfern.example}
preheader: Hi
sending_pool: bulk
tracking: {links: false, opens: false}
variants:
  - {name: A, weight: 3}
  - {name: B, weight: 1, subject: Other, template: {html: page.html}}
postal_address: Strandgaten 21, Bergen
values: {code: X, products: [{name: Tent, price: 1.5}]}
defaults: {tier: bronze, points: 0, vip: false}
seed_list: team
expires_after: 36h
schedule: {cron: "0 9 * * 1", timezone: Europe/Oslo, at: 2026-12-01T08:00:00}
approval: {required: false, approvers: [ann]}
""",
            page_mjml="<mjml></mjml>",
            page_txt="text",
        )
    )

    assert made.template.text == "text"
    assert made.expires_after == timedelta(hours=36)
    assert made.expires_after_h == 36
    assert made.schedule is not None and made.schedule.at is not None
    assert made.schedule.at.astimezone(UTC) == datetime(2026, 12, 1, 7, tzinfo=UTC)
    assert made.variants[1].template is not None
    assert made.values["products"] == [{"name": "Tent", "price": 1.5}]


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ("name: Spring Sale", "line 1, name: use lower-case"),
        ("from: {address: nobody}", "line 4, from: the address can't be used: there is no @"),
        ("template: {html: gone.html}", "line 6, template.html: there is no file .*gone.html"),
        ("template: {html: ../../etc/passwd}", "template.html: passwd lies outside"),
        ("template: {html: a, mjml: b}", "line 6, template: write `mjml: FILE` or"),
        ("template: {html: page.html, txt: b}", "template.txt: there is no such field"),
        ("subjekt: x", "line 8, subjekt: there is no such field"),
        ("expires_after: 5", "line 8, expires_after: write a duration such as 90m, 24h or 3d"),
        ("expires_after: 0h", "expires_after: must be longer"),
        ("schedule: {}", "line 8, schedule: give `at`"),
        ("schedule: {cron: whenever}", "isn't a cron rule"),
        ("schedule: {cron: '0 9 * * *', timezone: Mars/Olympus}", "no time zone 'Mars/Olympus'"),
        ("variants: [{name: A}, {name: A}]", "line 8, variants: two variants have the same name"),
        ("variants: [{name: A, weight: 0}]", "a weight above 0"),
        ("variants: [{name: A, weight: many}]", "variants.0.weight: input should be a valid integer"),
        ("test_slice: {percent: 10}", "line 8, test_slice: needs two `variants` with a weight above 0"),
        ("test_slice: {}", "line 8, test_slice: give either `percent` or `people`"),
        ("test_slice: {percent: 100}", "test_slice.percent: input should be less than 100"),
        (
            "test_slice: {people: 9, decide_within: 2h}",
            "test_slice: `decide_within` and .* belong together",
        ),
        ("test_slice: {people: 9, decide_within: 0h, otherwise: stop}", "`decide_within` must be longer"),
        ("test_slice: {people: 9, seed: x}", "test_slice.seed: there is no such field"),
        ("name: [", "line 8.*not valid YAML|line 9.*not valid YAML"),
    ],
)
def test_a_mistake_is_named_with_file_line_and_field(tmp_path: Path, wrong: str, says: str) -> None:
    key = wrong.split(":", maxsplit=1)[0]
    lines = YAML.splitlines()
    replaced = [wrong if line.startswith(f"{key}:") and wrong != "name: [" else line for line in lines]
    text = "\n".join(replaced if replaced != lines else [*lines, wrong]) + "\n"

    with pytest.raises(CampaignError, match=says) as caught:
        load_campaign(write_files(tmp_path, text))
    assert "campaign.yaml" in str(caught.value)


TESTED = (
    "variants: [{name: A}, {name: B}, {name: C, weight: 0}]\ntest_slice: {percent: 10, decide_within: 6h, otherwise: "
)


def test_what_happens_without_a_decision_is_stop_or_one_of_the_variants_tested(tmp_path: Path) -> None:
    for word in ("stop", "A", "B"):
        made = load_campaign(write_files(tmp_path, f"{YAML}{TESTED}{word}}}\n"))
        assert made.test_slice is not None and made.test_slice.otherwise == word
        assert made.test_slice.decide_within == timedelta(hours=6)
        assert Campaign.model_validate(made.definition()).test_slice == made.test_slice
    with pytest.raises(CampaignError, match=r"line 9, test_slice: `otherwise` is stop or .* A, B, not 'C'"):
        load_campaign(write_files(tmp_path, f"{YAML}{TESTED}C}}\n"))
    both = f"{YAML}{TESTED}stop}}\n".replace("name: B", "name: stop")
    with pytest.raises(CampaignError, match="could mean the variant of that name"):
        load_campaign(write_files(tmp_path, both))


def test_every_mistake_is_named_at_once(tmp_path: Path) -> None:
    with pytest.raises(CampaignError) as caught:
        load_campaign(write_files(tmp_path, "name: X\ntemplate: {html: page.html}\n"))

    missing = [line for line in str(caught.value).splitlines() if "is missing" in line]
    assert [line.split(", ")[2].split(":")[0] for line in missing] == [
        "list",
        "criteria",
        "from",
        "subject",
        "sending_domain",
    ]


def test_includes_are_read_in(tmp_path: Path) -> None:
    made = load_campaign(write_files(tmp_path, page_html='<p>{% include "foot.html" %}</p>', foot_html="<b>foot</b>"))
    assert made.template.source == "<p><b>foot</b></p>"

    with pytest.raises(CampaignError, match="includes itself"):
        load_campaign(write_files(tmp_path, page_html='{% include "page.html" %}'))


def test_what_is_saved_comes_back(tmp_path: Path, engine: Engine, settings: Settings) -> None:
    furnish(engine, settings)
    made = load_campaign(
        write_files(tmp_path, YAML + "variants: [{name: A}, {name: B, template: {html: page.html}}]\n")
    )

    assert save_campaign(engine, settings, made, "ann")
    with read(engine) as connection:
        found = get_campaign(connection, "spring")
        row = connection.execute(select(campaigns)).one()
        names = connection.scalars(select(templates.c.name).order_by(templates.c.name)).all()
        assert campaign_names(connection) == ["spring"]
    assert found.template.source == PAGE
    assert found.variants[1].template is not None and found.variants[1].template.source == PAGE
    assert found.model_copy(update={"template": made.template, "variants": made.variants}) == made
    assert names == ["spring", "spring:B"]
    assert "<p>" not in str(row.definition), "sources are in their own table"
    assert Campaign.model_validate(row.definition).expires_after is None


def test_saving_twice_changes_nothing_and_every_change_is_audited(
    tmp_path: Path, sqlite_engine: Engine, settings: Settings
) -> None:
    furnish(sqlite_engine, settings)
    made = load_campaign(write_files(tmp_path))

    assert save_campaign(sqlite_engine, settings, made, "ann")
    assert not save_campaign(sqlite_engine, settings, made, "ann")
    changed = load_campaign(write_files(tmp_path, page_html=PAGE.replace("Hi", "Hello")))
    assert save_campaign(sqlite_engine, settings, changed, "ben")

    with read(sqlite_engine) as connection:
        count = select(func.count()).where(audit_log.c.object == "campaign:spring")
        assert connection.scalar(count) == 2
        assert connection.scalar(select(campaigns.c.updated_by)) == "ben"


def test_a_broken_template_is_not_saved(tmp_path: Path, sqlite_engine: Engine, settings: Settings) -> None:
    furnish(sqlite_engine, settings)
    with pytest.raises(ValueError, match=r"page.html, line 1"):
        save_campaign(sqlite_engine, settings, load_campaign(write_files(tmp_path, page_html="{% if %}")), "ann")
    with read(sqlite_engine) as connection:
        assert campaign_names(connection) == []


def test_an_unknown_name_gets_near_matches(tmp_path: Path, sqlite_engine: Engine, settings: Settings) -> None:
    with read(sqlite_engine) as connection, pytest.raises(CampaignError, match="campaign create"):
        get_campaign(connection, "sprung")
    furnish(sqlite_engine, settings)
    save_campaign(sqlite_engine, settings, load_campaign(write_files(tmp_path)), "ann")
    with read(sqlite_engine) as connection, pytest.raises(CampaignError, match="did you mean spring"):
        get_campaign(connection, "sprung")


def test_a_send_window_has_its_own_time_zone_or_the_schedules(tmp_path: Path) -> None:
    window = 'send_window: {days: [mon, fri], from: "09:00", until: "18:00"%s}\n'
    plain = load_campaign(write_files(tmp_path, YAML + "\n" + window % ""))
    assert plain.effective_send_window is not None
    assert plain.effective_send_window.timezone == "UTC"
    scheduled = YAML + "\nschedule: {cron: '0 9 * * 1', timezone: Europe/Oslo}\n"
    oslo = load_campaign(write_files(tmp_path, scheduled + window % ""))
    assert oslo.effective_send_window is not None
    assert oslo.effective_send_window.timezone == "Europe/Oslo"
    tokyo = load_campaign(write_files(tmp_path, scheduled + window % ", timezone: Asia/Tokyo"))
    assert tokyo.effective_send_window is not None
    assert tokyo.effective_send_window.timezone == "Asia/Tokyo"
    assert Campaign.model_validate(tokyo.definition()) == tokyo.model_copy(
        update={"template": Campaign.model_validate(tokyo.definition()).template}
    )


def test_a_mistake_in_a_send_window_is_named_with_its_field(tmp_path: Path) -> None:
    with pytest.raises(CampaignError, match=r"send_window\.until: .*write a time such as"):
        load_campaign(write_files(tmp_path, YAML + '\nsend_window: {from: "09:00", until: "6pm"}\n'))
    with pytest.raises(CampaignError, match=r"send_window\.timezone: .*no time zone 'Oslo'"):
        load_campaign(write_files(tmp_path, YAML + '\nsend_window: {from: "09:00", until: "18:00", timezone: Oslo}\n'))
