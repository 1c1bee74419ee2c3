"""``--config`` and ``expertmine config``: options from a job file. Parse, compose, print.

The keys of a job file are derived from the options of the commands. Its values become the defaults of the command that
runs, so they are converted like typed values, and typed options override them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import wraps
from inspect import Parameter, Signature, signature
from typing import Annotated, Any, TypeAlias, get_type_hints

import typer
from typer.core import TyperArgument, TyperGroup, TyperOption

from expertmine.cli.job_file import Entry, Job, Setting, Value, Vocabulary, read_job, without_password
from expertmine.errors import UserError
from expertmine.storage.locations import location

Option: TypeAlias = TyperOption | TyperArgument

WHOLE = "mine"
"""The command that runs all stages: its options are the keys outside of sections."""
STAGES = ("units", "plan", "extract", "score", "reduce")
"""Commands that also take the options of `mine`."""
SHARED = ("run",)
"""Keys outside of sections that every other command also takes."""
_JOB = "expertmine.job"
_NAME = "config"


def _take(ctx: typer.Context, value: str | None) -> str | None:
    """Make the job file's values the defaults of the options that are parsed after this one."""
    if value is not None and not ctx.resilient_parsing:
        commands = _Commands.of(ctx)
        job = read_job(location(value), commands.vocabulary())
        commands.check(job, ctx)
        ctx.default_map = commands.defaults(job, ctx)
        ctx.meta[_JOB] = job
    return value


ConfigFile = Annotated[
    str | None,
    typer.Option(
        f"--{_NAME}",
        metavar="FILE",
        help="Job file with options of this and other commands in YAML; options on the command line override it.",
        is_eager=True,
        callback=_take,
    ),
]


def takes_config(command: Callable[..., None]) -> Callable[..., None]:
    """Add the option ``--config`` to a command; it is not passed to the command itself."""
    parameters = [*_parameters(command), Parameter(_NAME, Parameter.KEYWORD_ONLY, default=None, annotation=ConfigFile)]

    @wraps(command)
    def expanded(**given: Any) -> None:
        del given[_NAME]
        command(**given)

    return _with_parameters(expanded, parameters)


def config_of(whole: Callable[..., None]) -> Callable[..., None]:
    """The command ``config``, which takes all options of the command that runs all stages, and prints them."""
    as_json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
    as_yaml = Annotated[bool, typer.Option("--yaml", help="Print an equivalent job file.")]
    own = [
        Parameter("ctx", Parameter.KEYWORD_ONLY, annotation=typer.Context),
        Parameter("as_json", Parameter.KEYWORD_ONLY, default=False, annotation=as_json),
        Parameter("as_yaml", Parameter.KEYWORD_ONLY, default=False, annotation=as_yaml),
    ]
    # Nothing is required just to print settings.
    options = [
        parameter.replace(default=None) if parameter.default is Parameter.empty else parameter
        for parameter in _parameters(whole)
        if parameter.name not in {mine.name for mine in own}
    ]

    def config(ctx: typer.Context, as_json: bool, as_yaml: bool, **_: Any) -> None:
        """Show the settings from a job file, the command line and the defaults; runs nothing.

        Example: `expertmine config --config job.yaml --workers 4`
        """
        from expertmine.cli.show import config as show_config

        if as_json and as_yaml:
            raise UserError("--json and --yaml are both given; expected one of them")
        found = _Commands.of(ctx).settings(ctx)
        show = show_config.as_json if as_json else show_config.as_yaml if as_yaml else show_config.as_table
        show(found)

    return _with_parameters(config, [*options, *own])


def _parameters(command: Callable[..., None]) -> list[Parameter]:
    """The parameters of a command, with resolved types."""
    hints = get_type_hints(command, include_extras=True)
    return [
        parameter.replace(kind=Parameter.KEYWORD_ONLY, annotation=hints[name])
        for name, parameter in signature(command).parameters.items()
    ]


def _with_parameters(command: Callable[..., None], parameters: list[Parameter]) -> Callable[..., None]:
    command.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return command


@dataclass(frozen=True, slots=True)
class _Commands:
    """The commands that take a job file, and the names of their options in it.

    An option of a stage is the same setting as the option of `mine` with the same name, or with the stage as a prefix:
    `address` of `extract` is `extract-address`. Options of other commands are separate settings, such as
    ``generate.seed`` or ``evaluate-concept.seed``.
    """

    options: dict[tuple[str, ...], list[Option]]
    """Options by the words of their command; `mine` first, without ``config``, which has the same options."""
    stage_keys: dict[str, tuple[str, str]]
    """Stage and option by key, such as ``extract-address``."""
    whole: dict[str, str]
    """The setting of each option name of `mine`."""

    @classmethod
    def of(cls, ctx: typer.Context) -> _Commands:
        found = dict(_taking_config(ctx.find_root().command, ()))
        del found[_NAME,]
        options = {words: found[words] for words in sorted(found, key=lambda words: words != (WHOLE,))}
        stage_keys = {
            f"{stage}-{name}": (stage, name) for stage in STAGES for each in options[stage,] for name in _names(each)
        }
        whole: dict[str, str] = {}
        for option in options[WHOLE,]:
            names = _names(option)
            whole |= dict.fromkeys(names, next((name for name in names if name in stage_keys), names[0]))
        return cls(options, stage_keys, whole)

    def vocabulary(self) -> Vocabulary:
        top: dict[str, str] = {}
        sections: dict[str, dict[str, str]] = {}
        for words, options in self.options.items():
            section = sections.setdefault("-".join(words), {})
            for option in options:
                for name in _names(option):
                    setting = self._settings_of(words, option)[0]
                    section[name] = setting
                    if words == (WHOLE,) or (words[0] in STAGES and name not in self.whole and setting == name):
                        top[name] = setting
        return Vocabulary(top, sections)

    def check(self, job: Job, ctx: typer.Context) -> None:
        """Convert every value by every option that takes it, also options of other commands.

        Raises:
            UserError: a value is invalid; names file, line, key and what was expected.
        """
        for words, options in self.options.items():
            for option in options:
                entry = self._entry(job, words, option)
                if entry is None:
                    continue
                try:
                    option.process_value(ctx, _as_parsed(option, entry.value))
                except typer.BadParameter as error:
                    reason = f" is {_shown(entry.value)}: {error.message.removeprefix('Value error, ').rstrip('.')}"
                    raise job.error(entry, without_password(reason)) from None
                except UserError as error:
                    raise job.error(entry, f": {error}") from None

    def defaults(self, job: Job, ctx: typer.Context) -> dict[str, Any]:
        """The file's values for the command of a context, by the names of its parameters."""
        words = (WHOLE,) if _words(ctx) == (_NAME,) else _words(ctx)
        found: dict[str, Any] = {}
        for option in self.options[words]:
            entry = self._entry(job, words, option)
            if entry is not None:
                assert option.name is not None
                found[option.name] = self._unless_typed(ctx, option, _as_parsed(option, entry.value))
        return found

    def settings(self, ctx: typer.Context) -> list[Setting]:
        """All settings: options of `mine`, options of single stages only, and other sections in the file."""
        job: Job | None = ctx.meta.get(_JOB)
        found: dict[str, Setting] = {}
        for words, options in self.options.items():
            if words[0] not in (WHOLE, *STAGES) and not _has_section(job, "-".join(words)):
                continue
            for option in options:
                setting, *shared = self._settings_of(words, option)
                section, _, key = setting.rpartition(".")
                as_shared = section and shared and not (job and setting in job.settings)
                if setting in found or key in _OF_PRINTING or as_shared:
                    continue
                where = self.stage_keys.get(setting, (section or None, key))
                found[setting] = self._setting(where, words, option, job, ctx)
        sections = list(dict.fromkeys([None, *(each.section for each in found.values())]))
        return sorted(found.values(), key=lambda each: sections.index(each.section))

    def _setting(
        self, where: tuple[str | None, str], words: tuple[str, ...], option: Option, job: Job | None, ctx: typer.Context
    ) -> Setting:
        entry = None if job is None else self._entry(job, words, option)
        source = ctx.get_parameter_source(option.name or "") if words == (WHOLE,) else None
        if source is not None and source.name == "COMMANDLINE":
            return Setting(*where, ctx.params[option.name or ""], "command line")
        if source is not None and source.name == "DEFAULT":
            entry = None  # a typed option has replaced the file's value
        if entry is not None and job is not None:
            value = option.process_value(ctx, _as_parsed(option, entry.value))
            return Setting(*where, value, f"{job.where}:{entry.line}")
        described = re.search(r"\[default: (.*?)\]\s*$", getattr(option, "help", None) or "")
        return Setting(*where, option.default, "default", described[1] if described else "")

    def _entry(self, job: Job, words: tuple[str, ...], option: Option) -> Entry | None:
        return next((job.settings[name] for name in self._settings_of(words, option) if name in job.settings), None)

    def _settings_of(self, words: tuple[str, ...], option: Option) -> list[str]:
        """The settings that an option takes its value from, the most specific first."""
        names = _names(option)
        if words[0] in (WHOLE, *STAGES):
            candidates = [f"{words[0]}-{name}" for name in names] + names
            return [self.whole[name] for name in candidates if name in self.whole] or names[:1]
        return [f"{'-'.join(words)}.{names[0]}", *(name for name in names if name in SHARED)]

    def _unless_typed(self, ctx: typer.Context, option: Option, value: Any) -> Any:
        """The file's value for one stage, unless the option for all stages is typed."""
        stage, _, rest = (option.name or "").partition("_")
        if stage not in STAGES or rest not in {other.name for other in ctx.command.params}:
            return value

        def unless_typed() -> Any:  # called after the command line has been parsed
            source = ctx.get_parameter_source(rest)
            return None if source is not None and source.name == "COMMANDLINE" else value

        return unless_typed


_OF_PRINTING = frozenset({"json"})
"""Settings that only change how results are printed."""


def _taking_config(command: Any, words: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], list[Option]]]:
    if isinstance(command, TyperGroup):
        for name, each in command.commands.items():
            yield from _taking_config(each, (*words, name))
    elif any(option.name == _NAME for option in command.params):
        yield words, [option for option in command.params if option.name != _NAME]


def _words(ctx: Any) -> tuple[str, ...]:
    """The words of a context's command, without the program's name."""
    return () if ctx.parent is None else (*_words(ctx.parent), ctx.info_name)


def _has_section(job: Job | None, section: str) -> bool:
    return job is not None and any(name.startswith(f"{section}.") for name in job.settings)


def _names(option: Option) -> list[str]:
    """The names of an option in a job file, long names first; of an argument, its parameter's name."""
    if isinstance(option, TyperArgument):
        return [(option.name or "").replace("_", "-")]
    return [name.lstrip("-") for name in sorted(option.opts, key=lambda name: not name.startswith("--"))]


_TRUTHS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}


def _as_parsed(option: Option, value: Value) -> Any:
    """The file's value in the form in which the command line's parser would pass it on.

    Raises:
        typer.BadParameter: a flag is neither true nor false, or there is a list where one value is expected.
    """
    if getattr(option, "multiple", False) or option.nargs == -1:
        return [value] if isinstance(value, str) else list(value)
    if not isinstance(value, str):
        raise typer.BadParameter("expected one value, found a list")
    if getattr(option, "is_flag", False):
        if value.lower() not in _TRUTHS:
            raise typer.BadParameter("expected true or false")
        return _TRUTHS[value.lower()]
    return value


def _shown(value: Value) -> str:
    return repr(value) if isinstance(value, str) else f"[{', '.join(value)}]"
