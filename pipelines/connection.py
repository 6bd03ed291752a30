"""A connection to Kubeflow Pipelines, with every way it can refuse turned into one line that says what to do."""

import contextlib
import io
import json
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, Optional

import kfp
import kfp_server_api
import urllib3

from conversion_retrieval.errors import UserError

ENDPOINT_VARIABLE: Final = "KF_PIPELINES_ENDPOINT"
TIMEOUT: Final = urllib3.Timeout(connect=10, read=30)
REMEDIES: Final = {
    400: "the request was refused",
    401: "the token or cookies are missing or expired: log in again, then pass --token-file or --cookies",
    403: "this identity may not do that here: ask for the pipeline editor role in the namespace",
    404: "there is no such thing there: check the id and the namespace",
    409: "it exists already",
}


def connect(
    host: str = "", *, namespace: Optional[str] = None, token_file: Optional[Path] = None, cookies: Optional[str] = None
) -> kfp.Client:
    """A client that answered once; ``UserError`` if the address or the credentials are wrong.

    Without a host the client looks for ``KF_PIPELINES_ENDPOINT``, then for the service inside the cluster, then for a
    kube configuration; without a token, for the credentials that belong to where it runs.
    """
    token = _read_token(token_file)
    if address := host or os.environ.get(ENDPOINT_VARIABLE, ""):
        _probe(address, token, cookies)
    with translated(address or "the cluster"), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return kfp.Client(host=host or None, existing_token=token, cookies=cookies, namespace=namespace or "kubeflow")


@contextlib.contextmanager
def translated(where: str) -> Iterator[None]:
    """API and network errors as ``UserError``; what the client prints on the way is dropped."""
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    except kfp_server_api.ApiException as error:
        raise UserError(f"{where} answered {error.status}: {_detail(error)}; {remedy(error.status)}") from None
    except urllib3.exceptions.HTTPError as error:
        raise _unreachable(where, error) from None


def remedy(status: int) -> str:
    """What to do about an HTTP status of the API."""
    return REMEDIES.get(status, "try again later" if status >= 500 else "check the request")


def _probe(host: str, token: str | None, cookies: str | None) -> None:
    """One request before the client is made: it would retry a wrong address for half a minute."""
    url = f"{host if '://' in host else f'https://{host}'}".rstrip("/") + "/apis/v2beta1/healthz"
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    if cookies:
        headers["Cookie"] = cookies
    try:
        with urllib3.PoolManager(timeout=TIMEOUT, retries=False) as pool:
            response = pool.request("GET", url, headers=headers)
    except urllib3.exceptions.HTTPError as error:
        raise _unreachable(host, error) from None
    if response.status == 404:
        raise UserError(f"expected Kubeflow Pipelines at {host}, found no API there: check --host (and its path)")
    if response.status != 200:
        raise UserError(f"{host} answered {response.status}; {remedy(response.status)}")


def _unreachable(where: str, error: Exception) -> UserError:
    return UserError(
        f"expected Kubeflow Pipelines at {where}, could not reach it ({type(error).__name__}): check --host"
    )


def _read_token(path: Path | None) -> str | None:
    if path is None:
        return None
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"expected a token in {path}, found: {error}") from None


def _detail(error: Any) -> str:
    """The message inside an API error's body, on one line."""
    try:
        body = json.loads(error.body)
        text = body.get("message") or body.get("error_message") or body.get("error")
    except (TypeError, ValueError, AttributeError):
        text = error.reason
    return " ".join(str(text).split())
