"""``--help`` of every command answers at once; oracle: the modules that a fresh process has imported after it."""

import json
import subprocess
import sys

import pytest

# Slow to import, or made for the network.
HEAVY = {
    "torch", "kfp", "kfp_server_api", "pandas", "numpy", "pyarrow", "scipy", "faiss", "dask", "kserve", "kubernetes",
    "great_expectations", "matplotlib", "urllib3", "requests", "google", "aiohttp", "httpx",
}  # fmt: skip
SHOW_ALL = """
import json, sys, typer
from typer.testing import CliRunner
from {module} import app

def show(command, words):
    result = CliRunner().invoke(app, [*words, "--help"])
    assert result.exit_code == 0, result.output
    shown.append(" ".join(words))
    for name, child in getattr(command, "commands", {{}}).items():
        show(child, [*words, name])

shown = []
show(typer.main.get_command(app), [])
print(json.dumps({{"shown": shown, "modules": sorted(sys.modules)}}))
"""


@pytest.mark.parametrize(
    ("module", "commands"),
    [
        ("pipelines.cli", {"compile", "run", "submit", "schedule", "status", "terminate"}),
        ("conversion_retrieval.cli", {"import", "validate", "retrieve", "serve", "ablate", "registry rollback"}),
    ],
)
def test_help_of_every_command_imports_nothing_heavy_and_nothing_of_the_network(module, commands):
    code = SHOW_ALL.format(module=module)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    answer = json.loads(done.stdout)
    assert commands <= set(answer["shown"])
    assert not {name.partition(".")[0] for name in answer["modules"]} & HEAVY


@pytest.mark.parametrize("module", ["conversion_retrieval", "pipelines"])
def test_both_programs_run_as_modules(module):
    done = subprocess.run([sys.executable, "-m", module, "--help"], capture_output=True, text=True, check=True)
    assert "Usage:" in done.stdout
