"""The parts of a report's page: plain HTML and one style sheet. Every text that goes in is escaped here."""

from collections.abc import Iterable, Sequence
from html import escape

STYLE = """
:root { --ink: #1c1f24; --soft: #5d6570; --line: #dfe3e8; --ground: #ffffff; --panel: #f6f7f9;
        --s1: #0b63ce; --s2: #8a919c; --s3: #c2410c; color-scheme: light dark; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e7e9ec; --soft: #9aa3af; --line: #343a43; --ground: #15181c; --panel: #1d2126;
          --s1: #6cb0ff; --s2: #858d99; --s3: #ff9b5e; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem 1.1rem 4rem; max-width: 58rem; background: var(--ground); color: var(--ink);
       font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .3rem; letter-spacing: -.01em; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 2.6rem 0 .5rem; padding-top: .9rem; border-top: 1px solid var(--line); }
p { margin: .5rem 0; max-width: 46rem; }
.soft, figcaption, small { color: var(--soft); }
small { font-size: .8em; white-space: nowrap; }
.note { background: var(--panel); border-left: 3px solid var(--s1); padding: .6rem .9rem; border-radius: 0 6px 6px 0; }
.wide { overflow-x: auto; margin: .8rem 0; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: .4rem .6rem; border-bottom: 1px solid var(--line); vertical-align: top; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
th { font-weight: 600; font-size: .88rem; color: var(--soft); }
td small { display: block; }
tr.ours td { font-weight: 600; }
tr.ours td small { font-weight: 400; }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 24rem), 1fr)); gap: 1.2rem; }
figure { margin: .6rem 0; }
figcaption { font-size: .9rem; display: flex; flex-wrap: wrap; justify-content: space-between; gap: .2rem 1rem; }
svg { width: 100%; height: auto; display: block; }
svg text { font-size: 12px; fill: var(--soft); }
svg .grid { stroke: var(--line); }
svg polyline { fill: none; stroke-width: 2; stroke-linejoin: round; }
svg .s1 { stroke: var(--s1); } svg .s2 { stroke: var(--s2); } svg .s3 { stroke: var(--s3); }
svg circle.s1 { fill: var(--s1); } svg circle.s2 { fill: var(--s2); } svg circle.s3 { fill: var(--s3); }
.legend span { margin-left: .9rem; white-space: nowrap; }
.legend span::before { content: ""; display: inline-block; width: .9em; height: 3px; margin-right: .35em;
                       vertical-align: middle; background: currentColor; }
.legend .s1 { color: var(--s1); } .legend .s2 { color: var(--s2); } .legend .s3 { color: var(--s3); }
.card { background: var(--panel); border-radius: 8px; padding: .8rem 1rem; margin: .9rem 0; overflow-wrap: anywhere; }
.card h3 { font-size: .95rem; margin: 0 0 .4rem; }
dl { margin: 0; display: grid; grid-template-columns: 7.5rem 1fr; gap: .35rem .8rem; }
dt { color: var(--soft); font-size: .88rem; padding-top: .08rem; }
dd { margin: 0; overflow-wrap: anywhere; }
@media (max-width: 34rem) { dl { grid-template-columns: 1fr; gap: 0; } dd { margin-bottom: .5rem; }
                            th, td { padding: .35rem .25rem; } td small { white-space: normal; } }
@media print { body { max-width: none; } .card { break-inside: avoid; } }
"""


class Html(str):
    """Text that is HTML already; everything else is escaped."""


def text(value: object) -> Html:
    return value if isinstance(value, Html) else Html(escape(str(value)))


def page(title: str, parts: Iterable[str]) -> Html:
    return Html(
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{text(title)}</title><style>{STYLE}</style></head>\n<body>\n" + "\n".join(parts) + "\n</body></html>\n"
    )


def paragraph(*parts: object, kind: str = "") -> Html:
    return Html(f"<p{f' class={kind}' if kind else ''}>{''.join(text(part) for part in parts)}</p>")


def heading(title: str) -> Html:
    return Html(f"<h2>{text(title)}</h2>")


def table(head: Sequence[object], rows: Iterable[tuple[bool, Sequence[object]]]) -> Html:
    """Rows are (whether it is ours and stands out, cells)."""
    top = "".join(f"<th>{text(cell)}</th>" for cell in head)
    body = "".join(
        f"<tr{' class=ours' if ours else ''}>{''.join(f'<td>{text(cell)}</td>' for cell in cells)}</tr>\n"
        for ours, cells in rows
    )
    return Html(f'<div class="wide"><table><thead><tr>{top}</tr></thead>\n<tbody>\n{body}</tbody></table></div>')


def facts(pairs: Iterable[tuple[object, object]]) -> Html:
    """Names and what they stand for."""
    return Html("<dl>" + "".join(f"<dt>{text(name)}</dt><dd>{text(value)}</dd>" for name, value in pairs) + "</dl>")


def card(title: object, content: Html) -> Html:
    return Html(f'<div class="card"><h3>{text(title)}</h3>{content}</div>')


def side_by_side(figures: Iterable[str]) -> Html:
    return Html(f'<div class="charts">{"".join(figures)}</div>')
