"""Where statsmodels can do what our statistics do, both say the same."""

from __future__ import annotations

import math
import random
import warnings
from typing import Any

import numpy as np
import pandas as pd
import pytest

from bench.stats.holm import holm
from bench.stats.levels import components, nested
from bench.stats.mcnemar import failure_p
from bench.stats.order import lag1

pytest.importorskip("statsmodels", reason="statsmodels is not installed: pip install 'hvct[test]'")


@pytest.fixture(scope="module", autouse=True)
def imported() -> Any:
    """Imported once, without its warnings being errors of ours."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import statsmodels.formula.api
        import statsmodels.stats.contingency_tables
        import statsmodels.stats.multitest
        import statsmodels.tsa.stattools  # noqa: F401


def test_holm_is_that_of_multipletests() -> None:
    """Random families with ties, zeros and ones, and every claim at 5 %."""
    from statsmodels.stats.multitest import multipletests

    rng = random.Random(1)
    for _ in range(15):
        family = [rng.choice((rng.random() ** 4, 0.0, 1.0, 0.01)) for _ in range(rng.randint(1, 9))]
        rejected, adjusted, *_ = multipletests(family, 0.05, "holm")
        ours = holm(family)
        assert ours == pytest.approx(adjusted.tolist())
        assert [p <= 0.05 for p in ours] == rejected.tolist()


def test_mcnemar_is_the_exact_one() -> None:
    """Every pair of discordant counts up to 12."""
    from statsmodels.stats.contingency_tables import mcnemar

    for a in range(13):
        for b in range(13):
            expected = 1.0 if a == b == 0 else mcnemar([[5, a], [b, 7]], exact=True).pvalue
            assert failure_p(a, b) == pytest.approx(expected), (a, b)


def test_lag1_is_the_first_autocorrelation() -> None:
    """Of white noise and of series that remember."""
    from statsmodels.tsa.stattools import acf

    rng = np.random.default_rng(2)
    for n in (3, 5, 12, 50):
        for memory in (0.0, 0.6, -0.5):
            noise = rng.normal(size=n)
            for k in range(1, n):
                noise[k] += memory * noise[k - 1]
            assert lag1(noise.tolist()) == pytest.approx(acf(noise, nlags=1, fft=False)[1])


def frame(by_run: list[list[list[float]]]) -> pd.DataFrame:
    """One row an iteration."""
    rows = [
        (str(r), f"{r}.{b}", value)
        for r, run in enumerate(by_run)
        for b, block in enumerate(run)
        for value in block
    ]
    return pd.DataFrame(rows, columns=["run", "block", "value"])


def layout(seed: int, runs: int, blocks: int, iterations: int) -> list[list[list[float]]]:
    """Balanced, with spreads of 0.5, 0.3 and 0.2."""
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(runs):
        of_run = rng.normal(0, 0.5)
        made.append(
            [(of_run + rng.normal(0, 0.3) + rng.normal(0, 0.2, iterations)).tolist()
             for _ in range(blocks)]
        )  # fmt: skip
    return made


def test_two_levels_are_those_of_a_mixed_model() -> None:
    """REML equals the moments where the layout is balanced and no component is at 0."""
    import statsmodels.formula.api as smf

    by_run = [[v for block in run for v in block] for run in layout(3, 6, 12, 1)]
    table = frame([[run] for run in by_run])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fitted = smf.mixedlm("value ~ 1", table, groups=table["run"]).fit(reml=True)
    found = components(by_run)
    assert found is not None and found.between_runs > 0
    assert found.between_runs == pytest.approx(math.sqrt(fitted.cov_re.iloc[0, 0]), rel=1e-3)
    assert found.between_blocks == pytest.approx(math.sqrt(fitted.scale), rel=1e-3)


def test_three_levels_are_those_of_a_mixed_model() -> None:
    """Iterations in blocks in runs, the same way."""
    import statsmodels.formula.api as smf

    by_run = layout(4, 6, 8, 5)
    table = frame(by_run)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fitted = smf.mixedlm(
            "value ~ 1",
            table,
            re_formula="1",
            groups=table["run"],
            vc_formula={"block": "0 + C(block)"},
        ).fit(reml=True)  # fmt: skip
    found = nested(by_run)
    assert found is not None and found.between_runs > 0 and found.between_blocks > 0
    assert found.between_runs == pytest.approx(math.sqrt(fitted.cov_re.iloc[0, 0]), rel=0.01)
    assert found.between_blocks == pytest.approx(math.sqrt(fitted.vcomp[0]), rel=0.01)
    assert found.between_iterations == pytest.approx(math.sqrt(fitted.scale), rel=0.01)
