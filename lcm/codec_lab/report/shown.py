"""Numbers and names of codecs as the page and the terminal show them."""

from collections.abc import Mapping, Sequence
from typing import Any

Systems = Mapping[str, Mapping[str, Any]]
"""Results by the name their codec has on the page, this report's own first."""


def systems_of(results: Mapping[str, Any], others: Sequence[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """Each codec by its name; a name that is taken already gets a number."""
    named: dict[str, Mapping[str, Any]] = {}
    for found in (results, *others):
        name = str(found["codec"]["name"])
        same = sum(str(earlier["codec"]["name"]) == name for earlier in named.values())
        named[f"{name} ({same + 1})" if same else name] = found
    return named


def shown(value: float | None, digits: int = 1) -> str:
    """A dash for what was not measured."""
    return "–" if value is None else f"{value:.{digits}f}".replace("-", "−")


def percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f}%"


def band(group: Mapping[str, Any]) -> str:
    return f"{group['from']}+" if group["to"] is None else f"{group['from']}–{group['to']}"
