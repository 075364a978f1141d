"""Sentences on the page: code between backticks, issues as links, and nothing of a record's text as markup."""

import re
from html import unescape

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shadowlab.views.page.wording import prose


@given(st.text(alphabet="ab<>&\"'` #1pytorch\n"))
def test_a_reader_sees_every_character_but_the_backticks_of_code(text: str) -> None:
    made = prose(text)
    seen = unescape(re.sub(r"</?(code|a)[^>]*>", "", made))
    pairs = text.count("`") // 2 * 2
    assert seen == text.replace("`", "", pairs)
    assert made.count("<code>") == made.count("</code>") <= pairs // 2
    assert set(re.findall(r"<(\w+)", made)) <= {"code", "a"}


@pytest.mark.parametrize(
    ("text", "made"),
    [
        ("write `x < 1`", "write <code>x &lt; 1</code>"),
        ("a ` alone", "a ` alone"),
        ("`a` and ` alone", "<code>a</code> and ` alone"),
        ("<b> & `<i>`", "&lt;b&gt; &amp; <code>&lt;i&gt;</code>"),
    ],
)
def test_code_is_marked_and_the_rest_is_escaped(text: str, made: str) -> None:
    assert prose(text) == made


def test_an_issue_is_a_link_outside_of_code_alone() -> None:
    made = prose("see pytorch#8860, not `pytorch#8860`")
    assert made.count("https://github.com/pytorch/pytorch/issues/8860") == 2  # address and title of one link
    assert made.endswith("not <code>pytorch#8860</code>")
