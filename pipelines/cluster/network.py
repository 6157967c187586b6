"""Proxies and certificate authorities of the generated clients, by the variables that MLflow's requests read too.

HTTPS_PROXY, HTTP_PROXY, ALL_PROXY and NO_PROXY say how a host is reached, in capitals or not; REQUESTS_CA_BUNDLE,
CURL_CA_BUNDLE and SSL_CERT_FILE name a file with the authorities of private certificates. As for `kubectl`, no proxy
leads to this machine itself.
"""

from __future__ import annotations

import ipaddress
import os
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import requests.utils
import urllib3

from rest_core.credentials import without_credentials
from rest_core.errors import UserError

AUTHORITIES = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE")


def use_environment(configuration: Any) -> None:
    """Give a generated client's configuration what the environment says of its host.

    Args:
        configuration: of `kfp_server_api` or `kubernetes.client`; what it has already stays.

    Raises:
        UserError: a variable names a proxy or a file that is none.
    """
    host = str(configuration.host)
    if not configuration.proxy and (proxy := _proxy(host)) is not None:
        user, password = requests.utils.get_auth_from_url(proxy)
        configuration.proxy = without_credentials(proxy)
        if user or password:
            configuration.proxy_headers = urllib3.make_headers(proxy_basic_auth=f"{user}:{password}")
    if not configuration.ssl_ca_cert and host.startswith("https:"):
        configuration.ssl_ca_cert = _authorities()


def _proxy(host: str) -> str | None:
    try:
        if _is_this_machine(host):
            return None
        found = requests.utils.select_proxy(host, requests.utils.get_environ_proxies(host))
    except ValueError:  # no address, as the request will say
        return None
    if found is None:
        return None
    proxy = requests.utils.prepend_scheme_if_needed(found, "http")
    if (scheme := urlsplit(proxy).scheme) not in ("http", "https"):
        raise UserError(
            f"the environment names a proxy with {scheme}://, which is not spoken here: set HTTPS_PROXY and HTTP_PROXY "
            "to http://HOST:PORT, or this host in NO_PROXY"
        )
    return str(proxy)


def _is_this_machine(host: str) -> bool:
    name = urlsplit(host).hostname or ""
    with suppress(ValueError):
        return ipaddress.ip_address(name).is_loopback
    return name == "localhost"


def _authorities() -> str | None:
    for variable in AUTHORITIES:
        if file := os.environ.get(variable):
            if not Path(file).is_file():
                raise UserError(f"{variable}={file}: no such file; name one with the certificate's authority, as PEM")
            return file
    return None
