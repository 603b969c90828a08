"""Checks of plugin code: real data and other cells' results are not opened, and the teacher stays as it is.

The data guard sees what Python's audit hooks see. Native readers and other programs open files without them: those are
stopped by `confinement`, where the kernel can. Code that hides its changes of the teacher is not found: it runs in the
same process.
"""

from __future__ import annotations

import hashlib
import os
import sys
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dfqbench.api.errors import Invalid
from dfqbench.api.method import PROJECT

_READS = frozenset({"open", "os.listdir", "os.scandir", "shutil.copyfile", "sqlite3.connect"})
_CHANGES = frozenset(
    {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "shutil.rmtree", "os.link", "os.symlink"}
)
"""Events that change a folder; opening for writing does too."""
_TWO_PATHS = frozenset({"os.link", "os.rename", "os.symlink", "shutil.copyfile"})
"""Events that name a source and a destination."""
_EVENTS = _READS | _CHANGES | _TWO_PATHS
_FOREIGN = frozenset(
    {"subprocess.Popen", "os.system", "os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "ctypes.dlopen"}
)
"""Events of processes that begin, and of foreign libraries that are loaded."""
_LIBRARIES = sys.stdlib_module_names | {"numpy", "PIL", "timm", "torch", "torchvision", "triton"}
"""Packages that start processes and load libraries for whatever code calls them."""
_WRITE_FLAGS = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
MOST_HITS = 20
"""Paths kept; one is enough to make a record invalid."""


class DataGuard:
    """Record access to real data, and changes of the results of other cells, inside `watching`.

    Attributes:
        hits: real data that was accessed, as the plugin named it.
        writes: files in `results` and not in `own` that were changed.
        foreign: processes that were started, and foreign libraries that were loaded, with the audit event's name.

    Args:
        paths: files and folders of real data.
        results: a folder that plugin code must not change, or None.
        own: folders in it that plugin code may change.
    """

    def __init__(self, paths: Iterable[Path], results: Path | None = None, own: Iterable[Path] = ()) -> None:
        self.hits: list[str] = []
        self.writes: list[str] = []
        self.foreign: list[str] = []
        self._at_import: dict[str, tuple[list[str], ...]] = {}
        self._paths = _roots(paths)
        self._results = _roots([] if results is None else [results])
        self._own = _roots(own)
        self._watching = False
        sys.addaudithook(self._hook)

    @contextmanager
    def watching(self, on: bool = True) -> Iterator[None]:
        """Record in the block; with `on=False` do not, while the host writes inside a plugin's call."""
        before, self._watching = self._watching, on
        try:
            yield
        finally:
            self._watching = before

    @contextmanager
    def importing(self, plugin: str) -> Iterator[None]:
        """Record what the import of one of several plugins does; it counts for those that use the plugin only."""
        before = self.hits, self.writes, self.foreign
        self.hits, self.writes, self.foreign = [], [], []
        try:
            with self.watching():
                yield
        finally:
            self._at_import[plugin] = self.hits, self.writes, self.foreign
            self.hits, self.writes, self.foreign = before

    def use(self, plugin: str) -> None:
        """Add what the import of a plugin did."""
        for paths, found in zip((self.hits, self.writes, self.foreign), self._at_import.get(plugin, ()), strict=False):
            for path in found:
                _add(paths, path)

    def _hook(self, event: str, args: tuple[Any, ...]) -> None:
        if not self._watching:
            return
        if event in _FOREIGN and not _called_by_host(event):
            _add(self.foreign, " ".join([event, *(_text(arg) for arg in args[:1])]))
        if event not in _EVENTS or not args:
            return
        changes = event in _CHANGES or (event == "open" and _writes(args))
        with self.watching(on=False):  # resolving a path raises events too
            for path in args[:2] if event in _TWO_PATHS else args[:1]:
                if isinstance(path, str | bytes | os.PathLike):
                    self._check(os.fsdecode(path), changes=changes)

    def _check(self, path: str, *, changes: bool) -> None:
        try:
            forms = _forms(path)
        except (OSError, ValueError):
            return
        if _is_below(forms, self._paths):
            _add(self.hits, path)
        if changes and _is_below(forms, self._results) and not _is_below(forms, self._own):
            _add(self.writes, path)


def _called_by_host(event: str) -> bool:
    """Check that the host does something, or a library for it, rather than a plugin."""
    # A library that is imported late loads its own parts; what it starts is up to its caller.
    passed_over = sys.stdlib_module_names if event == "ctypes.dlopen" else _LIBRARIES
    for frame, _ in traceback.walk_stack(sys._getframe(2)):
        package = str(frame.f_globals.get("__name__", "")).partition(".")[0]
        if package not in passed_over:
            return package == PROJECT or package in _LIBRARIES
    return True


def _text(value: object) -> str:
    return os.fsdecode(value) if isinstance(value, str | bytes | os.PathLike) else repr(value)


def _add(paths: list[str], path: str) -> None:
    if path not in paths and len(paths) < MOST_HITS:
        paths.append(path)


def _writes(args: tuple[Any, ...]) -> bool:
    """Whether an `open` event (path, mode, flags) is for writing."""
    mode, flags = (*args, None, None)[1:3]
    if isinstance(mode, str):
        return any(letter in mode for letter in "wax+")
    return isinstance(flags, int) and bool(flags & _WRITE_FLAGS)


def _forms(path: str) -> tuple[str, str]:
    """The path as named and with symbolic links resolved, both absolute."""
    return os.path.abspath(path), os.path.realpath(path)  # noqa: PTH100 - a hook must be light


def _roots(paths: Iterable[Path]) -> frozenset[str]:
    return frozenset(form for path in paths for form in _forms(os.fspath(path)))


def _is_below(forms: tuple[str, str], roots: frozenset[str]) -> bool:
    return any(form == root or form.startswith(root.rstrip(os.sep) + os.sep) for form in forms for root in roots)


SHOWN = 3
"""Changes that a message names."""


class TeacherCheck:
    """Compare a teacher with its state at first: weights, statistics, modes, hooks and classes of modules.

    Args:
        teacher: in the state that it must keep.
    """

    def __init__(self, teacher: nn.Module) -> None:
        self._teacher = teacher
        self._modules = list(teacher.modules())
        self._tensors = [value for _, value in _tensors(teacher)]
        self._marks = self._marks_now()
        self._hooks = _hooks(teacher)
        self._before = dict(_state(teacher))

    @contextmanager
    def call(self) -> Iterator[None]:
        """Check one call of a source, cheaply (0.1 ms for ResNet-50).

        Contents are compared only where a mode, a tensor's version or its memory is another one.

        Raises:
            Invalid: the teacher or a mode of torch is another one after the block.
        """
        modes = _modes()
        yield
        _refuse([name for name, mode in _modes().items() if mode != modes[name]])
        marks = self._marks_now()
        if marks != self._marks:
            self._marks = marks
            _refuse(self._changes())

    @contextmanager
    def phase(self) -> Iterator[None]:
        """Check a phase, contents included.

        Raises:
            Invalid: the teacher or a mode of torch is another one after the block.
        """
        with self.call():
            yield
        _refuse(self._changes())

    def check_hooks(self) -> None:
        """Check, once the source has done its work, that the teacher has the hooks that it had at first.

        Raises:
            Invalid: a module has others.
        """
        hooks = _hooks(self._teacher)
        _refuse([f"the hooks of '{name}'" for name in hooks if hooks[name] != self._hooks.get(name)])

    def _changes(self) -> list[str]:
        now = dict(_state(self._teacher))
        return [name for name in self._before | now if now.get(name) != self._before.get(name)]

    def _marks_now(self) -> list[Any]:
        return [*(m.training for m in self._modules), *((t.data_ptr(), t._version) for t in self._tensors)]


def _refuse(changes: list[str]) -> None:
    if changes:
        names = ", ".join(changes[:SHOWN]) + (f" and {len(changes) - SHOWN} more" if len(changes) > SHOWN else "")
        raise Invalid(
            f"plugin code changed the teacher or torch: {names}", "work on copy.deepcopy(teacher), and undo modes"
        )


def _modes() -> dict[str, object]:
    return {
        "autocast on the CPU": torch.is_autocast_enabled("cpu"),
        "autocast on CUDA": torch.is_autocast_enabled("cuda"),
        "the default dtype": torch.get_default_dtype(),
        "gradients": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
    }


def _state(teacher: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield what plugin code must not change, with the name that a message gives it."""
    for name, module in teacher.named_modules(remove_duplicate=False):
        where = f"'{name}'" if name else "the network"
        yield f"the mode of {where}", module.training
        yield f"the class of {where}", (type(module), "forward" in vars(module))
    for name, value in _tensors(teacher):
        content = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        digest = hashlib.sha256(content.numpy().data).digest()
        yield name, (value.shape, value.dtype, value.device, value.requires_grad, digest)


def _hooks(teacher: nn.Module) -> dict[str, Any]:
    modules = teacher.named_modules(remove_duplicate=False)
    return {name: [list(part) for key, part in vars(m).items() if key.endswith("_hooks")] for name, m in modules}


def _tensors(teacher: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from teacher.named_parameters(remove_duplicate=False)
    yield from teacher.named_buffers(remove_duplicate=False)
