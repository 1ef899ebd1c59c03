"""The command line: a group whose commands are imported when called, and the edge where errors become lines."""

from __future__ import annotations

import importlib
import io
import os
import sys

import click

import surgeon
from surgeon.cli.groups import HelpfulGroup
from surgeon.errors import SurgeonError

# Each command is `command` in surgeon/cli/NAME.py, with _ for -. The lines stand here so that `--help` imports none.
COMMANDS = {
    "export": "Convert a model and write its bundle.",
    "check": "Report whether a model converts: each operator, and how it is treated.",
    "run": "Climb from photos towards a class or unit; write the pictures.",
    "figure": "Draw photos against classes, along steps or temperatures, or their strongest units.",
    "app": "Write, and serve, a page in which a browser runs ascents.",
    "evaluate": "Measure how faithful pullbacks are as explanations, beside other gates.",
    "gates": "Measure each gate at photos, and how far soft gates turn the pullback.",
    "calibrate": "Choose the temperature from photos, by stated criteria, and write it into the bundle.",
    "set-temperature": "Write another default temperature into a bundle.",
    "verify": "Compare a bundle's artifacts with PyTorch's autograd.",
    "inspect": "List the parts of a bundle, an ONNX file or a model, or draw its graph.",
    "bench": "Time a bundle against forward passes and eager autograd.",
    "models": "List the models that can be named.",
    "completion": "Print the lines that let a shell complete surgeon's commands.",
}

EXAMPLES = """\b
Examples:
  surgeon export efficientnet_lite0 -o exported/lite0
  surgeon run exported/lite0 cat.jpg --target goldfish --steps 10
  surgeon figure grid exported/lite0 cat.jpg fish.jpg -o figure.png
  surgeon inspect exported/lite0

\b
Exit codes: 0 fine, 1 error, 2 usage, 3 verification failed,
4 network cannot be converted, 5 device not there, 130 interrupted."""


class LazyGroup(HelpfulGroup):
    """The commands of COMMANDS, each imported when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Every name, in the order of use."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command, imported now."""
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"surgeon.cli.{cmd_name.replace('-', '_')}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=LazyGroup, epilog=EXAMPLES, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(surgeon.__version__, prog_name="surgeon", message="%(prog)s %(version)s")
def group() -> None:
    """Turn a pretrained ReLU network into one graph that computes its excitation pullback, and run it without PyTorch.

    A SOURCE is a name (`surgeon models`), or `package.module:factory` of your own. A BUNDLE is the folder that
    `surgeon export` writes; running one needs no PyTorch.
    """


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and leave the process with its exit code; an error is one line on standard error."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # an arrow or an odd file name must not end a run on an old terminal
        sys.stdout.reconfigure(errors="replace")
    sys.exit(invoke(arguments))


def invoke(arguments: list[str] | None = None) -> int:
    """Run the command line; return its exit code."""
    try:
        code = group.main(arguments, prog_name="surgeon", standalone_mode=False)
        sys.stdout.flush()
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return error.exit_code
    except click.ClickException as error:
        path = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else "surgeon"
        _say("error", _ended(" ".join(error.format_message().split())), f"See `{path} --help`.")
        return error.exit_code
    except SurgeonError as error:
        _say("error", _ended(error.message), _ended(error.remedy))
        return error.exit_code
    except MemoryError as error:  # numpy's message has the size
        _say("error", _ended(f"there is not enough memory: {error}".removesuffix(": ")), "Ask for less.")
        return 1
    except (click.Abort, KeyboardInterrupt):
        _say("interrupted", "nothing was written.", "")
        return 130
    except BrokenPipeError:  # the reader of the output left; Python would report it again at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return code if isinstance(code, int) else 0


def _say(what: str, message: str, remedy: str) -> None:
    """One line on standard error: red where that is a terminal, unless NO_COLOR is set."""
    head = click.style(f"{what}:", fg="red", bold=True)
    colour = False if os.environ.get("NO_COLOR") else None
    click.echo(" ".join(part for part in (head, message, remedy) if part), err=True, color=colour)


def _ended(remedy: str) -> str:
    return remedy if not remedy or remedy.endswith((".", "?", "!")) else remedy + "."
