"""The connection to a Kubeflow Pipelines installation: kfp's client with time limits, retries and one-line errors."""

from __future__ import annotations

import functools
import io
import json
import logging
import os
import warnings
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import kfp
import kfp_server_api
import urllib3
from kubernetes.config import kube_config

from pipelines.cluster import errors
from pipelines.cluster.network import use_environment
from rest_core.credentials import has_credentials, without_credentials
from rest_core.errors import UserError

CONNECT_SECONDS = 5.0
# Reads are repeated; what changes something only where it never left, because there was no connection.
RETRIES = urllib3.Retry(
    total=4,
    connect=2,
    read=3,
    other=0,  # a POST would be repeated after a TLS error within the answer
    redirect=0,  # no token or cookie reaches another address
    raise_on_redirect=False,
    allowed_methods=("GET",),
    status_forcelist=(429, 502, 503, 504),
    raise_on_status=False,
    backoff_factor=0.5,  # tries after 0, 1, 2, 4 s
    retry_after_max=30,
)
_EQUALS = 1  # of the API's filter.proto


class Cluster(kfp.Client):
    """A KFP installation. Its calls raise `pipelines.cluster.errors.ApiError`.

    Args:
        host: address of the API or of KFP's UI; None: the service of this pod's cluster, or, outside of a cluster, KFP
            behind the kubeconfig's Kubernetes API, with the kubeconfig's identity.
        token: bearer token.
        token_file: file with one, read for every request, because projected tokens are renewed in place.
        namespace: of the runs' pods, and of experiments where KFP serves several users; None: that of kfp's context
            file, else "kubeflow".
        ca_cert: file with the authority of the API's certificate; None: as the environment says (`network`).
        timeout: seconds after which a request is given up if the API sends nothing.
        ui: address of KFP's UI for links; None: `host`.

    Raises:
        UserError: there is no address, or a file cannot be used.
    """

    def __init__(
        self,
        *,
        host: str | None = None,
        token: str | None = None,
        token_file: str | None = None,
        namespace: str | None = None,
        ca_cert: str | None = None,
        timeout: float = 30.0,
        ui: str | None = None,
    ) -> None:
        if host and has_credentials(host):
            raise UserError("--host holds a password, which is sent nowhere: leave it out, and give --token-file")
        self._in_cluster = not host and "KUBERNETES_SERVICE_HOST" in os.environ
        if self._in_cluster:
            host = f"http://{self._IN_CLUSTER_DNS_NAME.format('kubeflow')}"
            pod_token = kfp.client.KF_PIPELINES_SA_TOKEN_PATH  # missing where KFP serves a single user
            token_file = token_file or (pod_token if Path(pod_token).is_file() else None)
        self._token, self._token_file, self._timeout = token, token_file, timeout
        # urllib3 logs each retry, kfp warns that the API must be version 2 and prints that a kubeconfig is missing.
        logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)
        with warnings.catch_warnings(action="ignore"), redirect_stdout(io.StringIO()):
            super().__init__(host=host, ssl_ca_cert=ca_cert)
        self._limit_requests()
        self.host = self._existing_config.host.rstrip("/")
        self.namespace: str = namespace or self.get_user_namespace() or "kubeflow"
        self.ui = os.environ.get("KF_PIPELINES_UI_ENDPOINT") or ui or self.host

    @functools.cached_property
    def api_namespace(self) -> str | None:
        """The namespace as the API's parameter: None where KFP serves a single user and has no namespaces."""
        return self.namespace if self.get_kfp_healthz().multi_user else None

    def link(self, run_id: str) -> str:
        """The run's page in KFP's UI."""
        return f"{without_credentials(self.ui).rstrip('/')}/#/runs/details/{run_id}"

    def stream(self, path: str, **parameters: str) -> urllib3.BaseHTTPResponse:
        """The answer, still unread, to a GET request that the generated client does not have."""
        return self._healthz_api.api_client.call_api(
            path, "GET", parameters, auth_settings=["Bearer"], _preload_content=False, _return_http_data_only=True
        )

    def get_kfp_healthz(self, sleep_duration: int = 5) -> kfp_server_api.V2beta1GetHealthzResponse:
        """The API's health. kfp's own method, which its constructor calls, asks five times without a time limit."""
        self._limit_requests()
        return self._healthz_api.healthz_service_get_healthz()

    def _limit_requests(self) -> None:
        api_client = self._healthz_api.api_client  # one for all of kfp.Client's services
        if "request" not in vars(api_client):
            api_client.request = functools.partial(_request, api_client.request, self._timeout)

    def _load_config(self, host: str | None, *arguments: Any, **settings: Any) -> kfp_server_api.Configuration:
        configuration = super()._load_config(host, *arguments, **settings)
        if not host and configuration.host == kfp_server_api.Configuration().host:
            raise UserError(
                "no address of Kubeflow Pipelines: give --host (KF_PIPELINES_ENDPOINT), such as http://127.0.0.1:8888 "
                "after `kubectl port-forward -n kubeflow svc/ml-pipeline 8888:8888`; there is no usable kubeconfig at "
                f"{kube_config.KUBE_CONFIG_DEFAULT_LOCATION}"
            )
        configuration.retries = RETRIES
        if not self._in_cluster:  # whose own services no proxy leads to
            use_environment(configuration)
        if self._token or self._token_file:  # also instead of the kubeconfig's, which kfp would prefer
            configuration.api_key["authorization"] = self._token or "read for every request"
            configuration.api_key_prefix["authorization"] = "Bearer"
            configuration.refresh_api_key_hook = None if self._token else self._read_token
        return configuration

    def _read_token(self, configuration: kfp_server_api.Configuration) -> None:
        try:
            configuration.api_key["authorization"] = Path(self._token_file or "").read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"token file {self._token_file}: cannot be read ({errors.one_line(error)})") from None

    def _load_context_setting_or_default(self) -> None:
        try:
            super()._load_context_setting_or_default()
            self._context_setting["namespace"]
        except (OSError, ValueError, LookupError, TypeError, RecursionError):
            raise UserError(
                f"{self._LOCAL_KFP_CONTEXT} is not a context file of kfp, a JSON object with a namespace: correct or "
                "remove it"
            ) from None


def _request(send: Callable[..., Any], seconds: float, method: str, url: str, **options: Any) -> Any:
    """Send a request by the generated client's `send` within a time limit.

    Raises:
        ApiError: it was refused, no answer came, or one that is not a JSON object, such as a log-in page, which the
            generated client would take for an object without fields.
    """
    options["_request_timeout"] = options["_request_timeout"] or (CONNECT_SECONDS, seconds)
    try:
        response = send(method, url, **options)
    except kfp_server_api.ApiException as error:
        raise errors.refused(method, url, error) from None
    except urllib3.exceptions.HTTPError as error:
        raise errors.unanswered(method, url, error, seconds=seconds) from None
    except ValueError:  # of http.client, whose message shows the header, which may be a secret
        raise UserError(
            f"the request to {errors.address(url)} cannot be sent, because a header has a character that HTTP does not "
            "allow: check the token, kfp's context file and the kubeconfig"
        ) from None
    if not options["_preload_content"]:
        if response.headers.get("Content-Type", "").startswith("text/html"):
            raise errors.no_json(method, url, response.status, response.read(200))
    elif not _is_object(response.data):
        raise errors.no_json(method, url, response.status, response.data)
    return response


def _is_object(body: bytes) -> bool:
    try:
        return isinstance(json.loads(body), dict)
    except (ValueError, RecursionError):
        return False


def named(name: str) -> str:
    """The API's filter (`backend/api/v2beta1/filter.proto`) for a display name."""
    return json.dumps({"predicates": [{"operation": _EQUALS, "key": "display_name", "stringValue": name}]})
