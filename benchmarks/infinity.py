"""The rival server `infinity-emb`, in a virtual environment of its own, serving one merged classifier."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.running import Server, running

MODEL = "merged"
"""The name it serves the model under."""

_VERSION = "0.0.78"
_INSTALL_TIMEOUT_S = 1500


class NotInstalled(Exception):
    """The rival could not be installed, and why."""


def install(environment: Path) -> Path:
    """Make the virtual environment, where it is not there yet, and return the rival's command.

    Raises:
        NotInstalled: with the end of what pip said.
    """
    command = environment / "bin" / "infinity_emb"
    if command.exists():
        return command
    steps = (
        [sys.executable, "-m", "venv", str(environment)],
        [
            str(environment / "bin" / "pip"),
            *("install", "--quiet", "--disable-pip-version-check"),
            *("torch==2.13.*", f"infinity-emb[server,torch]=={_VERSION}"),
        ],
    )
    for step in steps:
        try:
            subprocess.run(step, check=True, capture_output=True, text=True, timeout=_INSTALL_TIMEOUT_S)
        except subprocess.CalledProcessError as error:
            raise NotInstalled(error.stderr[-1000:]) from error
        except subprocess.TimeoutExpired as error:
            raise NotInstalled(f"not installed within {_INSTALL_TIMEOUT_S} s") from error
    return command


def merge(adapter: Path, into: Path) -> None:
    """One adapter merged into the base by PEFT, saved as a plain model with its tokenizer."""
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from adapters.base_model import find_base_model

    base = find_base_model()
    # Named, because transformers leaves its own names for two labels out of the file, and the rival, not finding any,
    # takes the model for a reranker.
    labels = {0: "negative", 1: "positive"}
    model = AutoModelForSequenceClassification.from_pretrained(base.directory, num_labels=2, id2label=labels)
    merged = PeftModel.from_pretrained(model, str(adapter)).merge_and_unload()
    merged.save_pretrained(into)
    AutoTokenizer.from_pretrained(base.directory).save_pretrained(into)


@contextmanager
def serving(command: Path, model: Path, directory: Path, *options: str) -> Iterator[Server]:
    """The rival on one CPU with this model.

    Raises:
        DidNotStart: with the end of its log.
    """
    line = [str(command), "v2", "--model-id", str(model), "--served-model-name", MODEL, "--engine", "torch"]
    line += ["--device", "cpu", "--host", "127.0.0.1", "--port", "{port}", "--log-level", "warning", *options]
    offline = {"HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1", "INFINITY_ANONYMOUS_USAGE_STATS": "0"}
    with running(line, directory, ready="/health", environment=offline) as server:
        yield server
