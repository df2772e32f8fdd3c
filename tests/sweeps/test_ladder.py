"""The ladder of runs: how far it goes, which rung it recommends and what it reports, from made-up scores."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from experiments.comparison.significance import images_for_spread
from experiments.comparison.text import rounded
from experiments.errors import ConfigError
from experiments.evaluation.statistics import spread_of_mean
from experiments.sweeps import plots, rungs
from experiments.sweeps.ladder import Climbed, climbed
from experiments.sweeps.plan import Combination, Place
from experiments.sweeps.summary import JobRow, candidates

RUNGS = {"head": ["regime=bottleneck"], "one": ["x=1"], "two": ["x=2"], "all": ["x=all"], "fresh": ["best", "views=0"]}
SECONDS = {"head": 5.0, "one": 20.0, "two": 40.0, "all": 300.0, "fresh": 150.0}


def about(climb: str = "significant", objective: str = "accuracy") -> dict[str, Any]:
    sweep = {"rungs": RUNGS, "climb": climb, "jobs": 1}
    return {"objective": objective, "command": "train -m", "config": {"sweep": sweep, "data": {"folds": 5}}}


def rows(
    rung: str,
    correct: Sequence[int] | None,
    over: str = "",
    images: int = 500,
    folds: bool = False,
    ladder: dict[str, str] | None = None,
) -> list[JobRow]:
    """The runs of a rung, one a seed or fold: right on the first so many images; None: three that have not begun."""
    found = []
    for at, count in enumerate(correct or [None] * 3):
        key, values = ("data.fold" if folds else "seed"), {"rung": f"{rung} {over}", **(ladder or {})}
        scores: dict[Hashable, float] = (
            {} if count is None else {f"{at if folds else 0} {n}": bool(n < count) for n in range(images)}
        )
        metrics = {"validation.accuracy": count / images, "total_seconds": SECONDS[rung]} if count else {}
        number = 100 * list(RUNGS).index(rung) + at + 10 * (ladder == {"model": "large"})
        status = "NEW" if count is None else "FINISHED"
        found.append(
            JobRow(number, values | {key: str(at)}, [], Path(), status, "", metrics, scores,
                place=Place(rung, over, ladder or {}))
        )  # fmt: skip
    return found


def ladder(*jobs: list[JobRow], **settings: str) -> Climbed:
    found = climbed(about(**settings), [row for rung in jobs for row in rung])
    assert found is not None
    return found


HEAD, NONE_ABOVE = rows("head", [440, 442, 441]), [rows("all", None), rows("fresh", None, "one")]


def test_a_significant_gain_leads_to_the_next_rung() -> None:
    found = ladder(HEAD, rows("one", [462, 460, 463]), rows("two", None), *NONE_ABOVE)
    (climb,) = found.climbs
    assert [step.place.rung for step in climb.steps] == ["head", "one"]
    assert climb.next is not None and climb.next.place.rung == "two" and climb.left == []
    (gain,) = [step.gain for step in climb.steps if step.gain]
    assert gain.significant and gain.value == pytest.approx((462 + 460 + 463 - 440 - 442 - 441) / 1500)
    assert gain.source == "seeds", "paired by image, the variance of the seeds in it"


def test_the_climb_ends_at_a_rung_without_a_significant_gain() -> None:
    found = ladder(HEAD, rows("one", [462, 460, 463]), rows("two", [463, 460, 464]), *NONE_ABOVE)
    (climb,) = found.climbs
    assert [step.place.rung for step in climb.steps] == ["head", "one", "two"] and climb.left == ["all"]
    assert climb.next is not None and climb.next.place.rung == "fresh", "on top of `one`, which is as good as `two`"
    assert found.use is not None and found.use.place.rung == "one"
    done = ladder(HEAD, rows("one", [462, 460, 463]), rows("two", [463, 460, 464]), rows("all", None),
                  rows("fresh", [475, 474, 476], "one"), rows("fresh", None, "two"))  # fmt: skip
    (climb,) = done.climbs
    assert climb.next is None and climb.steps[-1].below is not None and climb.steps[-1].below.place.rung == "one"
    assert done.use is not None and done.use.place.rung == "fresh"
    numbers = {row.number for step in done.reached for row in step.candidate.rows}
    assert numbers == {0, 1, 2, 100, 101, 102, 200, 201, 202, 400, 401, 402}
    text = " ".join(done.sentences())
    assert "Use fresh: accuracy 95.0% [" in text and "150 s a run. It has the best score." in text
    assert "The climb ended at two, which has no significant gain. Not run: all;" in text
    assert "at least as long as two, about 2 min (sweep.climb=all runs every rung)" in text
    header, *table = done.table()
    assert [line[:2] for line in table] == [["", "head"], ["", "one"], ["", "two"], ["use", "fresh"]]
    assert table[1][header.index("gain")].startswith("+4.1 [+") and table[1][header.index("over")] == "head"
    assert [line[header.index("seconds")] for line in table] == ["5", "20", "40", "150"]


def test_every_rung_is_climbed_where_that_is_configured() -> None:
    found = ladder(HEAD, rows("one", [441, 441, 442]), rows("two", None), *NONE_ABOVE, climb="all")
    assert found.climbs[0].next is not None and found.climbs[0].next.place.rung == "two"


def test_a_rung_that_is_worse_ends_the_climb() -> None:
    found = ladder(HEAD, rows("one", [400, 402, 401]), rows("two", None), *NONE_ABOVE)
    assert found.climbs[0].left == ["two", "all"] and found.use is not None and found.use.place.rung == "head"
    assert "one is worse than head by 8.0 points" in " ".join(found.sentences())


def test_of_equal_scores_the_cheaper_candidate_and_the_lower_rung_are_the_better(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first, *_ = candidates([*rows("all", [440]), *rows("one", [440])], "accuracy")
    assert first.seconds == 20
    monkeypatch.setitem(SECONDS, "one", 3.0)  # such as a rung whose features were cached
    found = ladder(HEAD, rows("one", [441, 442, 442]), rows("two", None), *NONE_ABOVE)
    assert found.use is not None and found.use.place.rung == "head", "which every rung above it needs"
    reused = [replace(row, reused=4.0) for row in HEAD]
    assert ladder(reused, rows("one", None)).steps[0].candidate.cost == 9, "with the head that another run has trained"


def test_a_rung_of_lower_loss_is_a_gain() -> None:
    def losses(jobs: list[JobRow]) -> list[JobRow]:
        """The runs with a loss of 1 for each image on which they are wrong."""
        return [
            replace(row, scores={image: 1 - float(right) for image, right in row.scores.items()},
                    metrics={"validation.loss": 1 - row.metrics["validation.accuracy"], "total_seconds": 1.0})
            for row in jobs
        ]  # fmt: skip

    better, none = losses(rows("one", [462, 460, 463])), rows("two", None)
    found = ladder(losses(HEAD), better, none, *NONE_ABOVE, objective="loss")
    assert found.climbs[0].next is not None and found.climbs[0].next.place.rung == "two"
    assert found.use is not None and found.use.place.rung == "one"
    worse = ladder(losses(HEAD), losses(rows("one", [400, 402, 401])), none, *NONE_ABOVE, objective="loss")
    assert worse.climbs[0].left == ["two", "all"] and worse.use is not None and worse.use.place.rung == "head"


def test_more_seeds_are_expected_to_narrow_the_interval_as_they_do() -> None:
    """On average over groups of seeds: from four of a group to eight, with images that all seeds share."""
    rng = np.random.default_rng(0)
    gains = rng.standard_normal((80, 1)) * 0.02 + rng.standard_normal(300) * 0.1 + rng.standard_normal((80, 300)) * 0.3
    four, eight = ([spread_of_mean(group, False) for group in np.split(gains, 80 // size)] for size in (4, 8))
    for part in (0, 1):
        expected = np.mean([spread.repeated(4, 8).parts[part][0] for spread in four])
        assert expected == pytest.approx(np.mean([spread.parts[part][0] for spread in eight]), rel=0.05)
    expected = np.mean([spread.repeated(4, 8).floor[0] for spread in four])
    assert expected == pytest.approx(np.mean([spread.floor[0] for spread in eight]), rel=0.05)
    assert four[0].repeated(4, 4) == four[0]


def test_the_sentences_have_how_many_seeds_would_show_the_difference() -> None:
    found = ladder(rows("head", [440, 443]), rows("one", [452, 450]), rows("two", None), *NONE_ABOVE)
    (step,) = [step for step in found.climbs[0].steps if step.gain]
    assert step.gain is not None and step.gain.spread is not None and not step.gain.significant
    needed = step.gain.repeats_needed(2, 20)
    enough = [
        count
        for count in range(3, 21)
        if (spread := step.gain.spread.repeated(2, count)).margin(0.05) + spread.margin(0.4) <= step.gain.value
    ]
    assert needed == enough[0] and step.gain.repeats_needed(2, needed - 1) is None
    text = " ".join(found.sentences())
    seeds, more = ",".join(map(str, range(needed))), (needed - 2) * 25
    pace = f"about {more} s" if more < 90 else f"about {more / 60:.0f} min"
    assert f"by about {needed} seeds: the same command with seed={seeds}, {pace} more." in text, text


def test_folds_are_counted_as_folds() -> None:
    found = ladder(
        rows("head", [88, 90, 86], images=100, folds=True), rows("one", [91, 94, 92], images=100, folds=True),
        rows("two", None), *NONE_ABOVE,
    )  # fmt: skip
    (step,) = [step for step in found.climbs[0].steps if step.gain]
    assert step.gain is not None and step.gain.source == "folds" and not step.gain.significant
    assert step.gain.repeats_needed(3, 5) == 5
    text = " ".join(found.sentences())
    assert "by about 5 folds: the same command with data.fold=0,1,2,3,4, about 50 s more" in text, text


@pytest.mark.parametrize("head, one, folds, most, limit", [
    ([440, 441], [441, 443], False, 20, "20 seeds"), ([440, 444, 438], [441, 445, 438], True, 5, "all 5 folds"),
])  # fmt: skip
def test_where_all_seeds_or_folds_would_not_do_the_images_are_counted_that_would(
    head: list[int], one: list[int], folds: bool, most: int, limit: str
) -> None:
    found = ladder(rows("head", head, folds=folds), rows("one", one, folds=folds), rows("two", None), *NONE_ABOVE)
    (gain,) = [step.gain for step in found.climbs[0].steps if step.gain]
    assert gain.spread is not None and gain.repeats_needed(len(head), most) is None
    evaluated = 500 * (most if folds else 1)  # images that all the seeds, or all the folds, are evaluated on
    lacking = images_for_spread(gain.spread.repeated(len(head), most), gain.value, evaluated)
    assert lacking is not None and lacking > evaluated
    assert (
        f"would not be shown by {limit} on these images (chance of 80 %): it would take about {rounded(lacking)} images"
    ) in " ".join(found.sentences())


@pytest.mark.parametrize("folds", [False, True])
def test_rungs_on_different_images_do_not_show_what_more_seeds_or_folds_would(folds: bool) -> None:
    other = [
        replace(row, scores={f"cropped {image}": right for image, right in row.scores.items()})
        for row in rows("one", [446, 440, 441], folds=folds)
    ]
    found = ladder(rows("head", [440, 442, 441], folds=folds), other, rows("two", None), *NONE_ABOVE)
    text = " ".join(found.sentences())
    assert "different images, at least" in text and "as the observed one is more than these runs can show." in text


def test_single_runs_are_about_two_models() -> None:
    found = ladder(rows("head", [440]), rows("one", [446]), rows("two", None), *NONE_ABOVE)
    text = " ".join(found.sentences())
    assert "these two trained models are significantly different" in text
    assert "training noise is not in its interval" in text
    tied = " ".join(ladder(rows("head", [440]), rows("one", [441]), rows("two", None), *NONE_ABOVE).sentences())
    assert "images to be shown, of two trained models. Seeds 0, 1 and 2 would show whether it is the rung" in tied


def test_each_backbone_has_a_ladder_and_the_cheapest_good_rung_of_all_is_used() -> None:
    small, large = {"model": "small"}, {"model": "large"}
    found = ladder(
        rows("head", [440, 442, 441], ladder=small), rows("one", [442, 441, 441], ladder=small),
        rows("head", [470, 472, 471], ladder=large), rows("one", [490, 492, 491], ladder=large),
        rows("two", None, ladder=large),
    )  # fmt: skip
    assert [[step.place.rung for step in climb.steps] for climb in found.climbs] == [["head", "one"]] * 2
    assert [climb.next and climb.next.place.rung for climb in found.climbs] == [None, "two"]
    assert "Use one (model=large)" in found.sentences()[0]


def test_the_figure_has_a_labelled_point_for_each_rung() -> None:
    found = ladder(HEAD, rows("one", [462, 460, 463]), rows("two", [463, 460, 464]), *NONE_ABOVE)
    axes: Any
    (axes,) = plots.ladder(found).axes
    assert [text.get_text() for text in axes.texts] == ["head", "one", "two"]
    assert [text.xy for text in axes.texts] == [
        (5.0, 0.882),
        (20.0, pytest.approx(1385 / 1500)),
        (40.0, pytest.approx(1387 / 1500)),
    ]
    (ring,) = [points for points in axes.collections if points.get_label() == "the rung to use"]
    assert ring.get_offsets().tolist() == [[20.0, pytest.approx(1385 / 1500)]]
    bounds = list(found.steps[0].candidate.interval[1:])
    (bars,) = axes.containers
    assert bars.lines[2][0].get_segments()[0][:, 1].tolist() == pytest.approx(bounds)


class Context:
    config_loader = None


def expand(given: dict[str, Any], *typed: str) -> list[tuple[Combination, Place]]:
    return rungs.expand(OverridesParser.create().parse_overrides(list(typed)), given, Context())  # type: ignore[arg-type]


def test_rungs_are_crossed_with_what_is_swept_cheap_ones_first() -> None:
    jobs = expand({"a": ["regime=bottleneck"], "b": ["regime=finetune", "x=1"], "f": ["best", "views=0"]},
                  "model=m,n", "seed=0,1", "views=4")  # fmt: skip
    assert [place.rung for *_, place in jobs] == ["a"] * 4 + ["b"] * 4 + ["f"] * 8
    (overrides, values), place = jobs[-1]
    assert overrides == ["model=n", "seed=1", "regime=finetune", "x=1", "views=0"], "the rung's own value wins"
    assert values == {"model": "n", "seed": "1", "regime": "finetune", "x": "1", "views": "0"}
    assert place == Place("f", "b", {"model": "n"})


WRONG: dict[str, tuple[Any, tuple[str, ...], str]] = {
    "one rung": ({"a": ["x=1"]}, (), "needs two rungs"),
    "none": ({}, (), "must map names to rungs"),
    "an empty rung": ({"a": ["x=1"], "b": []}, (), r"sweep\.rungs\.b: a rung is a list of overrides"),
    "no list": ({"a": ["x=1"], "b": "x=2"}, (), r"sweep\.rungs\.b: a rung is a list"),
    "no override": ({"a": ["x=1"], "b": ["x"]}, (), r"sweep\.rungs\.b: .*Received: \['x'\]"),
    "a sweep in it": ({"a": ["x=1"], "b": ["x=1,2"]}, (), r"sweep\.rungs\.b: .*one value a key.*x=1,2"),
    "a seed in it": ({"a": ["x=1"], "b": ["seed=1"]}, (), r"sweep\.rungs\.b: .*is typed.*seed=1"),
    "the same": ({"a": ["x=1"], "b": ["x=1"]}, (), r"sweep\.rungs\.b: is the same as a"),
    "best first": ({"a": ["best", "x=1"], "b": ["x=1"], "c": ["x=2"]}, (), "before those that begin with best"),
    "a typed key": ({"a": ["x=1"], "b": ["x=2"]}, ("x=3",), "x: is set by the rungs"),
}


@pytest.mark.parametrize("name", WRONG)
def test_rungs_that_make_no_ladder_are_refused(name: str) -> None:
    given, typed, message = WRONG[name]
    with pytest.raises(ConfigError, match=f"(?s){message}"):
        expand(given, *typed)
