"""Plugins that cheat with what only a worker's process has: other programs, its files, streams and end.

`CHEATS` has the methods by name. They change the process, so that none of them may run in a test's own.
"""

from __future__ import annotations

import ctypes
import gc
import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cheat_kit import Cheats, digits
from dfqbench.api import Context, Offer, SampleSource, hookimpl
from dfqbench.quant import parse_scheme, prepare

CHEATS = Cheats(__name__)
synthesizing, quantizing = CHEATS.synthesizing, CHEATS.quantizing


# --- real data, past Python's own calls --------------------------------------------------------------


@synthesizing
def cat(teacher: nn.Module, ctx: Context) -> None:
    """Lets another program read."""
    subprocess.run(["/bin/cat", digits()], check=True, capture_output=True)


@synthesizing
def shell_copy(teacher: nn.Module, ctx: Context) -> None:
    """Lets a shell copy."""
    if os.system(f"cp {digits()} {ctx.workdir}/copy"):  # noqa: S605
        raise PermissionError("refused")


@synthesizing
def spawned(teacher: nn.Module, ctx: Context) -> None:
    """Lets a spawned program read."""
    child = os.posix_spawn("/bin/cat", ["cat", str(digits())], dict(os.environ))
    if os.waitpid(child, 0)[1]:
        raise PermissionError("refused")


@synthesizing
def forked(teacher: nn.Module, ctx: Context) -> None:
    """Reads in a forked child."""
    child = os.fork()
    if child == 0:
        try:
            (ctx.workdir / "copy").write_bytes(Path(digits()).read_bytes())
        except OSError:
            os._exit(1)
        os._exit(0)
    if os.waitpid(child, 0)[1]:
        raise PermissionError("refused")


@synthesizing
def another_interpreter(teacher: nn.Module, ctx: Context) -> None:
    """Reads in another interpreter."""
    subprocess.run([sys.executable, "-c", f"open({digits()!r}, 'rb').read()"], check=True, capture_output=True)


@synthesizing
def foreign_open(teacher: nn.Module, ctx: Context) -> None:
    """Opens the data behind Python's back."""
    library = ctypes.CDLL(None, use_errno=True)
    if library.open(os.fsencode(digits()), os.O_RDONLY) < 0:
        raise PermissionError("refused")


@synthesizing
def mapped_by_torch(teacher: nn.Module, ctx: Context) -> None:
    """Maps the data with torch."""
    torch.from_file(str(digits()), size=64, dtype=torch.uint8)


@synthesizing
def read_by_torchvision(teacher: nn.Module, ctx: Context) -> None:
    """Reads with torchvision's own reader."""
    from torchvision.io import read_file

    read_file(str(digits()))


@synthesizing
def images_of_another(teacher: nn.Module, ctx: Context) -> Tensor:
    """Takes the images that another cell has kept."""
    from safetensors import safe_open

    run = ctx.workdir.parents[3]
    files = [f for f in run.glob("cells/*/attempt-*/images.safetensors") if ctx.workdir.parent not in f.parents]
    with safe_open(str(files[0]), "pt") as file:
        return file.get_tensor("images")  # type: ignore[no-any-return]


@synthesizing
def source_of_another(teacher: nn.Module, ctx: Context) -> Tensor:
    """Takes the source of another cell, as the real-data control has one."""
    from safetensors.torch import load_file

    sources = ctx.workdir.parents[3] / "sources"
    files = [sources / name / "state.safetensors" for name in os.listdir(sources)]  # noqa: PTH208
    return load_file(next(file for file in files if file.is_file()))["images"]


@synthesizing
def looks_in_memory(teacher: nn.Module, ctx: Context) -> Tensor:
    """Looks for images that the host has loaded in this process."""
    shape = ctx.card.input_size
    found = [x for x in gc.get_objects() if isinstance(x, Tensor) and x.dim() == 4 and x.shape[1:] == shape]
    if not [images for images in found if len(images) > 200]:
        raise LookupError("no data here")
    return max(found, key=len)


@synthesizing
def safe_open_elsewhere(teacher: nn.Module, ctx: Context) -> Tensor:
    """Opens images that another cell has kept, with the library's native reader."""
    from safetensors import safe_open

    with safe_open(str(_neighbours(ctx, "images.safetensors")[0]), "pt") as file:
        return file.get_tensor("images")  # type: ignore[no-any-return]


@synthesizing
def disarms_the_guard(teacher: nn.Module, ctx: Context) -> None:
    """Switches the recording of opened files off before it opens the data."""
    from dfqbench.run.worker.plugin_checks import DataGuard

    for guard in gc.get_objects():
        if isinstance(guard, DataGuard):
            guard._watching = False
    digits().read_bytes()


@synthesizing
def through_a_descriptor(teacher: nn.Module, ctx: Context) -> None:
    """Opens the data relative to its folder."""
    folder = os.open(digits().parent, os.O_PATH)
    os.read(os.open(digits().name, os.O_RDONLY, dir_fd=folder), 10)


@synthesizing
def through_another_process(teacher: nn.Module, ctx: Context) -> None:
    """Looks into the files of the host's process."""
    list(Path(f"/proc/{os.getppid()}/fd").iterdir())
    Path(f"/proc/{os.getppid()}/root{digits()}").read_bytes()


# --- results of others, and one's own ----------------------------------------------------------------


def _neighbours(ctx: Context, name: str) -> list[Path]:
    cells = ctx.workdir.parents[2]
    # `glob` would pass over what it may not list.
    files = [cells / cell / "attempt-1" / name for cell in os.listdir(cells)]  # noqa: PTH208
    return [file for file in files if ctx.workdir.parent not in file.parents and file.is_file()]


@synthesizing
def falsifies_record(teacher: nn.Module, ctx: Context) -> None:
    """Lowers a neighbour's accuracy."""
    for file in _neighbours(ctx, "record.json"):
        data = json.loads(file.read_text())
        data["top1"] = 1.0
        file.write_text(json.dumps(data))


@synthesizing
def falsifies_record_and_digest(teacher: nn.Module, ctx: Context) -> None:
    """Lowers a neighbour's accuracy, and writes a fitting digest."""

    for file in _neighbours(ctx, "record.json"):
        data = json.loads(file.read_text())
        data["top1"] = 1.0
        text = json.dumps(data)
        file.write_text(text)
        file.with_suffix(".sha256").write_text(hashlib.sha256(text.encode()).hexdigest())


@synthesizing
def removes_neighbours(teacher: nn.Module, ctx: Context) -> None:
    """Deletes a neighbour's student."""
    for file in _neighbours(ctx, "student.safetensors"):
        file.unlink()


@synthesizing
def renames_neighbour(teacher: nn.Module, ctx: Context) -> None:
    """Moves a neighbour's record away."""
    for file in _neighbours(ctx, "record.json"):
        file.rename(file.with_name("gone.json"))


@synthesizing
def writes_own_record(teacher: nn.Module, ctx: Context) -> None:
    """Writes a record of its own where the host will write one."""
    (ctx.workdir.parent / "record.json").write_text(json.dumps({"status": "ok", "top1": 99.9}))


@synthesizing
def writes_source(teacher: nn.Module, ctx: Context) -> None:
    """Writes a description of a source that cost nothing."""
    for folder in (ctx.workdir.parents[3] / "sources").iterdir():
        (folder / "source.json").write_text(json.dumps({"environment": "", "cost": {"seconds": 0.0}}))


@quantizing
def description_forged(teacher: nn.Module, source: SampleSource, ctx: Context) -> Any:
    """Writes another scheme into the file that the evaluation reads, once it is there."""
    file = ctx.workdir.parent / "student.json"

    def forge() -> None:
        for _ in range(2000):
            time.sleep(0.001)
            if file.is_file():
                data = json.loads(file.read_text())
                data["scheme"] = parse_scheme("w8a8@gdfq").as_dict()
                file.write_text(json.dumps(data))
                return

    threading.Thread(target=forge, daemon=True).start()


@quantizing
def saved_otherwise(teacher: nn.Module, source: SampleSource, ctx: Context) -> Any:
    """Runs in float here, and is quantized when it is saved only."""
    student = prepare(teacher, parse_scheme("w32a32@gdfq"), ctx.card)
    good = ctx.shared_quantize(teacher, source)
    student.state_dict = good.state_dict  # type: ignore[method-assign]
    return student


@synthesizing
def record_is_a_folder(teacher: nn.Module, ctx: Context) -> None:
    """Puts a folder where the record will be."""
    (ctx.workdir.parent / "record.json").mkdir()


@synthesizing
def patches_torch(teacher: nn.Module, ctx: Context) -> None:
    """Makes rounding do nothing in its process, so that students are in float there."""
    torch.round = torch.Tensor.round = lambda values, **_: values  # type: ignore[assignment, method-assign]


# --- the account and the process ---------------------------------------------------------------------


@synthesizing
def exits(teacher: nn.Module, ctx: Context) -> None:
    """Ends the process in good order."""
    sys.exit(0)


@synthesizing
def exits_at_once(teacher: nn.Module, ctx: Context) -> None:
    """Ends the process at once."""
    os._exit(0)


@synthesizing
def deletes_attempt(teacher: nn.Module, ctx: Context) -> None:
    """Deletes its attempt's folder."""
    shutil.rmtree(ctx.workdir.parent)


@synthesizing
def long_message(teacher: nn.Module, ctx: Context) -> None:
    """Raises a message of 10 MB."""
    raise ValueError("x" * 10_000_000)


@synthesizing
def odd_message(teacher: nn.Module, ctx: Context) -> None:
    """Raises a message that is no text."""
    raise ValueError("caf\udce9")


@synthesizing
def forged_events(teacher: nn.Module, ctx: Context) -> None:
    """Writes a result of its own to every stream that is open, and ends."""
    line = json.dumps({"event": "Finished", "type": "finished", "result": {"top1": 99.9}}) + "\n"
    for number in range(3, 40):
        try:
            os.write(number, line.encode())
        except OSError:
            continue
    os._exit(0)


@quantizing
def says_nothing(teacher: nn.Module, source: SampleSource, ctx: Context) -> Any:
    """Returns something that is no network."""
    return "student"


@quantizing
def nan_weight(teacher: nn.Module, source: SampleSource, ctx: Context) -> Any:
    """Has a weight that is not a number."""
    student = ctx.shared_quantize(teacher, source)
    with torch.no_grad():
        next(student.parameters()).view(-1)[0] = float("nan")
    return student


@synthesizing
def changes_folder(teacher: nn.Module, ctx: Context) -> None:
    """Changes the working directory."""
    os.chdir("/")


@synthesizing
def logs_much(teacher: nn.Module, ctx: Context) -> None:
    """Prints 38 MB."""
    for _ in range(38):
        print("x" * 1_000_000)  # noqa: T201


@synthesizing
def stops_clocks(teacher: nn.Module, ctx: Context) -> None:
    """Stops Python's clocks, so that it seems to take no time."""
    time.monotonic = time.perf_counter = time.time = lambda: 0.0


@hookimpl
def dfqbench_methods() -> list[Offer]:
    return CHEATS.offers(globals())
