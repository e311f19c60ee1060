"""Configs: what they hold, their texts and files; specs: what they complete and refuse."""

from __future__ import annotations

import copy
import pathlib
import pickle

import pytest

from torch_helion import config_spec, exc
from torch_helion.autotuner.space import Space
from torch_helion.config import Config
from torch_helion.config_spec import (
    BlockSizeSpec,
    BooleanFragment,
    ConfigSpec,
    EnumFragment,
    IntegerFragment,
    ListOf,
    PowerOfTwoFragment,
)

FULL = Config(
    block_sizes=[64, 32],
    loop_orders=[[1, 0]],
    l2_groupings=[4],
    reduction_loops=[None, 128],
    pid_type="flat",
    indexing=["pointer", "block_ptr"],
    num_warps=8,
    mine=3,
)


def test_a_config_is_a_mapping() -> None:
    assert FULL["block_sizes"] == [64, 32] == FULL.block_sizes
    assert set(FULL) == set(dict(FULL)) and len(FULL) == 8 and "mine" in FULL
    assert FULL.get("nothing") is None and FULL["mine"] == 3
    assert FULL.config == dict(FULL) and Config(**FULL.config) == FULL
    assert {**FULL}["loop_orders"] == [[1, 0]]
    with pytest.raises(KeyError):
        FULL["nothing"]
    with pytest.raises(TypeError):
        Config([64])  # type: ignore[misc]


def test_a_config_cannot_be_changed() -> None:
    FULL["block_sizes"].append(1)
    FULL.config["block_sizes"] = []
    assert FULL.block_sizes == [64, 32]
    with pytest.raises(AttributeError, match="make another one"):
        FULL.block_sizes = [1]
    with pytest.raises(TypeError):
        FULL["block_sizes"] = [1]  # type: ignore[index]


def test_equal_configs_are_one_key() -> None:
    same = Config.from_dict(FULL.config)
    assert same == FULL and hash(same) == hash(FULL) and {FULL: 1}[same] == 1
    assert Config(block_sizes=(64, 32)) == Config(block_sizes=[64, 32])
    assert Config(num_warps=4) != Config() != {}
    assert Config(num_warps=None) == Config()
    for again in (copy.copy(FULL), copy.deepcopy(FULL), pickle.loads(pickle.dumps(FULL))):
        assert again == FULL
    assert str(Config(block_sizes=[8])) == "Config(block_sizes=[8])"
    assert repr(Config(block_sizes=[8])) == "helion.Config(block_sizes=[8])"
    assert Config(block_size=[8, 4]) == Config(block_sizes=[8, 4])


def test_attributes_say_defaults() -> None:
    config = Config()
    assert config.num_warps == 4 and config.num_stages == 1 and config.pid_type == "flat"
    assert config.block_sizes == [] and config.indexing == "pointer" and config.maxnreg is None
    with pytest.raises(AttributeError, match="nothing"):
        _ = config.nothing


def test_texts_and_files(tmp_path: pathlib.Path) -> None:
    assert Config.from_json(FULL.to_json()) == FULL
    file = tmp_path / "deep" / "config.json"
    FULL.save(file)
    assert Config.load(str(file)) == FULL
    assert list(file.parent.iterdir()) == [file]
    for wrong in ("[1]", "{", "3"):
        with pytest.raises(exc.InvalidConfig):
            Config.from_json(wrong)
    with pytest.raises(exc.InvalidConfig, match="cannot be written"):
        Config(x=object()).to_json()


@pytest.mark.parametrize("singular", [*config_spec.SINGULAR])
def test_singular_spellings(singular: str) -> None:
    key = config_spec.SINGULAR[singular]
    value = [1, 0] if singular == "loop_order" else 2
    made = Config(**{singular: value})
    assert getattr(made, key) == [value] and list(made) == [key]
    with pytest.raises(exc.InvalidConfig, match=f"both {singular} and {key}"):
        Config(**{singular: value, key: [value]})
    assert Config(**{singular: None}) == Config()


# ---------------------------------------------------------------------- specs


def spec() -> ConfigSpec:
    return ConfigSpec(
        block_sizes=[BlockSizeSpec("m", 1000), BlockSizeSpec("n", 40, min_size=4)],
        loop_orders=[2],
        l2_groupings=1,
        flatten_loops=1,
        reduction_loops=[512, 512],
        user_defined_tunables={"split": PowerOfTwoFragment(1, 8, 2)},
    )


LAUNCH = {"num_warps": 4, "num_stages": 1, "indexing": "pointer"}


def test_missing_entries_are_filled() -> None:
    assert spec().normalize({}) == {
        **LAUNCH,
        "block_sizes": [1, 4],
        "loop_orders": [[0, 1]],
        "l2_groupings": [1],
        "flatten_loops": [False],
        "reduction_loops": [None, None],
        "pid_type": "flat",
        "split": 2,
    }
    assert spec().default_config() == spec().normalize({})
    assert ConfigSpec().normalize({}) == {**LAUNCH, "pid_type": "flat"}


def test_defaults_of_the_target_come_first() -> None:
    made = spec()
    made.defaults = lambda: {"block_sizes": [128, 8], "unroll": 2}
    assert made.default_config()["block_sizes"] == [128, 8]
    assert made.normalize({"num_warps": 8})["block_sizes"] == [128, 8]
    assert made.normalize({"block_sizes": [16, 16]})["block_sizes"] == [16, 16]


def test_values_are_clamped_and_completed() -> None:
    done = spec().normalize(Config(block_sizes=[4096, 1], reduction_loop=128, split=8))
    assert done["block_sizes"] == [1024, 4]
    assert done["reduction_loops"] == [128, 128] and done["split"] == 8
    assert spec().normalize({"reduction_loops": [1024, None]})["reduction_loops"] == [None, None]
    plain = {"block_size": 64}
    one = ConfigSpec(block_sizes=[BlockSizeSpec("m", 1000)])
    one.normalize(plain)
    assert plain["block_sizes"] == [64], "a dict is completed in place"


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"block_sizes": [64]}, "block_sizes: expected 2 entries, got 1"),
        ({"block_sizes": 64}, "expected a list"),
        ({"block_sizes": [48, 32]}, "power of two"),
        ({"block_sizes": [0, 32]}, "power of two"),
        ({"block_sizes": [64.0, 32]}, "power of two"),
        ({"block_sizes": [True, 32]}, "power of two"),
        ({"loop_orders": [[0, 0]]}, "no permutation"),
        ({"loop_orders": [[1, 0], [0, 1]]}, "expected 1 entry"),
        ({"l2_groupings": [0]}, "positive"),
        ({"reduction_loops": [3, None]}, "power of two"),
        ({"reduction_loops": [4]}, "expected 2"),
        ({"pid_type": "zigzag"}, "pid_type"),
        ({"split": 3}, "split"),
        ({"splitt": 2}, "did you mean 'split'"),
        ({"num_warps": 0}, "num_warps"),
        ({"indexing": "magic"}, "indexing"),
        ({"tcgen05_x": 1}, "other hardware"),
        ({"xcd_remap": 1}, "other hardware"),
        ({"block_size": 2, "block_sizes": [2, 2]}, "both"),
    ],
)
def test_what_does_not_fit_is_refused(config: dict[str, object], says: str) -> None:
    with pytest.raises(exc.InvalidConfig, match=says):
        spec().normalize(config)


def test_barriers_need_persistent_kernels() -> None:
    made = ConfigSpec(has_barrier=True)
    assert made.normalize({})["pid_type"] == "persistent_blocked"
    assert made.normalize({"pid_type": "persistent_interleaved"})
    with pytest.raises(exc.BarrierRequiresPersistent):
        made.normalize({"pid_type": "flat"})


def test_minimize_leaves_what_was_chosen() -> None:
    chosen = Config.from_dict(spec().normalize({"block_sizes": [64, 4], "split": 4}))
    assert chosen.minimize(spec()) == Config(block_sizes=[64, 4], split=4)
    assert Config.from_dict(spec().default_config()).minimize(spec()) == Config()


# ---------------------------------------------------------------------- fragments


@pytest.mark.parametrize(
    ("fragment", "default", "values", "near"),
    [
        (PowerOfTwoFragment(2, 16), 2, (2, 4, 8, 16), (4, [2, 8])),
        (PowerOfTwoFragment(1, 8, default=4), 4, (1, 2, 4, 8), (8, [4])),
        (IntegerFragment(-1, 2, 1), 1, (-1, 0, 1, 2), (-1, [0])),
        (EnumFragment(("a", "b", "c")), "a", ("a", "b", "c"), ("b", ["a", "c"])),
        (BooleanFragment(), False, (False, True), (True, [False])),
        (
            ListOf(BooleanFragment(), 2),
            [False, False],
            ([False, False], [True, True]),
            ([False, True], [[True, True], [False, False]]),
        ),
    ],
)
def test_fragments(fragment, default, values, near) -> None:
    assert fragment.default() == default and fragment.values() == values
    assert fragment.pattern_neighbors(near[0]) == near[1]
    assert all(fragment.accepts(v) for v in values) and not fragment.accepts("z")
    assert all(fragment.accepts(fragment.random()) for _ in range(20))


def test_fragments_that_make_no_sense() -> None:
    for make in (
        lambda: PowerOfTwoFragment(3, 8),
        lambda: PowerOfTwoFragment(8, 4),
        lambda: IntegerFragment(2, 1),
        lambda: EnumFragment(()),
    ):
        with pytest.raises(exc.InvalidAPIUsage):
            make()
    with pytest.raises(TypeError, match="unexpected"):
        PowerOfTwoFragment(1, 2, colour=1)


def test_neighbours_differ_in_one_place_and_fit() -> None:
    made = spec()
    start = Config.from_dict(made.normalize({"block_sizes": [64, 16]}))
    space = Space(made, start)
    near = [space.config(point) for point in space.neighbours(space.point(start))]
    assert len(near) == len(set(near)) == 8
    for config in near:
        assert sum(config[k] != start[k] for k in start) == 1
        assert Config.from_dict(made.normalize(config)) == config


@pytest.mark.parametrize(("n", "want"), [(-3, 1), (0, 1), (1, 1), (2, 2), (3, 4), (1025, 2048)])
def test_next_power_of_2(n: int, want: int) -> None:
    assert config_spec.next_power_of_2(n) == want
