"""The same newsletter with a loop over each reader's list and conditions around parts of it: what they cost."""

import shutil
import tempfile
from pathlib import Path

from bench.dispatch_job import CAMPAIGN, WITH_LIST, newsletter, run_agents
from bench.dispatch_signed import CONNECTIONS, ROUNDS, UNSIGNED, Medians
from bench.figures import Figures
from bench.smtp_sink import SmtpSink
from tests.support_agent import sink_server

BEFORE = '<mj-section background-color="#e9f3ec" padding="30px 30px">'
ADDED = """<mj-section background-color="#ffffff" padding="18px 30px">
      <mj-column>
        {% if contact.points > 10000 %}<mj-text padding="0">With {{ contact.points|number(language="en") }} points most
        of these are yours already, {{ contact.given_name }}.</mj-text>{% elif contact.vip %}<mj-text padding="0">Kept
        for our regulars in {{ contact.city }}:</mj-text>{% else %}<mj-text padding="0">You looked at
        {{ contact.favourites|length }} of ours lately:</mj-text>{% endif %}
        <mj-table>
          {% for thing in contact.favourites %}<tr style="background-color:{{ loop.cycle("#ffffff", "#f5f1e8") }}">
            <td style="padding:6px 10px">{{ loop.index }}. <strong>{{ thing }}</strong></td>
            <td style="padding:6px 10px" align="right">{% if loop.first %}first choice of {{ contact.given_name }}
            {% elif contact.tier == "gold" %}{{ (thing|length * 7)|number(language="en") }} points less{% else %}
            20&nbsp;% off{% endif %}</td>
          </tr>{% endfor %}
        </mj-table>
      </mj-column>
    </mj-section>
    """
TEXT = """
{% for thing in contact.favourites %}{{ loop.index }}. {{ thing }}{% if loop.first %} (first choice){% endif %}
{% endfor %}"""


def run(figures: Figures, sink: SmtpSink, count: int) -> None:
    seen = Medians()
    with tempfile.TemporaryDirectory(prefix="mailfleet-bench-") as temporary, sink.serve() as port:
        folder = Path(temporary)
        shutil.copytree(CAMPAIGN.parent, folder / "campaign")
        page = (CAMPAIGN.parent / "newsletter.mjml").read_text()
        if page.count(BEFORE) != 1:
            raise RuntimeError("the newsletter has changed: say anew where the loop goes")
        (folder / "campaign/newsletter.mjml").write_text(page.replace(BEFORE, ADDED + BEFORE))
        with (folder / "campaign/newsletter.txt").open("a") as text:
            text.write(TEXT)
        plain, looped = newsletter(), newsletter(folder / "campaign/campaign.yaml")
        server = sink_server(port, None, connections=CONNECTIONS)
        for number in range(ROUNDS):
            place = folder / str(number)
            for module, way in (("mailer_lib.agent", "signed"), (UNSIGNED, "unsigned")):
                for name, bundle in (("plain", plain), ("looped", looped)):
                    cost = run_agents(
                        place / way / name, bundle, count // 2, server, module=module, attributes=WITH_LIST
                    )
                    seen.add(f"{way}_{name}", cost.cpu_us)
    figures.note("loops_cpu", seen["signed_looped"], "us a message")
    figures.at_most("loops", seen["signed_looped"] / seen["signed_plain"], "times as much, signed", 2)
    figures.at_most("loops_unsigned", seen["unsigned_looped"] / seen["unsigned_plain"], "times as much, unsigned", 2)
