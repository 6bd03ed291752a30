"""The ``conversion-retrieval`` command: import, generate, validate, registry, retrieve, serve, ablate.

Each command imports its part when called, so that ``--help`` answers at once.
"""

from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from conversion_retrieval import command_line
from conversion_retrieval.errors import UserError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Shopping-conversion candidate generation: data in, registry and candidates out.",
)
registry_app = typer.Typer(no_args_is_help=True, help="Look at, roll back and prune promoted bundles.")
app.add_typer(registry_app, name="registry")

RegistryUri = Annotated[str, typer.Option("--registry", help="A directory or gs:// prefix of bundle versions.")]
DataUri = Annotated[str, typer.Option("--data", help="A directory or gs:// prefix with the canonical tables.")]
Output = Annotated[Path, typer.Option("--output", help="Directory to write; created, replaced when complete.")]


def main() -> None:
    """Run the command line; what a user can fix is one line on standard error and exit code 2."""
    command_line.run(app, interrupted="nothing half-written was left in place")


@app.command("import")
def import_data(
    name: Annotated[str, typer.Argument(help="completejourney, rees46, retailrocket or tmall.")],
    output: Output,
    source: Annotated[
        Optional[Path], typer.Option(help="File or directory to read, as its publisher serves it.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of what is sampled.")] = 0,
) -> None:
    """Convert a public data set to the canonical tables and say what was read, dropped and why."""
    from conversion_retrieval.datasets.importers import import_dataset

    report = import_dataset(name, source, output, seed=seed)
    for line in report.lines():
        print(line)


@app.command()
def generate(
    output: Output,
    users: Annotated[Optional[int], typer.Option(help="Number of users.")] = None,
    items: Annotated[Optional[int], typer.Option(help="Number of items.")] = None,
    days: Annotated[Optional[int], typer.Option(help="Number of days.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the world.")] = 0,
) -> None:
    """Generate the synthetic world, with the true purchase probabilities beside the data."""
    from conversion_retrieval.datasets import synthetic

    chosen: dict[str, Any] = {"num_users": users, "num_items": items, "num_days": days, "seed": seed}
    chosen = {key: value for key, value in chosen.items() if value is not None}
    config = synthetic.SyntheticConfig(**chosen)
    synthetic.generate(output, config)
    print(f"synthetic world written to {output}")


@app.command()
def validate(
    data: Annotated[str, typer.Argument(help="A directory or gs:// prefix with the canonical tables.")],
    output: Annotated[Optional[Path], typer.Option(help="Where the report goes; default: ./validation_report.")] = None,
    config: Annotated[Optional[Path], typer.Option(help="Pipeline configuration (YAML).")] = None,
) -> None:
    """Check the canonical tables and say where the report is; exit code 1 when a check of severity error fails."""
    from conversion_retrieval.config import load_config
    from conversion_retrieval.validation.stage import PAGE, validate_directory

    report_dir = output or Path("validation_report")
    verdict = validate_directory(data, report_dir, load_config(config))
    print(f"report: {report_dir / PAGE}")
    if verdict != "valid":
        raise typer.Exit(1)


@app.command()
def retrieve(
    registry: RegistryUri,
    data: DataUri,
    user: Annotated[Optional[str], typer.Option(help="One user's id.")] = None,
    requests: Annotated[Optional[Path], typer.Option(help="Parquet file of requests.")] = None,
    output: Annotated[Optional[Path], typer.Option(help="Parquet file for the candidates of --requests.")] = None,
    surface: Annotated[Optional[str], typer.Option(help="Surface of the request of --user.")] = None,
    k: Annotated[int, typer.Option("-k", help="How many candidates.", min=1)] = 100,
    exclude_seen: Annotated[
        bool, typer.Option(help="Leave out items that the user clicked, saved, carted or bought.")
    ] = False,
    advertiser_cap: Annotated[int, typer.Option(help="At most this many items of one advertiser; 0: no cap.")] = 0,
) -> None:
    """Retrieve candidates from the champion for one user, or for many from a file."""
    from conversion_retrieval.serving import commands

    if (user is None) == (requests is None):
        raise UserError("expected either --user ID or --requests FILE, found both or neither")
    if requests is not None and surface is not None:
        raise UserError(
            "expected --surface beside --user alone, found it beside --requests: make it a column of the file"
        )
    limits = {"k": k, "advertiser_cap": advertiser_cap}
    if user is not None:
        commands.retrieve_user(registry, data, user, surface=surface, exclude_seen=exclude_seen, **limits)
    elif requests is not None:
        commands.retrieve_requests(registry, data, requests, output, exclude_seen=exclude_seen, **limits)


@app.command()
def serve(
    registry: RegistryUri,
    data: Annotated[
        Optional[str], typer.Option(help="Canonical tables with users' events, for requests by id.")
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="HTTP port.")] = 8080,
    poll_seconds: Annotated[float, typer.Option(help="How often to look for a new champion.")] = 30.0,
) -> None:
    """Serve the champion over HTTP (Open Inference Protocol), following promotions without dropping a request."""
    try:
        from conversion_retrieval.serving.server import serve as run_server
    except ModuleNotFoundError as error:
        raise UserError(
            f"expected the packages that serving needs, found no {error.name}: "
            "install them with pip install 'conversion-retrieval[serve]'"
        ) from None

    run_server(registry, data_uri=data, host=host, port=port, poll_seconds=poll_seconds)


@app.command()
def ablate(
    data: DataUri,
    output: Annotated[Path, typer.Option(help="Directory to write, and to go on in after a stop.")],
    seeds: Annotated[int, typer.Option(help="Training seeds per variant.", min=1)] = 3,
    config: Annotated[Optional[Path], typer.Option(help="Pipeline configuration (YAML).")] = None,
    set_: Annotated[Optional[list[str]], typer.Option("--set", help="Override, as section.key=value.")] = None,
    variants: Annotated[Optional[str], typer.Option(help="Comma-separated names; default: all.")] = None,
    jobs: Annotated[int, typer.Option(help="Variants that train side by side.", min=1)] = 1,
    dask: command_line.Dask = False,
    dask_address: command_line.DaskAddress = "",
) -> None:
    """Train named variants on one split and compare them with the default; resumes where it stopped."""
    from conversion_retrieval.config import load_config
    from conversion_retrieval.evaluation.ablation import ablate as run_ablation
    from conversion_retrieval.evaluation.variants import split_names

    chosen = split_names(variants or "")
    resolved = load_config(config, (*(set_ or ()), *command_line.dask_overrides(dask, dask_address)))
    page = run_ablation(data, output, config=resolved, num_seeds=seeds, variants=chosen, num_processes=jobs)
    print(page)


@registry_app.command("show")
def registry_show(
    registry: RegistryUri,
    version: Annotated[Optional[str], typer.Argument(help="A version; default: the champion.")] = None,
) -> None:
    """Show a bundle: what it is made of, its recall, why it was promoted."""
    from conversion_retrieval.registry import commands

    commands.show(registry, version)


@registry_app.command("history")
def registry_history(registry: RegistryUri) -> None:
    """List every promotion and rollback, oldest first."""
    from conversion_retrieval.registry import commands

    commands.history(registry)


@registry_app.command("rollback")
def registry_rollback(
    registry: RegistryUri,
    version: Annotated[
        Optional[str], typer.Argument(help="A kept version; default: the champion's predecessor.")
    ] = None,
) -> None:
    """Make an earlier version the champion again."""
    from conversion_retrieval.registry import commands

    commands.rollback(registry, version)


@registry_app.command("diff")
def registry_diff(registry: RegistryUri, first: str, second: str) -> None:
    """Compare two versions: configuration, inputs and metrics."""
    from conversion_retrieval.registry import commands

    commands.diff(registry, first, second)


@registry_app.command("prune")
def registry_prune(
    registry: RegistryUri,
    keep: Annotated[int, typer.Option(help="How many of the newest versions to keep.", min=1)] = 10,
    partial_hours: Annotated[
        float, typer.Option(help="Delete uploads that never finished, this long after their last write.", min=0)
    ] = 24.0,
) -> None:
    """Delete old versions and unfinished uploads, never the champion nor its predecessor."""
    from conversion_retrieval.registry import commands

    commands.prune(registry, keep, partial_hours=partial_hours)
