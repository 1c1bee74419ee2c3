"""Prints settings as a table, as JSON, or as an equivalent job file."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

import yaml
from rich.markup import escape

from expertmine.cli.job_file import Setting, without_password
from expertmine.cli.show import console as show

# Settings are ordered by section; settings outside of sections come first.


def as_table(settings: Sequence[Setting]) -> None:
    made = show.table("option", "value", "origin", left=3)
    for setting in settings:
        name = setting.key if setting.section is None else f"{setting.section}.{setting.key}"
        made.add_row(escape(name), escape(_text(setting)), escape(setting.origin))
    show.out.print(made, soft_wrap=True)


def as_json(settings: Sequence[Setting]) -> None:
    show.as_json(
        [
            {
                "section": setting.section,
                "option": setting.key,
                "value": _plain(setting.value),
                "origin": setting.origin,
            }
            for setting in settings
        ]
    )


def as_yaml(settings: Sequence[Setting]) -> None:
    """Print a job file without the options that are decided when a command runs."""
    given = [each for each in settings if each.value is not None]
    for section, group in groupby(given, key=lambda each: each.section):
        if section is not None:
            print(f"{section}:")
        for setting in group:
            line = f"{setting.key}: {_as_yaml(_plain(setting.value))}"
            print(f"{line if section is None else '  ' + line}  # {' '.join(setting.origin.split())}")


def _text(setting: Setting) -> str:
    value = _plain(setting.value)
    if value is None:
        return f"({setting.decided})" if setting.decided else "–"
    if isinstance(value, bool):
        return "true" if value else "false"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _plain(value: Any) -> Any:
    """A value in types of JSON and YAML, without passwords."""
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return without_password(str(value))


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _as_yaml(value: Any) -> str:
    """A value as YAML on one line."""
    # YAML folds line breaks other than \n into spaces unless they are escaped.
    quoted = any(isinstance(each, str) and not each.isprintable() for each in (value, *_listed(value)))
    dumped = yaml.safe_dump(
        value,
        default_flow_style=True,
        default_style='"' if quoted else None,
        width=float("inf"),
        allow_unicode=True,
    )
    return dumped.removesuffix("...\n").strip()
