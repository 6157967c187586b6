"""Where MLflow keeps its records: the address, a client for it, and what must never be written there."""

from __future__ import annotations

import functools
import os
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar
from urllib.parse import quote, unquote, urlsplit

from rest_core.config import TrackingConfig
from rest_core.credentials import redact, with_credentials, without_credentials
from rest_core.errors import UserError, nearest
from rest_core.processes import rest_command

if TYPE_CHECKING:
    from mlflow import MlflowClient

P = ParamSpec("P")
T = TypeVar("T")

# Set where a command's tracking.uri held credentials: they are in MLFLOW_TRACKING_URI, for its stages.
HANDED_OVER = "REST_TRACKING_URI_HANDED_OVER"
WORKSPACE = "MLFLOW_WORKSPACE"  # whose runs and models MLflow's client reads and writes, on servers that have several
ASK_SECONDS = 5.0
"""In which a server must answer when it is asked whether it is there."""
_ASKED = "/api/2.0/mlflow/experiments/search"  # a server's /health says nothing of its database
_SQLITE = "sqlite:///"
# Without this tag, in newer versions without this query, MLflow's UI shows an experiment as one of GenAI.
_EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}
TRAINING_VIEW = "?workflowType=machine_learning"
_SERVERS = ("http", "https")
_SCHEMES = ("databricks", "databricks-uc", "file", "http", "https", "mssql", "mysql", "postgresql", "sqlite")


def resolve_uri(tracking: TrackingConfig) -> str:
    """The tracking URI: configured, else MLFLOW_TRACKING_URI, else SQLite in `mlruns/` of the current folder.

    A configured one has the credentials that MLFLOW_TRACKING_URI has for the same address.

    Raises `UserError` for a scheme that MLflow does not know and for a local folder that cannot be made.
    """
    given = with_credentials(tracking.uri) if tracking.uri else os.environ.get("MLFLOW_TRACKING_URI")
    uri = given or f"{_SQLITE}{Path.cwd() / 'mlruns' / 'mlflow.db'}"
    try:
        scheme = urlsplit(uri).scheme.split("+")[0]
    except ValueError:  # a bracket in a password looks like an address of IPv6
        raise UserError(
            f"tracking.uri {redact(uri)!r} is not an address; write a password's characters other than letters and "
            "digits with % ([ is %5B), or set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
        ) from None
    if scheme not in _SCHEMES:
        shown = f" {redact(uri)!r}" if "://" in uri else ""  # else nothing says where a password is
        known = scheme if "://" in uri else ""
        raise UserError(
            f"tracking.uri{shown}: unknown scheme {known!r}{nearest(known, _SCHEMES)}; "
            "write it as http://HOST:PORT or sqlite:////absolute/path/mlflow.db"
        )
    if (database := sqlite_file(uri)) is not None:
        try:
            database.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"tracking.uri {uri!r}: {database.parent} cannot be made: {error.strerror}") from None
    return uri


def sqlite_file(uri: str) -> Path | None:
    """The database file of an SQLite URI; None for every other store, one in memory included."""
    path = uri.removeprefix(_SQLITE).partition("?")[0]
    return Path(path).absolute() if uri.startswith(_SQLITE) and path not in ("", ":memory:") else None


def is_server(uri: str) -> bool:
    """Whether the store is an MLflow server (and not a database or folder that this process opens itself)."""
    return urlsplit(uri).scheme in _SERVERS


def is_local(uri: str) -> bool:
    """Whether the store is a file or folder of this machine: SQLite or a plain path."""
    return urlsplit(uri).scheme in ("sqlite", "file", "")


def is_same(one: str, other: str) -> bool:
    """Whether two addresses are of one store; user names and passwords do not count."""
    return _canonical(one) == _canonical(other)


def _canonical(uri: str) -> str:
    if (database := sqlite_file(uri)) is not None:
        return f"{_SQLITE}{database.resolve()}"
    parts = urlsplit(without_credentials(uri))
    return parts._replace(
        scheme=parts.scheme.lower(), netloc=parts.netloc.lower(), path=parts.path.rstrip("/")
    ).geturl()


def open_client(uri: str) -> MlflowClient:
    """An MLflow client on `uri` for both runs and models; MLflow's global settings stay as they are.

    Its requests wait for a bounded time (`bounded_http`). A database of this machine is made where there is none.

    Raises:
        UserError: the database is damaged, half made, of another version of MLflow, or cannot be opened.
    """
    from mlflow import MlflowClient  # takes more than a second

    from rest_core.operations.tracking import bounded_http, local_store

    bounded_http.install()
    if (database := sqlite_file(uri)) is not None:
        local_store.prepare(database, uri)
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def connect(tracking: TrackingConfig) -> MlflowClient:
    """A client for requests that need an answer now (registering, promoting).

    Raises:
        UserError: within `ASK_SECONDS`, when a server does not answer, its certificate is not trusted, or it does not
            have the workspace that the environment names; or the database cannot be used (`open_client`).
    """
    uri = resolve_uri(tracking)
    if is_server(uri) and (problem := unreachable(uri)):
        raise UserError(f"MLflow at {redact(uri)} {_told(problem)}")
    client = open_client(uri)
    if is_server(uri) and os.environ.get(WORKSPACE):
        with refusals(client):
            client.search_experiments(max_results=1)
    return client


def _told(problem: str) -> str:
    """Why a server cannot be used, and what to do."""
    if "certificate" in problem.lower():
        return (
            f"is there, and its certificate is not trusted ({problem}); name the file of its authority in "
            "MLFLOW_TRACKING_SERVER_CERT_PATH or REQUESTS_CA_BUNDLE"
        )
    return f"does not answer ({problem}); start it, or set tracking.uri"


@contextmanager
def refusals(client: MlflowClient) -> Iterator[None]:
    """Turn what MLflow refuses or fails at within the block into a `UserError`."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        raise UserError(f"MLflow at {redact(client.tracking_uri)}: {reason(error)}") from error


def asks(function: Callable[Concatenate[MlflowClient, P], T]) -> Callable[Concatenate[MlflowClient, P], T]:
    """A function of an MLflow client with `refusals` around it."""

    @functools.wraps(function)
    def wrapped(client: MlflowClient, *arguments: P.args, **keywords: P.kwargs) -> T:
        with refusals(client):
            return function(client, *arguments, **keywords)

    return wrapped


@contextmanager
def short_waits(seconds: int = 20) -> Iterator[None]:
    """Within the block MLflow's client gives up a request after `seconds`, in the whole process.

    Variables that are set in the environment already keep their values.
    """
    # By default it retries 7 times within 4 minutes; boto3 is how it reaches artifacts in S3.
    settings = {
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": str(seconds),
        "AWS_MAX_ATTEMPTS": "2",
    }
    added = {name: value for name, value in settings.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]


def unreachable(uri: str, timeout: float = ASK_SECONDS) -> str | None:
    """Why a server's API does not answer within `timeout` seconds in all; None when it does, whatever it says.

    Unlike MLflow's other requests this one is not retried. It uses the same credentials and certificates.
    """
    from mlflow.exceptions import MlflowException
    from mlflow.utils.credentials import get_default_host_creds
    from mlflow.utils.rest_utils import http_request

    from rest_core.operations.tracking import bounded_http

    bounded_http.install()
    request: dict[str, Any] = {"json": {"max_results": 1}, "timeout": timeout, "max_retries": 0}
    try:
        answer = http_request(get_default_host_creds(uri), _ASKED, "POST", raise_on_status=False, **request)
    except MlflowException as error:
        return reason(error)
    return f"HTTP {answer.status_code}" if answer.status_code >= 500 else None


def reason(error: BaseException) -> str:
    """An error in one line of at most 300 characters, without credentials.

    Of a failed connection it is the innermost error: MLflow, requests and urllib3 wrap it in long texts.
    """
    cause = error
    while (inner := cause.__cause__ or cause.__context__) is not None:
        cause = inner
    text = (cause.strerror or str(cause)) if isinstance(cause, OSError) and cause is not error else str(error)
    return redact(" ".join(text.split()))[:300] or type(error).__name__


def ensure_experiment(client: MlflowClient, uri: str, name: str) -> str:
    """The id of the experiment `name`, which is made when it is not there yet.

    On SQLite its artifacts go beside the database; every other store has its own place for them.
    """
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        database = sqlite_file(uri)
        location = (database.parent / "artifacts").as_uri() if database else None
        try:
            return str(client.create_experiment(name, artifact_location=location, tags=_EXPERIMENT_TAGS))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":  # another stage was faster
                raise
            found = client.get_experiment_by_name(name)
            assert found is not None
    return str(found.experiment_id)


def local_path(uri: str) -> Path | None:
    """The folder or file of a local path or file URI; None for a remote one."""
    parts = urlsplit(uri)
    if parts.scheme == "file":
        return Path(unquote(parts.path))
    return None if "://" in uri or parts.scheme in ("runs", "models", "mlflow-artifacts") else Path(uri)


def require_lasting(experiment: str, artifacts: str, on_volume: Callable[[Path], bool]) -> None:
    """Refuse artifacts on the disk of a pod, with which they would go.

    Args:
        experiment: its name.
        artifacts: the location of its artifacts, or of a run's.
        on_volume: whether a path is on a volume that outlives the pod.

    Raises:
        UserError: the location is a path, and on no volume.
    """
    if (path := local_path(artifacts)) is not None and not on_volume(path):
        raise UserError(
            f"MLflow's experiment {experiment!r} has its artifacts at {artifacts}, which is each pod's own disk: a "
            "model there is gone with its pod; start MLflow with --serve-artifacts and --artifacts-destination, or "
            "with an s3:// --default-artifact-root, and set another tracking.experiment: this one keeps its location"
        )


def where_to_look(uri: str, experiment_id: str | None = None, run_id: str | None = None) -> str:
    """A link to a run on a server; for a local store, the command that starts the UI, from the working directory."""
    page = f"/#/experiments/{experiment_id}/runs/{run_id}{TRAINING_VIEW}" if experiment_id and run_id else ""
    if is_server(uri):
        workspace = os.environ.get(WORKSPACE) if page else None
        return f"{without_credentials(uri).rstrip('/')}{page}{f'&workspace={quote(workspace)}' if workspace else ''}"
    return f"{shlex.join([rest_command(), 'ui', *options_for(uri)])}, then http://127.0.0.1:5000{page}"


def options_for(uri: str) -> list[str]:
    """The options with which a command of this project, started in the working directory, uses a store."""
    if resolve_uri(TrackingConfig()) == uri and HANDED_OVER not in os.environ:
        return []
    return ["--set", f"tracking.uri={without_credentials(uri)}"]


def sync_command(folder: Path | str, uri: str) -> str:
    """The command that sends the records which wait in a folder to a store."""
    return shlex.join(["rest", "sync", str(folder), *options_for(uri)])
