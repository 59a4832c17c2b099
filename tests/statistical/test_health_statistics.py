"""Control charts and drift keep the false-alarm rate they state, and see what they should.

Seeds are fixed. The stated rate is tested at 1e-3, where it can be counted, with binomial bounds at 1e-4 each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from scipy import stats

from bandit import health_statistics
from bandit.health import HealthConfig, judge
from bandit.health_intervals import Interval
from bandit.health_statistics import Moments, blame, build_chart, drift

ALPHA = 1e-4
RATE = 1e-3
N = 2_000

Draw = Callable[[np.random.Generator, int], "Sequence[Moments]"]


def _bernoulli(sizes: int, totals: np.ndarray) -> list[Moments]:
    return [Moments(float(sizes), float(total), float(total)) for total in totals]


def _clicks(rng: np.random.Generator, k: int) -> list[Moments]:
    return _bernoulli(180, rng.binomial(180, 0.1, k))


def _rare(rng: np.random.Generator, k: int) -> list[Moments]:
    return _bernoulli(60, rng.poisson(0.1, k))


def _restless(rng: np.random.Generator, k: int) -> list[Moments]:
    """Clicks whose probability is another one every interval: more spread than chance allows."""
    return _bernoulli(180, rng.binomial(180, rng.beta(5.0, 45.0, k)))


def _out(draw: Draw, *, n_reference: int, seed: int, n: int = N) -> tuple[int, int]:
    """Return how often a chart in control is below and above its limits, of `n` independent ones."""
    rng = np.random.default_rng(seed)
    charts = [build_chart(draw(rng, n_reference), draw(rng, 30)) for _ in range(n)]
    known = [chart for chart in charts if chart is not None]
    assert len(known) > 0.99 * n
    return sum(c.value < c.center - c.n_sds * c.sd for c in known), sum(
        c.value > c.center + c.n_sds_rise * c.sd for c in known
    )


@pytest.mark.parametrize("draw", [_clicks, _rare, _restless])
def test_a_chart_in_control_is_out_of_its_limits_as_rarely_as_stated(
    draw: Draw, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health_statistics, "FALSE_ALARM", RATE)
    fell, rose = _out(draw, n_reference=60, seed=1)
    most = stats.binom.isf(ALPHA, N, RATE)
    assert fell <= most
    assert rose <= most


def test_limits_that_take_the_spread_for_chance_alone_alarm_too_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health_statistics, "FALSE_ALARM", RATE)
    rng = np.random.default_rng(1)
    n_out = 0
    for _ in range(500):
        chart = build_chart(_restless(rng, 60), _restless(rng, 30))
        assert chart is not None
        weights = 0.1 * 0.9 ** np.arange(30)
        naive = np.sqrt(chart.center * (1 - chart.center) * (weights**2).sum() / 180)
        n_out += chart.value < chart.center - chart.n_sds * naive
    assert n_out > stats.binom.isf(ALPHA, 500, RATE)


def test_a_fall_by_a_quarter_is_seen_within_ten_intervals() -> None:
    rng = np.random.default_rng(2)
    seen = 0
    for _ in range(200):
        recent = [*_bernoulli(1_000, rng.binomial(1_000, 0.1, 20)), *_bernoulli(1_000, rng.binomial(1_000, 0.075, 10))]
        chart = build_chart(_bernoulli(1_000, rng.binomial(1_000, 0.1, 300)), recent)
        assert chart is not None
        seen += chart.value < chart.lower
    assert seen >= 190


@pytest.mark.parametrize(
    ("greedy", "control", "cause"), [(0.5, 1.0, "model"), (0.6, 0.6, "traffic"), (0.5, 0.8, "model")]
)
def test_blame_follows_the_control(greedy: float, control: float, cause: str) -> None:
    rng = np.random.default_rng(3)
    wrong = 0
    for _ in range(300):
        greedy_chart = build_chart(
            _bernoulli(2_000, rng.binomial(2_000, 0.12, 200)), _bernoulli(2_000, rng.binomial(2_000, 0.12 * greedy, 30))
        )
        control_chart = build_chart(
            _bernoulli(400, rng.binomial(400, 0.08, 200)), _bernoulli(400, rng.binomial(400, 0.08 * control, 30))
        )
        assert greedy_chart is not None
        assert control_chart is not None
        wrong += blame(greedy_chart, control_chart) != cause
    # Both branches are compared at three standard errors, one-sided.
    assert wrong <= stats.binom.isf(ALPHA, 300, 2 * stats.norm.sf(3.0) + 0.002)


def test_without_a_control_nobody_is_blamed() -> None:
    rng = np.random.default_rng(4)
    chart = build_chart(_clicks(rng, 100), _clicks(rng, 30))
    assert chart is not None
    assert blame(chart, None) == "unclear"


def test_drift_of_the_same_mix_stays_within_its_noise_as_stated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health_statistics, "FALSE_ALARM", RATE)
    rng = np.random.default_rng(5)
    mix = np.array([0.5, 0.2, 0.1, 0.1, 0.05, 0.05])
    n_out = 0
    for _ in range(N):
        before, now = (dict(zip("abcdef", rng.multinomial(n, mix).tolist(), strict=True)) for n in (5_000, 500))
        moved = drift(before, now)
        assert moved is not None
        n_out += moved.psi > moved.noise
    assert n_out <= stats.binom.isf(ALPHA, N, 1.5 * RATE)
    # The bound is not loose either: it is crossed, about as often as stated.
    assert n_out >= stats.binom.ppf(ALPHA, N, RATE / 4)


def _interval(rng: np.random.Generator, number: int) -> Interval:
    """Return a minute of a service where nothing changes: 600 slots, some of it rare."""
    people = rng.multinomial(60, [0.5, 0.3, 0.2])
    shown = rng.multinomial(540, rng.dirichlet(np.full(8, 40.0)))
    lengths = rng.geometric(0.2, 30).astype(float)
    different = float(rng.normal(60.0, 2.0))
    return Interval(
        from_ms=number * 60_000,
        until_ms=(number + 1) * 60_000,
        n_decisions=60,
        n_rewards=int(rng.poisson(50)),
        last_reward_ms=number * 60_000 + 1,
        greedy=_bernoulli(540, rng.binomial(540, 0.1, 1))[0],
        explore=_bernoulli(60, rng.binomial(60, 0.07, 1))[0],
        control=_bernoulli(15, rng.binomial(15, 0.04, 1))[0],
        sessions=Moments(30.0, float(lengths.sum()), float((lengths**2).sum())),
        feedback={name: int(rng.poisson(mean)) for name, mean in {"like": 3.0, "skip": 6.0, "dislike": 0.1}.items()},
        genres={f"g{genre}": float(count) for genre, count in enumerate(shown)},
        items={f"i{item}": 1 for item in rng.integers(2_000, size=500).tolist()},
        variety=Moments(1.0, different, different**2),
        bins={"country": dict(zip(("DE", "FR", "US"), people.tolist(), strict=True))},
    )


def test_a_service_where_nothing_changes_raises_no_alarm_in_forty_windows() -> None:
    """By the union bound over 40 looks at 8 charts the false-alarm rate is below 1e-4."""
    rng = np.random.default_rng(7)
    config = HealthConfig(genre="genre", drift=["country"], window=30, reference=120)
    intervals = [_interval(rng, number) for number in range(150 + 40 * 30)]
    for last in range(150, len(intervals), 30):
        judgement = judge(
            config,
            intervals[:last],
            open_intervals=[],
            now_ms=intervals[last - 1].until_ms,
            n_genres=8,
            is_harmful=lambda event_type: event_type != "like",
        )
        assert judgement.findings == []
        assert {"reward_greedy_ewma", "reward_control_ewma", "session_length_ewma"} <= judgement.values.keys()
        assert {"feedback:skip_ewma", "item_variety_ewma", "feature_drift:country"} <= judgement.values.keys()
