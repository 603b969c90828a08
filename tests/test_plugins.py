"""Loading of plugins: broken ones are recorded and undone, and do not affect the others."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from dfqbench.api import API_VERSION, InputError, Method, PluginError
from dfqbench.grid import load_grid
from dfqbench.models.spec import ModelSpec
from dfqbench.plugins import load_plugins
from dfqbench.targets.catalogue import Catalogue

EXAMPLES = Path(__file__).parent / "plugins"
FLAT = EXAMPLES / "flat.py"


def offering(offers: str, hook: str = "methods", arguments: str = "") -> str:
    """Return a plugin with one hook."""
    return (
        "from dfqbench.api import API_VERSION, FileOffer, Offer, hookimpl\n"
        f"@hookimpl\ndef dfqbench_{hook}({arguments}):\n    return [{offers}]\n"
    )


BROKEN = {
    "raises_on_import": ("import dfqbench_no_such_library", "import", "No module named 'dfqbench_no_such_library'"),
    "exits_on_import": ("import sys\nsys.exit(3)", "import", "sys.exit(3)"),
    "wrong_signature": (offering("", arguments="config"), "register", "'config'"),
    "misspelt_hook": (offering("", "method"), "register", "dfqbench_method"),
    "no_hooks": ("def dfqbench_methods():\n    return []", "register", "it has no hooks; mark a function"),
    "raises_in_hook": (offering("{}['offer']"), "offer", "KeyError: 'offer'"),
    "offers_garbage": (offering("dict"), "offer", "offered <class 'dict'>; return a list of Offer"),
    "newer": (
        offering("Offer('a', ':A', api=API_VERSION + 1)"),
        "api",
        f"is for version {API_VERSION + 1} of the plugin",
    ),
    "older": (offering("Offer('a', ':A', api=API_VERSION - 1)"), "api", f"set api={API_VERSION}"),
    "name_taken": (offering("Offer('free', ':A'), Offer('zeroq', ':B')"), "name", "method 'zeroq' is already offered"),
    "bad_name": (offering("Offer('Bad Name', ':X')"), "name", "use lower case letters"),
    "reserved": (offering("Offer('real', ':X')"), "name", "already offered by dfqbench"),
    "bad_load": (offering("Offer('mine', 'X')"), "name", "write it as 'package.module:Class'"),
    "twice": (offering("Offer('mine', ':X'), Offer('mine', ':Y')"), "name", "already offered by the same plugin"),
    "quantizer": (
        offering("Offer('calibrate', ':X')", "quantizers"),
        "name",
        "quantizer 'calibrate' is already offered",
    ),
    "model": (offering("Offer('timm', ':X')", "models"), "name", "model 'timm' is already offered by dfqbench"),
    "grid": (offering("FileOffer('w4a4', __file__)", "grids"), "name", "grid 'w4a4' is already offered by dfqbench"),
    "absent_grid": (offering("FileOffer('mine', 'a.toml')", "grids"), "name", "not an absolute path that exists"),
}
"""Source, stage at which it fails, and part of the message, by name of the plugin."""


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    return tmp_path / "mine.py"


def message(file: Path) -> str:
    [broken] = [entry for entry in load_plugins([file]).broken if entry.name == file.stem]
    return f"{broken.stage}: {broken.message}"


def test_built_ins_come_through_entry_points_and_keep_the_contract() -> None:
    plugins = load_plugins()
    assert plugins.broken == []
    assert {"zeroq", "noise"} <= set(plugins.methods)
    assert plugins.methods["zeroq"].origin == "dfqbench"
    assert plugins.methods["zeroq"].version
    assert plugins.quantizers["calibrate"].load == "dfqbench.quantizers.calibrate:Calibrate"
    assert [plugins.method_class(name).name for name in plugins.methods] == list(plugins.methods)
    assert [plugins.quantizer_class(name).name for name in plugins.quantizers] == list(plugins.quantizers)


def test_local_file_is_loaded_once() -> None:
    plugins = load_plugins([FLAT, EXAMPLES / "broken" / ".." / "flat.py"])
    assert plugins.broken == []
    offer = plugins.methods["flat"]
    assert (offer.path, offer.origin, offer.version) == (FLAT, str(FLAT), "")
    flat = plugins.method_class("flat")
    assert issubclass(flat, Method)
    assert flat.title == "Flat colours"
    assert flat.__module__ in sys.modules
    assert plugins.files == (FLAT,)


def test_load_string_may_name_the_local_file(mine: Path) -> None:
    mine.write_text(FLAT.read_text().replace('":Flat"', '"mine:Flat"'))
    assert load_plugins([mine]).method_class("flat").name == "flat"


def test_edited_local_file_is_reloaded(mine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    shutil.copy(FLAT, mine)
    assert load_plugins([mine]).method_class("flat").title == "Flat colours"
    # As long as before, within the same second: bytecode would still be taken for fresh.
    mine.write_text(mine.read_text().replace("Flat colours", "Bald colours"))
    assert load_plugins([mine]).method_class("flat").title == "Bald colours"
    assert list(mine.parent.iterdir()) == [mine]


@pytest.mark.parametrize("name", BROKEN)
def test_broken_plugin_is_recorded_and_undone(tmp_path: Path, name: str) -> None:
    source, stage, text = BROKEN[name]
    file = tmp_path / f"{name}.py"
    file.write_text(source)
    before = set(sys.modules)
    plugins = load_plugins([file, FLAT])
    [broken] = plugins.broken
    assert (broken.name, broken.stage, broken.origin) == (name, stage, str(file))
    assert text in broken.message
    assert "\n" not in broken.message
    assert "Traceback" in broken.traceback
    assert [module for module in set(sys.modules) - before if module.endswith(name)] == []
    # The others are loaded, and nothing of the broken one is left.
    assert {"flat", "zeroq", "noise"} <= set(plugins.methods)
    assert {offer.path for offer in plugins.methods.values()} <= {None, FLAT}
    assert plugins.methods["zeroq"].origin == "dfqbench"
    assert plugins.broken_names == (name,)
    with pytest.raises(PluginError, match=r"did not load: .*" + re.escape(text)):
        plugins.method_class(name)


def test_offer_without_a_version_is_for_the_first(monkeypatch: pytest.MonkeyPatch, mine: Path) -> None:
    monkeypatch.setattr("dfqbench.plugins.loader.API_VERSION", 2)
    mine.write_text(offering("Offer('mine', ':Mine')"))
    assert message(mine) == (
        "api: method 'mine' is for version 1 of the plugin interface, and dfqbench 0.1.0 has version 2; "
        f"upgrade {mine}, or port it and set api=2"
    )


def test_import_error_of_dfqbench_names_the_version(mine: Path) -> None:
    mine.write_text("from dfqbench.api import Telepathy\n")
    text = message(mine)
    assert text.startswith("import: ")
    assert "it asks dfqbench for what it does not have: cannot import name 'Telepathy'" in text
    assert f"has version {API_VERSION} of the plugin interface; upgrade whichever is older" in text


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('":Flat"', '":Missing"', "has no attribute 'Missing'"),
        ("@dataclass(frozen=True)", "", "is not a dataclass; write it as @dataclass(frozen=True)"),
        ('title = "Flat colours"', "", "`title` is missing"),
        ("fidelity = Fidelity.RECONSTRUCTION", 'fidelity = "mine"', "`fidelity` is a str; set it to a Fidelity"),
        ('name = "flat"', 'name = "other"', "calls itself 'other'"),
        ("class Flat(Method)", "class Flat", "not a subclass of dfqbench.api.Method"),
        ("def synthesize", "def synthesise", "synthesize is missing"),
        ("params_type = FlatParams", 'quantizer = "caliber"', "quantizer 'caliber' is not known; valid: calibrate"),
        ("@dataclass(frozen=True)", "@dataclass", "FlatParams is not frozen"),
        ("images: int = param(64", 'images: int = param("many"', "images"),
        ("images: int = param(64", "images: object = param(object()", "not plain data"),
        ("images: int = param(64", "images: float = param(float('nan')", "not plain data"),
        ("class FlatParams:", "class FlatParams:\n    needed: int", "parameter 'needed' has no default"),
    ],
)
def test_contract(mine: Path, old: str, new: str, message: str) -> None:
    text = FLAT.read_text()
    assert old in text
    mine.write_text(text.replace(old, new))
    with pytest.raises(PluginError) as caught:
        load_plugins([mine]).method_class("flat")
    assert re.fullmatch(re.escape(f"method 'flat' ({mine})") + ".*" + re.escape(message) + ".*", str(caught.value))


@pytest.mark.parametrize("name", ["absent.py", "README.md"])
def test_file_that_is_no_plugin(name: str) -> None:
    with pytest.raises(InputError, match=name):
        load_plugins([EXAMPLES / name])


def test_plugin_output_goes_to_stderr(mine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mine.write_text("print('hello')\n" + FLAT.read_text().replace("from __future__", "#"))
    load_plugins([mine])
    assert capsys.readouterr() == ("", "hello\n")


@pytest.mark.parametrize(
    ("kind", "offers", "found"),
    [
        ("quantizers", "return (Offer('a', 'm:A'), Offer('b', 'm:B'))", ["a", "b"]),
        ("range_rules", "return [Offer('widest', ':Widest')]", ["widest"]),
        ("models", "yield Offer('family', ':build')", ["family"]),
        ("targets", "return [FileOffer('data', __file__)]", ["data"]),
        ("grids", "return [FileOffer('grid', __file__)]", ["grid"]),
        ("claims", "return [FileOffer('claims', __file__)]", ["claims"]),
    ],
)
def test_every_hook_takes_any_iterable(mine: Path, kind: str, offers: str, found: list[str]) -> None:
    mine.write_text(f"from dfqbench.api import FileOffer, Offer, hookimpl\n@hookimpl\ndef dfqbench_{kind}(): {offers}")
    plugins = load_plugins([mine])
    assert plugins.broken == []
    offered = {name: offer.path for name, offer in getattr(plugins, kind).items() if offer.origin == str(mine)}
    assert offered == dict.fromkeys(found, mine)


@dataclass
class Site:
    """A folder on `sys.path` that distributions can be installed into."""

    folder: Path

    def install(self, package: str, plugin: str) -> None:
        (self.folder / package).mkdir()
        (self.folder / package / "__init__.py").write_text("")
        (self.folder / package / "plugin.py").write_text(plugin)
        self.register(package)

    def register(self, package: str) -> None:
        info = self.folder / f"{package}-1.2.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.2\n")
        (info / "entry_points.txt").write_text(f"[dfqbench.methods]\nplugin = {package}.plugin\n")


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)
    yield Site(tmp_path)
    for name in set(sys.modules) - before:
        del sys.modules[name]


def flat_as(package: str, name: str) -> str:
    text = FLAT.read_text().replace('name = "flat"', f'name = "{name}"')
    return text.replace('Offer("flat", ":Flat")', f'Offer("{name}", "{package}.plugin:Flat")')


def test_installed_plugins_are_isolated(site: Site) -> None:
    site.install("aaa_broken", "from aaa_broken import helper\n")
    site.install("bbb_thief", flat_as("bbb_thief", "zeroq"))
    site.install("zzz_good", flat_as("zzz_good", "good"))
    plugins = load_plugins()
    assert plugins.methods["good"].origin == "zzz_good"
    assert plugins.methods["good"].version == "1.2"
    assert plugins.method_class("good").name == "good"
    assert [(broken.origin, broken.version, broken.stage) for broken in plugins.broken] == [
        ("aaa_broken", "1.2", "import"),
        ("bbb_thief", "1.2", "name"),
    ]
    # Sorted first, yet it could not take the built-in's name.
    assert plugins.methods["zeroq"].origin == "dfqbench"
    assert [name for name in sys.modules if name.startswith(("aaa_broken", "bbb_thief"))] == []


def test_example_package_uses_every_hook(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site.register("dfqbench_example")
    monkeypatch.syspath_prepend(str(EXAMPLES / "example" / "src"))
    monkeypatch.setenv("DFQBENCH_EXAMPLE_LOG", str(tmp_path / "log"))
    plugins = load_plugins()
    assert plugins.broken == []
    assert plugins.methods["stripes"].origin == "dfqbench_example"
    assert plugins.method_class("stripes").title == "Stripes"
    assert plugins.quantizer_class("one-image").name == "one-image"
    assert {"plain"} == set(plugins.models)
    assert {"example"} == set(plugins.targets) == set(plugins.claims)
    families = plugins.model_families
    [model] = Catalogue.discover([], plugins.targets.values(), families).models("stripes-toy")
    assert isinstance(model, ModelSpec)
    assert load_grid("example", plugins).on == ("stripes-toy",)
    assert plugins.record_finished({"method": "stripes", "status": "ok"}) == []
    cell = {"method": "stripes"}
    assert plugins.observe("progress", cell=cell, phase="synthesis", step=3, total=9, scalars={}) == []
    assert (tmp_path / "log").read_text() == '["stripes", "ok"]\n["stripes", "synthesis", 3]\n'


def test_rollback_keeps_libraries_that_a_plugin_imported(site: Site) -> None:
    (site.folder / "some_library.py").write_text("")
    site.install("half", "import some_library\nraise RuntimeError('late')\n")
    [broken] = load_plugins().broken
    assert broken.message == "RuntimeError: late"
    assert "some_library" in sys.modules
    assert "half" not in sys.modules


def test_record_finished_calls_every_plugin(tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("bad_observer.py", "observer.py")]
    for file in files:
        shutil.copy(EXAMPLES / file.name, file)
    plugins = load_plugins(files)
    record = {"method": "zeroq", "status": "ok", "scheme": {"label": "w4a4@gdfq"}}
    failed = plugins.record_finished(record)
    assert [(entry.name, entry.stage) for entry in failed] == [("bad_observer", "record_finished")]
    assert (tmp_path / "observer.seen").read_text() == "zeroq ok\n"
    assert record == {"method": "zeroq", "status": "ok", "scheme": {"label": "w4a4@gdfq"}}
