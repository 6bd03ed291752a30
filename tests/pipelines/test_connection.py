"""Where the API is found and with which credentials; oracle: what a server with the real endpoints received."""

import errno

import pytest

from conversion_retrieval.errors import UserError
from pipelines import remote
from pipelines.connection import connect, translated


def test_the_token_of_the_file_is_sent(server, host, submission, tmp_path):
    server.token = "right"
    (tmp_path / "token").write_text("right\n")
    assert remote.submit(connect(host, token_file=tmp_path / "token"), submission) in server.runs


def test_a_pods_projected_token_is_sent_without_being_asked_for(server, host, submission, tmp_path, monkeypatch):
    server.token = "projected"
    (tmp_path / "token").write_text("projected")
    monkeypatch.setenv("KF_PIPELINES_SA_TOKEN_PATH", str(tmp_path / "token"))
    assert remote.submit(connect(host), submission) in server.runs


def test_a_token_that_the_kubelet_replaced_is_read_again(server, host, submission, tmp_path):
    server.token = "first"
    (tmp_path / "token").write_text("first")
    client = connect(host, token_file=tmp_path / "token")
    server.token = "second"
    (tmp_path / "token").write_text("second")
    assert remote.submit(client, submission) in server.runs


def test_in_a_cluster_the_service_is_found_with_the_pods_token(server, host, submission, tmp_path, monkeypatch):
    """As in a pod: the service's environment, a service account's directory, no host; only the DNS name is replaced."""
    account_dir = tmp_path / "serviceaccount"
    account_dir.mkdir()
    (account_dir / "token").write_text("for the API server of Kubernetes")
    (account_dir / "ca.crt").write_text("certificate")
    monkeypatch.setattr("kubernetes.config.incluster_config.SERVICE_TOKEN_FILENAME", str(account_dir / "token"))
    monkeypatch.setattr("kubernetes.config.incluster_config.SERVICE_CERT_FILENAME", str(account_dir / "ca.crt"))
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "6443")
    monkeypatch.setattr("kfp.Client._IN_CLUSTER_DNS_NAME", host)
    server.token = "projected"
    (tmp_path / "token").write_text("projected")
    monkeypatch.setenv("KF_PIPELINES_SA_TOKEN_PATH", str(tmp_path / "token"))
    client = connect(namespace="team-a")
    assert client.address == host
    assert remote.submit(client, submission) in server.runs


def test_session_cookies_are_sent(server, host, submission):
    server.cookie = "authservice_session=abc"
    assert remote.submit(connect(host, cookies="authservice_session=abc"), submission) in server.runs
    with pytest.raises(UserError, match="401"):
        connect(host)


def test_an_address_without_the_api_is_one_line(host):
    with pytest.raises(UserError, match="found no API there: check --host"):
        connect(f"{host}/dashboard")


def test_a_login_page_is_told_from_the_api(server, host):
    server.login_page = True
    with pytest.raises(UserError, match=r"found a page, as of a login: .*log in again"):
        connect(host)


@pytest.mark.parametrize("content", ["", "two\nlines", "\x00"])
def test_a_file_that_holds_no_token_is_refused_by_name(host, tmp_path, content):
    (tmp_path / "token").write_text(content)
    with pytest.raises(UserError, match=r"expected a token in .*token"):
        connect(host, token_file=tmp_path / "token")


def test_a_missing_token_file_is_refused_by_name(host, tmp_path):
    with pytest.raises(UserError, match=r"expected a token in .*no-such-file"):
        connect(host, token_file=tmp_path / "no-such-file")


def test_a_token_file_that_vanishes_later_is_one_line(server, host, submission, tmp_path):
    (tmp_path / "token").write_text("t")
    client = connect(host, token_file=tmp_path / "token")
    (tmp_path / "token").unlink()
    with pytest.raises(UserError, match="expected credentials"):
        remote.submit(client, submission)


def test_a_connection_that_breaks_is_no_matter_of_credentials():
    with (
        pytest.raises(UserError, match=r"^expected Kubeflow Pipelines at here, found: .*reset"),
        translated("here"),
    ):
        raise ConnectionResetError(errno.ECONNRESET, "Connection reset by peer")
