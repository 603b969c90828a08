"""Loading of plugins: broken ones are recorded and undone, and do not affect the others."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent

import pytest

from dfqbench.api import API_VERSION, InputError, Method, PluginError, UsageError
from dfqbench.grid import load_grid
from dfqbench.models.spec import ModelSpec
from dfqbench.plugins import BrokenPlugin, Plugins, load_plugins
from dfqbench.targets.catalogue import Catalogue

EXAMPLES = Path(__file__).parent / "plugins"
BROKEN = EXAMPLES / "broken"

CASES = [
    ("raises_on_import", "import", "ModuleNotFoundError: No module named 'dfqbench_no_such_library'"),
    ("exits_on_import", "import", "sys.exit(3)"),
    ("wrong_signature", "register", "'config'"),
    ("misspelt_hook", "register", "dfqbench_method"),
    ("no_hooks", "register", "it has no hooks; mark a function"),
    ("raises_in_hook", "offer", "KeyError: 'offer'"),
    ("offers_garbage", "offer", "offered <class 'dict'>; return a list of Offer"),
    ("newer_api", "api", f"is for version {API_VERSION + 1} of the plugin interface"),
    ("older_api", "api", f"set api={API_VERSION}"),
    ("name_taken", "name", "method 'zeroq' is already offered by dfqbench"),
]


def only(broken: list[BrokenPlugin], name: str) -> BrokenPlugin:
    [entry] = [entry for entry in broken if entry.name == name]
    return entry


def test_built_in_methods_come_through_entry_points() -> None:
    plugins = load_plugins()
    assert {"zeroq", "noise"} <= set(plugins.methods)
    assert plugins.methods["zeroq"].origin == "dfqbench"
    assert plugins.methods["zeroq"].version
    assert plugins.quantizers["calibrate"].load == "dfqbench.quantizers.calibrate:Calibrate"


def test_built_ins_keep_the_contract() -> None:
    plugins = load_plugins()
    assert plugins.broken == []
    for name in plugins.methods:
        assert plugins.method_class(name).name == name
    for name in plugins.quantizers:
        assert plugins.quantizer_class(name).name == name


def test_local_file() -> None:
    plugins = load_plugins([EXAMPLES / "flat.py"])
    offer = plugins.methods["flat"]
    assert offer.path == EXAMPLES / "flat.py"
    assert offer.origin == str(EXAMPLES / "flat.py")
    assert offer.version == ""
    flat = plugins.method_class("flat")
    assert issubclass(flat, Method)
    assert flat.title == "Flat colours"
    assert flat.__module__ in sys.modules
    assert plugins.files == (EXAMPLES / "flat.py",)


@pytest.mark.parametrize("load", [":Flat", "mine:Flat"])
def test_local_load_strings(tmp_path: Path, load: str) -> None:
    text = (EXAMPLES / "flat.py").read_text().replace('":Flat"', f'"{load}"')
    (tmp_path / "mine.py").write_text(text)
    assert load_plugins([tmp_path / "mine.py"]).method_class("flat").name == "flat"


def test_edited_local_file_is_reloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    mine = tmp_path / "mine.py"
    shutil.copy(EXAMPLES / "flat.py", mine)
    assert load_plugins([mine]).method_class("flat").title == "Flat colours"
    # As long as before, within the same second: bytecode would still be taken for fresh.
    mine.write_text(mine.read_text().replace("Flat colours", "Bald colours"))
    assert load_plugins([mine]).method_class("flat").title == "Bald colours"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["mine.py"]


def test_same_file_twice_is_loaded_once() -> None:
    plugins = load_plugins([EXAMPLES / "flat.py", EXAMPLES / "broken" / ".." / "flat.py"])
    assert plugins.broken == []
    assert "flat" in plugins.methods


@pytest.mark.parametrize(("name", "stage", "message"), CASES)
def test_broken_plugin_is_recorded_and_undone(name: str, stage: str, message: str) -> None:
    file = BROKEN / f"{name}.py"
    before = set(sys.modules)
    plugins = load_plugins([file, EXAMPLES / "flat.py"])
    broken = only(plugins.broken, name)
    assert broken.stage == stage
    assert message in broken.message
    assert "\n" not in broken.message
    assert broken.origin == str(file)
    assert "Traceback" in broken.traceback
    assert [module for module in set(sys.modules) - before if module.endswith(name)] == []
    # The others are loaded, and nothing of the broken one is left.
    assert {"flat", "zeroq", "noise"} <= set(plugins.methods)
    assert {offer.path for offer in plugins.methods.values()} <= {None, EXAMPLES / "flat.py"}


def test_offer_without_a_version_is_for_the_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("dfqbench.plugins.loader.API_VERSION", 2)
    mine = tmp_path / "mine.py"
    mine.write_text(
        "from dfqbench.api import Offer, hookimpl\n"
        "@hookimpl\ndef dfqbench_methods():\n    return [Offer('mine', ':Mine')]\n"
    )
    broken = only(load_plugins([mine]).broken, "mine")
    assert broken.stage == "api"
    assert broken.message == (
        "method 'mine' is for version 1 of the plugin interface, and dfqbench 0.1.0 has version 2; "
        f"upgrade {mine}, or port it and set api=2"
    )


def test_import_error_of_dfqbench_names_the_version(tmp_path: Path) -> None:
    mine = tmp_path / "mine.py"
    mine.write_text("from dfqbench.api import Telepathy\n")
    broken = only(load_plugins([mine]).broken, "mine")
    assert broken.stage == "import"
    assert "it asks dfqbench for what it does not have: cannot import name 'Telepathy'" in broken.message
    assert f"has version {API_VERSION} of the plugin interface; upgrade whichever is older" in broken.message


def test_name_taken_leaves_the_first_owner() -> None:
    plugins = load_plugins([BROKEN / "name_taken.py"])
    assert plugins.methods["zeroq"].origin == "dfqbench"
    assert "free_name" not in plugins.methods
    assert plugins.method_class("zeroq").__name__ == "ZeroQ"


def test_all_broken_at_once() -> None:
    plugins = load_plugins([*sorted(BROKEN.glob("*.py")), EXAMPLES / "flat.py"])
    assert {broken.name for broken in plugins.broken} == {name for name, *_ in CASES}
    assert "flat" in plugins.methods


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("unresolved_load", "has no attribute 'Missing'"),
        ("plain_params", "is not a dataclass; write it as @dataclass(frozen=True)"),
    ],
)
def test_broken_class(name: str, message: str) -> None:
    plugins = load_plugins([BROKEN / f"{name}.py"])
    method = name.removesuffix("_load")
    with pytest.raises(PluginError) as caught:
        plugins.method_class(method)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
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
def test_contract(tmp_path: Path, old: str, new: str, message: str) -> None:
    text = (EXAMPLES / "flat.py").read_text()
    assert old in text
    (tmp_path / "mine.py").write_text(text.replace(old, new))
    plugins = load_plugins([tmp_path / "mine.py"])
    with pytest.raises(PluginError) as caught:
        plugins.method_class("flat")
    assert message in str(caught.value)
    assert f"method 'flat' ({tmp_path / 'mine.py'})" in str(caught.value)


def test_method_class_of_a_broken_plugin_raises_the_reason() -> None:
    plugins = load_plugins([BROKEN / "raises_on_import.py"])
    assert plugins.broken_names == ("raises_on_import",)
    with pytest.raises(PluginError, match="did not load: ModuleNotFoundError"):
        plugins.method_class("raises_on_import")


def test_unknown_method_suggests_similar_names() -> None:
    with pytest.raises(UsageError, match="unknown method 'zerq'; did you mean zeroq"):
        load_plugins().method_class("zerq")


@pytest.mark.parametrize("name", ["absent.py", "README.md"])
def test_file_that_is_no_plugin(name: str) -> None:
    with pytest.raises(InputError, match=name):
        load_plugins([EXAMPLES / name])


def test_plugin_output_goes_to_stderr(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mine = tmp_path / "mine.py"
    mine.write_text("print('hello')\n" + (EXAMPLES / "flat.py").read_text().replace("from __future__", "#"))
    load_plugins([mine])
    out, err = capsys.readouterr()
    assert out == ""
    assert "hello" in err


@pytest.mark.parametrize(
    ("hook", "kind", "offer", "message"),
    [
        ("methods", "Offer", 'Offer("Bad Name", ":X")', "use lower case letters"),
        ("methods", "Offer", 'Offer("real", ":X")', "already offered by dfqbench"),
        ("methods", "Offer", 'Offer("mine", "X")', "write it as 'package.module:Class'"),
        ("methods", "Offer", 'Offer("mine", ":X"), Offer("mine", ":Y")', "already offered by the same plugin"),
        ("quantizers", "Offer", 'Offer("calibrate", ":X")', "quantizer 'calibrate' is already offered by dfqbench"),
        ("models", "Offer", 'Offer("timm", ":X")', "model 'timm' is already offered by dfqbench"),
        ("grids", "FileOffer", 'FileOffer("w4a4", __file__)', "grid 'w4a4' is already offered by dfqbench"),
        ("grids", "FileOffer", 'FileOffer("mine", "absent.toml")', "not an absolute path that exists"),
    ],
)
def test_bad_offers(tmp_path: Path, hook: str, kind: str, offer: str, message: str) -> None:
    mine = tmp_path / "mine.py"
    mine.write_text(
        f"from dfqbench.api import {kind}, hookimpl\n@hookimpl\ndef dfqbench_{hook}():\n    return [{offer}]\n"
    )
    assert message in only(load_plugins([mine]).broken, "mine").message


def test_every_offering_hook(tmp_path: Path) -> None:
    mine = tmp_path / "mine.py"
    mine.write_text(
        dedent("""
        from pathlib import Path
        from dfqbench.api import FileOffer, Offer, Quantizer, hookimpl

        class Mine(Quantizer):
            name = "mine"
            title = "Mine"
            recipes = {"hot": {}}
            default_recipe = "hot"
            def quantize(self, teacher, source, ctx): ...

        @hookimpl
        def dfqbench_quantizers(): return (Offer("mine", ":Mine"),)
        @hookimpl
        def dfqbench_range_rules(): return [Offer("widest", ":Widest")]
        @hookimpl
        def dfqbench_models(): yield Offer("family", ":build")
        @hookimpl
        def dfqbench_targets(): return [FileOffer("data", str(Path(__file__).parent))]
        @hookimpl
        def dfqbench_grids(): return [FileOffer("grid", __file__)]
        @hookimpl
        def dfqbench_claims(): return [FileOffer("claims", __file__)]
        """)
    )
    plugins = load_plugins([mine])
    assert plugins.broken == []
    assert plugins.quantizer_class("mine").default_recipe == "hot"
    assert plugins.range_rules["widest"].load.endswith(":Widest")
    assert plugins.models["family"].load.endswith(":build")
    assert plugins.targets["data"].path == tmp_path
    assert plugins.grids["grid"].path == mine
    assert plugins.claims["claims"].path == mine


@dataclass
class Site:
    """A folder on `sys.path` that distributions can be installed into."""

    folder: Path

    def install(self, package: str, plugin: str, entry: str = "plugin", version: str = "1.2") -> None:
        (self.folder / package).mkdir()
        (self.folder / package / "__init__.py").write_text("")
        (self.folder / package / "plugin.py").write_text(plugin)
        info = self.folder / f"{package}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")
        (info / "entry_points.txt").write_text(f"[dfqbench.methods]\n{entry} = {package}.plugin\n")


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)
    yield Site(tmp_path)
    for name in set(sys.modules) - before:
        del sys.modules[name]


def offering(package: str, name: str) -> str:
    text = (EXAMPLES / "flat.py").read_text()
    return text.replace('Offer("flat", ":Flat")', f'Offer("{name}", "{package}.plugin:Flat")').replace(
        'name = "flat"', f'name = "{name}"'
    )


def test_installed_plugins_are_isolated(site: Site) -> None:
    site.install("aaa_broken", "from aaa_broken import helper\n")
    site.install("bbb_thief", offering("bbb_thief", "zeroq"))
    site.install("zzz_good", offering("zzz_good", "good"))
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


def test_example_package_uses_every_hook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = tmp_path / "dfqbench_example-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: dfqbench-example\nVersion: 0.1.0\n")
    (info / "entry_points.txt").write_text("[dfqbench.methods]\nexample = dfqbench_example.plugin\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.syspath_prepend(str(EXAMPLES / "example" / "src"))
    monkeypatch.setenv("DFQBENCH_EXAMPLE_LOG", str(tmp_path / "log"))
    try:
        plugins = load_plugins()
        assert plugins.broken == []
        assert plugins.methods["stripes"].origin == "dfqbench-example"
        assert plugins.method_class("stripes").title == "Stripes"
        assert plugins.quantizer_class("one-image").name == "one-image"
        assert {"plain"} == set(plugins.models)
        assert {"example"} == set(plugins.targets) == set(plugins.claims)
        catalogue = Catalogue.discover(
            [], plugins.targets.values(), {name: offer.load for name, offer in plugins.models.items()}
        )
        [model] = catalogue.models("stripes-toy")
        assert isinstance(model, ModelSpec)
        assert load_grid("example", plugins).on == ("stripes-toy",)
        assert plugins.record_finished({"method": "stripes", "status": "ok"}) == []
        assert (tmp_path / "log").read_text() == '["stripes", "ok"]\n'
    finally:
        for name in [name for name in sys.modules if name.partition(".")[0] == "dfqbench_example"]:
            del sys.modules[name]


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
    plugins: Plugins = load_plugins(files)
    record = {"method": "zeroq", "status": "ok", "scheme": {"label": "w4a4@gdfq"}}
    failed = plugins.record_finished(record)
    assert [(entry.name, entry.stage) for entry in failed] == [("bad_observer", "record_finished")]
    assert (tmp_path / "observer.seen").read_text() == "zeroq ok\n"
    assert record == {"method": "zeroq", "status": "ok", "scheme": {"label": "w4a4@gdfq"}}
