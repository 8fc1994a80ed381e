"""The application: the command, its global options and its verbs."""

from __future__ import annotations

from typing import Annotated

import typer

from isobit.cli.analyzing.analyze_command import analyze
from isobit.cli.backends import backends
from isobit.cli.calibrate import calibrate
from isobit.cli.compressing.compress_command import compress
from isobit.cli.convert import convert
from isobit.cli.diff import diff
from isobit.cli.doctor import doctor
from isobit.cli.dumping.dump_command import dump
from isobit.cli.guard import Debug, GuardedGroup
from isobit.cli.inspect import inspect
from isobit.cli.new_plugin import new_plugin
from isobit.cli.quantize import quantize
from isobit.cli.searching.auto_command import auto
from isobit.cli.searching.plan_command import plan
from isobit.cli.targets import targets
from isobit.cli.transfer import transfer

app = typer.Typer(
    name="isobit",
    cls=GuardedGroup,
    no_args_is_help=True,
    pretty_exceptions_enable=False,  # `isobit.cli.guard` handles them
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(value: bool) -> None:
    if value:
        from isobit.version import __version__

        print(f"isobit {__version__}")
        raise typer.Exit


@app.callback()
def isobit(
    _debug: Debug = False,
    _version: Annotated[
        bool,
        typer.Option(
            "--version", metavar="", callback=_show_version, is_eager=True, help="Show the version and leave."
        ),
    ] = False,
) -> None:
    """Make trained networks small and fast, and keep them accurate.

    Start with: [bold]isobit quantize model.onnx --data calibration.npz -o out/[/bold]
    """


app.command(rich_help_panel="Work")(quantize)
app.command(rich_help_panel="Work")(compress)
app.command(rich_help_panel="Work")(auto)
app.command(rich_help_panel="Work")(transfer)
app.command(rich_help_panel="Work")(convert)
app.command(rich_help_panel="Work")(calibrate)
app.command("new-plugin", rich_help_panel="Work")(new_plugin)
app.command(rich_help_panel="Look")(plan)
app.command(rich_help_panel="Look")(analyze)
app.command(rich_help_panel="Look")(inspect)
app.command(rich_help_panel="Look")(dump)
app.command(rich_help_panel="Look")(diff)
app.command(rich_help_panel="Look")(backends)
app.command(rich_help_panel="Look")(targets)
app.command(rich_help_panel="Look")(doctor)
