"""What a policy gains in valence and what in arousal, by how the utility weighs them: the front.

Each of `evaluate.front` is a share: valence gets it of the weight that both have together, arousal the rest,
and pairs and DPO policy are made anew, within the same budget of divergence; world models and Copycat are
shared. Listeners and luck are the same for all. Scalarised last, shown whole (Stamenkovic et al. 2022).
"""

from dataclasses import replace

from amrs.config.graph import Config
from amrs.listeners import ImaginedListeners
from amrs.outcomes import choose_sessions, diversity_rows, gain_rows, roll_out
from amrs.platform import load_truth
from amrs.policies import NeuralPolicy
from amrs.report import Row
from amrs.rollout import Environment, Policy
from amrs.runs import Run, RunError
from amrs.stages import bc, world_model
from amrs.stages.prepare import open_data

BASE = "front:copycat"


def parts(config: Config) -> dict[str, Config]:
    """A DPO policy for each share, named by it."""
    return {f"front:{share:g}": _weighed(config, share) for share in config.evaluate.front}


def _weighed(config: Config, share: float) -> Config:
    weights = config.utility.weights
    both = weights.valence + weights.arousal
    if both <= 0:
        raise RunError(
            "evaluate.study=front shares the weight of valence and arousal out between them, and "
            "utility.weights gives neither any; give utility.weights.valence"
        )
    weights = replace(weights, valence=share * both, arousal=(1 - share) * both)
    return replace(
        config, stage="dpo", utility=replace(config.utility, weights=weights),
        parents=replace(config.parents, preferences=None, dpo=None),
    )  # fmt: skip


def rows(run: Run) -> list[Row]:
    """Gains of each policy by the judge and realised, its divergence and diversity."""
    config, data = run.config, open_data(run)
    section = config.evaluate
    sessions = choose_sessions(data, section.sessions, section.horizon, config.seed)
    clone = run.parents["bc"].folder
    policies: dict[str, Policy] = {"copycat": NeuralPolicy(bc.load(clone, data), data, sessions.horizon)}
    for name in parts(config):
        model = bc.load(run.parents[name].folder, data, clone)
        policies[name] = NeuralPolicy(model, data, sessions.horizon)
    judge = world_model.load(run.parents["judge"].folder, data)
    worlds: dict[str, Environment] = {"predicted": ImaginedListeners(judge, data, sessions.horizon)}
    truth = run.parents["prepare"].folder / "truth"
    if truth.exists():
        worlds["realised"] = load_truth(truth).environment()
    found = []
    for name, world in worlds.items():
        rollouts = roll_out(policies, world, data.rules(), sessions)
        found += gain_rows(name, rollouts, sessions, data, config.utility, config.seed, section.bootstrap)
    found += diversity_rows(rollouts, sessions, data, config.seed, section.bootstrap)
    return [_renamed(row) for row in found if row.group == "all" and _is_of_the_front(row)]


def _is_of_the_front(row: Row) -> bool:
    return row.section == "diversity" or row.metric in ("gain", "relative_gain")


def _renamed(row: Row) -> Row:
    """Copycat's rows under another name than in the report that they are merged into."""
    return replace(row, subject=BASE) if row.subject == "copycat" else row
