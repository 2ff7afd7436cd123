"""The assignment: the written-down hash, and what must hold of it."""

import hashlib
from collections import Counter

import pytest
from pydantic import ValidationError

from service.routing import Arm, Experiment, assign, claim, covers, fraction, layers_overlap


def experiment(name: str, salt: str, **weights: float) -> Experiment:
    return Experiment(
        name=name,
        salt=salt,
        arms=tuple(Arm(name=arm, adapter="base", weight=weight) for arm, weight in weights.items()),
    )


EVEN = experiment("movies-2026-12", "v1", control=50, treatment=50)
ARMS = [{"name": arm, "adapter": "base"} for arm in ("control", "treatment")]
SKEWED = experiment("skewed", "", control=70, small=20, tiny=10)

# The vectors of docs/experiments-hash.md.
VECTORS: list[tuple[Experiment, str, list[str], list[float], str]] = [
    (EVEN, "user-42", ["7dae64e02fb4add7", "d924754227365518"], [0.4909422919588048, 0.8482125555521746], "treatment"),
    (EVEN, "user-43", ["d62dffe3f49df427", "21c33673ec58d2dc"], [0.8366393977672643, 0.13188495950848578], "control"),
    (EVEN, "a", ["d5228a87d515e7bf", "3cb0a996c4d19b20"], [0.8325583058950411, 0.23707065516356918], "control"),
    (EVEN, "ünïcödé", ["e162b6f567053a31", "799b36b152542dba"], [0.8804125165106783, 0.47502462224140685], "control"),
    (EVEN, "東京", ["43609d626571179e", "381845e0e5caf9ca"], [0.26319297458889357, 0.21912037602104906], "control"),
    (EVEN, "0", ["867371e74cd84e1b", "7e7230d9bbbc2254"], [0.5251990499208158, 0.49392991367106787], "control"),
    (
        SKEWED,
        "user-42",
        ["3bd1bfc5cb3e90bf", "f1fa3e7e7d938639", "744955289479cfd6"],
        [0.2336692674537012, 0.9452246722044731, 0.454243967444632],
        "small",
    ),
    (
        SKEWED,
        "user-43",
        ["43fa9a79c4322727", "c960c1037177839d", "bbfd035c38651b20"],
        [0.26554265473186744, 0.7866325982481311, 0.7343294239184569],
        "small",
    ),
    (
        SKEWED,
        "東京",
        ["df99e9b812f7dc63", "c8d350708d07adaf", "7a3ffb1ac5418bbf"],
        [0.873442275466885, 0.7844743990690676, 0.47753877070977613],
        "control",
    ),
    (
        SKEWED,
        "0",
        ["b8b128d4aeede0e8", "b4da2a4b20c89edc", "c9629c28915c8f09"],
        [0.7214532393690473, 0.7064539369028203, 0.7866609190981412],
        "control",
    ),
    (
        SKEWED,
        "user-33",
        ["646b5a6b6801ccb4", "c6316b057e2adb3d", "fa22598d74f5ceda"],
        [0.39226307985518993, 0.7741915596399552, 0.9770866365770053],
        "tiny",
    ),
]


@pytest.mark.parametrize(("of", "unit", "digests", "fractions", "arm"), VECTORS)
def test_published_vectors(of: Experiment, unit: str, digests: list[str], fractions: list[float], arm: str) -> None:
    keys = [f"arm\0{of.salt}\0{of.name}\0{each.name}\0{unit}".encode() for each in of.arms]
    assert [hashlib.sha256(key).hexdigest()[:16] for key in keys] == digests
    assert [fraction("arm", of.salt, of.name, each.name, unit) for each in of.arms] == fractions
    assert assign(of, unit).name == arm


def test_other_published_vectors() -> None:
    for unit, expected in (
        ("user-42", (0.2930503285355547, 0.2044173583252592, 0.5620767619170594)),
        ("東京", (0.7911358226566562, 0.9786446536963128, 0.4540042992594894)),
    ):
        salted = [fraction(word, "v1", "movies-2026-12", unit) for word in ("coverage", "shadow")]
        assert (*salted, fraction("layer", "front-page", unit)) == expected


def test_arms_get_their_shares() -> None:
    counts = Counter(assign(SKEWED, f"unit-{index}").name for index in range(20_000))
    for arm, share in (("control", 0.7), ("small", 0.2), ("tiny", 0.1)):
        # Five standard deviations of a binomial share.
        assert abs(counts[arm] / 20_000 - share) < 5 * (share * (1 - share) / 20_000) ** 0.5


def test_a_changed_weight_moves_no_unit_it_need_not() -> None:
    before = experiment("grow", "s", treatment=10, control=45, other=45)
    after = experiment("grow", "s", other=45, new=20, treatment=40, control=45)
    units = [f"{index}" for index in range(5_000)]
    moved = [(assign(before, unit).name, assign(after, unit).name) for unit in units]
    assert {pair for pair in moved if pair[0] != pair[1]} == {
        (old, new) for old in ("control", "other", "treatment") for new in ("new", "treatment") if old != new
    }


def test_stages_keep_whom_they_have() -> None:
    """A promotion's candidate only gains units from one stage to the next."""
    had: set[str] = set()
    for percent in (1, 5, 10, 25, 50, 100):
        stage = experiment("grow", "s", control=100 - percent, candidate=percent)
        has = {f"{index}" for index in range(5_000) if assign(stage, f"{index}").name == "candidate"}
        assert had <= has and abs(len(has) / 5_000 - percent / 100) < 0.025
        had = has


def test_coverage_is_a_share_of_its_own() -> None:
    tenth = EVEN.model_copy(update={"coverage": 10.0})
    covered = [f"{index}" for index in range(20_000) if covers(tenth, f"{index}")]
    assert abs(len(covered) / 20_000 - 0.1) < 0.012
    more = EVEN.model_copy(update={"coverage": 20.0})
    assert all(covers(more, unit) for unit in covered)
    treated = sum(assign(tenth, unit).name == "treatment" for unit in covered)
    assert abs(treated / len(covered) - 0.5) < 0.06  # independent of the arm


def test_a_layer_shares_no_unit() -> None:
    first, second = (
        Experiment.model_validate({"name": name, "salt": "", "arms": ARMS, "layer": {"name": "page", **bounds}})
        for name, bounds in (("first", {"from": 0, "to": 30}), ("second", {"from": 30, "to": 100}))
    )
    units = [f"{index}" for index in range(5_000)]
    claimed = [claim([first, second], {}, unit) for unit in units]
    assert None not in claimed and all(covers(first, unit) != covers(second, unit) for unit in units)
    assert abs(sum(each is first for each in claimed) / 5_000 - 0.3) < 0.035
    assert layers_overlap([first, second]) is None
    third = second.model_copy(update={"name": "third"})
    assert "second and third overlap in layer page" in str(layers_overlap([first, third, second]))


def test_the_first_that_wants_it_has_it() -> None:
    german = Experiment.model_validate(
        {"name": "german", "salt": "", "arms": ARMS, "match": {"X-Country": ["de", "at"], "x-beta": "yes"}}
    )
    wanted = {"x-country": "at", "x-beta": "yes"}
    assert claim([german, EVEN], wanted, "u") is german
    for headers in ({}, {"x-country": "fr", "x-beta": "yes"}, {"x-country": "de"}):
        assert claim([german, EVEN], headers, "u") is EVEN
    nobody = EVEN.model_copy(update={"coverage": 0.0})
    assert claim([nobody], {}, "u") is None and claim([], {}, "u") is None


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
        ({"arms": [{"name": "a", "adapter": "base", "weight": 1}]}, "nothing to be compared with"),
        ({"arms": []}, "at least 1 item"),
        ({"arms": [{"name": arm, "adapter": "base", "weight": 0} for arm in "ab"]}, "weight above 0"),
        ({"arms": [{"name": "a", "adapter": "base", "weight": 1}] * 2}, "must differ"),
        ({"arms": [{"name": arm, "adapter": "base", "weight": -1} for arm in "ab"]}, "greater than or equal to 0"),
        ({"arms": [{"name": arm, "adapter": "No Name", "weight": 1} for arm in "ab"]}, "no adapter reference"),
        ({"shadow": {"adapter": "base", "percent": 110}}, "less than or equal to 100"),
        ({"shadow": {"adapter": "base", "colour": 1}}, "Extra inputs"),
        ({"layer": {"name": "page", "from": 50, "to": 50}}, "expected from below to"),
        ({"layer": {"name": "page", "from": 0, "to": 50}, "coverage": 10}, "leave out coverage"),
        ({"match": {"no header": ["x"]}}, "pattern"),
        ({"match": {"x-country": []}}, "at least 1 item"),
        ({"promotion": {"stages": [1, 50]}}, "must rise to 100, found 1, 50"),
        ({"promotion": {"stages": [5, 1, 100]}}, "must rise to 100"),
        ({"promotion": {"stages": [50, 100]}}, "leave out weight"),
        ({"promotion": {"stages": [50, 100]}, "arms": [*ARMS, ARMS[0] | {"name": "c"}]}, "expected 2, found 3"),
        ({"promotion": {"stages": [50, 100], "guardrails": {"latency": 1}}, "arms": ARMS}, "Extra inputs"),
        ({"salt": "a\0b"}, "pattern"),
    ],
)
def test_bad_experiments_are_refused(change: dict[str, object], expected: str) -> None:
    with pytest.raises(ValidationError, match=expected):
        Experiment.model_validate(EVEN.model_dump(exclude_unset=True) | change)
