"""What a command line does with errors; oracle: the documented exit codes and one line on standard error."""

import ast
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from conversion_retrieval import cli, command_line
from conversion_retrieval.config import load_config
from conversion_retrieval.errors import UserError

ROOT = Path(__file__).parents[1]


def end_of(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> int:
    app = typer.Typer(pretty_exceptions_enable=False)

    @app.command()
    def fail() -> None:
        raise error

    monkeypatch.setattr(sys, "argv", ["program"])
    with pytest.raises(SystemExit) as exit_:
        command_line.run(app, interrupted="nothing was left")
    return int(exit_.value.code or 0)


def test_what_a_user_can_fix_is_one_line_and_code_2(monkeypatch, capsys):
    assert end_of(monkeypatch, UserError("expected a, found b")) == 2
    assert capsys.readouterr() == ("", "error: expected a, found b\n")


class NotInstalled:
    """Finds kserve, the first of all finders, to be missing as Python's own would."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name == "kserve":
            raise ModuleNotFoundError("No module named 'kserve'", name=name)


def test_serving_without_its_packages_names_one_and_how_to_get_them(monkeypatch):
    for name in [n for n in sys.modules if f"{n}.".startswith(("kserve.", "conversion_retrieval.serving."))]:
        monkeypatch.delitem(sys.modules, name)  # whatever tests before this one imported
    monkeypatch.setattr(sys, "meta_path", [NotInstalled(), *sys.meta_path])
    with pytest.raises(UserError, match=r"found no kserve: .*pip install 'conversion-retrieval\[serve\]'"):
        cli.serve(registry="registry")


def test_ctrl_c_says_what_was_left_and_ends_as_shells_expect(monkeypatch, capsys):
    assert end_of(monkeypatch, KeyboardInterrupt()) == 130
    assert capsys.readouterr().err.splitlines()[-1] == "error: interrupted; nothing was left"


def test_ctrl_c_may_leave_something_that_goes_on(monkeypatch, capsys):
    assert end_of(monkeypatch, command_line.Stopped("the run goes on")) == 130
    assert capsys.readouterr().err.splitlines()[-1] == "error: interrupted; the run goes on"


def test_a_bug_keeps_its_traceback(monkeypatch):
    with pytest.raises(ZeroDivisionError):
        end_of(monkeypatch, ZeroDivisionError())


@pytest.mark.parametrize("path", ["src/conversion_retrieval/cli.py", "pipelines/cli.py"])
def test_both_programs_end_the_same_way(path):
    tree = ast.parse((ROOT / path).read_text())
    (main,) = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "main"]
    assert "command_line.run(app" in ast.unparse(main)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], (False, "")),
        (["--dask"], (True, "")),
        (["--dask-address", "tcp://[::1]:8786"], (False, "tcp://[::1]:8786")),
        (["--dask-address", "127.0.0.1:8786", "--set", "features.dask_address=other"], (False, "127.0.0.1:8786")),
    ],
)
@pytest.mark.parametrize("program", ["run", "ablate"])
def test_dask_options_reach_the_configuration_of_the_stage(program, options, expected, monkeypatch, tmp_path):
    given = []
    if program == "run":
        from pipelines import local
        from pipelines.cli import app

        def run_locally(**arguments):
            given.append(load_config(arguments["config_path"], arguments["overrides"]))
            raise local.StageFailedError

        monkeypatch.setattr(local, "run_locally", run_locally)
        required = ["--registry", "registry"]
    else:
        from conversion_retrieval.cli import app
        from conversion_retrieval.evaluation import ablation

        monkeypatch.setattr(ablation, "ablate", lambda *_, config, **__: given.append(config))
        required = []
    CliRunner().invoke(app, [program, "--data", "data", "--output", str(tmp_path), *required, *options])
    (config,) = given
    assert (config.features.use_dask, config.features.dask_address) == expected
