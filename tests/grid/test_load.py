from __future__ import annotations

import re
from pathlib import Path

import pytest

from dfqbench.api import InputError, UsageError
from dfqbench.grid.choice import resolve_methods
from dfqbench.grid.load import load_grid
from dfqbench.grid.schema import Grid
from dfqbench.plugins import Plugins, load_plugins

GOOD = 'schemes = ["w4a4"]\n'
PROTOCOL = 'schemes = ["w4a4@mine"]\n[protocols.mine]\n'


@pytest.fixture(scope="module")
def plugins() -> Plugins:
    return load_plugins()


def read(tmp_path: Path, text: str) -> Grid:
    (tmp_path / "mine.toml").write_text(text)
    return load_grid(str(tmp_path / "mine.toml"), load_plugins())


def test_presets(plugins: Plugins) -> None:
    names = {name for name in plugins.grids if not name.startswith("table-")}
    assert names == {"first", "smoke", "w4a4", "w3a3", "w5a5", "w8a8", "bits"}
    for name in plugins.grids:
        assert load_grid(name, plugins).name == name
    smoke = load_grid("smoke", plugins)
    assert (smoke.on, smoke.methods, smoke.budget) == (("digits",), ("zeroq", "noise"), "smoke")
    w4a4 = load_grid("w4a4", plugins)
    assert (w4a4.on, w4a4.methods[0], w4a4.budget, w4a4.seeds) == ((), "*", "auto", (0,))
    assert w4a4.models_for("cifar10") == ("cifar:resnet20",)
    assert w4a4.models_for("digits") == ("digits:resnet8",)
    bits = [(scheme.w_bits, scheme.a_bits) for scheme in load_grid("bits", plugins).parsed_schemes]
    assert bits == [(8, 8), (5, 5), (4, 4), (3, 3), (2, 2)]


@pytest.mark.parametrize("name", ["w4a4", "w3a3", "w5a5", "w8a8", "bits"])
def test_presets_have_both_controls_under_two_quantizers(name: str, plugins: Plugins) -> None:
    grid = load_grid(name, plugins)
    chosen = [choice.label for choice in resolve_methods(grid.methods, plugins, grid.controls)]
    assert chosen[-4:] == ["noise", "real", "noise+distill:gdfq", "real+distill:gdfq"]


def test_unknown_grid_and_absent_file(tmp_path: Path, plugins: Plugins) -> None:
    with pytest.raises(UsageError, match=r"unknown grid 'w4a5'; did you mean .*valid: bits, first, smoke"):
        load_grid("w4a5", plugins)
    with pytest.raises(InputError, match=r"absent.toml cannot be read: no such file"):
        load_grid(tmp_path / "absent.toml", plugins)


def test_grid_of_a_plugin(tmp_path: Path) -> None:
    (tmp_path / "night.toml").write_text('name = "night"\nschemes = ["w2a2@deploy"]\n')
    offer = f"def dfqbench_grids(): return [FileOffer('night', {str(tmp_path / 'night.toml')!r})]"
    (tmp_path / "mine.py").write_text(f"from dfqbench.api import FileOffer, hookimpl\n@hookimpl\n{offer}\n")
    plugins = load_plugins([tmp_path / "mine.py"])
    assert load_grid("night", plugins).parsed_schemes[0].protocol.name == "deploy"
    assert plugins.grids["night"].origin == str(tmp_path / "mine.py")


@pytest.mark.parametrize("text", ["[set]\nzeroq.lr = 0.1\nzeroq.n = 2\n", '[set]\n"zeroq.lr" = 0.1\n"zeroq.n" = 2\n'])
def test_settings_and_name_of_a_file(tmp_path: Path, text: str) -> None:
    grid = read(tmp_path, GOOD + text)
    assert grid.name == "mine"
    assert grid.settings_for("zeroq") == {"lr": 0.1, "n": 2}
    assert grid.settings_for("zero") == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("schemes = [", "is not valid TOML: invalid value"),
        ("", "key 'schemes' is missing; write for example schemes = ["),
        (GOOD + "seeds = []", "key 'seeds' is empty; write for example seeds = ["),
        (GOOD + "sheme = 1", "unknown key 'sheme'; did you mean schemes? valid: absent, budget, controls"),
        (GOOD + "recipe = 'a+b'", "key 'recipe': 'a+b' is not a recipe; write recipe or quantizer:recipe"),
        (GOOD + "recipe = 1", "key 'recipe': input should be a valid string, not 1"),
        (GOOD + "seeds = ['a']", "key 'seeds.0': input should be a valid integer, not 'a'"),
        (GOOD + "seeds = [-1]", "key 'seeds.0'"),
        (GOOD + "threads = 0", "key 'threads': input should be greater than or equal to 1, not 0"),
        (GOOD + "limit = 0", "key 'limit'"),
        (GOOD + "budget = 'long'", "key 'budget': unknown budget 'long'"),
        (GOOD + "methods = ['a b']", "key 'methods.0': 'a b' is not a method choice"),
        (GOOD + "methods = []", "key 'methods'"),
        (GOOD + "precision = 'half'", "key 'precision': input should be 'auto', 'float32'"),
        (GOOD + "on = 'digits'", "key 'on'"),
        (GOOD + "models = ['a']", "key 'models'"),
        (GOOD + "[set]\nlr = 1", "key 'set': 'lr' is not a parameter"),
        ("schemes = ['w4a4@mine']", "unknown protocol 'mine'"),
        ("schemes = ['w9a4']", "9 bits for weights are not supported"),
        ("name = 'a/b'\n" + GOOD, "key 'name'"),
        (GOOD + "[protocols]\nm = 3", "key 'protocols.m'"),
        (GOOD + "[protocols.gdfq]\nfirst_bits = 8\n", "protocol 'gdfq' is built in"),
        (
            GOOD + "[protocols.mine.activations]\ngranularity = 'channel'\n",
            "protocol 'mine': activations have one range for each tensor",
        ),
        (PROTOCOL + "base = 'other'", "unknown base of protocol 'mine' 'other'"),
        (PROTOCOL + "bass = 1", "unknown key of protocol 'mine' 'bass'; did you mean base"),
        (PROTOCOL + "name = 'x'", "unknown key of protocol 'mine' 'name'"),
        (PROTOCOL + "version = 2", "unknown key of protocol 'mine' 'version'"),
        (PROTOCOL + "second_input_bits = 9", "protocol 'mine': 9 bits are not supported"),
        (PROTOCOL + "weights = { symetric = true }", "unknown key of protocol 'mine', weights 'symetric'"),
        (PROTOCOL + "weights = 3", "3 is not a table"),
        (PROTOCOL + "placement = 'nowhere'", "protocol 'mine': key 'placement'"),
        (PROTOCOL + "last_bits = 9", "9 bits are not supported"),
        (PROTOCOL + "overrides = [{ pattern = 'a', w_bits = 1 }]", "1 bits are not supported"),
        (PROTOCOL + "overrides = [{ patern = 'a' }]", "overrides 'patern'"),
        (PROTOCOL + "overrides = 3", "key 'overrides'"),
    ],
)
def test_faults_name_file_and_key_in_one_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        read(tmp_path, text)
    assert str(tmp_path / "mine.toml") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_protocol_of_a_grid(tmp_path: Path) -> None:
    text = 'base = "deploy"\nfirst_bits = "none"\nlast_bits = 4\nweights = { granularity = "tensor" }\n'
    grid = read(tmp_path, PROTOCOL + text + 'overrides = [{ pattern = "layer4.*", w_bits = 8 }]\n')
    [scheme] = grid.parsed_schemes
    mine = scheme.protocol
    assert (scheme.label, mine.first_bits, mine.last_bits, mine.fold_batchnorm) == ("w4a4@mine", None, 4, True)
    assert (mine.weights.granularity, mine.weights.symmetric) == ("tensor", True)
    override = scheme.overridden("layer4.0.conv1")
    assert override is not None
    assert (override.w_bits, override.a_bits) == (8, None)
