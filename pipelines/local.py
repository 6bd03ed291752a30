"""Run the compiled pipeline on this machine: a cluster's YAML without retries, each stage in a process of its own."""

import contextlib
import errno
import json
import os
import shutil
import sys
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from filelock import FileLock, Timeout
from kfp import components, local

from conversion_retrieval.config import config_values, load_config
from conversion_retrieval.errors import UserError
from conversion_retrieval.notification import URL_VARIABLE
from conversion_retrieval.storage import check_uri
from pipelines.compile import compile_pipeline, placement
from pipelines.stage_view import StageView
from pipelines.summary import RunSummary, summarize
from pipelines.training import PIPELINE_NAME, STAGES

PIPELINE_FILE: Final = "pipeline.yaml"
LOG_FILE: Final = "run.log"
SCRATCH: Final = ".scratch"


class StageFailedError(RuntimeError):
    """A stage ended with a fault of its own rather than of its input."""


def run_locally(
    *,
    data_uri: str,
    registry_uri: str,
    output_dir: Path,
    config_path: Path | None = None,
    overrides: tuple[str, ...] = (),
    allow_first: bool = False,
    notification_url: str = "",
) -> RunSummary:
    """Compile into ``output_dir`` and execute that file; artifacts, log and report go to a directory per run.

    Started again after a stop, the stages before training run again and training goes on from its last checkpoint.
    Raises ``UserError`` for what the caller can fix (the line that the stage printed), ``StageFailedError`` for a bug.
    """
    config = load_config(config_path, overrides)
    output_dir = output_dir.expanduser()
    for uri in (data_uri, registry_uri):
        check_uri(uri)
    _check_writable(registry_uri)
    arguments = {
        "data_uri": absolute(data_uri),
        "registry_uri": absolute(registry_uri),
        "config_json": json.dumps(config_values(config), sort_keys=True),
        "allow_first": allow_first,
        "checkpoint_dir": str(output_dir.resolve() / "checkpoints"),
    }
    # Not as a parameter, which the log would show: a webhook's address is its password.
    webhook = {URL_VARIABLE: notification_url} if notification_url else {}
    with _locked(output_dir):
        pipeline_path = compile_pipeline(output_dir / PIPELINE_FILE, placement(retry=False)).path
        return execute(pipeline_path, arguments, output_dir, environment=webhook)


def execute(
    pipeline_path: Path,
    arguments: Mapping[str, Any],
    output_dir: Path,
    *,
    environment: Mapping[str, str] | None = None,
) -> RunSummary:
    """Execute a compiled pipeline's file with kfp.local and read how it ended; stages see ``environment`` too."""
    pipeline = components.load_component_from_file(str(pipeline_path))
    before = _runs(output_dir)
    log_path = output_dir / LOG_FILE
    local.init(
        runner=local.SubprocessRunner(use_venv=False),
        pipeline_root=str(output_dir),
        workspace_root=str(output_dir / "workspace"),
    )
    with contextlib.closing(StageView(log_path, stages=STAGES)) as view:
        try:
            with (
                _environment(output_dir / SCRATCH, environment or {}),
                contextlib.redirect_stdout(view),
                warnings.catch_warnings(),
            ):
                # kfp.local warns of every request and limit that a process on this machine does not have.
                warnings.simplefilter("ignore")
                pipeline(**arguments)
        except RuntimeError as error:
            _raise_failure(view, log_path, error)
    (run_dir,) = _runs(output_dir) - before
    log_path.replace(run_dir / LOG_FILE)
    return summarize(run_dir)


def _check_writable(registry_uri: str) -> None:
    """Refuse a local registry that only the promotion, after all the training, would find unwritable."""
    if registry_uri.startswith("gs://"):
        return
    path = Path(registry_uri.removeprefix("file://")).expanduser()
    existing = next(p for p in (path, *path.absolute().parents) if p.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        found = "no right to write" if existing.is_dir() else "a file"
        raise UserError(
            f"expected a directory for the registry {path}, found {found} at {existing}: choose another --registry"
        )


def absolute(uri: str) -> str:
    """A local path made absolute, so that artifacts name it wherever they are read; other URIs as they are."""
    return uri if "://" in uri else str(Path(uri).expanduser().resolve())


def _raise_failure(view: StageView, log_path: Path, error: RuntimeError) -> None:
    if not view.failed_stage:
        raise error
    if view.failure_is_users:
        raise UserError(f"{view.failed_stage}: {view.failure}") from None
    reason = view.failure or "ended without an error message (out of memory, or killed)"
    raise StageFailedError(f"{view.failed_stage} failed: {reason}; its whole output is in {log_path}") from None


def _runs(output_dir: Path) -> set[Path]:
    return set(output_dir.glob(f"{PIPELINE_NAME}-*"))


@contextlib.contextmanager
def _environment(scratch: Path, variables: Mapping[str, str]) -> Iterator[None]:
    """Stages start ``python3`` from PATH: it must be this one. Their lines must come as they are written.

    Temporary files go to ``scratch``, which is emptied before and after: kfp leaves some in every stage, and a stage
    that is killed leaves what it was working on.
    """
    saved = dict(os.environ)
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    os.environ.update(variables)
    os.environ["TMPDIR"] = str(scratch.resolve())
    os.environ["PATH"] = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", "")))
    os.environ["PYTHONUNBUFFERED"] = "1"
    os.environ["PYTHONWARNINGS"] = "ignore"
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(saved)
        shutil.rmtree(scratch, ignore_errors=True)


@contextlib.contextmanager
def _locked(output_dir: Path) -> Iterator[None]:
    """One run at a time in a directory: two would resume from each other's checkpoints. A full disk is one line."""
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        lock = FileLock(output_dir / ".lock", timeout=0)
        lock.acquire()
    except Timeout:
        raise UserError(
            f"expected {output_dir} free, found another run writing there; choose another --output"
        ) from None
    except OSError as error:
        raise UserError(f"expected a directory to write to at {output_dir}, found: {error}") from None
    try:
        yield
    except OSError as error:
        if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
            raise
        raise UserError(
            f"expected room for the run in {output_dir}, found the disk full; free some, or choose another --output"
        ) from None
    finally:
        lock.release()
