"""Parameters of the synthetic platform: a listening service whose truth is known.

Affect scales are [0, 1]. "Choice" marks a value of our own; the others name where they come from.
A standard deviation of 0 switches that source of chance off. The shares of variance that these values
give stand in the docstring of `amrs.platform`.
"""

from dataclasses import dataclass
from typing import Literal

from amrs.config.checks import check

Variant = Literal["no_track_effect", "random_missing", "confounded", "drift", "late_harm"]


@dataclass(frozen=True)
class PlatformConfig:
    # Size of the log.
    users: int = 939
    """Listeners in the log, 10 or more (published scale: Chan et al. 2026)."""
    sessions_per_user: float = 8784 / 939
    """Mean sessions a listener, 2 or more; the total is round(users x this) exactly (Chan et al. 2026)."""
    tracks: int = 5990
    """Tracks in the catalogue, 100 or more (Chan et al. 2026)."""
    clinical: float = 1 / 3
    """Share of clinical listeners, in [0, 1] (about a third; choice)."""
    seed: int = 0
    """Which world: catalogue, listeners and log are drawn from it."""
    variant: Variant | None = None
    """A trap, or null: no_track_effect, random_missing (of reports, given what is observed), confounded
    (hidden common cause of track choice and affect), drift (after the logs), late_harm (only after
    several sessions)."""
    shard_users: int = 1000
    """Listeners simulated at once, 1 or more; bounds the memory, changes nothing else."""

    # Catalogue.
    artists: int = 600
    """Artists, 1 or more; ten tracks each on average (choice)."""
    genres: int = 16
    """Genres, 1 or more (choice)."""
    dimension: int = 64
    """Channels of a track's embedding, at least `latent`; columns are standardised."""
    zipf: float = 0.8
    """Exponent of popularity over rank, 0 or more (long tail of music: Celma 2010)."""
    affect_spread: float = 1.1
    """Spread of tracks' valence and arousal in logits; 1.1 is a standard deviation of .22 (choice)."""
    unknowable: float = 0.2
    """Share of that spread's variance that the embedding does not tell, in [0, 1] (choice)."""

    # Listeners.
    latent: int = 8
    """Dimensions of taste, 1 to 8 (choice)."""
    listener_spread: float = 1.0
    """Factor on every difference between listeners, 0 or more; 0 makes a cohort's listeners equal."""
    baseline_sd: float = 0.1
    """Standard deviation of baseline affect between listeners (choice)."""

    # Affect.
    contagion: float = 0.08
    """Pull of a new, fully heard track of middling liking toward its affect; liking, wear and the fraction
    heard bring the mean to 6-9 % a track (choice, after emotional contagion: Juslin & Vastfjall 2008)."""
    effect: float = 1.0
    """Factor on the contagion, 0 or more."""
    wear: float = 0.12
    """Rate at which exposure to like-sounding tracks wears the effect off, 0 or more (choice)."""
    return_rate: float = 0.005
    """Return to the baseline per track, in [0, 1) (choice)."""
    process_sd: float = 0.01
    """Affect's own wandering per track (choice)."""
    session_sd: float = 0.11
    """Affect's wandering between sessions; with the baselines the state before a session has a standard
    deviation near .15 (prototype)."""
    carry_hours: float = 24.0
    """Time in which a deviation from the baseline decays to 37 % between sessions, above 0
    (emotional inertia: Kuppens et al. 2010; the figure is a choice)."""
    report_sd: float = 0.09
    """Noise of a report of affect, pre and post (prototype)."""

    # Behaviour.
    skip_rate: float = 0.2
    """Skips among consumers' plays of middling liking, in (0, 1) (Lamere 2014 counts more: up to half)."""
    leave_rate: float = 0.02
    """Hazard of leaving after a track of middling liking, in (0, 1) (choice)."""
    rating_rate: float = 0.2
    """Share of plays of middling liking that are rated, in (0, 1] (choice)."""
    pre_report_rate: float = 0.85
    """Sessions with a report before, for a typical listener and state, in (0, 1]; 1 is always."""
    post_report_rate: float = 0.7
    """Sessions with a report after, for a typical listener and state, in (0, 1]; 1 is always."""
    missing_slope: float = 0.6
    """Log-odds of a report per .15 of valence: distressed listeners report less (not at random, as in
    Marlin & Zemel 2009; the figure is a choice)."""
    feedback_noise: float = 1.0
    """Factor on chance in skips, ratings, leaving and presence, in [0, 1]; at 0 the likelier happens."""
    planned_tracks: float = 10.9
    """Mean tracks a listener means to hear, 3 to 20; leaving cuts it to about ten."""

    # Production policy.
    popularity_weight: float = 1.0
    """Log-odds of a track per log of its popularity (choice)."""
    mode_weight: float = 0.6
    """Strength of the rule that a track's energy tag should fit the mode (choice)."""
    profile_weight: float = 1.5
    """Strength of similarity to what the listener heard out or liked before (choice)."""
    station_weight: float = 3.0
    """Strength of similarity to the session so far (choice)."""
    exploration: float = 0.05
    """Share of plays drawn uniformly from the allowed tracks, in (0, 1]."""

    withheld_genres: int = 0
    """Genres (the last ones) that production never plays, 0 or more and below `genres`: what a model trained
    on the log cannot know."""

    # Strength of the traps; each counts in its own variant only.
    confounding: float = 1.0
    """confounded: log-odds of a track per standard deviation of its valence and of the hidden cause; the
    same cause moves affect by .005 times this a track."""
    drift_correlation: float = 0.0
    """drift: correlation of tracks' affect after the logs with that in them, in [-1, 1]."""
    late_harm: float = 0.8
    """late_harm: fall of later sessions' baseline valence per unit of surfeit, 0 or more. Surfeit is the sum
    over sessions, decaying by a tenth each, of their tracks' valence above the usual; .1 of it is free."""

    def __post_init__(self) -> None:
        for key, least in (
            ("users", 10),
            ("sessions_per_user", 2),
            ("tracks", 100),
            ("shard_users", 1),
            ("artists", 1),
            ("genres", 1),
            ("dimension", self.latent),
        ):
            check(getattr(self, key) >= least, f"data.platform.{key}", getattr(self, key), f"{least} or more")
        check(
            0 <= self.withheld_genres < self.genres,
            "data.platform.withheld_genres",
            self.withheld_genres,
            f"0 or more and below data.platform.genres={self.genres}",
        )
        check(1 <= self.latent <= 8, "data.platform.latent", self.latent, "1 to 8")
        for key in (
            "zipf",
            "affect_spread",
            "listener_spread",
            "baseline_sd",
            "contagion",
            "effect",
            "wear",
            "process_sd",
            "session_sd",
            "report_sd",
            "late_harm",
        ):
            check(getattr(self, key) >= 0, f"data.platform.{key}", getattr(self, key), "0 or more")
        for key in ("clinical", "unknowable", "feedback_noise"):
            check(0 <= getattr(self, key) <= 1, f"data.platform.{key}", getattr(self, key), "in [0, 1]")
        for key in ("skip_rate", "leave_rate"):
            check(0 < getattr(self, key) < 1, f"data.platform.{key}", getattr(self, key), "in (0, 1)")
        for key in ("rating_rate", "pre_report_rate", "post_report_rate", "exploration"):
            check(0 < getattr(self, key) <= 1, f"data.platform.{key}", getattr(self, key), "in (0, 1]")
        check(0 <= self.return_rate < 1, "data.platform.return_rate", self.return_rate, "in [0, 1)")
        check(self.carry_hours > 0, "data.platform.carry_hours", self.carry_hours, "above 0")
        check(3 <= self.planned_tracks <= 20, "data.platform.planned_tracks", self.planned_tracks, "3 to 20")
        check(
            -1 <= self.drift_correlation <= 1,
            "data.platform.drift_correlation",
            self.drift_correlation,
            "in [-1, 1]",
        )

    @property
    def sessions(self) -> int:
        """Sessions in the whole log."""
        return round(self.users * self.sessions_per_user)

    @property
    def strength(self) -> float:
        """Contagion of a track after `effect` and the variant; 0 where tracks do nothing to affect."""
        return 0.0 if self.variant == "no_track_effect" else self.contagion * self.effect
