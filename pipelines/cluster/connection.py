"""The KFP client of a command: which API, as whom, in which namespace."""

from __future__ import annotations

import json
import logging
import os
import warnings
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import kfp
import kfp_server_api
from kfp.client import token_credentials_base
from kubernetes.config import kube_config

from pipelines.cluster.transport import Transport
from rest_core.errors import UserError

_EQUALS = 1  # of filter.proto; kfp.Client has it as _FILTER_OPERATIONS
_UI_VARIABLE = "KF_PIPELINES_UI_ENDPOINT"  # kfp.Client's own


@dataclass(frozen=True)
class Connection:
    """What a command is told about the API.

    Attributes:
        host: address of the API or of KFP's UI; None: this pod's cluster, else the API server's proxy by kubeconfig.
        token: bearer token.
        token_file: file with one, read again for every request, because projected tokens are renewed in place.
        namespace: of the runs' pods, and of experiments where KFP serves several users; None: that of kfp's context
            file, else "kubeflow".
        ca_cert: file with the authority of the API's certificate.
        seconds: time limit of a request.
        pages: address of KFP's pages for people; None: `host`.
    """

    host: str | None = None
    token: str | None = None
    token_file: Path | None = None
    namespace: str | None = None
    ca_cert: Path | None = None
    seconds: float = 30.0
    pages: str | None = None


class Cluster:
    """A KFP installation, reached as a `Connection` says.

    Attributes:
        client: kfp's client; its calls raise `pipelines.cluster.errors.ApiError`.
        host: address of the API.
        namespace: where the pods of runs are.
    """

    def __init__(self, client: kfp.Client, *, namespace: str | None, pages: str | None) -> None:
        self.client = client
        self.host: str = client._existing_config.host.rstrip("/")
        self._pages = os.environ.get(_UI_VARIABLE) or pages or self.host
        self.namespace = namespace or client.get_user_namespace() or "kubeflow"

    @cached_property
    def api_namespace(self) -> str | None:
        """The namespace as the API's parameter: None where KFP serves a single user and has no namespaces."""
        return self.namespace if self.client.get_kfp_healthz().multi_user else None

    def link(self, run_id: str) -> str:
        """The run's page in KFP's UI."""
        return f"{self._pages.rstrip('/')}/#/runs/details/{run_id}"


class _Client(kfp.Client):
    """kfp's client over our transport."""

    def __init__(self, connection: Connection, **settings: Any) -> None:
        self._connection = connection
        self._healthz: kfp_server_api.V2beta1GetHealthzResponse | None = None
        super().__init__(**settings)
        self._use_transport()

    def get_kfp_healthz(self, sleep_duration: int = 5) -> kfp_server_api.V2beta1GetHealthzResponse:
        """The API's health, asked once.

        kfp.Client asks in its constructor where it knows no namespace, and repeats that for 25 s with a traceback each.
        """
        if self._healthz is None:
            self._use_transport()
            self._healthz = self._healthz_api.healthz_service_get_healthz()
        return self._healthz

    def _use_transport(self) -> None:
        api_client = self._run_api.api_client  # one for all of kfp.Client's services
        if isinstance(api_client.rest_client, Transport):
            return
        settings = api_client.configuration
        if "://" not in settings.host:  # kfp's address of the service inside a cluster
            settings.host = f"http://{settings.host}"
        api_client.rest_client = Transport(settings, seconds=self._connection.seconds)


class _TokenFile(token_credentials_base.TokenCredentialsBase):
    """A token that is read for every request."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def refresh_api_key_hook(self, config: Any) -> None:
        try:
            token = token_credentials_base.read_token_from_file(str(self._path))
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(
                f"--token-file {self._path}: cannot be read ({getattr(error, 'strerror', None) or error})"
            ) from None
        if not token:
            raise UserError(f"--token-file {self._path}: is empty")
        config.api_key["authorization"] = token


def connect(connection: Connection) -> Cluster:
    """The installation that `connection` names.

    Where nothing names one, kfp's own rules apply: inside a cluster its service address with the pod's service-account
    token, else the Kubernetes API server's proxy as the kubeconfig has it. Cookies and headers come from kfp's context
    file (~/.config/kfp/context.json).

    Raises:
        UserError: nothing says where the API is, or a file cannot be read.
        ApiError: the API does not answer.
    """
    if connection.host is None and "KUBERNETES_SERVICE_HOST" not in os.environ and not _has_kubeconfig():
        raise UserError(
            "no address of Kubeflow Pipelines: give --host (or KF_PIPELINES_ENDPOINT), such as http://127.0.0.1:8888 "
            "after `kubectl port-forward -n kubeflow svc/ml-pipeline 8888:8888`"
        )
    if connection.ca_cert is not None and not connection.ca_cert.is_file():
        raise UserError(f"--ca-cert {connection.ca_cert}: no such file")
    # urllib3 reports each retry as a warning; what counts is told when the last one has failed.
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # that the client is for KFP 2: we know
        try:
            client = _Client(
                connection,
                host=connection.host,
                existing_token=connection.token,
                credentials=_TokenFile(connection.token_file) if connection.token_file else None,
                ssl_ca_cert=str(connection.ca_cert) if connection.ca_cert else None,
            )
        except (json.JSONDecodeError, KeyError) as error:
            raise UserError(
                f"{kfp.Client._LOCAL_KFP_CONTEXT}: is not kfp's context file, JSON with a namespace ({error!r}): mend "
                "or remove it"
            ) from None
    return Cluster(client, namespace=connection.namespace, pages=connection.pages)


def named(name: str) -> str:
    """The API's filter (`backend/api/v2beta1/filter.proto`) for a display name."""
    return json.dumps({"predicates": [{"operation": _EQUALS, "key": "display_name", "stringValue": name}]})


def _has_kubeconfig() -> bool:
    places = kube_config.KUBE_CONFIG_DEFAULT_LOCATION.split(os.pathsep)  # that of KUBECONFIG where it is set
    return any(Path(place).expanduser().is_file() for place in places if place)
