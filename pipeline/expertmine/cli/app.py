"""The command line: parse, compose, print. No logic of its own.

Bad input ends with one message and exit code 2, Ctrl-C with exit code 130; the same command then resumes.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from expertmine.cli import capacity as cli_capacity
from expertmine.cli import concepts as cli_concepts
from expertmine.cli import evaluate as cli_evaluate
from expertmine.cli import index as cli_index
from expertmine.cli import report as cli_report
from expertmine.cli import run as cli_run
from expertmine.cli import serve as cli_serve
from expertmine.cli.config import config_of, takes_config
from expertmine.cli.extras import Commands
from expertmine.cli.generate import generate
from expertmine.cli.groups import with_groups
from expertmine.cli.options import (
    AsJson,
    UnitOptions,
    Where,
)
from expertmine.cli.show import console as show
from expertmine.cli.show import run as show_run
from expertmine.errors import UserError
from expertmine.storage.locations import location
from expertmine.telemetry.logs import LogFormat, configure
from expertmine.telemetry.progress import console

INTERRUPTED = 130
"""Exit code after Ctrl-C, by the convention of shells."""

# torch, transformers, ray and dask take seconds to import: commands import what they need.

app = typer.Typer(
    cls=Commands,
    help="Find the expert units of concepts in a transformer language model, and steer generation with them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(cli_concepts.app, name="concepts")
app.add_typer(cli_evaluate.app, name="evaluate")


@app.callback()
def log(
    log_format: Annotated[
        LogFormat,
        typer.Option(
            envvar="EXPERTMINE_LOG_FORMAT",
            help="Format of log lines. `json`: one object per line; without --log-file they go to standard error "
            "instead of progress bars.",
        ),
    ] = "text",
    log_file: Annotated[
        Path | None,
        typer.Option(
            envvar="EXPERTMINE_LOG_FILE",
            help="Append every event to this log file. [default: warnings to standard error]",
            show_default=False,
        ),
    ] = None,
) -> None:
    configure(log_format, log_file, console)


@app.command()
def demo(
    out: Annotated[Where, typer.Option(parser=location, metavar="RUN", help="Run folder.")] = Path("demo-run"),
    concepts: Annotated[int, typer.Option(help="Number of WordNet concepts to mine.", min=20)] = 240,
) -> None:
    """Run the whole job on the embedded model and WordNet: mine, show experts, steer.

    Example: `expertmine demo --out demo-run`
    """
    from expertmine.cli.demo import run_demo

    run_demo(out, concepts)


@app.command()
@takes_config
@with_groups
def units(units_: UnitOptions, as_json: AsJson = False) -> None:
    """List the hookpoints of a model, their widths and unit ids.

    Example: `expertmine units --model gpt2 --hookpoint mlp`
    """
    from expertmine.model.hookpoints import find_hookpoints, left_out_experts
    from expertmine.model.load import load_model

    loaded = load_model(units_.model, units_.revision)
    hookpoints = find_hookpoints(loaded.model, tuple(units_.hookpoints or ()))
    show_run.units(loaded.identity, hookpoints, left_out_experts(loaded.model), as_json)


cli_run.register(app)
cli_index.register_lookups(app)
app.command()(generate)
app.command("config")(config_of(cli_run.mine))
app.command()(takes_config(cli_serve.serve))
app.command()(cli_report.report)
app.command()(cli_capacity.estimate)
cli_index.register(app)


def main() -> None:
    """Entry point of the ``expertmine`` command."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # forked workers would warn about it
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # it warns about missing masks that are not needed
    try:
        app()
    except UserError as error:
        show.problem(str(error))
        sys.exit(2)
    except SystemExit as stop:
        if stop.code == INTERRUPTED:  # typer turns a KeyboardInterrupt into this, silently
            show.problem("stopped; finished work is kept, run the same command again to resume")
        raise
