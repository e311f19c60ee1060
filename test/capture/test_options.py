"""Modes and options: what is accepted, how it is split, what a wrong one says."""

from __future__ import annotations

import pytest
import torch

from torch_helion import exc, settings
from torch_helion.capture import hosting, options
from torch_helion.capture.backend import helion


def test_nothing_given_is_the_default() -> None:
    request = options.read()
    assert request.mode == "default"
    assert request.host == {}
    assert request.settings == settings.current()


@pytest.mark.parametrize("mode", [None, *options.MODES])
def test_every_mode_is_known(mode: str | None) -> None:
    assert options.read(mode).mode == (mode or "default")


def test_modes_bring_the_options_of_the_host() -> None:
    assert options.read("reduce-overhead").host["triton.cudagraphs"] is True
    assert options.read("max-autotune").host["max_autotune"] is True
    assert "triton.cudagraphs" not in options.read("max-autotune-no-cudagraphs").host


def test_options_are_split() -> None:
    request = options.read(options={"helion.check": False, "strict": True, "max_fusion_size": 3})
    assert request.settings.check is False
    assert request.settings.strict is True
    assert request.host == {"max_fusion_size": 3}


def test_dashes_are_underscores_as_in_torch() -> None:
    assert options.read(options={"max-fusion-size": 5}).host == {"max_fusion_size": 5}


@pytest.mark.parametrize(
    ("given", "nearest"),
    [
        ({"mode": "max-autotun"}, "max-autotune"),
        ({"options": {"helion.strikt": True}}, "helion.strict"),
        ({"options": {"stricd": True}}, "strict"),
        ({"options": {"max_autotunne": True}}, "max_autotune"),
        ({"options": {"tritton.cudagraphs": True}}, "triton.cudagraphs"),
        ({"unknown": {"option": {}}}, "options"),
    ],
)
def test_a_wrong_name_names_the_nearest_right_one(given: dict, nearest: str) -> None:
    with pytest.raises(exc.InvalidOption, match=f"did you mean '{nearest}'"):
        options.read(**given)


def test_a_hopeless_name_does_not_list_all_options_of_the_host() -> None:
    with pytest.raises(exc.InvalidOption) as caught:
        options.read(options={"zzzzzzzzzzzzzzzz": 1})
    assert "strict" in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("given", [{"strict": "yes"}, {"helion.check": 1}, {"max_autotune": "on"}])
def test_a_wrong_value_is_refused(given: dict) -> None:
    with pytest.raises(exc.InvalidValue):
        options.read(options=given)


def test_the_key_holds_what_changes_code() -> None:
    plain = options.read()
    assert options.read(options={"check": not plain.settings.check}).key != plain.key
    assert options.read(options={"dump": "/tmp/x"}).key == plain.key


def test_a_wrong_option_reaches_the_user() -> None:
    compiled = torch.compile(lambda x: x + 1, backend=helion, options={"helion.chekc": True})
    with pytest.raises(Exception, match=r"helion\.check"):
        compiled(torch.ones(3))


def test_users_options_win_over_guards() -> None:
    request = options.read(options={"emulate_precision_casts": False})
    assert hosting.hosting_options(request)["emulate_precision_casts"] is False
    assert hosting.hosting_options(options.read())["emulate_precision_casts"] is True


def test_options_hold_for_the_backward_too() -> None:
    seen: list[bool] = []
    from torch_helion.capture import graph_pass

    def listen(record: graph_pass.GraphRecord) -> None:
        seen.append(settings.current().strict)

    graph_pass.listeners.append(listen)
    try:
        x = torch.randn(5, 4, requires_grad=True)
        options_ = {"strict": True, "fx_graph_cache": False}
        torch.compile(lambda x: x.exp().sum(0), backend=helion, options=options_)(
            x
        ).sum().backward()
    finally:
        graph_pass.listeners.remove(listen)
    assert seen == [True, True]
    assert settings.current().strict is False
