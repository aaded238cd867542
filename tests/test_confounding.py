"""The trace of a hidden cause in logged propensities: slopes by hand, effects one by one."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_logs import opened, policy, random_log, world_model

from amrs.candidates import candidate_answers, next_track_log_probs
from amrs.data import SessionDataModule
from amrs.policies import NeuralPolicy
from amrs.propensities import LoggedPlays, ask, logged_plays
from amrs.stress.confounding import LoggedEffects, logged_effects, weighted_slope


def cells(truth: float) -> LoggedEffects:
    """A cause of +-1 makes effects of +-.5 four times as likely as the others, and moves reports by .1.

    One play a session, counts as probabilities say; Copycat gives both effects a half.
    """
    rows = []
    for cause in (1, -1):
        for effect in (0.5, -0.5):
            p = 0.8 if cause * effect > 0 else 0.2
            rows += [(0.5 / p, effect, truth * effect + 0.1 * cause)] * round(10 * p)
    weight, effect, surprise = (np.array(column)[:, None] for column in zip(*rows, strict=True))
    users = np.arange(len(rows))
    return LoggedEffects(users, weight, effect, surprise, np.ones_like(effect), np.zeros_like(effect))


@pytest.mark.parametrize("truth", [0.0, 1.0])
def test_weights_take_a_hidden_cause_out_of_the_slope(truth: float) -> None:
    found = cells(truth)
    slope = weighted_slope(found, 200, 0)
    assert slope is not None and slope.value == pytest.approx(truth, abs=1e-12) and slope.n == 20
    plain = weighted_slope(found._replace(weight_ST=np.ones((20, 1))), 200, 0)
    # Surprises go with the cause: its mean is +-.6 on either side, so .06 / .5 is added.
    assert plain is not None and plain.value == pytest.approx(truth + 0.12)


@pytest.mark.parametrize("truth", [0.0, 1.0])
def test_few_draws_of_what_is_usual_do_not_make_a_slope(truth: float) -> None:
    random = np.random.default_rng(0)
    effect, draws = random.normal(size=(4000, 1)), random.normal(size=(4000, 1, 4))
    base, carry = draws.mean(-1), np.full((4000, 1), 0.5)
    report = truth * carry * effect + 0.1 * random.normal(size=(4000, 1))
    columns = carry * (effect - base), report - base, carry, draws.var(-1, ddof=1) / 4
    slope = weighted_slope(LoggedEffects(np.arange(4000), np.ones((4000, 1)), *columns), 100, 0)
    assert slope is not None and slope.value == pytest.approx(truth, abs=0.05)  # .4 and 1.2 without


def test_without_propensities_nothing_is_said() -> None:
    assert weighted_slope(cells(1.0)._replace(weight_ST=np.full((20, 1), np.nan)), 200, 0) is None


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> SessionDataModule:
    folder: Path = tmp_path_factory.mktemp("log") / "log"
    return opened(random_log(folder), history=64)


@torch.inference_mode()
def test_effects_equal_asking_play_by_play(
    data: SessionDataModule, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    """Sessions with a report after a track are asked up to it: simulated listeners give none there."""

    def with_propensities(data: SessionDataModule, row_S: torch.Tensor) -> LoggedPlays:
        logged = logged_plays(data, row_S)
        return logged._replace(log_propensity_ST=torch.full_like(logged.log_propensity_ST, -1.0))

    monkeypatch.setattr("amrs.stress.confounding.logged_plays", with_propensities)
    model, clone = world_model(data, 2, history=64), policy(data, history=64)
    first_S = torch.searchsorted(data.flat.user_S, data.flat.user_S)
    early_S = torch.arange(len(first_S)) - first_S < 2  # a long history is cut earlier by who keeps room
    reader, row_S = NeuralPolicy(clone, data, 12), torch.nonzero(early_S)[:, 0]
    carry = {"valence": [0.5, 0.25]}
    found = logged_effects(model, reader, data, row_S, carry, 3)
    logged = logged_plays(data, row_S)
    drawn = ask(reader, data, logged, 16, 3).choice_STC
    asked = 0
    for s in range(len(row_S)):
        start = int(data.flat.first_S[row_S[s]])
        for t in torch.nonzero(logged.track_ST[s] >= 0)[:, 0].tolist():
            if not data.flat.feedback_N4[start : start + t + 1, 2:].isnan().all():
                break
            row_1, step_1 = row_S[s : s + 1], torch.tensor([t])
            track_1N = torch.cat([logged.track_ST[s, t : t + 1], drawn[s, t]])[None]
            each = candidate_answers(model, data, row_1, step_1, track_1N)
            pairs = [(m.kinds["valence"].mean(a["valence"]), m.kinds["reported"].mean(a["reported"]))
                     for m, a in zip(model.ensemble, each, strict=True)]  # fmt: skip
            given_N = sum(g for _, g in pairs)[0]
            value_N = sum(v * g for v, g in pairs)[0] / given_N
            expected = (0.5 if t == 0 else 0.25) * float(value_N[0] - value_N[1:].mean())
            assert found["valence"].effect_ST[s, t] == pytest.approx(expected, abs=2e-5)
            report = float(data.flat.report_S2[row_S[s], 0])
            surprise = report - float(value_N[1:].mean())
            assert found["valence"].surprise_ST[s, t] == pytest.approx(surprise, abs=2e-5, nan_ok=True)
            log_q = next_track_log_probs(clone, data, data.rules(), row_1, step_1)[0, track_1N[0, 0]]
            assert found["valence"].weight_ST[s, t] == pytest.approx(math.exp(log_q + 1), rel=1e-3)
            asked += 1
    plays = int((logged.track_ST >= 0).sum())
    assert asked > 20 and np.isfinite(found["arousal"].effect_ST).sum() == plays
