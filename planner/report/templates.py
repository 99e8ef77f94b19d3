"""HTML pages from the templates beside this file: one style, pictures inline, units on their number's line."""

from __future__ import annotations

import itertools
import re
from importlib import resources
from typing import Any

from planner.report.inline import inline

#: The space between a number and its unit, at which no line is broken.
_UNIT = re.compile(r"(?<=\d) (?=%|(?:ms|s|[KMGTP]?(?:FLOP|B)|[KMGTP])\b)")
#: Nor is one behind the hyphen of an interval.
_INTERVAL = re.compile(r"(?<=[\d.]-)(?=\d+\.?\d*\))")
_WORD_JOINER = "\u2060"
#: Where a policy's spelling may be broken.
_JOINT = re.compile(r"(?<=\w)[:,+](?=[a-z])")


def text_of(name: str) -> str:
    """A template, style or script that is shipped."""
    return (resources.files("planner.report") / name).read_text(encoding="utf-8")


def _unbroken(text: str) -> str:
    return _INTERVAL.sub(_WORD_JOINER, _UNIT.sub("\u00a0", text))


def _cell(text: str) -> Any:
    """A table's cell as markup: like other text, and spellings of policies break at their joints."""
    from markupsafe import Markup, escape

    return Markup(_JOINT.sub(r"\g<0><wbr>", str(escape(_unbroken(text)))))


def render_page(template: str, **values: Any) -> str:
    """A page as HTML text. What values say is text, not markup.

    Args:
        template: its file's name; it may include others, the style among them.
        values: what it shows.
    """
    from jinja2 import Environment, FunctionLoader

    environment = Environment(
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        loader=FunctionLoader(text_of),
    )
    numbers = itertools.count(1)
    environment.filters["inline"] = lambda svg, title: inline(svg, next(numbers), title)
    environment.filters["unbroken"] = _unbroken
    environment.filters["cell"] = _cell
    return environment.get_template(template).render(**values)
