"""Stage ``validate_data``: raw tables to a checked snapshot and a report, and whether the data may be trained on."""

from kfp import dsl

from components.images import CPU_IMAGE


@dsl.component(base_image=CPU_IMAGE, install_kfp_package=False)
def validate_data(
    data_uri: str,
    registry_uri: str,
    as_of: str,
    config_json: str,
    run_id: str,
    snapshot: dsl.Output[dsl.Dataset],
    report: dsl.Output[dsl.Artifact],
    page: dsl.Output[dsl.HTML],
    min_recall: float = -1.0,
    min_conversions: int = -1,
) -> str:
    """Check events, items and users against the expectation suites; "valid" or "invalid".

    Bad data is a finished stage with a report, not a failed task: the output of a failed task may be lost.
    """
    from pathlib import Path

    from conversion_retrieval import notification
    from conversion_retrieval.config import stage_config
    from conversion_retrieval.storage import check_pod_uris
    from conversion_retrieval.validation.stage import validate_data as stage

    check_pod_uris(data_uri=data_uri, registry_uri=registry_uri)
    verdict = stage(
        data_uri=data_uri,
        snapshot_dir=Path(snapshot.path),
        report_dir=Path(report.path),
        page_path=Path(page.path),
        # With the gate's limits, or a wrong one would be found after hours of training.
        config=stage_config(config_json, as_of=as_of, min_recall=min_recall, min_conversions=min_conversions),
        champion_uri=registry_uri,
    )
    notification.record_outcome(
        registry_uri, run_id, verdict=verdict, report_uri=page.uri, report_dir=Path(report.path)
    )
    return verdict
