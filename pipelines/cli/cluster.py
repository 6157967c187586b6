"""`rest submit | status | logs | retry | stop | schedule`: runs on Kubeflow Pipelines."""

from __future__ import annotations

import functools
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipelines.cli.options import FILE, Command, with_options
from pipelines.cli.work import Work, working
from rest_core.errors import EXIT_INTERRUPTED, Preempted, UserError

if TYPE_CHECKING:
    from kfp_server_api import V2beta1RecurringRun, V2beta1Run
    from rich.console import Console

    from pipelines.cluster.connection import Cluster
    from pipelines.cluster.render import Rendered
    from pipelines.platform import Platform

_PIPE_WIDTH = 200  # where no terminal is, lines stay whole for other programs
_LONGEST_TIMEOUT = 86_400.0


class _Seconds(click.FloatRange):
    """A time that a socket can wait for: "nan" is a float that passes every range."""

    def __init__(self) -> None:
        super().__init__(min=0, min_open=True, max=_LONGEST_TIMEOUT)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        seconds = float(super().convert(value, param, ctx))
        if math.isnan(seconds):
            self.fail(f"{value!r} is no number of seconds", param, ctx)
        return seconds


@dataclass(frozen=True)
class _Connect:
    """Where KFP is, as a command's options say it; connects when it is called."""

    namespace: str | None
    settings: dict[str, Any]

    def __call__(self, platform: Platform | None = None) -> Cluster:
        from pipelines.cluster.connection import Connection, connect

        pages = platform.kfp_url if platform else None
        return connect(Connection(namespace=self.namespace_under(platform), pages=pages, **self.settings))

    def namespace_under(self, platform: Platform | None) -> str | None:
        """The namespace that the option or the platform file names."""
        return self.namespace or (platform.namespace if platform else None)

    def to_run(self, name: str) -> tuple[Cluster, V2beta1Run]:
        """The installation, and the run of this id or name on it."""
        cluster = self()
        from pipelines.cluster import runs

        return cluster, runs.find(cluster, name)

    def to_schedule(self, name: str) -> tuple[Cluster, V2beta1RecurringRun]:
        """The same for a schedule."""
        cluster = self()
        from pipelines.cluster import schedule

        return cluster, schedule.find(cluster, name)


def _connected(command: Command) -> Command:
    """Give a command the options that say where KFP is; it gets `connect`."""
    options = (
        click.option(
            "--host",
            envvar="KF_PIPELINES_ENDPOINT",
            show_envvar=True,
            metavar="URL",
            help="Address of KFP; default: this pod's cluster, else through the kubeconfig's Kubernetes API.",
        ),
        click.option(
            "--token", envvar="KF_PIPELINES_TOKEN", show_envvar=True, metavar="TOKEN", help="Bearer token for KFP."
        ),
        click.option(
            "--token-file",
            type=FILE,
            envvar="KF_PIPELINES_SA_TOKEN_PATH",
            show_envvar=True,
            metavar="FILE",
            help="File with the token, read anew for each request.",
        ),
        click.option(
            "--namespace",
            metavar="NAME",
            help="Namespace of the runs; default: the platform file's, that of kfp's context file, or kubeflow.",
        ),
        click.option("--ca-cert", type=FILE, metavar="FILE", help="Authority of KFP's TLS certificate."),
        click.option(
            "--timeout",
            type=_Seconds(),
            default=30.0,
            show_default=True,
            metavar="SECONDS",
            help="How long KFP may send nothing before a request is given up.",
        ),
    )

    @functools.wraps(command)
    def wrapped(
        *arguments: Any,
        host: str | None,
        token: str | None,
        token_file: Path | None,
        namespace: str | None,
        ca_cert: Path | None,
        timeout: float,
        **others: Any,
    ) -> Any:
        settings = {"host": host, "token": token, "token_file": token_file, "ca_cert": ca_cert, "seconds": timeout}
        return command(*arguments, connect=_Connect(namespace, settings), **others)

    return with_options(wrapped, options)


def _rendering(command: Command) -> Command:
    """Give a command the options that say what to run and under which names; it gets `work` and `rendered`."""
    options = (
        click.option(
            "--experiment", metavar="NAME", help="KFP's experiment; default: the profile's tracking.experiment."
        ),
        click.option("--name", metavar="NAME", help="Default: profile, weight scheme, seed, date and time (UTC)."),
        click.option("--upload", is_flag=True, help="Upload the pipeline as a version first, and run that."),
        click.option("--dry-run", is_flag=True, help="Print what would be sent, as YAML; no cluster is needed."),
    )

    @functools.wraps(command)
    def wrapped(*arguments: Any, work: Work, experiment: str | None, name: str | None, **others: Any) -> Any:
        from pipelines.cluster.render import render

        rendered = render(
            work.config, work.platform, work.pipeline, experiment=experiment, run_name=name, **work.settings
        )
        return command(*arguments, work=work, rendered=rendered, **others)

    return working(with_options(wrapped, options))


@click.command()
@_rendering
@click.option("--wait", is_flag=True, help="Follow the stages until the run has ended; exit code 1 where it failed.")
@_connected
def submit(work: Work, rendered: Rendered, connect: _Connect, upload: bool, dry_run: bool, wait: bool) -> None:
    """Run the pipeline on Kubeflow Pipelines.

    \b
    Examples:
      rest submit --profile qwen3-1.7b --platform platform.yaml --dry-run
      rest submit --profile qwen3-1.7b --platform platform.yaml --host http://127.0.0.1:8888 --wait
      rest submit --profile qwen3-1.7b --set rl.seed=1 --parameters run.yaml --upload
      rest submit --profile qwen3-1.7b --pipeline ablation --scheme uniform --scheme paper --seeds 0,1,2
    """
    if dry_run:
        _print_request(work, connect, rendered, upload, run=rendered.run())
        return
    from pipelines.cluster.submit import submit as send

    cluster = connect(work.given_platform)
    run = send(cluster, rendered, upload=upload)
    click.echo(f"submitted {rendered.run_name}\n{run.run_id}\n{cluster.link(run.run_id)}")
    if wait:
        _follow(cluster, run.run_id)


@click.command()
@click.argument("run", required=False, metavar="[RUN]")
@click.option(
    "--limit", type=click.IntRange(1, 200), default=10, show_default=True, help="How many runs to list without RUN."
)
@click.option("--wait", is_flag=True, help="Follow RUN until it has ended; exit code 1 where it failed.")
@_connected
def status(run: str | None, connect: _Connect, limit: int, wait: bool) -> None:
    """Show the stages of RUN, an id or a name; without it, the latest runs.

    \b
    Examples:
      rest status
      rest status qwen3-1.7b-official-seed0-20260101-120000
      rest status 1fa3b9a4-0f6c-4b1c-8a4a-5d8f5c1b2f3d --wait
    """
    if run is None and wait:
        raise UserError("--wait needs a run: rest status RUN --wait")
    from pipelines.cluster import runs, show

    console = _console()
    if run is None:
        console.print(show.run_table(runs.latest(connect(), limit)))
        return
    cluster, found = connect.to_run(run)
    if wait:
        _follow(cluster, found.run_id)
        return
    click.echo(f"{found.display_name}: {runs.word(found.state)}\n{found.run_id}\n{cluster.link(found.run_id)}")
    console.print(show.stage_table(runs.stages(found)))
    if found.error and found.error.message:
        click.echo(" ".join(found.error.message.split()))


@click.command()
@click.argument("run", metavar="RUN")
@click.argument("stage", required=False, metavar="[STAGE]")
@click.option("--tail", type=click.IntRange(min=1), metavar="N", help="The last N lines of each pod only.")
@click.option("--follow", "-f", is_flag=True, help="Go on until the pod has ended; needs access to Kubernetes.")
@_connected
def logs(run: str, stage: str | None, connect: _Connect, tail: int | None, follow: bool) -> None:
    """Print what the pods of a stage wrote: of STAGE, else of the one that failed, goes on, or was last.

    They are read from Kubernetes, or through KFP where there is no access or the pods are gone.

    \b
    Examples:
      rest logs qwen3-1.7b-official-seed0-20260101-120000
      rest logs qwen3-1.7b-official-seed0-20260101-120000 rest-rl --follow --tail 100
    """
    cluster, found = connect.to_run(run)
    from pipelines.cluster import logs as pod_logs

    chosen = pod_logs.choose_stage(found, stage)
    broken: UserError | None = None
    for log in pod_logs.read(cluster, found, chosen, tail=tail, follow=follow):
        click.echo(f"==> {chosen.name}: pod {log.pod}, {log.state} <==", err=True)
        if log.missing:
            click.echo(log.missing, err=True)
        last = ""
        try:
            for last in log.lines:
                click.echo(last, nl=False)
        except UserError as error:  # what the next pods wrote may say more
            if broken is not None:
                click.echo(str(broken), err=True)
            broken = error
        if last and not last.endswith("\n"):
            click.echo()
    if broken is not None:
        raise broken


@click.command()
@click.argument("run", metavar="RUN")
@click.option("--wait", is_flag=True, help="Follow the stages until the run has ended; exit code 1 where it failed.")
@_connected
def retry(run: str, connect: _Connect, wait: bool) -> None:
    """Start again what failed of RUN; stages that succeeded are kept, a training goes on from its checkpoint.

    \b
    Examples:
      rest retry qwen3-1.7b-official-seed0-20260101-120000 --wait
    """
    cluster, found = connect.to_run(run)
    from pipelines.cluster import runs

    runs.retry(cluster, found)
    click.echo(f"started {found.display_name} again")
    if wait:
        _follow(cluster, found.run_id)


@click.command()
@click.argument("run", metavar="RUN")
@_connected
def stop(run: str, connect: _Connect) -> None:
    """Stop RUN.

    \b
    Examples:
      rest stop qwen3-1.7b-official-seed0-20260101-120000
    """
    cluster, found = connect.to_run(run)
    from pipelines.cluster import runs

    if runs.stop(cluster, found):
        click.echo(f"stopping {found.display_name}")
    else:
        click.echo(f"{found.display_name} is {runs.word(found.state)} already")


@click.group()
def schedule() -> None:
    """Runs at set times.

    \b
    Examples:
      rest schedule create --profile qwen3-1.7b --platform platform.yaml --cron "0 3 * * 0"
      rest schedule list
    """


@schedule.command("create")
@_rendering
@click.option(
    "--cron", metavar="EXPRESSION", help="Minute hour day month weekday, in the cluster's time zone (KFP: UTC)."
)
@click.option("--every", metavar="INTERVAL", help="A number with m, h or d, such as 12h.")
@click.option("--start", metavar="TIME", help="No run before this time (RFC 3339: 2026-01-31T00:00:00Z).")
@click.option("--end", metavar="TIME", help="No run after this time.")
@click.option(
    "--max-concurrency", type=click.IntRange(1, 10), default=1, show_default=True, help="Runs at the same time."
)
@click.option("--catch-up", is_flag=True, help="Run what was missed while the schedule was disabled.")
@click.option("--disabled", is_flag=True, help="Create it without starting it.")
@_connected
def schedule_create(
    work: Work,
    rendered: Rendered,
    connect: _Connect,
    upload: bool,
    dry_run: bool,
    cron: str | None,
    every: str | None,
    start: str | None,
    end: str | None,
    disabled: bool,
    **settings: Any,
) -> None:
    """Run the pipeline at set times.

    \b
    Examples:
      rest schedule create --profile qwen3-1.7b --platform platform.yaml --cron "0 3 * * 0" --name weekly
      rest schedule create --profile qwen3-1.7b --every 7d --upload
    """
    from pipelines.cluster import schedule as schedules

    when = schedules.trigger(cron=cron, every=every, start=start, end=end)
    settings["enabled"] = not disabled
    if dry_run:
        body = schedules.body(rendered, when, **settings)
        _print_request(work, connect, rendered, upload, recurring_run=body)
        return
    made = schedules.create(connect(work.given_platform), rendered, when, upload=upload, **settings)
    from pipelines.cluster.show import trigger

    click.echo(f"scheduled {rendered.run_name}, {trigger(when)}\n{made.recurring_run_id}")


@schedule.command("list")
@_connected
def schedule_list(connect: _Connect) -> None:
    """List the schedules.

    \b
    Examples:
      rest schedule list
    """
    cluster = connect()
    from pipelines.cluster import schedule as schedules
    from pipelines.cluster import show

    _console().print(show.schedule_table(schedules.list_all(cluster)))


@schedule.command("disable")
@click.argument("name", metavar="SCHEDULE")
@_connected
def schedule_disable(name: str, connect: _Connect) -> None:
    """Start no further runs of SCHEDULE, an id or a name, until it is enabled.

    \b
    Examples:
      rest schedule disable weekly
    """
    _switch(connect, name, on=False)


@schedule.command("enable")
@click.argument("name", metavar="SCHEDULE")
@_connected
def schedule_enable(name: str, connect: _Connect) -> None:
    """Start runs of SCHEDULE again.

    \b
    Examples:
      rest schedule enable weekly
    """
    _switch(connect, name, on=True)


@schedule.command("delete")
@click.argument("name", metavar="SCHEDULE")
@_connected
def schedule_delete(name: str, connect: _Connect) -> None:
    """Delete SCHEDULE; the runs that it has started stay.

    \b
    Examples:
      rest schedule delete weekly
    """
    cluster, found = connect.to_schedule(name)
    from pipelines.cluster import schedule as schedules

    schedules.delete(cluster, found)
    click.echo(f"deleted {found.display_name}")


def _switch(connect: _Connect, name: str, *, on: bool) -> None:
    cluster, found = connect.to_schedule(name)
    from pipelines.cluster import schedule as schedules

    schedules.switch(cluster, found, on=on)
    click.echo(f"{'enabled' if on else 'disabled'} {found.display_name}")


def _print_request(work: Work, connect: _Connect, rendered: Rendered, upload: bool, **bodies: Any) -> None:
    """What would be sent, with the names that a cluster turns into ids."""
    import kfp_server_api

    from pipelines.cluster.render import as_yaml

    namespace = connect.namespace_under(work.given_platform)
    plain = kfp_server_api.ApiClient().sanitize_for_serialization
    request = {
        **({"namespace": namespace} if namespace else {}),
        "experiment": rendered.experiment,
        **({"pipeline": rendered.pipeline_name} if upload else {}),
        **{name: plain(body) for name, body in bodies.items()},
    }
    click.echo(as_yaml(request), nl=False)


def _follow(cluster: Cluster, run_id: str) -> None:
    """Show the run until it has ended; the process ends with 1 where that was no success."""
    from pipelines.cluster import runs
    from pipelines.cluster.follow import follow

    try:
        run = follow(cluster, run_id, _console())
    except KeyboardInterrupt:
        raise Preempted(
            f"the run goes on: `rest status {run_id} --wait` follows it, `rest stop {run_id}` stops it",
            exit_code=EXIT_INTERRUPTED,
        ) from None
    click.echo(f"{run.display_name}: {runs.word(run.state)}  {cluster.link(run_id)}")
    if run.state == "SUCCEEDED":
        return
    for stage in runs.stages(run):
        if "FAILED" in stage.states:
            reason = f": {stage.error}" if stage.error else ""
            click.echo(f"stage {stage.name} failed{reason}; see `rest logs {run_id} {stage.name}`", err=True)
    sys.exit(1)


def _console() -> Console:
    from rich.console import Console

    return Console(file=sys.stdout, highlight=False, width=None if sys.stdout.isatty() else _PIPE_WIDTH)


COMMANDS = (submit, status, logs, retry, stop, schedule)
