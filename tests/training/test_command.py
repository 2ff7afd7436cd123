"""`tonearm train` from the outside."""

import subprocess
import sys
from pathlib import Path

import typer
from typer.testing import CliRunner

from adapters.errors import SettingsError
from training.command import train

SAMPLE = Path(__file__).parents[2] / "training" / "recipes" / "sample.yaml"


def _app() -> typer.Typer:
    app = typer.Typer()
    app.command()(train)
    return app


def test_help_names_every_option() -> None:
    result = CliRunner().invoke(_app(), ["--help"], env={"COLUMNS": "200"})
    assert result.exit_code == 0
    for needed in ("RECIPE", "--set", "--registry", "--output"):
        assert needed in result.output


def test_the_command_line_is_quick_to_import() -> None:
    heavy = "{'torch', 'transformers', 'peft', 'datasets', 'matplotlib', 'scipy', 'pandas'}"
    code = f"import sys, training.command; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_an_override_that_is_wrong_stops_it(tmp_path: Path) -> None:
    arguments = [str(SAMPLE), "--set", "training.epochs=none", "--registry", str(tmp_path), "--output", str(tmp_path)]
    result = CliRunner().invoke(_app(), arguments)
    assert isinstance(result.exception, SettingsError)
    assert result.exception.key == "training.epochs"
    assert list(tmp_path.iterdir()) == []


def test_training_never_imports_the_service() -> None:
    sources = (Path(__file__).parents[2] / "training").glob("*.py")
    assert not [path.name for path in sources if "service." in path.read_text() or "import service" in path.read_text()]
