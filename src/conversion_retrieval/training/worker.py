"""One process of a distributed training: ``python -m conversion_retrieval.training.worker JOB``, under torchrun."""

import os
import sys
from pathlib import Path

from conversion_retrieval.contracts import write_json
from conversion_retrieval.errors import UserError
from conversion_retrieval.training.launch import TrainingJob
from conversion_retrieval.training.trainjob import JOB_VARIABLE


def main() -> None:
    """Train as one of the processes that torchrun started; the first one writes the result."""
    path = sys.argv[1] if len(sys.argv) > 1 else os.environ.get(JOB_VARIABLE, "")
    try:
        work(TrainingJob.read(Path(path)))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201 - a program's message to its user
        sys.exit(2)


def work(job: TrainingJob) -> None:
    """Run the ``train`` stage in this process."""
    from conversion_retrieval.training.stage import train

    recall = train(
        features_dir=job.features_dir,
        spec_dir=job.spec_dir,
        model_dir=job.model_dir,
        config=job.config,
        checkpoint_dir=job.checkpoint_dir,
        log_dir=job.checkpoint_dir / "tensorboard",
    )
    if os.environ.get("RANK", "0") == "0":
        write_json(job.result_path, {"recall": recall})


if __name__ == "__main__":
    main()
