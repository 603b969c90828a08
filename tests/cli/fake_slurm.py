"""SLURM's commands as scripts that note what they were given."""

from __future__ import annotations

from pathlib import Path

import pytest

REFUSAL = (
    "sbatch: error: invalid partition specified: nix\nsbatch: error: Batch job submission failed: Invalid partition"
)


class FakeSlurm:
    """Commands in a folder at the head of PATH; without any, none is found."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        folder.mkdir()
        # Only these and the system's: a real SLURM of this machine is not to be asked.
        for tool in ("bash", "cat", "sh"):
            (folder / tool).symlink_to(
                next(f"{place}/{tool}" for place in ("/bin", "/usr/bin") if Path(place, tool).exists())
            )
        monkeypatch.setenv("PATH", str(folder))

    def command(self, name: str, out: str = "", error: str = "", status: int = 0) -> None:
        script = f'echo "$@" >> {self.folder}/{name}.calls\n'
        script += f"cat > {self.folder}/{name}.stdin\n" if name == "sbatch" else ""
        for stream, text in (("1", out), ("2", error)):
            (self.folder / f"{name}.{stream}").write_text(text)
            script += f"cat {self.folder}/{name}.{stream} >&{stream}\n"
        file = self.folder / name
        file.write_text(f"#!{self.folder}/sh\n{script}exit {status}\n")
        file.chmod(0o755)

    def calls(self, name: str) -> list[str]:
        file = self.folder / f"{name}.calls"
        return file.read_text().splitlines() if file.exists() else []

    @property
    def script(self) -> str:
        return (self.folder / "sbatch.stdin").read_text()
