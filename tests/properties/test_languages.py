"""What is typed on the command line: read as it was written, and nothing accepted outside the grammar."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.properties.examples import MORE, NOT_FINITE, is_json, near, only

from dfqbench.api.errors import DfqError
from dfqbench.cli.options import checked_device
from dfqbench.cli.run import checked_name, limit_of, seconds_of
from dfqbench.grid.choice import MethodChoice, parse_method, parse_methods
from dfqbench.grid.selectors import parse_seeds, parse_selection
from dfqbench.models.reference import ARCHITECTURES, parse_options, parse_reference
from dfqbench.plugins import load_plugins
from dfqbench.plugins.params import build_params, params_dict
from dfqbench.quant.scheme import PROTOCOLS, VALID_BITS, Scheme, parse_scheme

PLUGINS = load_plugins()
PARAMS = {name: PLUGINS.method_class(name).params_type for name in PLUGINS.methods}
PARAMS |= {name: PLUGINS.quantizer_class(name).params_type for name in PLUGINS.quantizers}
NAME = "[A-Za-z0-9][A-Za-z0-9_-]*"
CHOICE = rf"{NAME}(\+{NAME}(:{NAME})?)?"
SEEDS = "[0-9]{1,9}(-[0-9]{1,9})?"
TIME = r"[0-9]{1,9}(\.[0-9]{1,9})?[smhd]?"
ARGUMENT = r"(\w|%[0-9a-fA-F]{2})+=[^&]*"
QUERY = f"{ARGUMENT}(&{ARGUMENT})*"
OWN = "|".join(f"{family}:({'|'.join(names)})" for family, names in ARCHITECTURES.items())
REFERENCE = rf"({OWN}|(torchvision|timm|pytorchcv):[A-Za-z0-9][A-Za-z0-9_.-]*|py:(.|\s)+:[^\W\d]\w*)(\?{QUERY})?"


def several(part: str) -> str:
    return rf"[\s,]*{part}(\s*,[\s,]*{part})*[\s,]*"


LANGUAGES: dict[str, tuple[Callable[[str], Any], str, list[str]]] = {
    "scheme": (
        parse_scheme,
        r"\s*[wW]([2-8]|32)[aA]([2-8]|32)(@([gG][dD][fF][qQ]|[dD][eE][pP][lL][oO][yY]))?\s*",
        ["w4a4", "W3A32@gdfq", "w8a8@deploy"],
    ),
    "method": (parse_method, rf"\s*{CHOICE}\s*", ["zeroq", "gdfq+distill", "noise+distill:kmdfq"]),
    "methods": (parse_methods, several(rf"({CHOICE}|\*)"), ["*", "zeroq,noise", "zeroq+distill:gdfq, real"]),
    "seeds": (parse_seeds, several(SEEDS), ["0", "0-4", "1,2,7-9"]),
    "time": (lambda text: seconds_of("--checkpoint-every", text), rf"\s*{TIME}\s*", ["90", "1.5h", "30m", "0s", "2d"]),
    "limit": (
        lambda text: limit_of("--time-limit", text),
        rf"(?=[^1-9]*[1-9])\s*{TIME}\s*",
        ["90", "1.5h", "0.5s", "0"],
    ),
    "setting": (
        lambda text: parse_selection(settings=[text]),
        r"\s*[^.\s=]+\.[^.\s=]+\s*=(.|\s)*",
        ["zeroq.iterations=100", "gdfq.lr=1e-4", "distill.range=ema"],
    ),
    "device": (checked_device, r"auto|cpu|cuda(:[0-9]{1,3})?", ["cpu", "cuda", "cuda:0"]),
    "name": (checked_name, "[A-Za-z0-9][A-Za-z0-9_.-]{0,99}", ["night", "run-1.2_b"]),
    "options": (parse_options, f"({QUERY})?", ["", "weights=random", "weights=a%20b.pt&classes=10"]),
    "reference": (
        parse_reference,
        rf"\s*{REFERENCE}\s*",
        ["digits:resnet8", "torchvision:resnet18?weights=random", "py:a/b.py:net", "cifar:resnet20?mean=[1,2]"],
    ),
}


@pytest.mark.parametrize("language", LANGUAGES)
@given(data=st.data())
def test_nothing_is_accepted_outside_the_grammar(language: str, data: st.DataObject) -> None:
    parse, grammar, valid = LANGUAGES[language]
    text = data.draw(st.one_of(near(st.sampled_from(valid)), st.text(max_size=12), st.lists(MORE).map("".join)))
    if only(DfqError, lambda: (parse(text),)) is not None:
        assert re.fullmatch(grammar, text), f"accepted: {text[:100]!r}"


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_examples_are_accepted(language: str) -> None:
    parse, grammar, valid = LANGUAGES[language]
    for text in valid:
        assert re.fullmatch(grammar, text) or text == "0"
        assert text == "0" or parse(text) is not None


names = st.from_regex(r"[a-z0-9][a-z0-9_-]{0,12}", fullmatch=True)
bits = st.sampled_from(VALID_BITS)
schemes = st.builds(Scheme, bits, bits, st.sampled_from(list(PROTOCOLS.values())))
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**20), 10**20) | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


@given(schemes)
def test_scheme_is_read_as_it_is_written(scheme: Scheme) -> None:
    assert parse_scheme(scheme.label) == parse_scheme(f" {scheme.label.upper()} ") == scheme
    assert Scheme.from_dict(json.loads(json.dumps(scheme.as_dict()))) == scheme


@given(st.one_of(st.builds(MethodChoice, names, st.none() | names), st.builds(MethodChoice, names, names, names)))
def test_method_choice_is_read_as_it_is_written(choice: MethodChoice) -> None:
    assert parse_method(choice.label) == parse_method(choice.label.upper()) == choice
    assert parse_methods(f"{choice.label}, *,{choice.label}") == (choice.label, "*")


@given(st.lists(st.tuples(st.integers(0, 10**9 - 1), st.integers(0, 20)), min_size=1, max_size=5))
def test_seeds_are_read_as_they_are_written(ranges: list[tuple[int, int]]) -> None:
    ranges = [(low, min(low + more, 10**9 - 1)) for low, more in ranges]
    seeds = [seed for low, high in ranges for seed in range(low, high + 1)]
    assert parse_seeds(",".join(f"{low}-{high}" for low, high in ranges)) == tuple(dict.fromkeys(seeds))
    assert parse_seeds(",".join(map(str, seeds))) == tuple(dict.fromkeys(seeds))


@given(st.integers(0, 10**6), st.sampled_from([("s", 1), ("m", 60), ("h", 3_600), ("d", 86_400), ("", 1)]))
def test_time_is_read_as_it_is_written(number: int, unit: tuple[str, int]) -> None:
    assert seconds_of("--time-limit", f"{number}{unit[0]}") == number * unit[1]
    assert seconds_of("--time-limit", f"{number}.5{unit[0]}") == (number + 0.5) * unit[1]


@given(st.dictionaries(st.from_regex("[a-z_][a-z0-9_]{0,8}", fullmatch=True), json_values, max_size=4))
def test_arguments_of_a_reference_are_read_as_they_are_written(arguments: dict[str, Any]) -> None:
    query = "&".join(f"{key}={quote(json.dumps(value))}" for key, value in arguments.items())
    text = f"py:net.py:build{'?' * bool(query)}{query}"
    reference = parse_reference(text)
    assert dict(reference.options) == parse_options(query) == arguments
    assert reference.bare == "py:net.py:build"


@given(st.dictionaries(st.sampled_from(["zeroq.lr", "gdfq.epochs", "x.y"]), st.text(max_size=9)))
def test_settings_are_read_as_they_are_written(values: dict[str, str]) -> None:
    texts = [f"{key}={value}" for key, value in values.items()]
    assert parse_selection(settings=texts)["settings"] == values
    assert parse_selection(settings=texts * 2)["settings"] == values


@pytest.mark.parametrize("owner", PARAMS)
@given(data=st.data())
def test_accepted_parameter_is_finite_and_read_as_it_is_recorded(owner: str, data: st.DataObject) -> None:
    params_type = PARAMS[owner]
    defaults = params_dict(params_type())
    if not defaults:
        return
    name = data.draw(st.sampled_from(list(defaults)))
    written = json.dumps(defaults[name]) if not isinstance(defaults[name], str) else defaults[name]
    value = data.draw(
        st.one_of(near(st.just(written)), st.sampled_from(["[NaN]", "[1,Infinity]", "1e999"]), NOT_FINITE)
    )
    params = only(DfqError, lambda: build_params(params_type, {name: value}, owner))
    if params is not None:
        assert is_json(params_dict(params)), f"{name} = {value!r}"
        assert build_params(params_type, params_dict(params), owner) == params
