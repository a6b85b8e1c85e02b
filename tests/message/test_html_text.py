"""The derived text part reads like something that a person wrote."""

import pytest

from mailer_lib.message.html_text import html_to_text


def text_of(html: str) -> str:
    return html_to_text(html, "mfj", lambda token: token == "mfj1z")


@pytest.mark.parametrize(
    ("html", "text"),
    [
        ("<h1>Title</h1><p>One\n two</p><p>Three</p>", "Title\n\nOne two\n\nThree\n"),
        ("a<br>b<br/>c", "a\nb\nc\n"),
        ("<ul><li>x</li><li>y</li></ul>", "- x\n- y\n"),
        ('<a href="https://x.example/">Shop</a> now', "Shop (https://x.example/) now\n"),
        ('<a href="https://x.example/">https://x.example/</a>', "https://x.example/\n"),
        ('<a href="mailto:a@b.example">Write</a>', "Write (a@b.example)\n"),
        ('<a href="#top">Top</a><a href="https://x/"><img src="y" alt=""></a>', "Top\n"),
        ('<a href="https://x/"><img src="y" alt="Tent"></a>', "Tent (https://x/)\n"),
        ("<table><tr><td>a</td><td>b</td></tr><tr><td>c</td></tr></table>", "a b\nc\n"),
        ("<head><title>t</title><style>p{}</style></head><p>x &amp; y&nbsp;z</p>", "x & y z\n"),
        ('<div style="display: none">hidden <b>too</b></div><p>seen</p>', "seen\n"),
        ("<!--[if mso]><p>Outlook</p><![endif]--><p>x</p>", "x\n"),
        ("<p>Hi mfj0z</p><!--mfj1z--><p>x</p>", "Hi mfj0z\n\nmfj1z\nx\n"),
        ('<p style="mfj0z">x</p>', "x\n"),
        ("<p>a\u200b\u00adb</p>", "ab\n"),
        ("", "\n"),
    ],
)
def test_forms(html: str, text: str) -> None:
    assert text_of(html) == text
