from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from dfqbench.api import UsageError
from dfqbench.grid.choice import MethodChoice, parse_methods, resolve_methods
from dfqbench.grid.load import load_grid
from dfqbench.grid.schema import Grid
from dfqbench.grid.selectors import apply, parse_selection
from dfqbench.plugins import Plugins, load_plugins

EXAMPLES = Path(__file__).parents[1] / "plugins"

DISTILL = """
from dfqbench.api import Fidelity, Method, Offer, Quantizer, hookimpl

class Train(Quantizer):
    name = "train"
    title = "Trains"
    recipes = {"hot": {}, "cold": {}}
    default_recipe = "cold"
    def quantize(self, teacher, source, ctx): ...

class Gen(Method):
    name = "gen"
    title = "Gen"
    paper = "none"
    fidelity = Fidelity.PAPER
    quantizer = "train:hot"
    def synthesize(self, teacher, ctx): ...

@hookimpl
def dfqbench_quantizers(): return [Offer("train", ":Train")]
@hookimpl
def dfqbench_methods(): return [Offer("gen", ":Gen")]
"""


@pytest.fixture
def plugins(tmp_path: Path) -> Plugins:
    (tmp_path / "gen.py").write_text(DISTILL)
    return load_plugins([tmp_path / "gen.py"])


@pytest.fixture
def grid() -> Grid:
    return load_grid("w4a4", load_plugins())


def labels(text: str, plugins: Plugins) -> list[str]:
    return [choice.label for choice in resolve_methods(parse_methods(text), plugins)]


def test_star_is_every_method_and_noise_but_not_real_and_each_once(plugins: Plugins) -> None:
    every = labels("*", plugins)
    assert set(every) == set(plugins.methods) - {"none", "uniform", "fractal"}
    assert every[-1] == "noise"
    assert labels("*,real,zeroq", plugins) == [*every, "real"]
    assert labels("gen, gen+train:hot, gen", plugins) == ["gen"]


@pytest.mark.parametrize(
    ("methods", "controls", "added"),
    [
        ("zeroq", "all", ["noise", "real"]),
        ("zeroq,real", "all", ["real", "noise"]),
        ("gen", "all", ["noise+train:hot", "real+train:hot"]),
        ("noise+train,zeroq", "all", ["noise", "real", "real+train:cold"]),
        ("zeroq,noise,real+train", "none", []),
        ("zeroq,noise", None, ["noise"]),
        ("zeroq,gen", "fractal", ["fractal", "fractal+train:hot"]),
        ("zeroq", "uniform, Real", ["uniform", "real"]),
    ],
)
def test_controls_follow_the_quantizers_of_the_methods(
    methods: str, controls: str | None, added: list[str], plugins: Plugins
) -> None:
    found = [choice.label for choice in resolve_methods(parse_methods(methods), plugins, controls)]
    assert sorted(set(found) - {"zeroq", "gen", "noise+train:cold"}) == sorted(added)
    assert ("noise+train:cold" in found) == ("noise+train" in methods)


@pytest.mark.parametrize(
    ("methods", "recipe", "expected"),
    [
        ("zeroq,gen,real", "train:hot", ["zeroq+train:hot", "gen", "real+train:hot"]),
        ("gen,zeroq+train,zeroq", "train:cold", ["gen+train:cold", "zeroq+train:cold"]),
        ("noise,noise+train:hot", "train:cold", ["noise+train:cold"]),
        ("zeroq", "GDFQ", ["zeroq+distill:gdfq"]),
    ],
)
def test_one_recipe_for_every_method(methods: str, recipe: str, expected: list[str], plugins: Plugins) -> None:
    found = resolve_methods(parse_methods(methods), plugins, recipe=recipe)
    assert [choice.label for choice in found] == expected


def test_one_recipe_for_star_and_controls(plugins: Plugins) -> None:
    found = resolve_methods(["*"], plugins, "all", recipe="train:hot")
    without = {"gen", "none", "uniform", "fractal"}
    assert {choice.label for choice in found} == {
        *(f"{name}+train:hot" for name in (*plugins.methods, "real") if name not in without),
        "gen",
    }


@pytest.mark.parametrize(
    ("methods", "recipe", "message"),
    [
        ("zeroq+calibrate", "train:hot", "'zeroq+calibrate' is a cross, and the recipe of the whole grid is"),
        ("noise+calibrate", "train:hot", "'noise+calibrate' is a cross"),
        ("zeroq+train:cold", "train:hot", "write zeroq alone, or leave the recipe of the grid out"),
        ("zeroq", "train:warm", "unknown recipe of train 'warm'; valid: cold, hot"),
        ("zeroq", "nosuch:hot", "unknown quantizer 'nosuch'"),
        ("zeroq", "calibrate:hot", "unknown recipe of calibrate 'hot'"),
        ("zeroq", "a:b:c", "'a:b:c' is not a recipe; write recipe or quantizer:recipe"),
    ],
)
def test_recipes_that_do_not_fit(methods: str, recipe: str, message: str, plugins: Plugins) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        resolve_methods(parse_methods(methods), plugins, recipe=recipe)


def test_cross_of_a_method_with_its_own_quantize_is_no_synonym(tmp_path: Path) -> None:
    quantize = "def quantize(self, teacher, source, ctx): ...\n    "
    (tmp_path / "own.py").write_text(DISTILL.replace("def synthesize(", f"{quantize}def synthesize("))
    assert labels("gen,gen+train:hot", load_plugins([tmp_path / "own.py"])) == ["gen", "gen+train:hot"]


def test_controls_of_broken_plugins_and_of_a_grid_without_methods() -> None:
    plugins = load_plugins([EXAMPLES / "broken" / "unresolved_load.py"])
    found = resolve_methods(["unresolved", "zeroq"], plugins, "all")
    assert [choice.label for choice in found] == ["unresolved", "zeroq", "noise", "real"]
    with pytest.raises(UsageError, match="without its controls the grid has no method; name one with --methods"):
        resolve_methods(["noise", "real"], plugins, "none")
    assert resolve_methods(["real+calibrate"], plugins) == [MethodChoice("real")]


@pytest.mark.parametrize("controls", ["zeroq", "nosuch", "noise,", "none,noise"])
def test_controls_that_are_none(controls: str, plugins: Plugins) -> None:
    with pytest.raises(UsageError, match="unknown control '.*valid: all, fractal, noise, none, real, uniform"):
        resolve_methods(["zeroq"], plugins, controls)


def test_star_includes_broken_plugins() -> None:
    plugins = load_plugins([EXAMPLES / "broken" / name for name in ("raises_on_import.py", "unresolved_load.py")])
    assert {"raises_on_import", "unresolved", "zeroq"} <= set(labels("*", plugins))
    assert labels("raises_on_import,zeroq", plugins) == ["raises_on_import", "zeroq"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("zeroq", MethodChoice("zeroq")),
        ("ZeroQ", MethodChoice("zeroq")),
        ("real", MethodChoice("real")),
        ("zeroq+train", MethodChoice("zeroq", "train", "cold")),
        ("zeroq+train:hot", MethodChoice("zeroq", "train", "hot")),
        ("real+train", MethodChoice("real", "train", "cold")),
        ("gen+train:hot", MethodChoice("gen")),
        ("gen+train", MethodChoice("gen", "train", "cold")),
        ("gen+calibrate", MethodChoice("gen", "calibrate")),
        ("zeroq+calibrate", MethodChoice("zeroq")),
    ],
)
def test_choices(text: str, expected: MethodChoice, plugins: Plugins) -> None:
    assert resolve_methods([text], plugins) == [expected]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("zeroq+calibrate:hot", "unknown recipe of calibrate 'hot'"),
        ("zeroq+", "'zeroq+' is not a method choice"),
        ("zeroq:hot", "'zeroq:hot' is not a method choice"),
        (" , ", "no method is named"),
    ],
)
def test_wrong_choices(text: str, message: str, plugins: Plugins) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        labels(text, plugins)


def test_empty_selection_changes_nothing(grid: Grid) -> None:
    assert apply(grid, parse_selection()) == grid


def test_every_selector(grid: Grid) -> None:
    selection = parse_selection(
        on="digits, cifar10",
        models="digits:resnet8,py:a.py:build(1,2)",
        methods="zeroq,real",
        controls="none",
        recipe="distill:gdfq",
        bits="w4a4,w3a3@deploy",
        seeds="0-2,7",
        settings=["zeroq.iterations=100", "zeroq.note=a=b"],
        budget="smoke",
        limit=9,
    )
    changed = apply(grid, selection)
    assert changed.on == ("digits", "cifar10")
    assert changed.models_for("digits") == changed.models_for("cifar10") == ("digits:resnet8", "py:a.py:build(1,2)")
    assert (changed.methods, changed.controls) == (("zeroq", "real"), "none")
    assert changed.recipe == "distill:gdfq"
    assert [scheme.label for scheme in changed.parsed_schemes] == ["w4a4@gdfq", "w3a3@deploy"]
    assert changed.seeds == (0, 1, 2, 7)
    assert changed.settings_for("zeroq") == {"iterations": "100", "note": "a=b"}
    assert (changed.budget, changed.limit) == ("smoke", 9)
    assert (changed.name, changed.title) == (grid.name, grid.title)


def test_settings_and_protocols_of_the_grid_are_kept() -> None:
    protocols = {"mine": {"first_bits": 8}}
    given: dict[str, Any] = {
        "name": "x",
        "schemes": ["w4a4"],
        "set": {"zeroq.a": 1, "zeroq.b": 1},
        "protocols": protocols,
    }
    changed = apply(Grid.model_validate(given), parse_selection(bits="w3a3@mine", settings=["zeroq.b=2"]))
    assert changed.settings_for("zeroq") == {"a": 1, "b": "2"}
    assert changed.parsed_schemes[0].protocol.first_bits == 8


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"on": ","}, "--on names nothing"),
        ({"models": ""}, "--models names nothing"),
        ({"bits": "4"}, "'4' is not a scheme"),
        ({"bits": "w1a4"}, "1 bits for weights"),
        ({"recipe": "a+b"}, "'a+b' is not a recipe"),
        ({"seeds": "x"}, "'x' is not a seed"),
        ({"seeds": "-1"}, "'-1' is not a seed"),
        ({"seeds": "4-2"}, "not a range of seeds"),
        ({"seeds": "0-999999999"}, "at most 1000 seeds"),
        ({"settings": ["zeroq.lr"]}, "--set zeroq.lr has no value"),
        ({"settings": ["lr=1"]}, "'lr' is not a parameter"),
    ],
)
def test_wrong_selections(given: dict[str, Any], message: str, grid: Grid) -> None:
    with pytest.raises(UsageError, match=re.escape(message)) as caught:
        apply(grid, parse_selection(**given))
    assert "\n" not in str(caught.value)
