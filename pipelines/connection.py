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
from kfp.client import KF_PIPELINES_SA_TOKEN_ENV, KF_PIPELINES_SA_TOKEN_PATH
from kfp.client.set_volume_credentials import ServiceAccountTokenVolumeCredentials

from conversion_retrieval.errors import UserError

ENDPOINT_VARIABLE: Final = "KF_PIPELINES_ENDPOINT"
CONNECT_SECONDS, READ_SECONDS = 10, 30
REMEDIES: Final = {
    400: "the request was refused",
    401: "the token or cookies are missing or expired: log in again, then pass --token-file or --cookies",
    403: "this identity may not do that here: ask for the pipeline editor role in the namespace",
    404: "there is no such thing there: check the id and the namespace",
    409: "it exists already",
}


class Client(kfp.Client):  # type: ignore[misc]  # kfp ships no types
    """kfp's client, which finds host and credentials as ever, but learns of a wrong address at once.

    ``namespace`` is the profile that pipelines, experiments and runs go to in a multi-user installation, else None.
    """

    namespace: Optional[str] = None

    def get_kfp_healthz(self, sleep_duration: int = 0) -> Any:  # noqa: ARG002 - the base class's signature
        """The server's health, asked for once: the base class retries a wrong address for half a minute."""
        health = self._healthz_api.healthz_service_get_healthz(_request_timeout=(CONNECT_SECONDS, READ_SECONDS))
        _require_json(self.address, self._healthz_api.api_client.last_response.data)
        return health

    def create_pipeline(self, name: str) -> Any:
        """A new pipeline without any version; the base class can only upload one together with its first version."""
        pipeline = kfp_server_api.V2beta1Pipeline(name=name, display_name=name, namespace=self.namespace)
        return self._pipelines_api.pipeline_service_create_pipeline(pipeline)

    @property
    def address(self) -> str:
        """Where this client found the API."""
        return str(self._existing_config.host)

    def run_address(self, run_id: str) -> str:
        """Where a person looks at a run."""
        return f"{self._uihost or self.address}".rstrip("/") + f"/#/runs/details/{run_id}"


def connect(
    host: str = "", *, namespace: Optional[str] = None, token_file: Optional[Path] = None, cookies: Optional[str] = None
) -> Client:
    """A client that was answered; ``UserError`` if the address or the credentials are wrong.

    Without a host the client looks for ``KF_PIPELINES_ENDPOINT``, then for the service inside the cluster, then for a
    kube configuration. Without a token file it takes the token that a pod is given for Kubeflow Pipelines
    (``KF_PIPELINES_SA_TOKEN_PATH``), if there is one. Token files are read again for each request: they rotate.
    """
    where = host or os.environ.get(ENDPOINT_VARIABLE, "") or "the cluster"
    credentials = _credentials(token_file)
    if not all(character.isprintable() and character.isascii() for character in cookies or ""):
        raise UserError("expected cookies of printable ASCII characters on one line, found others")
    with translated(where, missing="found no API there: check --host (and its path)"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        client = Client(host=host or None, credentials=credentials, cookies=cookies)
        client.get_kfp_healthz()
    # Not through the constructor: in a cluster that would look for the service in the profile's namespace.
    client.namespace = namespace or client.get_user_namespace() or None
    return client


@contextlib.contextmanager
def translated(where: str, *, missing: str = "") -> Iterator[None]:
    """API, network and credential errors as ``UserError``; what the client prints on the way is dropped.

    ``missing`` says what a 404 means, where it is not an unknown id.
    """
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    except kfp_server_api.ApiException as error:
        if error.status == 404 and missing:
            raise UserError(f"expected Kubeflow Pipelines at {where}, {missing}") from None
        raise UserError(f"{where} answered {error.status}: {_detail(error)}; {remedy(error.status)}") from None
    except urllib3.exceptions.HTTPError as error:
        kind = type(getattr(error, "reason", None) or error).__name__
        raise UserError(f"expected Kubeflow Pipelines at {where}, could not reach it ({kind}): check --host") from None
    except OSError as error:
        # As a rule a file that holds credentials has a name, and a broken connection has none.
        expected = "credentials for" if error.filename else "Kubeflow Pipelines at"
        raise UserError(f"expected {expected} {where}, found: {error}") from None


def remedy(status: int) -> str:
    """What to do about an HTTP status of the API."""
    return REMEDIES.get(status, "try again later" if status >= 500 else "check the request")


def _require_json(where: str, content: str) -> None:
    """A login page answers 200 as well, after a redirect."""
    try:
        json.loads(content)
    except ValueError:
        raise UserError(
            f"expected the API of Kubeflow Pipelines at {where}, found a page, as of a login: {REMEDIES[401]}"
        ) from None


def _credentials(token_file: Path | None) -> Any:
    """The credentials of a token's file: the one given, else the one that the kubelet keeps in a pod."""
    if token_file is not None:
        _require_readable(token_file)
        return ServiceAccountTokenVolumeCredentials(path=str(token_file))
    projected = Path(os.environ.get(KF_PIPELINES_SA_TOKEN_ENV) or KF_PIPELINES_SA_TOKEN_PATH)
    return ServiceAccountTokenVolumeCredentials(path=str(projected)) if projected.exists() else None


def _require_readable(path: Path) -> None:
    try:
        content = path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"expected a token in {path}, found: {error}") from None
    if not content.isprintable() or not content:
        raise UserError(f"expected a token in {path}, found no or several lines")


def _detail(error: Any) -> str:
    """The message inside an API error's body, on one line."""
    try:
        body = json.loads(error.body)
        text = body.get("message") or body.get("error_message") or body.get("error")
    except (TypeError, ValueError, AttributeError):
        text = error.reason
    return " ".join(str(text).split())
