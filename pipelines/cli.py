"""``python -m pipelines``: compile, run, submit, schedule, status, terminate.

Each command imports its part when called, so that ``--help`` answers at once.
"""

import sys
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from conversion_retrieval import command_line
from conversion_retrieval.errors import UserError
from pipelines import cluster

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="The pipelines: compile one to YAML, run training here, or run and schedule either on Kubeflow.",
)

Host = Annotated[
    str, typer.Option(help="Address of Kubeflow Pipelines; default: KF_PIPELINES_ENDPOINT, else in the cluster.")
]
Namespace = Annotated[Optional[str], typer.Option(help="Profile namespace, for a multi-user installation.")]
Token = Annotated[
    Optional[Path], typer.Option("--token-file", help="File with a bearer token; default: as kfp.Client finds it.")
]
Cookies = Annotated[
    Optional[str], typer.Option(envvar="KF_PIPELINES_COOKIES", help="Session cookies, if a proxy asks.")
]
Parameter = Annotated[
    Optional[list[str]], typer.Option("--param", "-p", help="Pipeline parameter as name=value; again for more.")
]
PipelineFile = Annotated[Path, typer.Option("--pipeline", help="Compiled YAML, from `compile`.")]
MutableImage = Annotated[bool, typer.Option("--allow-mutable-image", help="Accept images by tag (development).")]


def main() -> None:
    """Run the command line; what a user can fix is one line on standard error and exit code 2."""
    command_line.run(app, interrupted="the same command starts again, training goes on from its checkpoint")


@app.command("compile")
def compile_(
    output: Annotated[Path, typer.Option(help="YAML file to write.")] = Path("pipeline.yaml"),
    pipeline: Annotated[str, typer.Option(help="Which one: training or ablation.")] = "training",
    image_cpu: Annotated[str, typer.Option(help="Image of the CPU stages, name@sha256:...")] = "",
    image_gpu: Annotated[str, typer.Option(help="Image of the GPU stages, name@sha256:...")] = "",
    allow_mutable_image: MutableImage = False,
    manifests: Annotated[bool, typer.Option("--manifests", help="Also write Pipeline and PipelineVersion.")] = False,
    evaluate_on_gpu: Annotated[bool, typer.Option("--evaluate-on-gpu", help="Evaluate on the GPU pool.")] = False,
    spot: Annotated[bool, typer.Option("--spot", help="Prefer spot capacity for GPU stages.")] = False,
    train_nodes: Annotated[int, typer.Option(help="Training nodes; above 1 as a Kubeflow TrainJob.", min=1)] = 1,
    queue: Annotated[str, typer.Option(help="Kueue queue that GPU stages wait in.")] = "",
    cost_center: Annotated[str, typer.Option(help="Pod label for cost reports.")] = "conversion-retrieval",
    gpu_type_label: Annotated[
        str, typer.Option(help="Node label that the parameter gpu_type is a value of; nvidia.com/gpu.product off GKE.")
    ] = cluster.GPU_TYPE_LABEL,
    dask: Annotated[
        bool, typer.Option("--dask", help="Mount the volume that build_features shares with a Dask cluster.")
    ] = False,
    golden: Annotated[bool, typer.Option("--golden", help="Rewrite pipelines/golden instead.")] = False,
) -> None:
    """Compile to YAML: the same bytes every time, images pinned by digest, a version named after the content."""
    from pipelines import compile as compiling

    if golden:
        from pipelines.golden_files import write_golden

        for path in write_golden():
            print(path)
        return
    place = compiling.placement(
        image_cpu=image_cpu,
        image_gpu=image_gpu,
        allow_mutable_image=allow_mutable_image,
        evaluate_on_gpu=evaluate_on_gpu,
        spot=spot,
        train_nodes=train_nodes,
        queue=queue,
        cost_center=cost_center,
        gpu_type_label=gpu_type_label,
        dask=dask,
    )
    compiled = compiling.compile_pipeline(output, place, pipeline_name=pipeline, manifests=manifests)
    print(f"{compiled.path}: version {compiled.version}")
    if compiled.manifests_path:
        print(f"{compiled.manifests_path}: Pipeline and PipelineVersion")
    if not image_cpu:
        print("images are those of a local run; name --image-cpu and --image-gpu for a cluster", file=sys.stderr)


@app.command()
def run(
    data: Annotated[str, typer.Option(help="A directory or gs:// prefix with the canonical tables.")],
    registry: Annotated[str, typer.Option(help="A directory or gs:// prefix of bundle versions.")],
    output: Annotated[Path, typer.Option(help="Directory for artifacts, log, report and checkpoints.")],
    config: Annotated[Optional[Path], typer.Option(help="Configuration (YAML).")] = None,
    set_: Annotated[Optional[list[str]], typer.Option("--set", help="Override, as section.key=value.")] = None,
    allow_first: Annotated[
        bool, typer.Option("--allow-first", help="Promote into a registry without champion.")
    ] = False,
    notification_url: Annotated[str, typer.Option(help="Webhook told how the run ended.")] = "",
    dask: command_line.Dask = False,
    dask_address: command_line.DaskAddress = "",
) -> None:
    """Run the compiled pipeline here; exit code 0 when it reaches a verdict, whichever it is."""
    from rich.console import Console

    from pipelines import local, summary

    try:
        result = local.run_locally(
            data_uri=data,
            registry_uri=registry,
            output_dir=output,
            config_path=config,
            overrides=(*(set_ or ()), *command_line.dask_overrides(dask, dask_address)),
            allow_first=allow_first,
            notification_url=notification_url,
        )
    except local.StageFailedError as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(1) from None
    summary.show(result, Console(highlight=False, width=command_line.output_width()))
    if result.verdict == summary.INVALID:
        raise UserError(f"the data is not fit to train on: {result.reason}")


@app.command()
def submit(
    param: Parameter = None,
    pipeline: PipelineFile = Path("pipeline.yaml"),
    host: Host = "",
    run_name: Annotated[str, typer.Option(help="Name of the run; one of that name is not made again.")] = "",
    wait: Annotated[bool, typer.Option("--wait", help="Show progress and end with the run.")] = False,
    namespace: Namespace = None,
    token_file: Token = None,
    cookies: Cookies = None,
    allow_mutable_image: MutableImage = False,
) -> None:
    """Upload the pipeline's version once, create a run and print its address."""
    from pipelines import remote
    from pipelines.connection import connect

    submission = remote.prepare(pipeline, param or (), allow_mutable_image=allow_mutable_image)
    client = connect(host, namespace=namespace, token_file=token_file, cookies=cookies)
    run_id = remote.submit(client, submission, run_name=run_name)
    print(f"run {run_id}: {client.run_address(run_id)}")
    if wait:
        _wait(client, run_id)


@app.command()
def schedule(
    cron: Annotated[str, typer.Option(help='Six fields, seconds first, UTC: "0 0 3 * * *" is daily at 03:00.')],
    param: Parameter = None,
    pipeline: PipelineFile = Path("pipeline.yaml"),
    host: Host = "",
    name: Annotated[
        str, typer.Option(help="Name of the schedule; there is one of each name.")
    ] = "conversion-retrieval",
    pause: Annotated[bool, typer.Option("--pause/--resume", help="Leave the schedule paused or running.")] = False,
    namespace: Namespace = None,
    token_file: Token = None,
    cookies: Cookies = None,
    allow_mutable_image: MutableImage = False,
) -> None:
    """Create or update one recurring run: one at a time, nothing caught up after a pause."""
    from pipelines import remote, schedules
    from pipelines.connection import connect
    from pipelines.cron import check_cron, next_times

    cron = check_cron(cron)
    if not name.strip():
        raise UserError("expected a name for the schedule, found none")
    submission = remote.prepare(pipeline, param or (), allow_mutable_image=allow_mutable_image)
    client = connect(host, namespace=namespace, token_file=token_file, cookies=cookies)
    schedule_id = schedules.schedule(client, submission, cron=cron, name=name, paused=pause)
    print(f"schedule {schedule_id}: {name}, {'paused' if pause else 'running'}, version {submission.version_name}")
    if not pause:
        print("next: " + ", ".join(f"{time:%Y-%m-%d %H:%M:%S} UTC" for time in next_times(cron)))


def _wait(client: Any, run_id: str) -> None:
    """End with the run, and as well or badly as it did; Ctrl-C ends the waiting alone."""
    from pipelines import remote

    try:
        remote.require_finished_well(remote.wait(client, run_id), run_id)
    except KeyboardInterrupt:
        raise command_line.Stopped(
            f"the run goes on: `status {run_id} --wait` follows it, `terminate {run_id}` stops it"
        ) from None


@app.command()
def status(
    run_id: Annotated[str, typer.Argument(help="The run's id, as `submit` printed it.")],
    host: Host = "",
    wait: Annotated[bool, typer.Option("--wait", help="Show progress and end with the run.")] = False,
    namespace: Namespace = None,
    token_file: Token = None,
    cookies: Cookies = None,
) -> None:
    """Show the state of a run and its tasks."""
    from pipelines import remote
    from pipelines.connection import connect

    client = connect(host, namespace=namespace, token_file=token_file, cookies=cookies)
    if wait:
        _wait(client, run_id)
    found = remote.run_status(client, run_id)
    print(f"{found.display_name}: {str(found.state).lower()}")
    for task, state in remote.task_states(found).items():
        print(f"  {task}: {state.lower()}")


@app.command()
def terminate(
    run_id: Annotated[str, typer.Argument(help="The run's id, as `submit` printed it.")],
    host: Host = "",
    notification_url: Annotated[
        str, typer.Option(envvar="NOTIFICATION_URL", help="Webhook to tell; default: the run's own parameter.")
    ] = "",
    namespace: Namespace = None,
    token_file: Token = None,
    cookies: Cookies = None,
) -> None:
    """Stop a run and tell the webhook; a finished run is left as it is."""
    from pipelines import remote
    from pipelines.connection import connect

    client = connect(host, namespace=namespace, token_file=token_file, cookies=cookies)
    print(f"run {run_id}: {remote.terminate(client, run_id, webhook_url=notification_url).lower()}")
