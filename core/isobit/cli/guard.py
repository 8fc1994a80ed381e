"""From exceptions to exit codes and one red line: 1 a user's error, 2 wrong usage, 70 a bug, 130 Ctrl-C."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer
from typer.core import TyperGroup

from isobit.cli.exit_codes import BUG, INTERRUPTED, USER_ERROR, was_interrupted
from isobit.cli.terminal import complain, line, warn
from isobit.errors import IsobitError, IsobitWarning

if TYPE_CHECKING:
    from isobit.html_report import Section

_DEBUG, _WRITTEN, _ERROR_CODE = "isobit.debug", "isobit.written", "isobit.error_code"


def _remember_debug(context: typer.Context, value: bool) -> bool:
    if value:
        context.meta[_DEBUG] = True  # shared by the contexts of the command and its verb
    return value


#: ``--debug``, which the command and each verb take.
Debug = Annotated[
    bool,
    typer.Option("--debug", metavar="", callback=_remember_debug, is_eager=True, help="Show tracebacks of errors."),
]


def remember_written(context: typer.Context, where: object) -> None:
    """Note that files have been written, so that the message of an interruption says so."""
    context.meta[_WRITTEN] = {**context.meta.get(_WRITTEN, {}), str(where): None}


def write_report(context: typer.Context, path: Path | None, about: str, sections: Sequence[Section]) -> None:
    """Write the page of a verb, where one is asked for. `say_report` says where, behind all else that it prints."""
    if path is None:
        return
    from isobit.html_report import write_page

    write_page(path, f"isobit {context.info_name}", about, sections)
    remember_written(context, path)


def say_report(path: Path | None) -> None:
    """Say where the page is."""
    if path is not None:
        line(f"report     {path}")


@contextmanager
def _warnings_as_lines() -> Iterator[None]:
    """isobit's warnings are one yellow line each on standard error, without the place in the code."""
    with warnings.catch_warnings():
        show = warnings.showwarning

        def as_line(
            message: Warning | str,
            category: type[Warning],
            filename: str,
            lineno: int,
            file: TextIO | None = None,
            line: str | None = None,
        ) -> None:
            if issubclass(category, IsobitWarning):
                warn(str(message))
            else:
                show(message, category, filename, lineno, file, line)

        warnings.showwarning = as_line
        warnings.simplefilter("always", IsobitWarning)
        yield


def errors_exit_with(context: typer.Context, code: int) -> None:
    """Let a user's error end this verb with `code`, where 1 is an answer."""
    context.meta[_ERROR_CODE] = code


#: What a verb without calibration data is told beside its name; those that need none have no option of this kind.
_DATA = (
    "Give a few hundred typical inputs: an .npz with an array for each input (`isobit inspect MODEL` lists them), "
    "an .npy, or a folder of these or of images. `isobit plan MODEL` needs none."
)


def _say_what_data_is(error: BaseException) -> None:
    """Let typer's "Missing option '--data'." say what to give."""
    parameter = getattr(error, "param", None)
    if getattr(parameter, "name", None) == "data" and getattr(error, "message", None) == "":
        error.message = _DATA  # type: ignore[attr-defined]


class GuardedGroup(TyperGroup):
    """The command, with every error answered by one line on standard error and an exit code."""

    def make_context(self, *arguments: Any, **settings: Any) -> Any:
        """Read the words before the verb; what typer imports for it takes long enough to be interrupted."""
        try:
            return super().make_context(*arguments, **settings)
        except KeyboardInterrupt:  # typer would leave without a word
            complain("interrupted; nothing was written", label="")
            raise typer.Exit(INTERRUPTED) from None

    def invoke(self, ctx: Any) -> Any:
        """Run the verb."""
        try:
            with _warnings_as_lines():
                return super().invoke(ctx)
        except (typer.Exit, typer.Abort, typer.TyperException, BrokenPipeError) as error:
            _say_what_data_is(error)
            raise  # typer prints these and sets the exit code
        except KeyboardInterrupt as error:
            raise self._interrupted(ctx, str(error)) from None
        except IsobitError as error:
            if was_interrupted():
                raise self._interrupted(ctx) from None
            self._traceback(ctx)
            complain(str(error))
            raise typer.Exit(ctx.meta.get(_ERROR_CODE, USER_ERROR)) from None
        except Exception as error:
            if was_interrupted():
                raise self._interrupted(ctx) from None
            if not self._traceback(ctx):
                hint = f"this is a bug in {_culprit(error)}; run again with --debug and report the traceback there"
                complain(f"unexpected {type(error).__name__}: {error} ({hint})")
            raise typer.Exit(BUG) from None

    def _interrupted(self, ctx: Any, said: str = "") -> typer.Exit:
        """Say that Ctrl-C ended the verb, and what is written."""
        self._traceback(ctx)
        written = " and ".join(ctx.meta.get(_WRITTEN, {}))
        status = f"the files in {written} are complete" if written else "nothing was written"
        complain(f"interrupted; {said or status}", label="")
        return typer.Exit(INTERRUPTED)

    def _traceback(self, ctx: Any) -> bool:
        """Print the traceback if ``--debug`` asked for it."""
        if not ctx.meta.get(_DEBUG):
            return False
        import sys
        import traceback

        traceback.print_exc(file=sys.stderr)
        return True


def _culprit(error: Exception) -> str:
    from isobit.plugins import registry

    try:
        return str(registry().at_fault(error) or "isobit")
    except Exception:  # finding plug-ins may be what failed
        return "isobit or a plug-in"
