"""A figure's numbers as text: tidy CSV, and one HTML file with a sortable table that needs nothing else."""

import csv
import html
import io
import math

import polars as pl

DIGITS = 6  # significant digits of every number in the files beside a figure


def number(value: object) -> str:
    """Return a cell's text: numbers with six significant digits, NaN for undefined, nothing for absent."""
    if value is None:
        return ""
    if isinstance(value, float):
        return "NaN" if math.isnan(value) else f"{value:.{DIGITS}g}"
    return str(value)


def as_csv(numbers: pl.DataFrame) -> str:
    """Return the table as CSV (RFC 4180 quoting, line feeds), header first."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(numbers.columns)
    writer.writerows([number(value) for value in row] for row in numbers.iter_rows())
    return text.getvalue()


def as_html(numbers: pl.DataFrame, *, title: str) -> str:
    """Return a whole HTML page with the table: a click on a column's name sorts, a field above filters rows.

    A column that says the same in every row is written once, above the table.
    """
    same = [column for column in numbers.columns if numbers.height > 1 and numbers[column].n_unique() == 1]
    shown = numbers.drop(same)
    is_number = [kind.is_numeric() for kind in shown.dtypes]
    head = "".join(
        f'<th scope="col"{" class=n" if numeric else ""}><button>{html.escape(column)}</button></th>'
        for column, numeric in zip(shown.columns, is_number, strict=True)
    )
    body = "\n".join(
        "<tr>"
        + "".join(
            f"<td{' class=n' if numeric else ''}>{html.escape(number(value))}</td>"
            for value, numeric in zip(row, is_number, strict=True)
        )
        + "</tr>"
        for row in shown.iter_rows()
    )
    about = f"{numbers.height:,} rows. NaN: undefined. A click on a column's name sorts."
    if same:
        about += " The same in every row: " + "; ".join(f"{c} {number(numbers[c][0]) or 'empty'}" for c in same) + "."
    return _PAGE.format(title=html.escape(title), about=html.escape(about), head=head, body=body)


_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
body {{ font: 14px/1.4 system-ui, "Helvetica Neue", Arial, sans-serif; margin: 1.2rem; color: #1a1a1a; }}
h1 {{ font-size: 1.1rem; margin: 0 0 .3rem; }}
p {{ margin: 0 0 .7rem; color: #5a5a5a; }}
input {{ font: inherit; padding: .2rem .4rem; width: 18rem; max-width: 90%; }}
div {{ overflow: auto; max-height: calc(100vh - 10rem); margin-top: .7rem; }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; }}
th {{ position: sticky; top: 0; background: #fff; border-bottom: 2px solid #5a5a5a; text-align: left; padding: 0; }}
th button {{ all: unset; cursor: pointer; padding: .25rem .6rem; font-weight: 600; white-space: nowrap; }}
th button:focus-visible {{ outline: 2px solid #0072b2; }}
th[aria-sort=ascending] button::after {{ content: " \\25B2"; }}
th[aria-sort=descending] button::after {{ content: " \\25BC"; }}
td {{ padding: .15rem .6rem; border-bottom: 1px solid #e4e4e4; white-space: nowrap; }}
.n {{ text-align: right; }}
tbody tr:hover {{ background: #f3f7fa; }}
</style>
</head>
<body>
<h1>{title}</h1>
<p>{about}</p>
<label>Show rows with <input type="search" placeholder="words, e.g. trained norm_h"></label>
<div><table>
<thead><tr>{head}</tr></thead>
<tbody>
{body}
</tbody>
</table></div>
<script>
const body = document.querySelector("tbody"), heads = [...document.querySelectorAll("th")];
const rows = [...body.rows];
const value = (row, i) => row.cells[i].textContent;
heads.forEach((head, i) => head.firstChild.addEventListener("click", () => {{
  const up = head.getAttribute("aria-sort") !== "ascending", numeric = head.className === "n";
  heads.forEach(other => other.removeAttribute("aria-sort"));
  head.setAttribute("aria-sort", up ? "ascending" : "descending");
  const key = row => numeric ? parseFloat(value(row, i)) : value(row, i);
  rows.map(row => [key(row), row]).sort(([a], [b]) => {{
    if (numeric && (isNaN(a) || isNaN(b))) return isNaN(a) - isNaN(b);
    return (a < b ? -1 : a > b ? 1 : 0) * (up ? 1 : -1);
  }}).forEach(([, row]) => body.append(row));
}}));
document.querySelector("input").addEventListener("input", event => {{
  const words = event.target.value.toLowerCase().split(/\\s+/).filter(Boolean);
  for (const row of rows) {{
    const cells = [...row.cells].flatMap(cell => cell.textContent.toLowerCase().split(/\\s+/));
    row.hidden = !words.every(word => cells.some(cell => isNaN(word) ? cell.startsWith(word) : cell === word));
  }}
}});
</script>
</body>
</html>
"""
