"""Pages from templates: page.html is the frame with the style sheet, macros.html has tables, cards, facts, charts."""

from collections.abc import Mapping
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from lcm.evaluation.charts import plot

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
