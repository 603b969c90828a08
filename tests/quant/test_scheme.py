"""Schemes as data."""

from __future__ import annotations

import dataclasses
import json

import pytest

from dfqbench.api import UsageError
from dfqbench.quant.scheme import DEPLOY, GDFQ, PROTOCOLS, Override, Scheme, parse_scheme


def test_a_label_names_bits_and_protocol() -> None:
    scheme = parse_scheme("W3A8@deploy")
    assert (scheme.w_bits, scheme.a_bits, scheme.protocol) == (3, 8, DEPLOY)
    assert scheme.label == "w3a8@deploy"
    assert parse_scheme("w4a4").protocol == GDFQ


@pytest.mark.parametrize(
    ("label", "full"),
    [
        ("w4a4:size=4bit", "w4a4@gdfq:size=4bit"),
        ("W3A8@deploy:bops=3bit", "w3a8@deploy:bops=3bit"),
        ("w4a4:size=2.5MiB", "w4a4@gdfq:size=2.5MiB"),
    ],
)
def test_a_label_names_the_budget_of_mixed_precision(label: str, full: str) -> None:
    scheme = parse_scheme(label)
    assert scheme.label == full
    assert Scheme.from_dict(json.loads(json.dumps(scheme.as_dict()))) == scheme == parse_scheme(full)
    assert scheme.mixed is not None
    assert "mixed" not in parse_scheme("w4a4").as_dict()


def test_layers_get_their_bits_by_name_and_keep_those_of_activations() -> None:
    protocol = dataclasses.replace(GDFQ, name="mine", overrides=(Override("layer*", a_bits=6),))
    scheme = Scheme(4, 4, protocol).with_layers({"layer1[0]": 2, "fc": 8})
    assert [scheme.overridden(name) for name in ("layer10", "layer1[0]", "fc")] == [
        protocol.overrides[0],
        Override("layer1[[]0]", 2, 6),
        Override("fc", 8),
    ]


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ("w4a4:", "'' is not a budget; write size=4bit"),
        ("w4a4:bops=2MiB", "'bops=2MiB' is not a budget"),
        ("w9a4:size=9bit", "size=9bit cannot be met; name 2 to 8 bits"),
        ("w32a4:size=1MiB", "weights in float have no budget"),
        *((label, "write bits@protocol") for label in ("w4", "4/4", "w4a4@", "a4w4", "")),
        *((label, "use 2 to 8, or 32 for off") for label in ("w1a4", "w4a9", "w16a16")),
        ("w4a4@deplay", "unknown protocol 'deplay'.*did you mean deploy"),
    ],
)
def test_refused_label_names_the_valid_ones(label: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_scheme(label)


def test_plain_data_and_back() -> None:
    protocol = dataclasses.replace(DEPLOY, name="mine", overrides=(Override("layer4.*", w_bits=8),))
    scheme = Scheme(4, 4, protocol)
    assert Scheme.from_dict(scheme.as_dict()) == scheme
    with pytest.raises(UsageError, match="not a scheme"):
        Scheme.from_dict({"w_bits": 4})


def test_the_last_matching_override_wins() -> None:
    overrides = (Override("layer*", w_bits=8), Override("layer1.*", w_bits=6))
    scheme = Scheme(4, 4, dataclasses.replace(GDFQ, name="mine", overrides=overrides))
    names = ("layer1.0.conv1", "layer2.0.conv1", "fc")
    assert [scheme.overridden(name) for name in names] == [overrides[1], overrides[0], None]


@pytest.mark.parametrize("name", PROTOCOLS)
def test_every_protocol_has_a_label_and_plain_data(name: str) -> None:
    scheme = parse_scheme(f"w3a8@{name.upper()}")
    assert scheme == Scheme(3, 8, PROTOCOLS[name])
    assert (scheme.protocol.name, parse_scheme(scheme.label)) == (name, scheme)
    assert Scheme.from_dict(json.loads(json.dumps(scheme.as_dict()))) == scheme
