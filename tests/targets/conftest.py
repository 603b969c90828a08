"""Small data folders, and a local server for downloads."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest


@dataclass
class Server:
    """A web server on this machine; the dictionaries are by path."""

    url: str
    files: dict[str, bytes] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)  # entity tags: such a path is answered as on the hub
    short: set[str] = field(default_factory=set)  # paths whose download breaks off
    requests: list[str] = field(default_factory=list)  # methods and paths
    tokens: dict[str, set[str]] = field(default_factory=dict)  # values of the header `Authorization`


@pytest.fixture
def server() -> Iterator[Server]:
    state = Server("")

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            state.requests.append(f"{self.command} {self.path}")
            state.tokens.setdefault(self.path, set()).add(self.headers.get("Authorization", ""))
            content = state.files.get(self.path)
            if content is None:
                self.send_error(404)
                return
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            if self.path in state.tags:
                self.send_header("ETag", f'"{state.tags[self.path]}"')
                self.send_header("X-Repo-Commit", "c0ffee" * 6 + "c0ff")
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content[: len(content) // 2] if self.path in state.short else content)

        do_HEAD = do_GET  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        state.url = f"http://127.0.0.1:{running.server_address[1]}"
        thread = threading.Thread(target=running.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        yield state
        running.shutdown()
        thread.join()


@pytest.fixture
def write_npz(tmp_path: Path) -> Callable[..., Path]:
    """Write `count` random 32x32 images with labels 0, 1, 2, ... modulo `classes`."""

    def write(name: str, count: int = 20, classes: int = 10, seed: int = 0, size: int = 32) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        images = np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), dtype=np.uint8)
        np.savez(path, x=images, y=(np.arange(count) % classes).astype(np.uint8))
        return path

    return write


@pytest.fixture
def manifest(tmp_path: Path, write_npz: Callable[..., Path]) -> Callable[..., Path]:
    """Write a folder with cifar10/test.npz, a weights file, and a targets.toml of the given text."""

    def write(text: str) -> Path:
        write_npz("cifar10/test.npz")
        (tmp_path / "weights").mkdir(exist_ok=True)
        (tmp_path / "weights" / "w.safetensors").write_bytes(b"x")
        path = tmp_path / "targets.toml"
        path.write_text(text, encoding="utf-8")
        return path

    return write
