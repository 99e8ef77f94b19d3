"""A profile as text: what was measured, on what, and each probe's findings and tables."""

from __future__ import annotations

from tabulate import tabulate

from planner.profile import Profile
from planner.report.probes import sections
from planner.report.section import Section, Table
from planner.text import printable

_TABULATE = {"table": "simple", "md": "github"}


def describe_profile(profile: Profile, fmt: str = "table") -> str:
    """The whole profile for a reader, as plain text (`table`) or Markdown (`md`).

    Raises:
        PlanError: findings that this release cannot read; see `planner.report.probes.sections`.
    """
    parts = [title(profile), *measured_on(profile)]
    for section in sections(profile):
        parts.extend(_parts(section, fmt))
    return printable("\n\n".join(parts))


def title(profile: Profile) -> str:
    """Which model."""
    model = profile.model
    return f"Profile of {model.id} ({model.family}, {model.layers} layers, hidden size {model.hidden_size})"


def measured_on(profile: Profile) -> list[str]:
    """Samples, prompts and environment, a sentence each."""
    samples, prompt, where = profile.samples, profile.prompt, profile.environment
    return [
        f"Measured on {samples.n} samples of {samples.source} ({samples.digest[:12]}), on average "
        f"{prompt.system_tokens} + {prompt.visual_tokens} visual + {prompt.text_tokens} text tokens. Layers are "
        "counted from 0.",
        f"Made with {profile.created_with}"
        + "".join(f", {name.replace('_', ' ')} {value}" for name, value in where.items())
        + ".",
    ]


def _parts(section: Section, fmt: str) -> list[str]:
    head = f"## {section.title}" if fmt == "md" else f"{section.title}\n{'=' * len(section.title)}"
    return [head, *section.findings, *(_table(table, fmt) for table in section.tables)]


def _table(table: Table, fmt: str) -> str:
    # Numbers arrive formatted; tabulate must not parse them back.
    align = ["left", *["left" if table.prose else "right"] * (len(table.headers) - 1)]
    cells = tabulate(table.rows, table.headers, tablefmt=_TABULATE[fmt], disable_numparse=True, colalign=align)
    heading = f"**{table.title}**" if fmt == "md" else table.title
    return f"{heading}\n\n{cells}" if table.title else cells
