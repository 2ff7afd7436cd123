"""Settings: from flags and the environment, and a bad one is named."""

from pathlib import Path

import pytest

from adapters.errors import SettingsError
from service.cores import engine_threads, usable_cores
from service.settings import read_settings


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    for key in list(os.environ):
        if key.startswith("TONEARM_"):
            monkeypatch.delenv(key)


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("PORT", "80", "greater than or equal to 1024"),
        ("PORT", "tcp://10.0.0.1:8000", "valid integer"),
        ("HOST", "localhost", "127.0.0.1"),
        ("DEFAULT_ADAPTER", "No Name", "no adapter reference"),
        ("MAX_TEXTS_PER_REQUEST", "5000", "at most MAX_QUEUED_TEXTS"),
        ("DEVICE", "tpu", "auto"),
        ("REQUEST_TIMEOUT_S", "0", "greater than 0"),
    ],
)
def test_a_bad_setting_is_named(monkeypatch: pytest.MonkeyPatch, key: str, value: str, expected: str) -> None:
    monkeypatch.setenv(f"TONEARM_{key}", value)
    with pytest.raises(SettingsError, match=expected) as caught:
        read_settings()
    assert caught.value.key == f"TONEARM_{key}"
    assert str(caught.value.value) == value


def test_flags_win_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TONEARM_PORT", "9001")
    monkeypatch.setenv("TONEARM_EXPERIMENTS_FILE", "")
    assert read_settings().port == 9001
    assert read_settings({"port": "9002", "host": None}).port == 9002
    assert read_settings().experiments_file is None


def test_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TONEARM_API_KEYS", "first-key, second-key")
    assert [key.get_secret_value() for key in read_settings().api_keys] == ["first-key", "second-key"]
    assert "first-key" not in repr(read_settings())
    monkeypatch.setenv("TONEARM_API_KEYS", "short")
    with pytest.raises(SettingsError) as caught:
        read_settings()
    assert "short" not in str(caught.value)


@pytest.mark.parametrize(
    ("quota", "cores"), [("max 100000", None), ("50000 100000", 1), ("100000 100000", 1), ("x", None)]
)
def test_cores_are_those_of_the_container(tmp_path: Path, quota: str, cores: int | None) -> None:
    file = tmp_path / "cpu.max"
    file.write_text(quota)
    assert usable_cores(file) == (cores or usable_cores(tmp_path / "none"))


def test_other_addresses_than_loopback_need_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SettingsError, match="ALLOW_ANONYMOUS"):
        read_settings({"host": "0.0.0.0"})
    assert read_settings({"host": "0.0.0.0", "allow_anonymous": True}).allow_anonymous
    monkeypatch.setenv("TONEARM_API_KEYS", "a-long-key")
    assert read_settings({"host": "0.0.0.0"}).host == "0.0.0.0"


def test_a_core_is_left_to_the_api_process_where_there_are_several() -> None:
    assert [engine_threads(1, cores) for cores in (1, 2, 3, 8)] == [1, 2, 2, 7]
    assert [engine_threads(4, cores) for cores in (1, 2, 4, 9)] == [1, 1, 1, 2]
