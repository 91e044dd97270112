"""Pages: whatever a text holds, it stays text; and a page needs nothing but itself."""

import re
from html.parser import HTMLParser

import pytest

from simo_build.page import Cell, Page, Table, columns_of, plain, to_html, to_markdown
from simo_build.pictures import Legend, Strip

HOSTILE = "<script>alert('x')</script> & \"quoted\" | `code` [a](http://b)"


class Reader(HTMLParser):
    """Collects tags, attributes and text, and sees that every element is closed."""

    VOID = frozenset({"meta", "img"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def page(text: str = "plain") -> Page:
    strip = Strip(
        task=text,
        columns=("input", text),
        rows=((b"\xff\xd8", b"\xff\xd8"),),
        legend=Legend(classes=((text, "#4e79a7"),)),
    )
    bar = Strip(task=text, columns=("a",), rows=(), legend=Legend(bar=b"\x89P", ticks=(text,)))
    table = Table(
        title=text,
        note=text,
        head=("", text),
        rows=((Cell(text), Cell(text, text, 0.5)), (Cell("b"), Cell("2", "", 7.0))),
        strong=1,
    )
    return Page(
        title=text,
        lead=text,
        figures=((text, text),),
        tables=(table, table),
        strips=(strip, bar),
        pictures_note=text,
    )


def test_a_hostile_text_stays_text_in_html() -> None:
    read = Reader(to_html(page(HOSTILE)))
    assert not read.open
    assert "script" not in read.tags
    assert sum(HOSTILE in text for text in read.texts) >= 12
    assert ("alt", f"{HOSTILE}: {HOSTILE}, image 1") in read.attributes
    assert set(read.tags) == set(Reader(to_html(page())).tags)


def test_a_page_needs_nothing_but_itself() -> None:
    text = to_html(page())
    read = Reader(text)
    assert not {"script", "link", "iframe", "object", "base"} & set(read.tags)
    sources = [value for name, value in read.attributes if name in ("src", "href")]
    assert sources
    assert all(re.match(r"data:image/(jpeg|png);base64,", source) for source in sources)
    assert "url(" not in text
    assert "@import" not in text
    assert not [name for name, _ in read.attributes if name.startswith("on")]


def test_a_page_is_for_light_and_dark_screens_and_for_paper() -> None:
    text = to_html(page())
    assert "prefers-color-scheme: dark" in text
    assert "@media print" in text


def test_a_bar_never_leaves_its_cell() -> None:
    widths = [v for name, v in Reader(to_html(page())).attributes if name == "style"]
    assert "width:50.0%" in widths
    assert "width:100.0%" in widths


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a | b", r"a \| b"),
        ("two\nlines", "two lines"),
        ("<b>", r"\<b\>"),
        ("`x` *y*", r"\`x\` \*y\*"),
        ("[a](b)", r"\[a\](b)"),
        ("mean_iou -3.5 %", "mean_iou -3.5 %"),
    ],
)
def test_markdown_takes_nothing_for_its_own(text: str, told: str) -> None:
    assert plain(text) == told


def test_markdown_has_the_same_tables() -> None:
    rows = columns_of([("one", "1"), ("two", "2")])
    table = Table(title="Numbers", note="Why.", head=("", "n"), rows=rows, strong=1)
    told = to_markdown(Page(title="t", lead="l", figures=(("3 %", "of it"),), tables=(table,)))
    assert told == (
        "# t\n\nl\n\n- 3 % of it\n\n## Numbers\n\nWhy.\n\n"
        "|  | n |\n| :--- | ---: |\n| one | 1 |\n| **two** | **2** |\n"
    )
