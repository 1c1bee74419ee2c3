"""``--config`` and ``expertmine config``: a job file's options among those of the command line. Parse, compose, print.

The commands of a run are asked which options they take; what a job file may say follows from that alone. It
becomes the defaults of the command that runs, so that its values are converted as those that are typed, and what is
typed counts more.
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
"""Commands whose options those of `mine` stand for as well."""
SHARED = ("run",)
"""Keys outside of sections that every other command takes too."""
_JOB = "expertmine.job"
_NAME = "config"


def _take(ctx: typer.Context, value: str | None) -> str | None:
    """Let the job file be the defaults of the options that are parsed after this one."""
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
        help="Job file: options of this and other commands in YAML; those given here count more.",
        is_eager=True,
        callback=_take,
    ),
]


def takes_config(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the option ``--config``; the command itself sees nothing of it."""
    parameters = [*_parameters(command), Parameter(_NAME, Parameter.KEYWORD_ONLY, default=None, annotation=ConfigFile)]

    @wraps(command)
    def expanded(**given: Any) -> None:
        del given[_NAME]
        command(**given)

    return _with_parameters(expanded, parameters)


def config_of(whole: Callable[..., None]) -> Callable[..., None]:
    """The command ``config``, which takes every option of the command that runs all stages, and prints them."""
    as_json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
    as_yaml = Annotated[bool, typer.Option("--yaml", help="Print a job file that says the same.")]
    own = [
        Parameter("ctx", Parameter.KEYWORD_ONLY, annotation=typer.Context),
        Parameter("as_json", Parameter.KEYWORD_ONLY, default=False, annotation=as_json),
        Parameter("as_yaml", Parameter.KEYWORD_ONLY, default=False, annotation=as_yaml),
    ]
    # Nothing is required of one who only looks.
    options = [
        parameter.replace(default=None) if parameter.default is Parameter.empty else parameter
        for parameter in _parameters(whole)
        if parameter.name not in {mine.name for mine in own}
    ]

    def config(ctx: typer.Context, as_json: bool, as_yaml: bool, **_: Any) -> None:
        """What the commands of a run would take from a job file, the command line and the defaults; runs nothing.

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
    """Of a command, by name, with types in place of their names."""
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
    """The commands that take a job file, and how their options are called in it.

    An option of a stage is the same setting as the option of `mine` that is called like it, or like it with the stage
    before it: `address` of `extract` is `extract-address`. Options of other commands are settings of their own, called
    ``generate.seed`` or ``evaluate-concept.seed``.
    """

    options: dict[tuple[str, ...], list[Option]]
    """Of each command, by its words; `mine` first, and without ``config``, which has its options."""
    stage_keys: dict[str, tuple[str, str]]
    """Stage and option that ``extract-address`` and the like stand for."""
    whole: dict[str, str]
    """The setting of each name that an option of `mine` has."""

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
        """Convert every value by every option that takes it, also those of other commands.

        Raises:
            UserError: naming file, line, key and what was expected.
        """
        for words, options in self.options.items():
            for option in options:
                entry = self._entry(job, words, option)
                if entry is None:
                    continue
                try:
                    option.process_value(ctx, _as_parsed(option, entry.value))
                except typer.BadParameter as error:
                    said = f" is {_shown(entry.value)}: {error.message.removeprefix('Value error, ').rstrip('.')}"
                    raise job.trouble(entry, without_password(said)) from None
                except UserError as error:
                    raise job.trouble(entry, f": {error}") from None

    def defaults(self, job: Job, ctx: typer.Context) -> dict[str, Any]:
        """What the command of a context takes from the file, by the names of its parameters."""
        words = (WHOLE,) if _words(ctx) == (_NAME,) else _words(ctx)
        found: dict[str, Any] = {}
        for option in self.options[words]:
            entry = self._entry(job, words, option)
            if entry is not None:
                assert option.name is not None
                found[option.name] = self._unless_typed(ctx, option, _as_parsed(option, entry.value))
        return found

    def settings(self, ctx: typer.Context) -> list[Setting]:
        """Everything: what `mine` takes, what only single stages do, and the other sections of the file."""
        job: Job | None = ctx.meta.get(_JOB)
        found: dict[str, Setting] = {}
        for words, options in self.options.items():
            if words[0] not in (WHOLE, *STAGES) and not _says(job, "-".join(words)):
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
            entry = None  # what was typed has put the file's aside
        if entry is not None and job is not None:
            value = option.process_value(ctx, _as_parsed(option, entry.value))
            return Setting(*where, value, f"{job.where}:{entry.line}")
        said = re.search(r"\[default: (.*?)\]\s*$", getattr(option, "help", None) or "")
        return Setting(*where, option.default, "default", said[1] if said else "")

    def _entry(self, job: Job, words: tuple[str, ...], option: Option) -> Entry | None:
        return next((job.settings[name] for name in self._settings_of(words, option) if name in job.settings), None)

    def _settings_of(self, words: tuple[str, ...], option: Option) -> list[str]:
        """The settings that an option takes its value from, the one that is meant for it first."""
        names = _names(option)
        if words[0] in (WHOLE, *STAGES):
            called = [f"{words[0]}-{name}" for name in names] + names
            return [self.whole[name] for name in called if name in self.whole] or names[:1]
        return [f"{'-'.join(words)}.{names[0]}", *(name for name in names if name in SHARED)]

    def _unless_typed(self, ctx: typer.Context, option: Option, value: Any) -> Any:
        """A value of the file for one stage, which yields when the option for all stages is typed."""
        stage, _, rest = (option.name or "").partition("_")
        if stage not in STAGES or rest not in {other.name for other in ctx.command.params}:
            return value

        def unless_typed() -> Any:  # asked when what was typed has been parsed
            source = ctx.get_parameter_source(rest)
            return None if source is not None and source.name == "COMMANDLINE" else value

        return unless_typed


_OF_PRINTING = frozenset({"json"})
"""Settings that say how something is printed, not what is done."""


def _taking_config(command: Any, words: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], list[Option]]]:
    if isinstance(command, TyperGroup):
        for name, each in command.commands.items():
            yield from _taking_config(each, (*words, name))
    elif any(option.name == _NAME for option in command.params):
        yield words, [option for option in command.params if option.name != _NAME]


def _words(ctx: Any) -> tuple[str, ...]:
    """Of the command that a context is of, without the program's name."""
    return () if ctx.parent is None else (*_words(ctx.parent), ctx.info_name)


def _says(job: Job | None, section: str) -> bool:
    return job is not None and any(name.startswith(f"{section}.") for name in job.settings)


def _names(option: Option) -> list[str]:
    """What an option is called in a job file, its long names first; an argument by what it is for."""
    if isinstance(option, TyperArgument):
        return [(option.name or "").replace("_", "-")]
    return [name.lstrip("-") for name in sorted(option.opts, key=lambda name: not name.startswith("--"))]


_TRUTHS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}


def _as_parsed(option: Option, value: Value) -> Any:
    """A value of the file as the parser of the command line would hand it on.

    Raises:
        typer.BadParameter: a flag that is neither true nor false, or a list where one value is expected.
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
