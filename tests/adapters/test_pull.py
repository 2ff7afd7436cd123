"""`tonearm adapters pull` and `push`: the hub (a stand-in for its HTTP API), S3 (moto, over HTTP), a directory."""

import importlib
import json
import os
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import httpx
import pytest
import torch
from typer.testing import CliRunner

from adapters.base_model import BaseModelFiles
from adapters.errors import InvalidReference, PullError
from adapters.manifest import MANIFEST, PEFT_CONFIG, PEFT_WEIGHTS, digest_files, read_manifest, write_manifest
from adapters.pull import default_name
from adapters.reference import AdapterId
from adapters.store import Registry
from engine.command import app
from tests.factory import AdapterShape, save_adapter
from tests.hub import COMMIT, Faults, commit_of, serve_model

ROOT = Path(__file__).parents[2]
TOKEN = "hf_secret"
BUCKET = "bank"

PULL = """
import json, sys
from typer.testing import CliRunner
from engine.command import app
asked = json.loads(sys.stdin.read())
for module in asked["without"]:
    sys.modules[module] = None
for arguments in asked["pulls"]:
    verb = [] if arguments[0] == "push" else ["pull"]
    result = CliRunner().invoke(app, [*verb, *arguments], env={"COLUMNS": "400"})
    print(json.dumps({"ok": result.exit_code == 0, "type": type(result.exception).__name__,
                      "error": str(result.exception), "output": result.output}))
"""


@dataclass(frozen=True)
class Pulled:
    """What one pull said."""

    ok: bool
    type: str
    error: str
    output: str


def pull(source: str, registry: Registry, *options: str) -> Pulled:
    arguments = ["pull", source, "--registry", str(registry.root), *options]
    result = CliRunner().invoke(app, arguments, env={"COLUMNS": "400"})
    return Pulled(result.exit_code == 0, type(result.exception).__name__, str(result.exception), result.output)


def pull_elsewhere(
    pulls: list[list[str]], environment: dict[str, str], *, without: tuple[str, ...] = ()
) -> list[Pulled]:
    """Pulls in a process of their own: the hub's library reads its address and its token when it is imported."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    done = subprocess.run(
        [sys.executable, "-c", PULL],
        input=json.dumps({"pulls": pulls, "without": without}),
        env=inherited | {"HF_HUB_OFFLINE": "0", "PYTHONPATH": str(ROOT)} | environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [Pulled(**json.loads(line)) for line in done.stdout.splitlines()]


def tree(root: Path) -> set[str]:
    return {path.relative_to(root).as_posix() for path in root.rglob("*")}


@pytest.fixture(scope="module")
def sources(base: BaseModelFiles, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory of adapter directories, good ones and bad ones."""
    root = tmp_path_factory.mktemp("sources")
    good = save_adapter(root / "good", base, AdapterShape(seed=1))
    (good / "README.md").write_text("# A card\n")
    (good / "report").mkdir()
    (good / "report" / "metrics.json").write_text("{}\n")
    seal(good)
    (good / ".gitattributes").write_text("*.safetensors filter=lfs\n")

    plain = save_adapter(root / "plain", base, AdapterShape(seed=2), manifest=False)
    torch.save({"x": torch.ones(1)}, plain / "optimizer.pt")

    pickled = save_adapter(root / "pickled", base, AdapterShape(seed=3), manifest=False)
    (pickled / PEFT_WEIGHTS).unlink()
    torch.save({"x": torch.ones(1)}, pickled / "adapter_model.bin")

    other = save_adapter(root / "other-base", base, AdapterShape(seed=4), manifest=False)
    config = json.loads((other / PEFT_CONFIG).read_text())
    (other / PEFT_CONFIG).write_text(json.dumps(config | {"base_model_name_or_path": "org/elsewhere"}))
    for name in ("cut", "large", "longer", "damaged", "forbidden", "hostile", "crowded"):
        shutil.copytree(plain, root / name)
    return root


def seal(directory: Path) -> None:
    """Make the manifest name every file, as training does."""
    manifest = read_manifest(directory)
    write_manifest(directory, manifest.model_copy(update={"files": digest_files(directory)}))


# The hub


@dataclass(frozen=True)
class HubRun:
    """All pulls from one stand-in, in one process, since the engine takes seconds to import."""

    registry: Registry
    pulled: dict[str, Pulled]
    fetched: list[str]


@pytest.fixture(scope="module")
def hub(sources: Path, base: BaseModelFiles, tmp_path_factory: pytest.TempPathFactory) -> HubRun:
    root = tmp_path_factory.mktemp("hub")
    older = save_adapter(root / "older" / "good", base, AdapterShape(labels=("x", "y", "z")))
    seal(older)
    faults = Faults(
        listed_bytes={
            f"large/{PEFT_WEIGHTS}": 3 * 2**20,
            "longer/README.md": 4,
            "hostile/../../escaped.json": 5,
            "hostile/report/../../../escaped.json": 5,
            "/etc/escaped.json": 5,
            **{f"crowded/report/{number}.json": 2 for number in range(65)},
        },
        cut_bytes={f"cut/{PEFT_WEIGHTS}": 1000},
        damaged=frozenset({f"damaged/{PEFT_WEIGHTS}"}),
        forbidden=frozenset({f"forbidden/{PEFT_WEIGHTS}"}),
    )
    (sources / "longer" / "README.md").write_text("more than four bytes\n")
    registry = Registry(root / "registry")
    pulls = {
        "good": ["hf://org/pack/good"],
        "again": ["hf://org/pack@main/good/"],
        "older": ["hf://org/pack@v0/good"],
        "commit": [f"hf://org/pack@{COMMIT}/plain", "--name", "exact"],
        "plain": ["hf://org/pack/plain"],
        "pickled": ["hf://org/pack/pickled"],
        "other-base": ["hf://org/pack/other-base"],
        "cut": ["hf://org/pack/cut"],
        "large": ["hf://org/pack/large", "--max-mb", "2"],
        "longer": ["hf://org/pack/longer"],
        "damaged": ["hf://org/pack/damaged"],
        "forbidden": ["hf://org/pack/forbidden"],
        "hostile": ["hf://org/pack/hostile"],
        "crowded": ["hf://org/pack/crowded"],
        "no folder": ["hf://org/pack/nowhere"],
        "no adapter": ["hf://org/pack"],
        "no revision": ["hf://org/pack@v9/good"],
        "no repository": ["hf://org/nothing"],
        "no model": ["hf://datasets/org/pack", "--name", "x"],
        "no hub source": ["hf://pack", "--name", "x"],
    }
    fetched: list[str] = []
    options = ["--registry", str(registry.root)]
    with serve_model(
        "org/pack", sources, token=TOKEN, revisions={"v0": older.parent}, faults=faults, fetched=fetched
    ) as endpoint:
        environment = {"HF_ENDPOINT": endpoint, "HF_TOKEN": TOKEN, "HF_HOME": str(root / "home")}
        found = pull_elsewhere([[*arguments, *options] for arguments in pulls.values()], environment)
    return HubRun(registry, dict(zip(pulls, found, strict=True)), fetched)


def test_the_hub(hub: HubRun, sources: Path) -> None:
    assert hub.pulled["good"].ok, hub.pulled["good"]
    assert f"published good@1 from hf://org/pack@{COMMIT}/good" in hub.pulled["good"].output
    directory = hub.registry.directory(AdapterId("good", 1))
    assert tree(directory) == {
        PEFT_CONFIG, PEFT_WEIGHTS, MANIFEST, "README.md", "report", "report/metrics.json",
    }  # fmt: skip
    assert (directory / PEFT_WEIGHTS).read_bytes() == (sources / "good" / PEFT_WEIGHTS).read_bytes()
    assert read_manifest(directory).name == "good"
    assert ".gitattributes" in hub.pulled["good"].output


def clean(sources: Path, tmp_path: Path) -> Path:
    """The good adapter without what no adapter directory holds."""
    directory = Path(shutil.copytree(sources / "good", tmp_path / "clean"))
    (directory / ".gitattributes").unlink()
    (directory / "report" / "index.html").write_text("<!doctype html><title>report</title>\n")
    return directory


def test_what_is_pushed_to_the_hub_is_pulled_back(sources: Path, tmp_path: Path) -> None:
    here, there = Registry(tmp_path / "here"), Registry(tmp_path / "there")
    first, repository = here.publish(clean(sources, tmp_path), "good"), tmp_path / "repository"
    (repository / "en" / "report").mkdir(parents=True)
    (repository / "en" / "report" / "earlier.png").write_bytes(b"of another version")
    (repository / "other.txt").write_text("not ours\n")
    with serve_model("org/pack", repository, token=TOKEN) as endpoint:
        environment = {"HF_ENDPOINT": endpoint, "HF_TOKEN": TOKEN, "HF_HOME": str(tmp_path / "home")}
        options = ["--registry", str(here.root)]
        pushed, refused, nowhere, local = pull_elsewhere(
            [
                ["push", "good", "hf://org/pack/en", *options],
                ["push", "good", "hf://org/other", *options],
                ["push", "absent", "hf://org/pack", *options],
                ["push", "good", "hf://org/pack@v1", *options],
            ],
            environment,
        )
        (pulled,) = pull_elsewhere([["hf://org/pack/en", "--name", "back", "--registry", str(there.root)]], environment)
        (keyless,) = pull_elsewhere([["push", "good", "hf://org/pack", *options]], environment | {"HF_TOKEN": "wrong"})
    assert pushed.ok and f"pushed good@1 to hf://org/pack@{COMMIT}/en" in pushed.output, pushed
    assert pulled.ok, pulled
    ours, theirs = here.directory(first), there.directory(AdapterId("back", 1))
    assert tree(ours) == tree(theirs)
    assert (ours / PEFT_WEIGHTS).read_bytes() == (theirs / PEFT_WEIGHTS).read_bytes()
    assert not (repository / "en" / "report" / "earlier.png").exists() and (repository / "other.txt").exists()
    assert refused.type == keyless.type == "PushError" and "may not be written" in refused.error, refused
    assert "HF_TOKEN" in keyless.error
    assert nowhere.type == "UnknownAdapter"
    assert "names no model repository; write hf://org/name[/folder]" in local.error


def test_what_is_pushed_to_a_directory_is_pulled_back(sources: Path, registry: Registry, tmp_path: Path) -> None:
    registry.publish(clean(sources, tmp_path), "good")
    arguments = ["push", "good@1", f"file://{tmp_path}/out/good", "--registry", str(registry.root)]
    result = CliRunner().invoke(app, arguments, env={"COLUMNS": "400"})
    assert result.exit_code == 0 and f"pushed good@1 to file://{tmp_path}/out/good" in result.output
    pulled = pull(f"file://{tmp_path}/out/good", registry)
    assert pulled.ok and "published good@2" in pulled.output
    registry.publish(sources / "good", "strange")
    strange = CliRunner().invoke(app, ["push", "strange", f"file://{tmp_path}/x", "--registry", str(registry.root)])
    assert "strange@1 holds .gitattributes, which no adapter directory holds" in str(strange.exception)
    bad = CliRunner().invoke(app, ["push", "good", "out/good", "--registry", str(registry.root)])
    assert "is no URL" in str(bad.exception)


def test_a_second_pull_is_the_next_version(hub: HubRun) -> None:
    assert "published good@2" in hub.pulled["again"].output
    assert hub.registry.versions("good") == (1, 2, 3)


def test_a_revision_and_a_commit(hub: HubRun) -> None:
    assert f"published good@3 from hf://org/pack@{commit_of('v0')}/good" in hub.pulled["older"].output
    assert read_manifest(hub.registry.directory(AdapterId("good", 3))).labels == ("x", "y", "z")
    assert f"published exact@1 from hf://org/pack@{COMMIT}/plain" in hub.pulled["commit"].output


def test_plain_peft(hub: HubRun) -> None:
    """Without a manifest; the pickle that lies beside it is not even asked for."""
    assert "published plain@1" in hub.pulled["plain"].output
    assert tree(hub.registry.directory(AdapterId("plain", 1))) == {PEFT_CONFIG, PEFT_WEIGHTS}
    assert not [path for path in hub.fetched if path.endswith((".pt", ".bin"))]


@pytest.mark.parametrize(
    ("case", "said"),
    [
        (
            "pickled",
            r"holds adapter_model\.bin and no adapter_model\.safetensors; a pickle can run code.*PEFT's",
        ),
        (
            "other-base",
            r"check base model: expected .*MiniLM.*found org/elsewhere; nothing was .*--base-model",
        ),
        ("cut", rf"{PEFT_WEIGHTS} (was cut off|cannot be had).*try again"),
        ("large", rf"{PEFT_WEIGHTS} has 3,145,728 bytes, at most 2,097,152 are taken; raise --max-mb"),
        ("longer", r"README\.md runs on: 4 bytes are listed"),
        ("damaged", rf"{PEFT_WEIGHTS} arrived damaged: SHA-256 [0-9a-f]{{64}} is listed"),
        ("forbidden", rf"{PEFT_WEIGHTS} may not be read: .*403.*HF_TOKEN"),
        ("no folder", r"is not there: .*check the name, the revision and the folder"),
        ("no adapter", r"holds no adapter_config\.json \(found: crowded, cut, damaged.*name the folder"),
        ("no revision", r"is not there: .*v9.*check the name, the revision"),
        ("no repository", r"is not there: .*repository not found.*check the name.*HF_TOKEN"),
        ("hostile", r"lists the path .*hostile/\.\.', which leads out of it"),
        ("crowded", r"has 65 files in its report, at most 64 are taken"),
        ("no model", r"names no model repository; write hf://org/name"),
        ("no hub source", r"names no model repository; write hf://org/name"),
    ],
)
def test_what_the_hub_has_and_nobody_gets(case: str, said: str, hub: HubRun) -> None:
    pulled = hub.pulled[case]
    assert (pulled.ok, pulled.type) == (False, "PullError"), pulled
    assert pulled.error.startswith("hf://")
    assert re.search(said, pulled.error), pulled.error
    assert hub.registry.versions(case) == ()


def test_refused_before_a_byte_of_it_is_fetched(hub: HubRun) -> None:
    assert not [path for path in hub.fetched if path.startswith(("large/", "pickled/", "hostile/"))]


def test_listed_paths_never_lead_out(hub: HubRun) -> None:
    assert not [path for path in hub.fetched if "escaped" in path]
    assert not list(hub.registry.root.parent.rglob("escaped*"))


def test_failures_leave_no_trace(hub: HubRun) -> None:
    assert {path.name for path in hub.registry.root.iterdir()} == {"good", "exact", "plain"}


def test_no_token_no_network_no_extra(sources: Path, tmp_path: Path) -> None:
    arguments = ["hf://org/pack/good", "--registry", str(tmp_path / "registry")]
    with serve_model("org/pack", sources, token=TOKEN) as endpoint:
        environment = {"HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path)}
        s3 = ["s3://bank/good", *arguments[1:]]
        refused, extra = pull_elsewhere([arguments, s3], environment, without=("s3fs",))
    assert re.search(r"hf://org/pack/good: may not be read.*HF_TOKEN", refused.error), refused
    assert re.search(r"s3://bank/good: .*Install s3fs.*pip install 'tonearm\[s3\]'", extra.error), extra
    # The stand-in is gone now, so nothing listens there.
    [silent] = pull_elsewhere([arguments], environment | {"HF_TOKEN": TOKEN})
    assert re.search(r"hf://org/pack/good: cannot be had: .*check the network and HF_ENDPOINT", silent.error), silent
    assert not (tmp_path / "registry").exists()


# S3


@pytest.fixture(scope="module")
def s3_server() -> Iterator[str]:
    # Not among the test's own packages: pip takes minutes to fit their AWS libraries to each other.
    reason = "S3 is tested where s3fs and moto are installed: pip install 'tonearm[s3]' 'moto[server]>=5.2.5'"
    pytest.importorskip("s3fs", reason=reason)
    pytest.importorskip("boto3", reason=reason)
    moto = pytest.importorskip("moto.server", reason=reason)
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(s3_server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """An empty bucket, and the environment in which its files are to be had."""
    for key in [key for key in os.environ if key.startswith("AWS_")]:
        monkeypatch.delenv(key)
    (tmp_path / "aws").write_text("")
    for key, value in {
        "AWS_ENDPOINT_URL": s3_server,
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": str(tmp_path / "aws"),
        "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "aws"),
    }.items():
        monkeypatch.setenv(key, value)
    tell_moto(s3_server, "reset")
    bucket = importlib.import_module("boto3").session.Session().resource("s3").Bucket(BUCKET)
    bucket.create()
    return bucket


def tell_moto(server: str, what: str, body: str = "") -> None:
    httpx.post(f"{server}/moto-api/{what}", content=body).raise_for_status()


def upload(bucket: Any, directory: Path, prefix: str, acl: str = "private") -> None:
    for path in directory.rglob("*"):
        if path.is_file():
            key = f"{prefix}/{path.relative_to(directory).as_posix()}"
            bucket.upload_file(str(path), key, ExtraArgs={"ACL": acl})


def test_s3(bucket: Any, sources: Path, registry: Registry) -> None:
    upload(bucket, sources / "good", "teams/mine/good")
    for version in (1, 2):
        pulled = pull(f"s3://{BUCKET}/teams/mine/good", registry)
        assert pulled.ok, pulled
        assert f"published good@{version} from s3://{BUCKET}/teams/mine/good" in pulled.output
    published = registry.directory(AdapterId("good", 2))
    assert read_manifest(published).version == 2
    assert digest_files(published) == read_manifest(sources / "good").files
    assert {path.name for path in registry.root.iterdir()} == {"good"}


def test_s3_takes_a_push(bucket: Any, sources: Path, registry: Registry, tmp_path: Path) -> None:
    registry.publish(clean(sources, tmp_path), "good")
    arguments = ["push", "good", f"s3://{BUCKET}/mine/good", "--registry", str(registry.root)]
    result = CliRunner().invoke(app, arguments, env={"COLUMNS": "400"})
    assert result.exit_code == 0, result.exception
    assert "published good@2" in pull(f"s3://{BUCKET}/mine/good", registry).output


def test_s3_by_a_profile_alone(
    bucket: Any, s3_server: str, sources: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload(bucket, sources / "plain", "plain")
    for key in ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(key)
    profile = f"[profile mine]\nendpoint_url = {s3_server}\naws_access_key_id = a\naws_secret_access_key = b\n"
    Path(os.environ["AWS_CONFIG_FILE"]).write_text(profile)
    pulled = pull(f"s3://{BUCKET}/plain", registry)
    assert re.search(r"may not be read: .*AWS_PROFILE", pulled.error), pulled
    monkeypatch.setenv("AWS_PROFILE", "mine")
    pulled = pull(f"s3://{BUCKET}/plain", registry)
    assert "published plain@1" in pulled.output, pulled


def test_s3_anonymously(bucket: Any, sources: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the message on missing credentials says, in a process of its own, since fsspec reads it when imported."""
    upload(bucket, sources / "plain", "plain", acl="public-read")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    arguments = [f"s3://{BUCKET}/plain", "--registry", str(registry.root)]
    [pulled] = pull_elsewhere([arguments], {"FSSPEC_S3_ANON": "true"})
    assert "published plain@1" in pulled.output, pulled


def test_s3_refusals(bucket: Any, sources: Path, registry: Registry, s3_server: str) -> None:
    upload(bucket, sources / "pickled", "pickled")
    upload(bucket, sources / "plain", "large")
    bucket.put_object(Key=f"large/{PEFT_WEIGHTS}", Body=bytes(2 * 2**20))
    upload(bucket, sources / "plain", "wordy")
    bucket.put_object(Key=f"wordy/{PEFT_CONFIG}", Body=b"{}" + b" " * 2**20)
    upload(bucket, sources / "plain", "hostile")
    bucket.put_object(Key="hostile/report/../../escaped.json", Body=b"{}")
    for source, options, said in (
        (f"{BUCKET}/pickled", (), r"a pickle can run code"),
        (f"{BUCKET}/large", ("--max-mb", "1"), rf"{PEFT_WEIGHTS} has 2,097,152 bytes, at most 1,048,576"),
        (f"{BUCKET}/wordy", (), rf"{PEFT_CONFIG} has 1,048,578 bytes, at most 1,048,576"),
        (f"{BUCKET}/hostile", (), r"lists the path .*\.\..*leads out of it"),
        (f"{BUCKET}/nowhere", (), r"is not there: .*check the name"),
        ("no-such-bucket/x", (), r"is not there: .*check the name"),
    ):
        pulled = pull(f"s3://{source}", registry, *options)
        assert pulled.type == "PullError", pulled
        assert pulled.error.startswith(f"s3://{source}: ")
        assert re.search(said, pulled.error), pulled.error
    tell_moto(s3_server, "reset-auth", "0")  # from now on, keys that it did not issue are refused
    try:
        pulled = pull(f"s3://{BUCKET}/pickled", registry)
        assert re.search(r"may not be read: .*AWS_PROFILE", pulled.error), pulled
    finally:
        tell_moto(s3_server, "reset-auth", "inf")
    assert tree(registry.root) == set()


def test_s3_no_network(bucket: Any, registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    pulled = pull(f"s3://{BUCKET}/plain", registry)
    assert re.search(r"cannot be had: .*check the network and AWS_ENDPOINT_URL", pulled.error), pulled


# Directories and other URLs


def umask() -> int:
    before = os.umask(0)
    os.umask(before)
    return before


def test_a_directory(sources: Path, registry: Registry) -> None:
    pulled = pull(f"file://{sources}/good", registry, "--name", "mine")
    assert "published mine@1" in pulled.output, pulled
    # A service under another user must be able to read what was pulled, whatever the mode of what was copied.
    for file in (".", PEFT_CONFIG, PEFT_WEIGHTS):
        readable = stat.S_IRUSR | (stat.S_IRGRP | stat.S_IROTH) & ~umask()
        assert (registry.directory(AdapterId("mine", 1)) / file).stat().st_mode & readable == readable


def test_a_web_server(sources: Path, registry: Registry) -> None:
    class Quiet(SimpleHTTPRequestHandler):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments, directory=str(sources))

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (the name is the base class's)
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_address[1]}"
        good = pull(f"{address}/good/", registry)
        nothing = pull(f"{address}/nowhere", registry)
        server.shutdown()
    assert "published good@1" in good.output, good
    assert "is not there" in nothing.error, nothing


def test_a_wrong_base_is_not_published(sources: Path, registry: Registry) -> None:
    kept = registry.publish(sources / "plain", "mine")
    before = tree(registry.root)
    pulled = pull(f"file://{sources}/other-base", registry, "--name", "mine")
    assert re.search(r"other-base: is refused by the check base model.*--base-model", pulled.error), pulled
    assert tree(registry.root) == before
    assert registry.resolve("mine") == kept


def test_a_manifest_that_does_not_hold(sources: Path, registry: Registry, tmp_path: Path) -> None:
    shutil.copytree(sources / "good", tmp_path / "edited")
    (tmp_path / "edited" / "README.md").write_text("another card\n")
    pulled = pull(f"file://{tmp_path}/edited", registry)
    assert re.search(r"is refused by the check digest of README\.md: .*nothing was published", pulled.error), pulled
    assert tree(registry.root) == set()


def test_links_are_not_followed(sources: Path, registry: Registry, tmp_path: Path) -> None:
    shutil.copytree(sources / "plain", tmp_path / "linked")
    (tmp_path / "linked" / "README.md").symlink_to("/etc/hostname")
    pulled = pull(f"file://{tmp_path}/linked", registry)
    assert "holds README.md as a link" in pulled.error, pulled
    assert tree(registry.root) == set()


def test_a_registry_that_cannot_be_written(sources: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    pulled = pull(f"file://{sources}/plain", Registry(tmp_path / "file" / "registry"))
    assert re.search(r"cannot be written: .*--registry", pulled.error), pulled


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("hf://org/movies", "movies"),
        ("hf://org/movies@v2", "movies"),
        ("hf://org/pack@refs/pr/1/tone", "tone"),
        ("s3://bucket/teams/tone/", "tone"),
        ("file:///tmp/a.b-c", "a.b-c"),
    ],
)
def test_the_name_that_a_source_suggests(source: str, name: str) -> None:
    assert default_name(source) == name


@pytest.mark.parametrize("source", ["hf://org/Movies-LoRA", "s3://bucket/registry/movies/3", "s3://"])
def test_no_name_to_be_had(source: str) -> None:
    with pytest.raises(PullError, match=r"makes no adapter name.*say --name NAME"):
        default_name(source)


def test_what_is_no_source(registry: Registry) -> None:
    assert pull("org/name", registry, "--name", "x").error.startswith("org/name: is no URL; write hf://org/name")
    assert "is no source" in pull("nowhere://a/b", registry).error
    assert pull("file:///tmp", registry, "--name", "Not A Name").type == InvalidReference.__name__


def test_the_front_door(sources: Path, registry: Registry) -> None:
    """In a process of its own, as people run it: exit status 1 and one line."""
    command = [sys.executable, "tonearm.py", "adapters", "pull", f"file://{sources}/pickled"]
    done = subprocess.run(
        [*command, "--registry", str(registry.root)], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1), done
    assert done.stderr.startswith(f"tonearm: file://{sources}/pickled: holds adapter_model.bin")
