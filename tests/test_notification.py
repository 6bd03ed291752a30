"""How runs' ends are told; oracle: what a loopback webhook received."""

import pytest

from conversion_retrieval import notification
from conversion_retrieval.registry.decision import ChampionState, Check, Decision, write_decision
from tests.webhook import listening


@pytest.fixture
def webhook():
    with listening() as webhook:
        yield webhook


def tell(webhook, registry, state="SUCCEEDED", error=""):
    return notification.notify(
        webhook_url=webhook.url, registry_uri=str(registry), run_id="run-1", state=state, error=error
    )


def test_a_verdict_is_told_with_recall_reason_and_report(webhook, tmp_path):
    recall = Check(name="recall_floor", passed=True, value=0.5, threshold=0.1, low=0.4, high=0.6, n=700)
    decision = Decision(
        verdict="promote", reason="it is better", checks=(recall,), champion=ChampionState(status="absent")
    )
    (tmp_path / "decision").mkdir()
    write_decision(tmp_path / "decision", decision)
    notification.record_outcome(
        str(tmp_path / "registry"),
        "run-1",
        verdict="promote",
        report_uri="gs://bucket/page",
        decision_dir=tmp_path / "decision",
    )
    assert tell(webhook, tmp_path / "registry")
    (message,) = webhook.received
    assert message["text"] == "conversion-retrieval run run-1: promote - it is better - gs://bucket/page"
    assert (message["recall"]["value"], message["recall"]["n"]) == (0.5, 700)


# What backends say: ML Metadata's states until 2.16, the task store's from 2.17, the SDK's documented ones.
@pytest.mark.parametrize(
    ("state", "word"),
    [
        ("FAILED", "failed"),
        ("CANCELLED", "cancelled"),
        ("CANCELED", "cancelled"),
        ("RUNNING", "cancelled"),
        ("CANCELING", "canceling"),
    ],
)
def test_a_failure_or_termination_is_told_even_when_nothing_was_recorded(webhook, tmp_path, state, word):
    assert tell(webhook, tmp_path / "registry", state=state, error="train ran out of memory")
    (message,) = webhook.received
    assert message["text"] == f"conversion-retrieval run run-1: {word} - train ran out of memory"
    assert (message["ended"], message["state"]) == (word, state)


@pytest.mark.parametrize("state", ["SUCCEEDED", "COMPLETE", "CACHED", "RUNNING"])
@pytest.mark.parametrize("verdict", ["invalid", "reject", "insufficient_data"])
def test_a_recorded_last_verdict_is_told_whatever_a_late_backend_says(webhook, tmp_path, state, verdict):
    notification.record_outcome(str(tmp_path / "registry"), "run-1", verdict=verdict)
    tell(webhook, tmp_path / "registry", state=state)
    assert webhook.received[0]["ended"] == verdict


@pytest.mark.parametrize("state", ["SUCCEEDED", "COMPLETE", "CACHED", "SKIPPED"])
def test_every_backends_word_for_success_lets_the_verdict_stand(webhook, tmp_path, state):
    notification.record_outcome(str(tmp_path / "registry"), "run-1", verdict="promote")
    tell(webhook, tmp_path / "registry", state=state)
    assert webhook.received[0]["ended"] == "promote"


def test_a_promotion_counts_once_its_version_is_written(webhook, tmp_path):
    registry = str(tmp_path / "registry")
    notification.record_outcome(registry, "run-1", verdict="promote")
    tell(webhook, registry, state="RUNNING")
    notification.record_promotion(registry, "run-1", version="v1")
    tell(webhook, registry, state="RUNNING")
    assert [message["ended"] for message in webhook.received] == ["cancelled", "promote"]
    assert webhook.received[1]["version"] == "v1"


@pytest.fixture
def without_records(tmp_path):
    """A registry that cannot keep records: where they go is a file."""
    registry = tmp_path / "registry"
    registry.mkdir()
    (registry / "runs").write_text("")
    return str(registry)


def test_a_record_that_cannot_be_kept_fails_no_stage_and_is_told(without_records, capsys):
    notification.record_outcome(without_records, "run-1", verdict="promote")
    notification.record_promotion(without_records, "run-1", version="v1")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert all("the run's record was not kept" in line and "runs" in line for line in lines)


def test_a_promotion_replaces_a_broken_record(tmp_path):
    registry = tmp_path / "registry"
    notification.record_outcome(str(registry), "run-1", verdict="promote")
    (registry / "runs" / "run-1.json").write_text("{half")
    notification.record_promotion(str(registry), "run-1", version="v1")
    assert notification.read_outcome(str(registry), "run-1")["version"] == "v1"


def test_a_run_without_registry_is_told_too(webhook):
    assert tell(webhook, "", state="FAILED")
    assert webhook.received[0]["ended"] == "failed"


def test_a_failure_after_validation_does_not_claim_the_earlier_verdict(webhook, tmp_path):
    notification.record_outcome(str(tmp_path / "registry"), "run-1", verdict="valid")
    tell(webhook, tmp_path / "registry", state="FAILED")
    assert webhook.received[0]["text"].startswith("conversion-retrieval run run-1: failed")


@pytest.mark.parametrize("status", [503, 0])
def test_a_webhook_that_is_busy_or_hangs_up_is_tried_again(webhook, tmp_path, status):
    webhook.statuses += [status]
    assert tell(webhook, tmp_path / "registry")
    assert len(webhook.received) == 2


def test_a_webhook_that_refuses_is_not_asked_again(webhook, tmp_path):
    webhook.statuses += [404]
    assert not tell(webhook, tmp_path / "registry")
    assert len(webhook.received) == 1


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:9/secret-path", "file:///etc/secret-path", "secret-path", "http://[::bad"]
)
def test_a_broken_webhook_never_raises_and_its_address_is_not_printed(url, tmp_path, capsys):
    sent = notification.notify(webhook_url=url, registry_uri=str(tmp_path), run_id="r", state="SUCCEEDED")
    assert not sent
    assert "secret-path" not in capsys.readouterr().err


def test_without_an_address_nothing_is_sent_and_the_environments_is_taken(webhook, tmp_path, monkeypatch):
    assert not notification.notify(webhook_url="", registry_uri=str(tmp_path), run_id="r", state="FAILED")
    monkeypatch.setenv("NOTIFICATION_URL", webhook.url)
    assert notification.notify(webhook_url="", registry_uri=str(tmp_path), run_id="r", state="FAILED")


def test_a_run_id_cannot_leave_the_runs_folder(tmp_path):
    notification.record_outcome(str(tmp_path / "registry"), "../../champion", verdict="valid")
    assert not (tmp_path / "champion.json").exists()
    assert notification.read_outcome(str(tmp_path / "registry"), "../../champion")["verdict"] == "valid"
