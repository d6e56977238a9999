import csv
import io
import math
import re
from html.parser import HTMLParser

import polars as pl
import pytest

from plm_depth.figures.number_table import as_csv, as_html, number

TABLE = pl.DataFrame(
    {
        "model": ["a", "b", "b"],
        "display_name": ['A, "first" <b>', "B", "B"],
        "layer": [1, 2, None],
        "value": [1 / 3, math.nan, 1234567.8],
        "aggregate": ["mean", "mean", "mean"],
    }
)


class Cells(HTMLParser):
    """The texts of heads and cells, and every attribute that could fetch something."""

    def __init__(self, page: str):
        super().__init__()
        self.rows, self.heads, self.fetches, self._into = [], [], [], None
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self._into = tag
            (self.rows[-1] if tag == "td" else self.heads).append("")
        self.fetches += [f"{tag} {name}" for name, _ in attributes if name in ("src", "href", "action", "data")]
        self.fetches += [tag] if tag in ("link", "img", "iframe", "object", "embed") else []

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            self._into = None

    def handle_data(self, data):
        if self._into == "td":
            self.rows[-1][-1] += data
        elif self._into == "th":
            self.heads[-1] += data


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1 / 3, "0.333333"),
        (1234567.8, "1.23457e+06"),
        (-0.00012345678, "-0.000123457"),
        (0.15000000596046448, "0.15"),
        (math.nan, "NaN"),
        (None, ""),
        (12, "12"),
        ("text", "text"),
    ],
)
def test_numbers_have_six_significant_digits(value, text):
    assert number(value) == text


def test_csv_holds_every_row_and_column_and_can_be_read_back():
    rows = list(csv.reader(io.StringIO(as_csv(TABLE))))
    assert rows[0] == TABLE.columns
    assert rows[1] == ["a", 'A, "first" <b>', "1", "0.333333", "mean"]
    assert rows[2] == ["b", "B", "2", "NaN", "mean"]
    assert rows[3] == ["b", "B", "", "1.23457e+06", "mean"]
    assert len(rows) == 4


def test_the_page_holds_the_same_numbers_and_escapes_names():
    page = as_html(TABLE, title="Loss & <gain>")
    cells = Cells(page)
    assert cells.heads == ["model", "display_name", "layer", "value"]
    assert [row for row in cells.rows if row] == [
        ["a", 'A, "first" <b>', "1", "0.333333"],
        ["b", "B", "2", "NaN"],
        ["b", "B", "", "1.23457e+06"],
    ]
    assert "<title>Loss &amp; &lt;gain&gt;</title>" in page


def test_a_column_that_says_the_same_everywhere_is_written_once_above_the_table():
    assert "3 rows." in as_html(TABLE, title="t")
    assert "The same in every row: aggregate mean." in as_html(TABLE, title="t")


def test_a_single_row_keeps_all_its_columns():
    assert Cells(as_html(TABLE[:1], title="t")).heads == TABLE.columns


def test_the_page_fetches_nothing():
    page = as_html(TABLE, title="t")
    assert Cells(page).fetches == []
    assert not re.search(r"https?:|url\(|@import|fetch\(|XMLHttpRequest", page)


def test_number_columns_are_marked_for_sorting_as_numbers():
    page = as_html(TABLE, title="t")
    marked = re.findall(r'<th scope="col"( class=n)?><button>(\w+)</button>', page)
    assert [name for mark, name in marked if mark] == ["layer", "value"]
