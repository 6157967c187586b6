"""The KFP client of a command: which API, as whom, in which namespace."""

from __future__ import annotations

import json
import logging
import os
import re
import warnings
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import kfp
import kfp_server_api
import urllib3
from kubernetes import client as kubernetes_client
from kubernetes import config as kubernetes_config

from pipelines.cluster import answers, credentials, kubeconfig
from pipelines.cluster.transport import Transport
from pipelines.cluster.words import one_line
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
        seconds: how long the API may send nothing.
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
    """kfp's client over our transport.

    Args:
        connection: what the command is told.
        configuration: of the generated client; None: as kfp makes it of the settings.
        settings: of kfp.Client.
    """

    def __init__(
        self, connection: Connection, configuration: kfp_server_api.Configuration | None, **settings: Any
    ) -> None:
        self._connection = connection
        self._configuration = configuration
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

    def _load_config(self, *arguments: Any, **settings: Any) -> kfp_server_api.Configuration:
        return self._configuration or super()._load_config(*arguments, **settings)

    def _use_transport(self) -> None:
        api_client = self._run_api.api_client  # one for all of kfp.Client's services
        if isinstance(api_client.rest_client, Transport):
            return
        api_client.rest_client = Transport(api_client.configuration, seconds=self._connection.seconds)
        api_client.deserialize = answers.checked(api_client.deserialize)


def connect(connection: Connection) -> Cluster:
    """The installation that `connection` names.

    Where nothing names one, kfp's own rules apply: inside a cluster its service address with the pod's service-account
    token, else the Kubernetes API server's proxy as the kubeconfig has it. Cookies and headers come from kfp's context
    file (~/.config/kfp/context.json).

    Raises:
        UserError: nothing says where the API is, or a file or a value does not serve.
        ApiError: the API does not answer.
    """
    if connection.ca_cert is not None and not connection.ca_cert.is_file():
        raise UserError(f"--ca-cert {connection.ca_cert}: no such file")
    if connection.token:
        credentials.require_sendable(connection.token, source="--token (KF_PIPELINES_TOKEN)")
    credentials.check_context(Path(kfp.Client._LOCAL_KFP_CONTEXT))
    token_file = credentials.TokenFile(connection.token_file, source="--token-file") if connection.token_file else None
    host, configuration = connection.host, None
    if host:
        _require_address(host)
    elif _in_cluster():
        host = f"http://{kfp.Client._IN_CLUSTER_DNS_NAME.format('kubeflow')}"
        token_file = token_file or credentials.of_the_pod()
    elif kubeconfig.exists():
        configuration = _by_kubeconfig(connection, token_file)
    else:
        raise UserError(
            "no address of Kubeflow Pipelines: give --host (or KF_PIPELINES_ENDPOINT), such as http://127.0.0.1:8888 "
            "after `kubectl port-forward -n kubeflow svc/ml-pipeline 8888:8888`"
        )
    # urllib3 reports each retry as a warning; what counts is told when the last one has failed.
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # that the client is for KFP 2: we know
        client = _Client(
            connection,
            configuration,
            host=host,
            existing_token=connection.token,
            credentials=token_file,
            ssl_ca_cert=str(connection.ca_cert) if connection.ca_cert else None,
        )
    return Cluster(client, namespace=connection.namespace, pages=connection.pages)


def _require_address(host: str) -> None:
    """kfp.Client takes what has no scheme for https, with a warning, and whatever begins with "http" as it is."""
    try:
        parts = urllib3.util.parse_url(host)
    except urllib3.exceptions.LocationValueError:
        parts = urllib3.util.Url()
    whole = parts.scheme in ("http", "https") and parts.host
    if not whole or parts.query is not None or parts.fragment is not None or re.search(r"\s", host):
        shown = one_line(host.rpartition("@")[2])  # without credentials
        raise UserError(
            f"--host {shown} is no address of an API: give it as https://HOST[:PORT][/PREFIX], or with http:// where "
            "there is no TLS"
        )


def _in_cluster() -> bool:
    """Whether this is a pod. One without a service account may have a kubeconfig, which comes first, as for kfp."""
    try:
        kubernetes_config.load_incluster_config(client_configuration=kubernetes_client.Configuration())
    except kubernetes_config.ConfigException:
        return "KUBERNETES_SERVICE_HOST" in os.environ and not kubeconfig.exists()
    return True


def _by_kubeconfig(connection: Connection, token_file: credentials.TokenFile | None) -> kfp_server_api.Configuration:
    """As kfp.Client makes it, but an unusable kubeconfig is told, and a token that is given comes first."""
    settings = kfp_server_api.Configuration()
    kubeconfig.load(settings)
    settings.host = f"{settings.host}/{kfp.Client._KUBE_PROXY_PATH.format('kubeflow')}"
    if connection.ca_cert is not None:
        settings.ssl_ca_cert = str(connection.ca_cert)
    if connection.token or token_file:
        settings.api_key["authorization"] = connection.token or "read for every request"
        settings.api_key_prefix["authorization"] = "Bearer"
        settings.refresh_api_key_hook = token_file.refresh_api_key_hook if token_file and not connection.token else None
    return settings


def named(name: str) -> str:
    """The API's filter (`backend/api/v2beta1/filter.proto`) for a display name."""
    return json.dumps({"predicates": [{"operation": _EQUALS, "key": "display_name", "stringValue": name}]})
