"""The assignment: the written-down hash, and what must hold of it."""

import hashlib
from collections import Counter

import pytest
from pydantic import ValidationError

from service.routing import Arm, Experiment, assign, unit_fraction


def experiment(name: str, salt: str, **weights: float) -> Experiment:
    return Experiment(
        name=name,
        salt=salt,
        arms=tuple(Arm(name=arm, adapter="base", weight=weight) for arm, weight in weights.items()),
    )


EVEN = experiment("movies-2026-12", "v1", control=50, treatment=50)
SKEWED = experiment("skewed", "", control=70, small=20, tiny=10)

# The vectors of docs/experiments-hash.md.
VECTORS = [
    (EVEN, "user-42", "3bb239a1b49fcd1a", 0.2331882495678876, "control"),
    (EVEN, "user-43", "e58c026c4d6d3b24", 0.8966676248941682, "treatment"),
    (EVEN, "a", "ae091d9d941896c4", 0.6798265943253646, "treatment"),
    (EVEN, "ünïcödé", "680ea56dc278fe12", 0.40647348336867495, "control"),
    (EVEN, "東京", "5a78ebca10c6da6d", 0.35340760882607064, "control"),
    (EVEN, "0", "94120f1ed8426c98", 0.5784005594544028, "treatment"),
    (SKEWED, "user-42", "63861651e805e606", 0.38876475810686595, "control"),
    (SKEWED, "user-43", "bae0a20053be972f", 0.7299901247786188, "small"),
    (SKEWED, "東京", "e22c6aa26cc301fc", 0.8834902426285787, "small"),
    (SKEWED, "0", "003f93086a3bc667", 0.0009700675529834336, "control"),
]


@pytest.mark.parametrize(("of", "unit", "digest", "fraction", "arm"), VECTORS)
def test_published_vectors(of: Experiment, unit: str, digest: str, fraction: float, arm: str) -> None:
    key = f"{of.salt}\0{of.name}\0{unit}".encode()
    assert hashlib.sha256(key).hexdigest()[:16] == digest
    assert unit_fraction(of, unit) == fraction
    assert assign(of, unit).name == arm


def test_arms_get_their_shares() -> None:
    counts = Counter(assign(SKEWED, f"unit-{index}").name for index in range(20_000))
    for arm, share in (("control", 0.7), ("small", 0.2), ("tiny", 0.1)):
        # Five standard deviations of a binomial share.
        assert abs(counts[arm] / 20_000 - share) < 5 * (share * (1 - share) / 20_000) ** 0.5


def test_a_changed_weight_moves_no_unit_it_need_not() -> None:
    before = experiment("grow", "s", treatment=10, control=90)
    after = experiment("grow", "s", treatment=25, control=75)
    for index in range(5_000):
        if assign(before, f"{index}").name == "treatment":
            assert assign(after, f"{index}").name == "treatment"


def test_experiments_and_salts_are_independent() -> None:
    other = experiment("other", "v1", control=50, treatment=50)
    same = sum(assign(EVEN, f"{index}").name == assign(other, f"{index}").name for index in range(10_000))
    assert abs(same / 10_000 - 0.5) < 0.03


def test_an_arm_without_weight_gets_nobody() -> None:
    off = experiment("off", "s", first=0, second=1, third=0)
    assert {assign(off, f"{index}").name for index in range(1_000)} == {"second"}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"arms": [{"name": "a", "adapter": "base", "weight": 1}]}, "at least 2 items"),
        ({"arms": [{"name": arm, "adapter": "base", "weight": 0} for arm in "ab"]}, "weight above 0"),
        ({"arms": [{"name": "a", "adapter": "base", "weight": 1}] * 2}, "must differ"),
        ({"arms": [{"name": arm, "adapter": "base", "weight": -1} for arm in "ab"]}, "greater than or equal to 0"),
        ({"arms": [{"name": arm, "adapter": "No Name", "weight": 1} for arm in "ab"]}, "no adapter reference"),
        ({"shadow": {"adapter": "base", "percent": 10}}, "Extra inputs"),
        ({"salt": "a\0b"}, "pattern"),
    ],
)
def test_bad_experiments_are_refused(change: dict[str, object], expected: str) -> None:
    with pytest.raises(ValidationError, match=expected):
        Experiment.model_validate(EVEN.model_dump() | change)
