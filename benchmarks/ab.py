"""A labelled set replayed through a live service as an experiment's traffic, the labels fed back as they come.

Every request is a unit of its own with a text drawn from the set, so what is true of the set is what the experiment
should find; that truth is asked of both adapters outright, and says how many labels a verdict should take.
"""

import asyncio
import json
import random
import statistics
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import yaml
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from adapters.store import SHIPPED
from benchmarks.measure import console, write
from benchmarks.running import running
from client import AsyncClient, Classification, ExperimentResult
from service.analysis import required_units, required_units_anytime

_AT_ONCE = 16
_ARMS = ("base", "movies")
_NAME = "replayed"
_LOOK_EVERY = 100
_PATIENCE_S = 30.0

Example = tuple[str, str]
"""A text and its label."""


@dataclass(frozen=True, slots=True)
class Look:
    """What the service said after so many labels; differences are the treatment's less the control's."""

    labels: int
    difference: float
    low: float
    high: float
    fixed_low: float
    fixed_high: float
    verdict: str
    pair_labels: int
    pair_difference: float | None
    pair_verdict: str


@dataclass(frozen=True, slots=True)
class Replay:
    """One experiment from its first label to its verdict; None where it came to none."""

    salt: str
    looks: list[Look]
    labels: int | None
    fixed_labels: int | None
    pair_labels: int | None
    void: bool
    took_s: float


def run(data: Path, repeats: int, most: int) -> None:
    """Measure and print.

    Raises:
        FileNotFoundError: the labelled set is not there.
    """
    examples = _read(data / "sst2" / "validation.jsonl")
    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / "experiments.yaml"
        file.write_text("[]")
        settings = {
            "TONEARM_ADAPTERS_DIR": str(SHIPPED),
            "TONEARM_EXPERIMENTS_FILE": str(file),
            "TONEARM_DATABASE_URL": f"sqlite:///{place}/tonearm.db",
            "TONEARM_LOG_LEVEL": "warning",
        }
        command = [sys.executable, "-m", "service", "--port", "{port}"]
        with running(command, Path(place), ready="/readyz", environment=settings) as server:
            url = f"http://127.0.0.1:{server.port}"
            truth = asyncio.run(_truth(url, examples))
            replays = [asyncio.run(_replay(url, file, examples, f"{at}", most)) for at in range(repeats)]
    theory = _theory(*truth)
    _print_growth(replays[0])
    _print_needed(replays, truth, theory)
    write("ab", {"truth": truth, "theory": theory, "replays": [asdict(replay) for replay in replays]})


def _read(path: Path) -> list[Example]:
    with path.open() as lines:
        return [(example["text"], example["label"]) for example in map(json.loads, lines)]


async def _truth(url: str, examples: list[Example]) -> tuple[float, float]:
    """Accuracy of each arm's adapter on the whole set."""
    right = [0, 0]
    async with AsyncClient(url) as client:
        for first in range(0, len(examples), 64):
            part = examples[first : first + 64]
            rows = await client.classify([text for text, _ in part], adapter=list(_ARMS))
            for row, (_, label) in zip(rows, part, strict=True):
                for at, item in enumerate(row):
                    assert isinstance(item, Classification), item
                    right[at] += item.label == label
    return right[0] / len(examples), right[1] / len(examples)


async def _replay(url: str, file: Path, examples: list[Example], salt: str, most: int) -> Replay:
    """Traffic until both comparisons have a verdict, or until `most` labels."""
    experiment = {
        "name": _NAME,
        "salt": salt,
        "arms": [{"name": "control", "adapter": _ARMS[0]}, {"name": "treatment", "adapter": _ARMS[1]}],
        "shadow": {"adapter": _ARMS[1]},
    }
    file.write_text(yaml.safe_dump([experiment]))
    draw, started_s = random.Random(salt), time.monotonic()
    looks: list[Look] = []
    async with AsyncClient(url) as client:
        await _until_in_force(client, salt)
        with Progress(console=Console(stderr=True), transient=True) as progress:
            task = progress.add_task(f"experiment {salt}", total=most)
            void = False
            for first in range(0, most, _LOOK_EVERY):
                await _send(client, [draw.choice(examples) for _ in range(_LOOK_EVERY)], f"{salt}-{first}")
                found = await client.experiment(_NAME)
                void |= found.void
                looks += _look(found)
                progress.advance(task, _LOOK_EVERY)
                if looks and looks[-1].verdict != "undecided" and looks[-1].pair_verdict != "undecided":
                    break
    return Replay(
        salt=salt,
        looks=looks,
        labels=next((look.labels for look in looks if look.verdict != "undecided"), None),
        fixed_labels=next((look.labels for look in looks if look.fixed_low > 0 or look.fixed_high < 0), None),
        pair_labels=next((look.pair_labels for look in looks if look.pair_verdict != "undecided"), None),
        void=void,
        took_s=time.monotonic() - started_s,
    )


async def _until_in_force(client: AsyncClient, salt: str) -> None:
    deadline_s = time.monotonic() + _PATIENCE_S
    while True:
        listed = (await client.experiments()).experiments
        # The first decision is what the results count from.
        if listed and listed[0].salt == salt and (await client.experiment(_NAME)).decisions:
            return
        if time.monotonic() > deadline_s:
            raise TimeoutError(f"experiment {salt} is not in force after {_PATIENCE_S:.0f} s")
        await asyncio.sleep(0.1)


async def _send(client: AsyncClient, examples: list[Example], prefix: str) -> None:
    """A request a unit, and its label once it is answered."""
    free = asyncio.Semaphore(_AT_ONCE)

    async def one(at: int, text: str, label: str) -> None:
        async with free:
            answer = await client.classify(text, unit_id=f"{prefix}-{at}")
            assert isinstance(answer, Classification)
            await client.feedback(answer.request_id, label)

    await asyncio.gather(*(one(at, text, label) for at, (text, label) in enumerate(examples)))


def _look(found: ExperimentResult) -> list[Look]:
    if not found.differences or found.pairs is None:
        return []
    (difference,) = found.differences
    return [
        Look(
            labels=sum(arm.labelled for arm in found.arms),
            difference=difference.accuracy,
            low=difference.anytime.low,
            high=difference.anytime.high,
            fixed_low=difference.fixed.low,
            fixed_high=difference.fixed.high,
            verdict=difference.verdict,
            pair_labels=found.pairs.labelled,
            pair_difference=found.pairs.accuracy,
            pair_verdict=found.pairs.verdict,
        )
    ]


def _theory(control: float, treatment: float) -> dict[str, int]:
    """Labels in both arms together.

    `fixed`: for one look settled before, at 80 % power. `anytime`: where the confidence sequence around the true
    difference leaves zero out, which half of all experiments reach sooner.
    """
    difference = treatment - control
    return {
        "fixed": 2 * required_units(control, difference),
        "anytime": 2 * required_units_anytime(control, difference, power=0.5),
    }


def _print_growth(replay: Replay) -> None:
    table = Table(
        *("labels", "difference", "95 % at every look", "95 % at one look", "verdict", "labelled pairs"),
        *("difference in pairs", "verdict of pairs"),
        title="one experiment as it grows: base against movies",
    )
    shown = [look for at, look in enumerate(replay.looks) if at % max(1, len(replay.looks) // 15) == 0]
    for look in [*shown, *([replay.looks[-1]] if replay.looks[-1:] != shown[-1:] else [])]:
        table.add_row(
            f"{look.labels:,}",
            f"{look.difference:+.3f}",
            f"{look.low:+.3f} to {look.high:+.3f}",
            f"{look.fixed_low:+.3f} to {look.fixed_high:+.3f}",
            look.verdict,
            f"{look.pair_labels:,}",
            "-" if look.pair_difference is None else f"{look.pair_difference:+.3f}",
            look.pair_verdict,
        )
    console.print(table)


def _print_needed(replays: list[Replay], truth: tuple[float, float], theory: dict[str, int]) -> None:
    console.print(
        f"on the whole set: base {truth[0]:.4f}, movies {truth[1]:.4f}, difference {truth[1] - truth[0]:+.4f}"
    )
    table = Table("verdict by", "labels needed: median", "all", "theory", title=f"{len(replays)} experiments")
    needed: dict[str, tuple[list[int | None], str]] = {
        "arms, at every look": ([replay.labels for replay in replays], f"{theory['anytime']:,}"),
        "arms, first look of the fixed interval": (
            [replay.fixed_labels for replay in replays],
            f"{theory['fixed']:,} for one look settled before",
        ),
        "shadow pairs, at every look": ([replay.pair_labels for replay in replays], "-"),
    }
    for name, (labels, expected) in needed.items():
        known = [count for count in labels if count is not None]
        all_of_them = ", ".join("none" if count is None else f"{count:,}" for count in labels)
        table.add_row(name, f"{statistics.median(known):,.0f}" if known else "-", all_of_them, expected)
    console.print(table)
    labels = sum(replay.looks[-1].labels for replay in replays if replay.looks)
    seconds = sum(replay.took_s for replay in replays)
    console.print(f"{labels:,} answers with their feedback in {seconds:.0f} s; void: {any(r.void for r in replays)}")
