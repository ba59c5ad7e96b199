"""Pushing and pulling, by the real huggingface_hub, against a small server that speaks the Hub's protocol."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import gymnasium as gym
import numpy as np
import pytest

from latent_obs import (
    LatentObservationWrapper,
    PullConfig,
    PushConfig,
    load_encoder,
    pull_encoder,
    push_encoder,
)
from latent_obs.cli import main
from latent_obs.encoders.folder import VAEConfig, read_config
from latent_obs.encoders.resolve import PRETRAINED, resolve
from tests.conftest import save_encoder

pytest.importorskip("huggingface_hub")

TOKEN = "hf_may_write"
Files = dict[str, bytes]


class Repo:
    """A repository: its commits, and the branches that name some of them."""

    def __init__(self, private: bool) -> None:
        self.private = private
        self.commits: dict[str, Files] = {}
        self.branches: dict[str, str] = {}
        self.tags: dict[str, str] = {}
        self.messages: list[str] = []
        self.commit({".gitattributes": b""}, "initial commit")

    def commit(self, files: Files, message: str = "by hand") -> str:
        commit = hashlib.sha1(f"{message}{len(self.commits)}{sorted(files)}".encode()).hexdigest()
        self.commits[commit] = files
        self.branches["main"] = commit
        self.messages.append(message)
        return commit

    @property
    def files(self) -> Files:
        return self.commits[self.branches["main"]]


class Hub(ThreadingHTTPServer):
    """The endpoints that huggingface_hub calls, for repositories of models and datasets in memory.

    A dataset is named ``datasets/USER/NAME``.
    """

    daemon_threads = True

    def __init__(self, address: tuple[str, int] = ("127.0.0.1", 0)) -> None:
        super().__init__(address, Handler)
        self.repos: dict[str, Repo] = {}
        self.requests: list[str] = []
        self.broken = False
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def stop(self) -> None:
        self.shutdown()
        self.server_close()


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *_: Any) -> None:
        pass

    def answer(
        self, content: Any, status: int = 200, headers: dict[str, str] | None = None, etag: str | None = None
    ) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"ETag": f'"{etag}"', **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def refuse(self, status: int, code: str = "") -> None:
        self.answer({"error": code}, status, {"X-Error-Code": code} if code else {})

    def do_HEAD(self) -> None:
        self.handle_request()

    def do_GET(self) -> None:
        self.handle_request()

    def do_POST(self) -> None:
        self.handle_request()

    def do_DELETE(self) -> None:
        self.handle_request()

    def handle_request(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = self.path.partition("?")[0]
        self.server.requests.append(f"{self.command} {path}")
        may_write = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        if self.server.broken:
            return self.refuse(500)
        if self.command == "POST" and path == "/api/validate-yaml":
            return self.answer({"errors": [], "warnings": []})
        if self.command in ("POST", "DELETE") and not may_write:
            return self.refuse(403 if "Authorization" in self.headers else 401)
        if path == "/api/repos/create":
            return self.create(json.loads(body))
        words = path.strip("/").split("/")
        api = words[0] == "api"
        words = words[1:] if api else words
        of_dataset = words[0] == "datasets"
        words = words[1:] if of_dataset or api else words
        name = "/".join(words[:2])
        repo = self.server.repos.get(f"datasets/{name}" if of_dataset else name)
        if repo is None or (repo.private and not may_write):
            return self.refuse(404 if may_write else 401, "RepoNotFound")
        if api:
            return self.api(repo, name, words[2:], body)
        return self.resolve(repo, words[3], "/".join(words[4:]))

    def create(self, wanted: dict[str, Any]) -> None:
        name = f"{wanted['organization']}/{wanted['name']}"
        if wanted.get("type") == "dataset":
            name = f"datasets/{name}"
        if name in self.server.repos:
            return self.answer({"error": "exists", "url": f"{self.server.url}/{name}"}, 409)
        private = wanted.get("private") or wanted.get("visibility") == "private"
        self.server.repos[name] = Repo(private)
        self.answer({"url": f"{self.server.url}/{name}"})

    def commit_of(self, repo: Repo, revision: str) -> str | None:
        revision = unquote(revision)
        return repo.branches.get(revision) or (revision if revision in repo.commits else None)

    def api(self, repo: Repo, name: str, words: list[str], body: bytes) -> None:
        what, revision = (*words, "main")[:2] if words else ("revision", "main")
        if what == "refs":
            tags = [{"name": n, "ref": f"refs/tags/{n}", "targetCommit": c} for n, c in repo.tags.items()]
            return self.answer({"branches": [], "converts": [], "tags": tags})
        if what == "tag" and self.command == "DELETE":
            del repo.tags[revision]
            return self.answer({})
        commit = self.commit_of(repo, revision)
        if commit is None:
            return self.refuse(404, "RevisionNotFound")
        files = repo.commits[commit]
        if what == "tag":
            if (tag := json.loads(body)["tag"]) in repo.tags:
                return self.refuse(409)
            repo.tags[tag] = commit
            return self.answer({})
        if what == "revision":
            siblings = [{"rfilename": path} for path in files]
            return self.answer({"id": name, "sha": commit, "private": repo.private, "siblings": siblings})
        if what == "tree":
            return self.answer(self.tree(files, "/".join(words[2:])))
        if what == "preupload":
            asked = [file["path"] for file in json.loads(body)["files"]]
            modes = [{"path": path, "uploadMode": "regular", "shouldIgnore": False} for path in asked]
            return self.answer({"files": modes})
        assert what == "commit", self.path
        files = dict(files)
        message = ""
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "header":
                message = value["summary"]
            elif line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            else:
                assert line["key"] == "deletedFile", line
                del files[value["path"]]
        oid = repo.commit(files, message)
        self.answer(
            {"commitUrl": f"{self.server.url}/{name}/commit/{oid}", "commitOid": oid, "hookOutput": ""}
        )

    def tree(self, files: Files, folder: str) -> list[dict[str, Any]]:
        """List a folder; without ``recursive``, the folders in it instead of what they hold."""
        found: dict[str, dict[str, Any]] = {}
        for path, data in files.items():
            if folder and not path.startswith(f"{folder}/"):
                continue
            inside = path.removeprefix(f"{folder}/" if folder else "")
            name, below, _ = inside.partition("/")
            if below and "recursive=true" not in self.path.lower():
                name = f"{folder}/{name}".strip("/")
                found[name] = {"type": "directory", "path": name, "oid": "0" * 40}
            else:
                oid = hashlib.sha1(data).hexdigest()
                found[path] = {"type": "file", "path": path, "size": len(data), "oid": oid}
        return list(found.values())

    def resolve(self, repo: Repo, revision: str, path: str) -> None:
        commit = self.commit_of(repo, revision)
        if commit is None:
            return self.refuse(404, "RevisionNotFound")
        if path not in repo.commits[commit]:
            return self.refuse(404, "EntryNotFound")
        data = repo.commits[commit][path]
        headers, etag = {"X-Repo-Commit": commit}, hashlib.sha1(data).hexdigest()
        if asked := self.headers.get("Range"):
            first, last = asked.removeprefix("bytes=").split("-")
            return self.answer(data[int(first) : int(last or len(data)) + 1], 206, headers, etag)
        self.answer(data, 200, headers, etag)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    server = Hub()
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    for name in ("HF_HUB_OFFLINE", "HF_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    yield server
    server.stop()


@pytest.fixture
def pushed(hub: Hub, encoder: Path) -> str:
    """An encoder at user/tiny; its commit."""
    return push_encoder(PushConfig(encoder, "user/tiny"))[1]


def latents(ref: Any) -> Any:
    frames = np.random.default_rng(0).integers(0, 256, (4, 64, 64, 3), dtype=np.uint8)
    return load_encoder(ref, precision="float32")(frames)


def test_what_was_pushed_comes_back(hub: Hub, encoder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(encoder, tmp_path / "folder"))
    (folder / "checkpoint.safetensors").write_bytes(b"not of the encoder")
    (folder / "card.png").write_bytes(b"a picture")
    url, commit = push_encoder(PushConfig(folder, "user/tiny", message="First"))
    repo = hub.repos["user/tiny"]
    assert url == f"{hub.url}/user/tiny"
    assert (commit, repo.messages) == (repo.branches["main"], ["initial commit", "First"])
    assert {"model.safetensors", "config.json", "README.md", "card.png"} == set(repo.files) - {
        ".gitattributes"
    }
    np.testing.assert_array_equal(latents("hf://user/tiny"), latents(encoder))


def test_a_wrapped_environment_says_where_its_encoder_is(pushed: str) -> None:
    ref = f"hf://user/tiny@{pushed}"
    gym.register("HubFrames-v0", "tests.conftest:FrameEnv")
    try:
        env = LatentObservationWrapper(gym.make("HubFrames-v0"), ref)
        assert env.spec is not None
        spec = gym.envs.registration.EnvSpec.from_json(env.spec.to_json())
        assert (spec.additional_wrappers[-1].kwargs or {})["encoder"] == ref
        again = gym.make(spec)
    finally:
        del gym.registry["HubFrames-v0"]
    np.testing.assert_array_equal(env.reset(seed=1)[0], again.reset(seed=1)[0])


def test_a_file_is_named_after_the_repository(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not after the folder in the cache, whose name is a commit."""
    monkeypatch.chdir(tmp_path)
    commit = push_encoder(PushConfig("pong-v0", "user/pong"))[1]
    assert main(["visualize", f"hf://user/pong@{commit}"]) == 0
    assert (tmp_path / "pong.html").exists()


def test_a_pinned_commit_stays_when_the_branch_moves(hub: Hub, pushed: str, encoder: Path) -> None:
    before = latents("hf://user/tiny@main")
    other = save_encoder(encoder.parent / "other", VAEConfig(8, (4, 8)))
    push_encoder(PushConfig(other, "user/tiny"))
    assert latents("hf://user/tiny").shape == (4, 8)
    np.testing.assert_array_equal(latents(f"hf://user/tiny@{pushed}"), before)


def test_a_pinned_commit_in_the_cache_needs_no_request(hub: Hub, pushed: str) -> None:
    before = latents(f"hf://user/tiny@{pushed}")
    assert hub.requests
    hub.requests.clear()
    np.testing.assert_array_equal(latents(f"hf://user/tiny@{pushed}"), before)
    assert hub.requests == []


@pytest.mark.parametrize("why", ["no network", "HF_HUB_OFFLINE", "the Hub is broken"])
def test_a_branch_is_what_it_was_when_the_hub_is_away(
    hub: Hub, pushed: str, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = latents("hf://user/tiny")
    hub.requests.clear()
    if why == "HF_HUB_OFFLINE":
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    elif why == "no network":
        hub.stop()
    hub.broken = True
    np.testing.assert_array_equal(latents("hf://user/tiny"), before)
    assert resolve(f"hf://user/tiny@{pushed}").path.name == pushed
    assert bool(hub.requests) == (why == "the Hub is broken")


def test_what_an_interrupted_pull_left_is_completed(hub: Hub, pushed: str) -> None:
    ref = f"hf://user/tiny@{pushed}"
    folder = resolve(ref).path
    (folder / "config.json").unlink()
    (folder / "README.md").unlink()
    assert resolve(ref).path == folder
    assert (folder / "config.json").exists()
    assert (folder / "README.md").exists()


def test_nothing_but_the_files_of_an_encoder_is_asked_for(hub: Hub, pushed: str) -> None:
    repo = hub.repos["user/tiny"]
    repo.commit(
        {**repo.files, "pytorch_model.bin": b"\x80pickle", "train.py": b"", "old/model.safetensors": b""}
    )
    hub.requests.clear()
    folder = resolve("hf://user/tiny").path
    assert {path.name for path in folder.rglob("*")} == {"config.json", "model.safetensors", "README.md"}
    asked = [request for request in hub.requests if "/resolve/" in request]
    assert {path.rpartition("/")[2] for path in asked} == {path.name for path in folder.iterdir()}
    assert not any("old" in path for path in asked)


def test_pushing_again_replaces_the_encoder_and_leaves_the_rest(hub: Hub, pushed: str, encoder: Path) -> None:
    repo = hub.repos["user/tiny"]
    card = "# By hand\n"
    repo.commit(
        {**repo.files, "calibration.png": b"of the old", "README.md": card.encode(), "notes": b"mine"}
    )
    commit = push_encoder(PushConfig(encoder, "hf://user/tiny"))[1]
    assert "calibration.png" not in repo.commits[commit], "int8 would be calibrated on another's frames"
    assert repo.files["README.md"] == card.encode()
    assert repo.files["notes"] == b"mine"


def test_a_folders_own_card_is_pushed_as_it_is(hub: Hub, encoder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(encoder, tmp_path / "folder"))
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# Mine\n")
    push_encoder(PushConfig(folder, "user/tiny"))
    assert hub.repos["user/tiny"].files["README.md"] == (folder / "README.md").read_bytes()


def test_a_missing_card_is_written(hub: Hub, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(PRETRAINED / "pong-v0", tmp_path / "mine"))
    (folder / "README.md").unlink()
    push_encoder(PushConfig(folder, "user/pong"))
    card = hub.repos["user/pong"].files["README.md"].decode()
    from huggingface_hub import ModelCard

    data: Any = ModelCard(card).data
    assert data.library_name == "latent_obs"
    assert data.tags == ["reinforcement-learning", "vae", "gymnasium", "atari"]
    assert data.license == "mit"
    assert "# pong\n" in card
    names: dict[str, Any] = {}
    exec(card.split("```")[1].removeprefix("python\n"), names)
    assert names["env"].encoder.spec == "hf://user/pong"
    assert names["env"].spec.id == "ALE/Pong-v5"
    assert f"| PSNR, dB | {read_config(folder).metrics['psnr']:.1f} |" in card


def test_private_means_private(hub: Hub, encoder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    push_encoder(PushConfig(encoder, "user/secret", private=True))
    assert hub.repos["user/secret"].private
    push_encoder(PushConfig(encoder, "user/open"))
    before = dict(hub.repos["user/open"].files)
    with pytest.raises(ValueError, match=r"user/open exists and is public\. Make it private"):
        push_encoder(PushConfig("pong-v0", "user/open", private=True))
    assert hub.repos["user/open"].files == before
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(FileNotFoundError, match=r"or it is private\. .* hf auth login, or set HF_TOKEN"):
        resolve("hf://user/secret")


def test_pull_writes_an_encoder_folder_of_its_own(hub: Hub, pushed: str, tmp_path: Path) -> None:
    out = tmp_path / "below" / "tiny"
    assert pull_encoder(PullConfig("user/tiny", out)) == (out, pushed)
    assert {path.name for path in out.iterdir()} == {"config.json", "model.safetensors", "README.md"}
    assert not any(path.is_symlink() for path in out.iterdir())
    assert pull_encoder(PullConfig(f"user/tiny@{pushed}", out)) == (out, pushed), "again is no harm"
    expected = latents(f"hf://user/tiny@{pushed}")
    shutil.rmtree(tmp_path / "home")
    np.testing.assert_array_equal(latents(out), expected)
    save_encoder(tmp_path / "other", VAEConfig(8, (4,)))
    with pytest.raises(FileExistsError, match="other holds another encoder"):
        pull_encoder(PullConfig("user/tiny", tmp_path / "other"))


@pytest.mark.parametrize(
    ("ref", "error", "message"),
    [
        ("hf://tiny", ValueError, r"'hf://tiny' names no encoder on the Hub\. Write USER/NAME"),
        ("hf://user/tiny@", ValueError, "names no encoder on the Hub"),
        ("hf://user/..", ValueError, "user/.."),
        ("hf://user/none", FileNotFoundError, "There is no repository user/none on http.*, or it is private"),
        ("hf://user/tiny@v2", FileNotFoundError, "user/tiny has no revision as in hf://user/tiny@v2"),
        (f"hf://user/tiny@{'0' * 40}", FileNotFoundError, "user/tiny has no revision as in"),
    ],
)
def test_a_ref_that_leads_nowhere_says_why(
    pushed: str, ref: str, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        load_encoder(ref)


@pytest.mark.parametrize(
    ("files", "error", "message"),
    [
        (
            {"config.json": None},
            FileNotFoundError,
            "hf://user/tiny on the Hub holds no encoder: .*no config.json",
        ),
        ({"model.safetensors": None}, FileNotFoundError, "it has no model.safetensors"),
        (
            {"config.json": b"{"},
            ValueError,
            "The encoder hf://user/tiny on the Hub is damaged: .*config.json",
        ),
        ({"config.json": b'{"format": "other"}'}, ValueError, "is damaged: .*does not describe an encoder"),
        ({"model.safetensors": b"\x80\x04pickle"}, ValueError, "is damaged: .*no safetensors file"),
        ({"calibration.png": b"no picture"}, ValueError, "is damaged: .*holds no calibration frames"),
    ],
)
def test_a_damaged_repository_is_named(
    hub: Hub, pushed: str, files: dict[str, bytes | None], error: type[Exception], message: str
) -> None:
    repo = hub.repos["user/tiny"]
    repo.commit({name: data for name, data in {**repo.files, **files}.items() if data is not None})
    with pytest.raises(error, match=message):
        load_encoder("hf://user/tiny")


@pytest.mark.parametrize("token", [None, "hf_may_read"])
def test_who_may_not_write_is_told_to_log_in(
    hub: Hub, encoder: Path, token: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(
        PermissionError, match=r"refused access to user/tiny .* hf auth login, or set HF_TOKEN"
    ):
        push_encoder(PushConfig(encoder, "user/tiny"))
    assert hub.repos == {}


def test_a_damaged_folder_is_not_pushed(hub: Hub, encoder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(encoder, tmp_path / "folder"))
    (folder / "model.safetensors").write_bytes(b"cut off")
    with pytest.raises(ValueError, match="damaged"):
        push_encoder(PushConfig(folder, "user/tiny"))
    with pytest.raises(ValueError, match="takes no revision: write user/tiny, not user/tiny@v1"):
        push_encoder(PushConfig(encoder, "user/tiny@v1"))
    assert hub.requests == []


@pytest.mark.parametrize("offline", [True, False])
def test_away_from_the_hub_one_line_says_what_to_do(
    hub: Hub, offline: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.stop()
    if offline:
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert main(["pull", "user/tiny"]) == 1
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert told.startswith("error: ")
    assert ("HF_HUB_OFFLINE is set. Unset it" if offline else "could not be reached") in told
    if not offline:
        with pytest.raises(ConnectionError, match=r"could not be reached .*Try again"):
            push_encoder(PushConfig("pong-v0", "user/pong"))


def test_without_the_extra_it_says_what_to_install(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['huggingface_hub'] = None\n"
        "from latent_obs import load_encoder\nload_encoder('hf://user/tiny')"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "ImportError" in run.stderr
    assert "needs huggingface_hub" in run.stderr
    assert "[hub]'" in run.stderr


def test_push_pull_and_wrap_from_the_command_line(hub: Hub, encoder: Path, tmp_path: Path) -> None:
    """As users do it: three processes, the last one without a Hub."""

    root = str(Path(__file__).parents[2])
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])}

    def run(*words: str) -> list[str]:
        command = [sys.executable, *words]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=env, check=False)
        assert done.returncode == 0, done.stderr
        assert "Fetching" not in done.stderr, "a progress bar in every worker"
        return done.stdout.splitlines()

    url, ref = run("-m", "latent_obs", "push", str(encoder), "user/tiny", "--message", "By command")
    commit = hub.repos["user/tiny"].branches["main"]
    assert (url, ref) == (f"{hub.url}/user/tiny", f"hf://user/tiny@{commit}")
    assert hub.repos["user/tiny"].messages[-1] == "By command"
    assert run("-m", "latent_obs", "pull", "user/tiny", "--out", "mine") == ["mine", ref]
    hub.stop()
    code = (
        "import sys, numpy as np, latent_obs, tests.quick_env\n"
        "encoder = latent_obs.load_encoder('hf://user/tiny', precision='float32')\n"
        "env = latent_obs.LatentObservationWrapper(tests.quick_env.QuickEnv(), sys.argv[1])\n"
        "print(env.encoder.spec, env.reset(seed=0)[0].shape)\n"
        "print(encoder(np.zeros((64, 64, 3), np.uint8)).tolist())\n"
    )
    spec, numbers = run("-c", code, ref)
    assert spec == f"{ref} (32,)"
    local = load_encoder(encoder, precision="float32")(np.zeros((64, 64, 3), np.uint8))
    np.testing.assert_array_equal(json.loads(numbers), local.tolist())
