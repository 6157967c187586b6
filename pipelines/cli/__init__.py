"""The command line, `rest …`: the whole pipeline, or the same stages by hand.

Commands import what they run when they run it, so that `rest --help` answers at once.
"""

from __future__ import annotations

import sys

import click

from pipelines.cli import ablation, cluster, compare, pipeline, registry, rollouts, score, serving, stages
from rest_core.errors import EXIT_INTERRUPTED
from rest_core.processes import errors_reported, fail, skip_last_collections


class _InOrder(click.Group):
    """Lists its commands in the order in which they were added: that of the work."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


@click.group(cls=_InOrder, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="rest-pipelines")
def cli() -> None:
    """ResT: train tool-use language models with reshaped token-level policy gradients.

    \b
    Examples:
      rest run                            the whole pipeline on this machine (profile quickstart)
      rest run --profile smollm2-135m     … under another profile (`rest profiles` lists them)
      rest ui                             MLflow's pages over what was run
      rest score response.txt gold.txt    how one response is parsed, rewarded and weighted
    """


for module in (pipeline, ablation, cluster, stages, compare, rollouts, registry, serving, score):
    for command in module.COMMANDS:
        cli.add_command(command)


def main(arguments: list[str] | None = None) -> None:
    """Run a command; what a user can mend ends in one line on stderr and exit code 2.

    A stop on request ends in 75: the same command, started again, resumes.

    Args:
        arguments: the command line; None = the process's own.
    """
    skip_last_collections()
    try:
        with errors_reported():
            cli.main(arguments, standalone_mode=False)
    except click.exceptions.Exit as error:
        sys.exit(error.exit_code)
    except click.ClickException as error:  # a wrong option or argument
        where = f" (see `{error.ctx.command_path} --help`)" if isinstance(error, click.UsageError) and error.ctx else ""
        fail(f"{' '.join(error.format_message().split())}{where}")
    except (KeyboardInterrupt, click.Abort) as stop:
        notes = getattr(stop.__cause__ or stop, "__notes__", ())
        click.echo("\n".join(["interrupted", *notes]), err=True)
        sys.exit(EXIT_INTERRUPTED)
