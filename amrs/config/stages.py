"""Settings of each stage, under its own name."""

from dataclasses import dataclass, field
from typing import Literal, get_args

from amrs.config.checks import check

Input = Literal[
    "past_feedback", "pre_report", "context", "mode", "past_tracks", "track_embeddings", "levels"
]  # fmt: skip
SignalName = Literal["engagement", "rating", "valence", "arousal"]
Sampler = Literal["margin", "corrective", "credited", "best_worst", "on_policy"]
Loss = Literal["soft", "hard", "conservative", "ipo", "regression", "s_dpo", "list"]


@dataclass
class WorldModelConfig:
    users: Literal["all", "labeller", "judge"] = "all"
    """Training users: all, or one of two disjoint halves."""
    members: int = 5
    """Models in the ensemble, 1 or more."""
    components: int = 3
    """Censored normals mixed in the head of a bounded signal, 1 or more."""
    hide_feedback: float = 0.3
    """Share of sessions whose plays' feedback is hidden in training, in [0, 1): teaches the model to
    predict from a list of tracks alone."""
    without: list[Input] = field(default_factory=list)
    """Inputs that the model never reads, in training and after: ablations. past_feedback: all that listeners
    did and told before; past_tracks: what was played before, in this session too; track_embeddings: those,
    the candidate's, and levels of tracks; levels: these alone; context: cohort, hour, time since and logged
    context."""
    penalties: list[float] = field(default_factory=lambda: [5000.0, 1000.0, 200.0, 40.0, 8.0])
    """Weights of half the squared norm, falling, above 0: tried for the linear part that training starts at.
    Each signal gets what suits validation users (or folds of them and training users where they are few)."""
    curves: int = 0
    """Random smooth functions of a track's embedding that the linear part reads too, 0 or more: for few
    tracks and hand-made features, in which what is liked is no straight line."""
    situation: bool = False
    """Whether the linear part reads products of the logged context with a track's embedding too: who walks
    may like what who rests does not."""
    withheld_artists: float = 0.0
    """Share of artists, picked by a hash, about whose plays nothing is learned but how the session ended; in
    [0, 1): the study cold_start scores those plays."""
    only: SignalName | None = None
    """Train on this signal alone; null trains one model of all signals."""
    batch_size: int = 32
    """Windows per optimiser step, over all ranks and accumulation steps."""
    max_steps: int = 300
    """Optimiser steps; no more than 64 passes over the training users, unless trainer.max_steps says so."""
    learning_rate: float = 2e-3
    """Peak of the one-cycle schedule."""
    weight_decay: float = 0.5
    """AdamW's decoupled weight decay; at most .05 for the linear part."""
    averaging: float = 0.98
    """Decay a step of the running average of the weights that is validated and kept, in [0, 1); 0 is none."""
    patience: int = 4
    """Times `validate_every` steps without improvement before training stops."""
    validate_every: int = 60
    """Optimiser steps between validations; once an epoch where that is shorter."""

    def __post_init__(self) -> None:
        check(self.members >= 1, "world_model.members", self.members, "1 or more")
        check(self.components >= 1, "world_model.components", self.components, "1 or more")
        falling = sorted(set(self.penalties), reverse=True)
        check(
            self.penalties == falling != [] and falling[-1] > 0,
            "world_model.penalties", self.penalties, "one or more numbers above 0, falling",
        )  # fmt: skip
        check(self.curves >= 0, "world_model.curves", self.curves, "0 or more")
        check(
            len(set(self.without)) == len(self.without),
            "world_model.without",
            self.without,
            "different names",
        )
        check(0 <= self.hide_feedback < 1, "world_model.hide_feedback", self.hide_feedback, "in [0, 1)")
        _check_training("world_model", self)


@dataclass
class BcConfig:
    batch_size: int = 16
    """Windows per optimiser step, over all ranks and accumulation steps."""
    max_steps: int = 600
    """Optimiser steps."""
    learning_rate: float = 4e-3
    """Peak of the one-cycle schedule."""
    weight_decay: float = 0.05
    """AdamW's decoupled weight decay."""
    averaging: float = 0.98
    """Decay a step of the running average of the weights that is validated and kept, in [0, 1); 0 is none."""
    popularity_smoothing: float = 1.0
    """Plays added to every track's count among training users, above 0."""
    patience: int = 5
    """Times `validate_every` steps without improvement before training stops."""
    validate_every: int = 60
    """Optimiser steps between validations; once an epoch where that is shorter."""

    def __post_init__(self) -> None:
        check(self.popularity_smoothing > 0, "bc.popularity_smoothing", self.popularity_smoothing, "above 0")
        _check_training("bc", self)


@dataclass
class NegativeConfig:
    """What counts as negative feedback on a play."""

    rating: bool = True
    """A dislike."""
    engagement_below: float = 0.3
    """Fraction played below which a play counts, in [0, 1]; 0 turns it off."""
    track_report: bool = True
    """A report right after the track that moved the wrong way for the mode."""
    session_report: int = 0
    """Last tracks of a session that count when its report moved the wrong way; 0 turns it off."""

    def __post_init__(self) -> None:
        check(
            0 <= self.engagement_below <= 1,
            "preferences.negative.engagement_below",
            self.engagement_below,
            "in [0, 1]",
        )
        check(
            self.session_report >= 0, "preferences.negative.session_report", self.session_report, "0 or more"
        )


@dataclass
class PreferencesConfig:
    sampler: Sampler = "margin"
    """How pairs are made: the best of Copycat's own draws against the others; negative-feedback corrective
    sampling as published; corrections of the tracks that a disappointing report is credited to; the best of
    imagined continuations against the others; the same of draws from `preferences.policy`."""
    policy: str | None = None
    """Run folder of stage dpo whose policy's draws are the candidates of the next round (on_policy)."""
    histories: int = 6000
    """Plays of training and validation users at which pairs are made (margin), 1 or more."""
    rejected: int | None = None
    """Rejected tracks that are kept beside a chosen one, the worst of the draws first (not corrective or
    credited, which have one); null: all other draws. Losses that see several take them all, the others the
    worst."""
    draws: int = 16
    """Tracks drawn from Copycat, in on_policy from that policy, 2 or more (all samplers but corrective)."""
    margin: float = 1.0
    """Standard deviations over the labeller's members by which the utilities of a pair must differ (margin),
    0 or more; does nothing with one member."""
    negative: NegativeConfig = field(default_factory=NegativeConfig)
    neighbours: int = 32
    """Nearest tracks (cosine) to the rejected one that are candidates, 0 or more."""
    explore: int = 32
    """Random tracks that are candidates where they are allowed, 0 or more."""
    whiten: bool = False
    """Whiten embeddings before neighbours are looked for: audio embeddings share a few large directions."""
    min_pairs: int = 100
    """Fewer pairs than this end the stage: too few to train on."""

    def __post_init__(self) -> None:
        fewer = self.rejected is None or 1 <= self.rejected < self.draws
        check(fewer, "preferences.rejected", self.rejected,
              f"1 or more and below preferences.draws={self.draws}, or null")  # fmt: skip
        check((self.policy is not None) == (self.sampler == "on_policy"), "preferences.policy", self.policy,
              "a run folder of stage dpo with preferences.sampler=on_policy, null otherwise")  # fmt: skip
        for key, least in (("histories", 1), ("draws", 2), ("margin", 0)):
            check(getattr(self, key) >= least, f"preferences.{key}", getattr(self, key), f"{least} or more")
        for key in ("neighbours", "explore"):
            check(getattr(self, key) >= 0, f"preferences.{key}", getattr(self, key), "0 or more")
        check(
            self.neighbours + self.explore > 0, "preferences.neighbours + preferences.explore", 0, "above 0"
        )
        check(self.min_pairs >= 1, "preferences.min_pairs", self.min_pairs, "1 or more")


@dataclass
class DpoConfig:
    loss: Loss = "list"
    """DPO with soft labels over a list of draws, softmax(U / tau); of best and worst alone with labels
    sigma(dU / tau), with labels 1 (no finite optimum) or .9; IPO; regression of the log-ratios on dU / tau;
    S-DPO (labels 1, several rejected)."""
    beta: float = 1.0
    """Inverse temperature of DPO, above 0; larger keeps the policy nearer its reference."""
    tau: float | None = None
    """Temperature of the soft labels, in units of utility, above 0; null: the one at which the labels'
    optimum, Copycat times exp(U / (beta tau)), spends dpo.kl_budget on validation users."""
    kl_budget: float = 0.05
    """Most KL(policy || Copycat) on the policy's own histories, in nats per track, above 0."""
    kl_session_budget: float = 0.5
    """The same summed over a session of ten tracks (fewer where the listener leaves), in nats, above 0."""
    kl_every: int = 20
    """Optimiser steps between exact KL checks and validations."""
    kl_sessions: int = 64
    """Validation sessions imagined for a KL check, 1 or more."""
    batch_size: int = 64
    """Pairs per optimiser step, over all ranks and accumulation steps."""
    max_steps: int = 160
    """Optimiser steps."""
    learning_rate: float = 3e-4
    """AdamW's learning rate, constant after a short warm-up."""
    patience: int = 5
    """Validations without improvement before training stops."""

    def __post_init__(self) -> None:
        for key in ("beta", "kl_budget", "kl_session_budget"):
            check(getattr(self, key) > 0, f"dpo.{key}", getattr(self, key), "above 0")
        check(self.tau is None or self.tau > 0, "dpo.tau", self.tau, "above 0, or null")
        for key in ("kl_every", "kl_sessions"):
            check(getattr(self, key) >= 1, f"dpo.{key}", getattr(self, key), "1 or more")
        _check_training("dpo", self)


PolicyName = Literal[
    "copycat",
    "random",
    "popularity",
    "greedy",
    "boltzmann",
    "soft_boltzmann",
    "best_of_n",
    "dpo",
    "production",
]  # fmt: skip
Chapter = Literal["fidelity", "policies"]
StudyName = Literal[
    "ablations", "calibration", "ignorance", "rollouts", "missing", "off_policy", "choosing", "optimism",
    "ceilings", "cold_start", "effects", "front", "gate",
]  # fmt: skip


@dataclass
class OffPolicyConfig:
    """When the log itself can say what another policy would have done."""

    policies: list[PolicyName] = field(
        default_factory=lambda: ["copycat", "random", "popularity", "greedy", "dpo"]
    )
    """Policies that the log is asked about, of those that are compared; those that score the whole catalogue
    at every play (boltzmann and its kin) take minutes each."""
    clip: float | None = None
    """Largest weight of a session, 1 or more, or null: clipping buys less variance with a bias toward the
    policy that logged."""
    least_sessions: float = 75.0
    """Effective sessions below which the answer is "cannot tell", above 0."""
    least_users: float = 20.0
    """Effective users below which the answer is "cannot tell", above 0."""
    choices: int = 16
    """Tracks drawn from a policy at each history for the doubly robust estimate, 1 or more."""

    def __post_init__(self) -> None:
        clips = self.clip is None or self.clip >= 1
        check(clips, "evaluate.off_policy.clip", self.clip, "1 or more, or null")
        for key in ("least_sessions", "least_users"):
            check(getattr(self, key) > 0, f"evaluate.off_policy.{key}", getattr(self, key), "above 0")
        check(self.choices >= 1, "evaluate.off_policy.choices", self.choices, "1 or more")


@dataclass
class EvaluateConfig:
    users: Literal["test", "validation"] = "test"
    """Who is judged on: test users give the results; validation users are for tuning (sweeps)."""
    chapters: list[Chapter] = field(default_factory=lambda: ["fidelity", "policies"])
    """What is judged: the world model's predictions, the policies; fidelity alone trains one world model."""
    study: StudyName | None = None
    """Make this study, in a run folder of its own, instead of the chapters."""
    studies: list[StudyName] = field(default_factory=list)
    """Studies whose rows are merged into the report; those that are missing are made first."""
    protocol: Literal["mccv", "kfold"] = "mccv"
    """Monte Carlo splits by user, or repeated folds of users (each tested once a repeat) whose predictions
    are pooled."""
    splits: int = 1
    """mccv: Monte Carlo splits by user (data.split.seed, +1, ...), 1 or more."""
    folds: int = 5
    """kfold: parts that the users are cut into, 2 or more."""
    repeats: int = 4
    """kfold: times that they are cut (data.split.seed, +1, ...), 1 or more."""
    worlds: int = 60
    """effects: small worlds over which the uplift slope's intervals are counted, 1 or more."""
    curve: list[int] = field(default_factory=lambda: [100, 300, 939, 3000, 10000])
    """effects, ceilings: users of the platform for which a world model is trained, each 20 or more."""
    horizon: int | None = None
    """Tracks imagined from a session's start, 1 or more; null is the median length of logged sessions."""
    sessions: int = 400
    """Test sessions rolled out for each policy, spread evenly over test users; 1 or more."""
    simulations: int = 1
    """Simulations of each of these sessions, 1 or more: gains are means over them, variety is that of the
    first. With one a gain in valence has a standard error of some .003 on 400 sessions, with eight .001."""
    bootstrap: int = 1000
    """Bootstrap draws of users for each interval, 100 or more."""
    tolerance: float = 0.15
    """Error in scale points that a trusted horizon allows (90 % upper bound), above 0; for study rollouts."""
    gate_worlds: int = 25
    """gate: small worlds of each of the four traps, and of the effect that drifts in one; 1 or more. A log
    can show three of the traps: of 75 worlds two may pass with an upper bound of 9 %."""
    gate_effects: int = 8
    """gate: small worlds of each other effect, 0 or more."""
    policies: list[PolicyName] = field(default_factory=lambda: list(get_args(PolicyName)))
    """Policies to compare; Copycat always is, production only where there is a platform."""
    dpo: list[str] = field(default_factory=list)
    """More DPO policies to compare and to stress, each SAMPLER or SAMPLER:LOSS (as in preferences.sampler and
    dpo.loss), trained where they are missing; [corrective:hard,credited]. s_dpo takes the worst 4 draws."""
    front: list[float] = field(default_factory=lambda: [0.0, 0.25, 0.5, 0.75, 1.0])
    """front: shares in [0, 1] of the weight on valence and arousal together that valence gets, 2 or more."""
    off_policy: OffPolicyConfig = field(default_factory=OffPolicyConfig)

    def __post_init__(self) -> None:
        check(
            len(self.chapters) > 0, "evaluate.chapters", self.chapters, "one of fidelity, policies, or both"
        )
        for key, what in (("chapters", "names"), ("studies", "names"), ("dpo", "names"), ("front", "shares")):
            given = getattr(self, key)
            check(len(set(given)) == len(given), f"evaluate.{key}", given, f"different {what}")
        for name in self.dpo:
            check(_is_dpo(name), "evaluate.dpo", name, _DPO_NAMES)
        shares = len(self.front) >= 2 and all(0 <= share <= 1 for share in self.front)
        check(shares, "evaluate.front", self.front, "two or more shares in [0, 1]")
        check(
            self.protocol != "kfold" or self.chapters == ["fidelity"],
            "evaluate.protocol",
            self.protocol,
            "mccv, unless evaluate.chapters=fidelity",
        )
        check(self.folds >= 2, "evaluate.folds", self.folds, "2 or more")
        check(all(n >= 20 for n in self.curve), "evaluate.curve", self.curve, "each 20 or more")
        for key in ("splits", "repeats", "sessions", "simulations", "worlds", "gate_worlds"):
            check(getattr(self, key) >= 1, f"evaluate.{key}", getattr(self, key), "1 or more")
        check(self.gate_effects >= 0, "evaluate.gate_effects", self.gate_effects, "0 or more")
        check(
            self.horizon is None or self.horizon >= 1, "evaluate.horizon", self.horizon, "1 or more, or null"
        )
        check(self.bootstrap >= 100, "evaluate.bootstrap", self.bootstrap, "100 or more")
        check(self.tolerance > 0, "evaluate.tolerance", self.tolerance, "above 0")


_ROUNDS = "on_policy"
"""The sampler that needs an earlier round's policy, which a name cannot say."""
_DPO_NAMES = (
    f"SAMPLER or SAMPLER:LOSS, of the samplers {', '.join(x for x in get_args(Sampler) if x != _ROUNDS)} and "
    f"the losses {', '.join(get_args(Loss))}; rounds of {_ROUNDS} are trained by stage=dpo"
)


def _is_dpo(name: str) -> bool:
    sampler, colon, loss = name.partition(":")
    known = sampler in get_args(Sampler) and sampler != _ROUNDS
    return known and (loss in get_args(Loss) if colon else True)


@dataclass
class EmbedConfig:
    audio_dir: str | None = None
    """Folder of audio files, searched through; a file's path in it, without its ending, is its track id."""
    model: Literal["mert", "clamp3"] = "mert"
    """MERT's vector, or that of CLaMP 3's audio tower on top of it."""
    weights: str = "m-a-p/MERT-v1-95M"
    """MERT: a local folder, or a name in your Hugging Face cache; nothing is downloaded."""
    clamp3_weights: str | None = None
    """CLaMP 3's checkpoint: a .pth or .safetensors file."""
    layer: int | None = None
    """MERT's layer, 0 (before the transformer) and up, -1 the last; null is the mean of all."""
    pooling: Literal["mean", "max"] = "mean"
    """Over the frames of a 5-second window; over a track's windows the mean is taken."""
    batch_size: int = 16
    """Windows at once, 1 or more."""

    def __post_init__(self) -> None:
        check(self.batch_size >= 1, "embed.batch_size", self.batch_size, "1 or more")
        if self.model == "clamp3":
            check(
                self.clamp3_weights is not None,
                "embed.clamp3_weights",
                "null",
                "a file for embed.model=clamp3",
            )
            check(self.layer is None, "embed.layer", self.layer, "null for embed.model=clamp3")
            check(self.pooling == "mean", "embed.pooling", self.pooling, "mean for embed.model=clamp3")


def _check_training(stage: str, config: WorldModelConfig | BcConfig | DpoConfig) -> None:
    for key in ("batch_size", "max_steps", "patience"):
        check(getattr(config, key) >= 1, f"{stage}.{key}", getattr(config, key), "1 or more")
    check(config.learning_rate > 0, f"{stage}.learning_rate", config.learning_rate, "above 0")
    if not isinstance(config, DpoConfig):
        check(0 <= config.averaging < 1, f"{stage}.averaging", config.averaging, "in [0, 1)")


@dataclass
class StressConfig:
    policies: list[PolicyName] = field(
        default_factory=lambda: ["random", "popularity", "greedy", "dpo", "production"]
    )
    """Policies to stress; Copycat always is. The Boltzmanns and best of N score the whole catalogue at every
    play and would take hours."""
    sessions: int = 100
    """Test sessions stressed, spread evenly over test users; 1 or more."""
    simulations: int = 32
    """Paired simulations of each session for gains and harm, 2 or more; fewer than 32 blur harm."""
    perturbed: int = 2
    """Simulations of each session in every perturbed judge, 1 or more."""
    histories: int = 50
    """Test sessions whose histories are made up (one a user), 1 or more."""
    candidates: int = 10
    """Worst real histories that the adversary tries to make worse, 1 or more."""
    variants: int = 8
    """Variants of each that it tries, 1 or more."""

    def __post_init__(self) -> None:
        for key in ("sessions", "perturbed", "histories", "candidates", "variants"):
            check(getattr(self, key) >= 1, f"stress.{key}", getattr(self, key), "1 or more")
        check(self.simulations >= 2, "stress.simulations", self.simulations, "2 or more")


@dataclass
class ExportConfig:
    policy: str = "dpo"
    """Policy to export, by its name in the report; it must be one trained network."""
    force: str | None = None
    """Reason for exporting a policy that failed the gate; the model card shows it."""
