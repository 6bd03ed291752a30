"""Exit handler ``notify``: tells a webhook how the run ended, whatever happened, and never fails the run itself."""

from kfp import dsl

from components.images import CPU_IMAGE


@dsl.component(base_image=CPU_IMAGE, install_kfp_package=False)
def notify(
    notification_url: str,
    registry_uri: str,
    run_id: str,
    status: dsl.PipelineTaskFinalStatus,
) -> None:
    """Post the run's state, verdict, recall and report link; also after a failure or a termination."""
    from conversion_retrieval import notification

    notification.notify(
        webhook_url=notification_url,
        registry_uri=registry_uri,
        run_id=run_id,
        state=status.state,
        error=status.error_message or "",
    )
