"""The command `corepool`: starts a verb and turns whatever goes wrong into one line and an exit code.

It must not know what the verbs do, and loads nothing heavy.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Sequence

import typer

from corepool import __version__
from corepool.cli import compile as compile_verb
from corepool.cli import (
    demo,
    evaluate,
    infer,
    inspect,
    lease,
    model,
    relink,
    rtl,
    run,
    serve,
    signals,
    store,
    tenant,
    top,
    validate,
    zoo,
)
from corepool.cli.output import PipeClosedError, one_line, write
from corepool.errors import CorepoolError

EXIT_ERROR = 2  # bad input, bad usage, files that cannot be read or written
EXIT_INTERNAL = 1  # a fault of the program itself
EXIT_INTERRUPTED = 130
EXIT_PIPE = 141  # as a shell reports a process that SIGPIPE ended

app = typer.Typer(
    name="corepool",
    help="A pool of small neural-network cores on one FPGA card, shared by tenants.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        write(f"corepool {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: bool = typer.Option(False, "--version", help="Show the version.", is_eager=True, callback=_version),
) -> None:
    """A pool of small neural-network cores on one FPGA card: compile a network once, run it on any number of cores."""
    if context.invoked_subcommand is None:
        write(context.get_help())


for verb in (zoo, compile_verb, inspect, run, relink, demo, evaluate, infer, top, validate):
    app.command(name=verb.NAME)(verb.command)
app.command(name=serve.NAME, context_settings=serve.CONTEXT)(serve.command)
app.add_typer(rtl.app)
for group in (store, tenant, model, lease):
    app.add_typer(group.app)


def _complain(text: str) -> None:
    with contextlib.suppress(OSError):
        sys.stderr.write(f"corepool: error: {one_line(text)}\n")
        sys.stderr.flush()


def _usage(error: Exception) -> str | None:
    """The text of an error in the command line itself, or None. The parser's classes differ between typers."""
    form = getattr(error, "format_message", None)
    if form is None:
        return None
    context = getattr(error, "ctx", None)
    hint = f" (see '{context.command_path} --help')" if context is not None else ""
    return f"{form()}{hint}"


def _explain(error: BaseException) -> tuple[str, int]:
    """One line about an error, and the exit code."""
    if isinstance(error, CorepoolError):
        return str(error), EXIT_ERROR
    if isinstance(error, OSError):
        place = f"{error.filename}: " if error.filename is not None else ""
        return f"{place}{error.strerror or error}", EXIT_ERROR
    if isinstance(error, MemoryError):
        return "out of memory; the model or the input is too large for this machine", EXIT_ERROR
    kind = type(error).__name__
    return f"internal error, please report it: {kind}: {error} (COREPOOL_DEBUG=1 shows where)", EXIT_INTERNAL


def invoke(arguments: Sequence[str]) -> int:
    """Carry out a command line and return the exit code. Never raises, unless COREPOOL_DEBUG is set."""
    try:
        code = _carry_out(arguments)
    except BaseException:
        # Whatever came of a request to end on its way through other people's code, it is no error.
        if signals.settle() is None:
            raise
        code = EXIT_INTERNAL
    request = signals.settle()
    if request is None:
        return code
    with contextlib.suppress(OSError):
        sys.stderr.write(f"corepool: {request[1]}\n")
        sys.stderr.flush()
    return request[0]


def _carry_out(arguments: Sequence[str]) -> int:
    try:
        code = typer.main.get_command(app).main(list(arguments), prog_name="corepool", standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except (PipeClosedError, BrokenPipeError):
        return EXIT_PIPE
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else EXIT_INTERNAL
    except (KeyboardInterrupt, typer.Abort):
        return EXIT_INTERRUPTED
    except Exception as error:
        if signals.settle() is not None:
            return EXIT_INTERNAL
        usage = _usage(error)
        if usage is not None:
            _complain(usage)
            return EXIT_ERROR
        if os.environ.get("COREPOOL_DEBUG"):
            raise
        text, code = _explain(error)
        _complain(text)
        return code


def _fill_closed_streams() -> None:
    """Streams that lead nowhere where the process was started without, before a file of ours takes their place."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115 - for as long as we live


def main() -> None:
    """Entry point of the process."""
    _fill_closed_streams()
    signals.install()
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    code = invoke(sys.argv[1:])
    try:
        sys.stdout.flush()
    except OSError:
        code = code or EXIT_ERROR
    # What could not be flushed must not be tried again when the interpreter ends.
    if code != 0:
        _silence_stdout()
    sys.exit(code)


def _silence_stdout() -> None:
    with contextlib.suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


if __name__ == "__main__":
    main()
