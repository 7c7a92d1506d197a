"""Pages from templates: page.html is the frame with the style sheet, macros.html has tables, cards, facts, charts."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from lcm.evaluation.charts import Points, plot

HERE = Path(__file__).parent


def render(template: Path, values: Mapping[str, object]) -> str:
    """Fill a template, which may extend page.html and import macros.html; every value is escaped.

    Raises jinja2.UndefinedError for a name that is not among `values`.
    """
    return _environment(template.parent).get_template(template.name).render(values)


def _environment(folder: Path) -> Environment:
    environment = Environment(
        loader=FileSystemLoader([folder, HERE]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.globals["plot"] = plot
    environment.filters["thousands"] = "{:,}".format
    return environment


# The pieces below are for pages that are not templates yet.

Html = Markup


def text(value: object) -> Html:
    return Html.escape(value)


def page(title: str, parts: Iterable[str]) -> str:
    frame = (
        '{% extends "page.html" %}{% block title %}{{ title }}{% endblock %}{% block body %}{{ body }}{% endblock %}'
    )
    return _environment(HERE).from_string(frame).render(title=title, body=Html("\n".join(parts)))


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


def line_chart(name: str, series: Mapping[str, Points], x_label: str, marks: Mapping[float, str] | None = None) -> Html:
    module = _environment(HERE).get_template("macros.html").module
    chart: Html = module.chart(name, series, x_label, marks)  # type: ignore[attr-defined]
    return chart
