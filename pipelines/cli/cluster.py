"""`rest submit | status | logs | retry | stop | schedule`: runs on Kubeflow Pipelines."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import click

from pipelines.cli.follow import console, hint_at_report, wait_for
from pipelines.cli.options import Command, with_options
from pipelines.cli.pipeline_options import PipelineOptions, pipeline_options
from rest_core.errors import UserError

if TYPE_CHECKING:
    from kfp_server_api import V2beta1Run

    from pipelines.cluster.client import Cluster
    from pipelines.platform import Platform

_RUN = click.argument("run", metavar="RUN")
_WAIT = click.option(
    "--wait", is_flag=True, help="Follow the stages until the run has ended; exit code 1 if it failed."
)


def _option(flag: str, metavar: str, help: str, **settings: Any) -> Any:
    return click.option(flag, metavar=metavar, help=help, show_default=True, show_envvar=True, **settings)


_CONNECTION = {
    "host": _option(
        "--host",
        "URL",
        "Address of KFP; default: this pod's cluster, else the kubeconfig's.",
        envvar="KF_PIPELINES_ENDPOINT",
    ),
    "token": _option("--token", "TOKEN", "Bearer token for KFP.", envvar="KF_PIPELINES_TOKEN"),
    "token_file": _option(
        "--token-file", "FILE", "File with the token, read anew for each request.", envvar="KF_PIPELINES_SA_TOKEN_PATH"
    ),
    "namespace": _option(
        "--namespace", "NAME", "Of the runs; default: the platform file's, that of kfp's context file, or kubeflow."
    ),
    "ca_cert": _option(
        "--ca-cert", "FILE", "Authority of KFP's TLS certificate.", type=click.Path(exists=True, dir_okay=False)
    ),
    "timeout": _option(
        "--timeout", "SECONDS", "How long KFP may send nothing.", type=click.FloatRange(0, 86_400, True), default=30.0
    ),
}


def _connected(command: Command) -> Command:
    """Give a command the options that say where KFP is; it gets them as `connection`, the arguments of `Cluster`."""

    @functools.wraps(command)
    def wrapped(*arguments: Any, platform: Platform | None = None, **options: Any) -> Any:
        connection = {name: options.pop(name) for name in _CONNECTION}
        if platform is not None:
            connection["namespace"] = connection["namespace"] or platform.namespace
            connection["ui"] = platform.kfp_url
        return command(*arguments, connection=connection, **options)

    return with_options(wrapped, tuple(_CONNECTION.values()))


def _connect(connection: dict[str, Any]) -> Cluster:
    from pipelines.cluster.client import Cluster

    return Cluster(**connection)


def _requesting(command: Command) -> Command:
    """Give a command the options for what to run and its names; it gets `request` and `experiment`."""
    options = (
        _option("--experiment", "NAME", "KFP's experiment; default: the profile's tracking.experiment."),
        _option("--name", "NAME", "Default: profile, weight scheme, seed, date and time (UTC)."),
        click.option("--upload", is_flag=True, help="Upload the pipeline as a version first, and run that."),
        click.option("--dry-run", is_flag=True, help="Print what would be sent, as YAML; no cluster is needed."),
    )

    @functools.wraps(command)
    def wrapped(
        *arguments: Any, chosen: PipelineOptions, experiment: str | None, name: str | None, **others: Any
    ) -> Any:
        from pipelines.cluster.request import run_request

        request = run_request(chosen.config, chosen.platform, chosen.pipeline, name=name, **chosen.settings)
        experiment = experiment or chosen.config.tracking.experiment
        return command(*arguments, platform=chosen.given_platform, request=request, experiment=experiment, **others)

    return pipeline_options(with_options(wrapped, options))


@click.command()
@_requesting
@_WAIT
@_connected
def submit(
    request: V2beta1Run, connection: dict[str, Any], experiment: str, upload: bool, dry_run: bool, wait: bool
) -> None:
    """Run the pipeline on Kubeflow Pipelines.

    \b
    Examples:
      rest submit --profile qwen3-1.7b --platform platform.yaml --dry-run
      rest submit --profile qwen3-1.7b --platform platform.yaml --host http://127.0.0.1:8888 --wait
      rest submit --profile qwen3-1.7b --set rl.seed=1 --upload
      rest submit --profile qwen3-1.7b --pipeline ablation --scheme uniform --scheme paper --seeds 0,1,2
    """
    if dry_run:
        _print_request({"run": request}, connection, experiment, upload)
        return
    from pipelines.cluster.submit import submit as send

    cluster = _connect(connection)
    run = send(cluster, request, experiment=experiment, upload=upload)
    click.echo(f"submitted {request.display_name}\n{run.run_id}\n{cluster.link(run.run_id)}")
    if wait:
        wait_for(cluster, run.run_id)


@click.command()
@click.argument("run", required=False, metavar="[RUN]")
@_option("--limit", "N", "How many runs to list without RUN.", type=click.IntRange(1, 200), default=10)
@click.option("--report", is_flag=True, help="Write the end of a run that was retried into MLflow, and print it.")
@_WAIT
@_connected
def status(run: str | None, connection: dict[str, Any], limit: int, report: bool, wait: bool) -> None:
    """Show the stages of RUN, an id or a name; without it, the latest runs.

    \b
    Examples:
      rest status
      rest status qwen3-1.7b-official-seed0-20260101-120000
      rest status 1fa3b9a4-0f6c-4b1c-8a4a-5d8f5c1b2f3d --wait
      MLFLOW_TRACKING_URI=https://mlflow.example rest status RUN --report
    """
    if run is None and (wait or report):
        raise UserError(f"--{'wait' if wait else 'report'} needs a run: rest status RUN --wait")
    from pipelines.cluster import runs, tables
    from pipelines.cluster.errors import printable

    cluster = _connect(connection)
    if run is None:
        console().print(tables.run_table(runs.latest(cluster, limit)))
        return
    found = runs.find(cluster, run)
    if wait:
        wait_for(cluster, found.run_id)
        return
    title = f"{printable(found.display_name)}: {runs.state_text(found.state)}"
    click.echo(f"{title}\n{found.run_id}\n{cluster.link(found.run_id)}")
    console().print(tables.stage_table(runs.stages(found)))
    if found.error and found.error.message:
        click.echo(printable(found.error.message))
    if report:
        from pipelines.cluster.conclude import conclude

        click.echo(conclude(found, ui=cluster.ui))
    elif found.state in runs.ENDED:
        hint_at_report(found)


@click.command()
@_RUN
@click.argument("stage", required=False, metavar="[STAGE]")
@_option("--tail", "N", "The last N lines of each pod only.", type=click.IntRange(min=1))
@click.option("--follow", "-f", is_flag=True, help="Read on until the pod has ended; needs access to Kubernetes.")
@_connected
def logs(run: str, stage: str | None, connection: dict[str, Any], tail: int | None, follow: bool) -> None:
    """Print the logs of a stage's pods: of STAGE, else of the one that failed, is running, or was last.

    They are read from Kubernetes, or through KFP where there is no access or the pods are gone.

    \b
    Examples:
      rest logs qwen3-1.7b-official-seed0-20260101-120000
      rest logs qwen3-1.7b-official-seed0-20260101-120000 rest-rl --follow --tail 100
    """
    from pipelines.cluster import logs as pod_logs
    from pipelines.cluster import runs

    cluster = _connect(connection)
    found = runs.find(cluster, run)
    chosen = pod_logs.choose_stage(found, stage)
    broken: UserError | None = None
    for log in pod_logs.read(cluster, found.run_id, chosen, tail=tail, follow=follow):
        click.echo(f"==> {chosen.name}: pod {log.pod}, {log.state} <==", err=True)
        if log.error:
            click.echo(str(log.error), err=True)
        last = "\n"
        try:
            for last in log.text:
                click.echo(last, nl=False)
        except UserError as error:  # the logs of the next pods may say more
            broken = error
        if not last.endswith("\n"):
            click.echo()
    if broken is not None:
        raise broken


@click.command()
@_RUN
@_WAIT
@_connected
def retry(run: str, connection: dict[str, Any], wait: bool) -> None:
    """Start again what failed of RUN; stages that succeeded are kept, a training resumes from its checkpoint.

    \b
    Examples:
      rest retry qwen3-1.7b-official-seed0-20260101-120000 --wait
    """
    from pipelines.cluster import runs

    cluster = _connect(connection)
    found = runs.find(cluster, run)
    if found.state not in ("FAILED", "CANCELED"):
        state = runs.state_text(found.state)
        raise UserError(f"run {found.display_name} is {state}: only a run that failed or was stopped is retried")
    cluster.runs.run_service_retry_run(run_id=found.run_id)
    click.echo(f"started {found.display_name} again")
    if wait:
        wait_for(cluster, found.run_id, retried=True)


@click.command()
@_RUN
@_connected
def stop(run: str, connection: dict[str, Any]) -> None:
    """Stop RUN.

    \b
    Examples:
      rest stop qwen3-1.7b-official-seed0-20260101-120000
    """
    from pipelines.cluster import runs

    cluster = _connect(connection)
    found = runs.find(cluster, run)
    if found.state in (*runs.ENDED, "CANCELING"):
        click.echo(f"{found.display_name} is {runs.state_text(found.state)} already")
        return
    cluster.terminate_run(found.run_id)
    click.echo(f"stopping {found.display_name}")


@click.group()
def schedule() -> None:
    """Runs at set times.

    \b
    Examples:
      rest schedule create --profile qwen3-1.7b --platform platform.yaml --cron "0 3 * * 0"
      rest schedule list
    """


@schedule.command("create")
@_requesting
@_option("--cron", "EXPRESSION", "Minute hour day month weekday, in the cluster's time zone (KFP: UTC).")
@_option("--every", "INTERVAL", "A number with m, h or d, such as 12h.")
@_option("--start", "TIME", "No run before this time (RFC 3339: 2026-01-31T00:00:00Z).")
@_option("--end", "TIME", "No run after this time.")
@_option("--max-concurrency", "N", "Runs at the same time.", type=click.IntRange(1, 10), default=1)
@click.option("--catch-up", is_flag=True, help="Make up for runs that were missed while the schedule was disabled.")
@click.option("--disabled", is_flag=True, help="Create it without starting it.")
@_connected
def schedule_create(
    request: V2beta1Run, connection: dict[str, Any], experiment: str, upload: bool, dry_run: bool, **settings: Any
) -> None:
    """Run the pipeline at set times.

    \b
    Examples:
      rest schedule create --profile qwen3-1.7b --platform platform.yaml --cron "0 3 * * 0" --name weekly
      rest schedule create --profile qwen3-1.7b --every 7d --upload
    """
    from pipelines.cluster import schedules, tables

    body = schedules.request(request, **settings)
    if dry_run:
        _print_request({"recurring_run": body}, connection, experiment, upload)
        return
    made = schedules.create(_connect(connection), body, experiment=experiment, upload=upload)
    click.echo(f"scheduled {body.display_name}, {tables.trigger_text(body.trigger)}\n{made.recurring_run_id}")


@schedule.command("list")
@_connected
def schedule_list(connection: dict[str, Any]) -> None:
    """List the schedules.

    \b
    Examples:
      rest schedule list
    """
    from pipelines.cluster import schedules, tables

    console().print(tables.schedule_table(schedules.list_all(_connect(connection))))


def _schedule_command(verb: str, help: str) -> None:
    @schedule.command(verb, help=f"{help}\n\n\b\nExamples:\n  rest schedule {verb} weekly")
    @click.argument("name", metavar="SCHEDULE")
    @_connected
    def change(name: str, connection: dict[str, Any]) -> None:
        from pipelines.cluster import schedules

        cluster = _connect(connection)
        found = schedules.find(cluster, name)
        getattr(cluster, f"{verb}_recurring_run")(found.recurring_run_id)
        click.echo(f"{verb}d {found.display_name}")


_schedule_command("disable", "Start no further runs of SCHEDULE, an id or a name, until it is enabled.")
_schedule_command("enable", "Start runs of SCHEDULE again.")
_schedule_command("delete", "Delete SCHEDULE; the runs that it has started stay.")


def _print_request(body: dict[str, Any], connection: dict[str, Any], experiment: str, upload: bool) -> None:
    """The request `body` by its kind, with the names that a cluster turns into ids."""
    import kfp_server_api
    import yaml

    from pipelines.cluster.submit import pipeline_name

    [request] = body.values()
    pipeline = pipeline_name(request.pipeline_spec) if upload else None
    names = {"namespace": connection["namespace"], "experiment": experiment, "pipeline": pipeline}
    plain = kfp_server_api.ApiClient().sanitize_for_serialization(body)
    printed = {**{name: value for name, value in names.items() if value}, **plain}
    click.echo(yaml.safe_dump(printed, sort_keys=False, allow_unicode=True, width=120), nl=False)


COMMANDS = (submit, status, logs, retry, stop, schedule)
