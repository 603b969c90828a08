"""Which packages may import which, and which must import no heavy library."""

from __future__ import annotations

import ast
import graphlib
import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import dfqbench
import dfqbench_methods

HOST = Path(dfqbench.__file__).parent
METHODS = Path(dfqbench_methods.__file__).parent
LAYERS = ("api", "quant", "synth", "quantizers", "accel", "run", "report", "cli")
"""Packages of the host, lowest first; none imports a later one."""
EXCEPTIONS = {
    # Annotations only: the signatures of `Context` and `Method` name `Scheme` and `Student`.
    ("api", "quant"),
}
"""Imports of a higher layer; the test also fails when one of them is gone, so that it is removed here."""
HEAVY = {"torch", "torchvision", "timm", "pandas", "matplotlib", "sklearn"}


def imports(folder: Path, package: str) -> Iterator[tuple[str, str]]:
    """Yield every import below a folder as its file and absolute name."""
    for file in sorted(folder.rglob("*.py")):
        module = (package, *file.relative_to(folder).with_suffix("").parts)
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                yield from ((str(file), alias.name) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                base = ".".join(module[: -node.level]) if node.level else ""
                name = ".".join(part for part in (base, node.module or "") if part)
                yield from ((str(file), f"{name}.{alias.name}") for alias in node.names)


def below(name: str, *packages: str) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def test_host_imports_no_method() -> None:
    imported = list(imports(HOST, "dfqbench"))
    assert len(imported) > 100
    assert [entry for entry in imported if below(entry[1], "dfqbench_methods")] == []
    dynamic = [str(file) for file in HOST.rglob("*.py") if "dfqbench_methods." in file.read_text(encoding="utf-8")]
    assert dynamic == []


def package_imports() -> set[tuple[str, str]]:
    """Return pairs of top-level packages of the host, the importing one first.

    Imports in functions and under `if TYPE_CHECKING` count. `dfqbench/__init__.py` does not, since it loads everything
    on first use.
    """
    packages = {path.stem for path in HOST.iterdir() if path.is_dir() or path.suffix == ".py"} - {"__init__"}
    pairs = set()
    for file, name in imports(HOST, "dfqbench"):
        importer = Path(file).relative_to(HOST).parts[0].removesuffix(".py")
        imported = name.split(".")[1] if below(name, "dfqbench") and "." in name else ""
        if importer in packages and imported in packages and importer != imported:
            pairs.add((importer, imported))
    return pairs


def module_imports() -> set[tuple[str, str]]:
    """Return pairs of modules of the host, the importing one first."""

    def module_name(file: Path) -> str:
        return ".".join(("dfqbench", *file.relative_to(HOST).with_suffix("").parts)).removesuffix(".__init__")

    modules = {module_name(file) for file in HOST.rglob("*.py")} - {"dfqbench"}
    named = ((module_name(Path(file)), name) for file, name in imports(HOST, "dfqbench"))
    pairs = {(importer, name if name in modules else name.rpartition(".")[0]) for importer, name in named}
    return {(a, b) for a, b in pairs if a in modules and b in modules and a != b}


def test_layers_import_only_lower_layers() -> None:
    rank = {layer: index for index, layer in enumerate(LAYERS)}
    pairs = {(a, b) for a, b in package_imports() if a in rank and b in rank}
    assert ("cli", "api") in pairs
    assert {(a, b) for a, b in pairs if rank[a] < rank[b]} == EXCEPTIONS


def check_no_cycle(pairs: set[tuple[str, str]]) -> None:
    sorter: graphlib.TopologicalSorter[str] = graphlib.TopologicalSorter()
    for importer, imported in pairs:
        sorter.add(importer, imported)
    sorter.prepare()  # raises CycleError, which names the modules


def test_packages_have_no_import_cycle() -> None:
    check_no_cycle(package_imports() - EXCEPTIONS)


def test_modules_have_no_import_cycle() -> None:
    check_no_cycle(module_imports())


def test_methods_import_only_the_public_packages() -> None:
    allowed = ("dfqbench.api", "dfqbench.quant", "dfqbench.quantizers", "dfqbench.synth")
    imported = list(imports(METHODS, "dfqbench_methods"))
    assert any(below(name, "dfqbench") for _, name in imported)
    assert [entry for entry in imported if below(entry[1], "dfqbench") and not below(entry[1], *allowed)] == []


def test_reference_code_imports_no_fast_form() -> None:
    packages = ("api", "quant", "synth", "quantizers")
    imported = [entry for name in packages for entry in imports(HOST / name, f"dfqbench.{name}")]
    imported += imports(METHODS, "dfqbench_methods")
    assert len(imported) > 100
    fast = ("dfqbench.accel", "triton", "torch.cuda.graphs", "torch.cuda.CUDAGraph", "torch._C")
    assert [entry for entry in imported if below(entry[1], *fast)] == []


def test_methods_do_not_import_one_another() -> None:
    for folder in METHODS.iterdir():
        if not (folder / "plugin.py").is_file():
            continue
        own = f"dfqbench_methods.{folder.name}"
        imported = imports(folder, own)
        assert [entry for entry in imported if below(entry[1], "dfqbench_methods") and not below(entry[1], own)] == []


def loaded(code: str) -> set[str]:
    """Return the top-level names of the modules that a fresh interpreter has loaded after some code."""
    tail = "\nimport sys\nprint('\\nMODULES', *{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code + tail], capture_output=True, text=True, check=True, timeout=60)
    return set(done.stdout.rpartition("MODULES")[2].split())


@pytest.mark.parametrize(
    "module",
    [
        "api",
        "hookspecs",
        "plugins",
        "grid",
        "report",
        "quant.scheme",
        "cli.main",
        "run.store.record",
        "run.store.run_folder",
        "run.schedule.run",
        "run.worker.main",
    ],
)
def test_modules_import_no_heavy_library(module: str) -> None:
    assert loaded(f"import dfqbench.{module}") & HEAVY == set()


VERBS = """
import sys
from dfqbench.cli.main import main
sys.argv = ["dfqbench", *{arguments!r}]
status = main()
assert status == 0, status
"""


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["methods", "list"],
        ["methods", "show", "zeroq"],
        ["grids", "list"],
        ["grids", "show", "w4a4"],
        ["models", "list"],
        ["plan", "--grid", "bits"],
        ["submit", "--grid", "bits", "--dry-run"],
        ["claims", "--model", "resnet18"],
    ],
    ids=" ".join,
)
def test_verbs_import_no_heavy_library(arguments: list[str]) -> None:
    assert loaded(VERBS.format(arguments=arguments)) & HEAVY == set()


@pytest.mark.parametrize("package", ["dfqbench", "dfqbench.quant", "dfqbench.synth"])
def test_names_that_are_imported_on_first_use_are_listed(package: str) -> None:
    module = importlib.import_module(package)
    assert {name for name in module.__all__ if not name.startswith("_")} <= set(dir(module))


def test_table_imports_no_heavy_library(tmp_path: Path) -> None:
    folder = tmp_path / "run" / "cells" / "a" / "attempt-1"
    folder.mkdir(parents=True)
    (folder / "record.json").write_text('{"schema": 1, "cell_id": "a", "status": "ok", "top1": 50.0}')
    for more in ([], ["--vs", "paper"]):
        assert loaded(VERBS.format(arguments=["table", "--out", str(tmp_path), *more])) & HEAVY == set()


def test_plugin_imports_are_light() -> None:
    assert loaded("from dfqbench.api import Method, Offer, hookimpl, param") & HEAVY == set()
