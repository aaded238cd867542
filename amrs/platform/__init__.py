"""A synthetic listening service whose truth is known: a catalogue, listeners, and the policy that logged.

A listener has a taste, a baseline affect and habits; affect is a state with inertia. A track is liked
or not (`dynamics.liking`), is heard out or skipped, and pulls the state toward its own valence and
arousal: the more the better it is liked, the less the more of its like was heard. Between sessions the
state returns to its baseline with noise. Reports are noisy readings, given more often by those who feel
well. Clinical listeners cannot skip. What is drawn at random depends only on what it is drawn for, so
any policy can be run on the same listeners with the same luck.

Defaults fixed on 2026-11-22, before any policy was trained on them. What they give (seed 0):

    8,784 sessions of 939 listeners (a third clinical), 9.9 tracks each, 87,245 plays of 5,889 tracks;
    energize .29, calm .27, focus .26, sleep .19; 15 % of sessions left early; consumers skip 23 % of
    plays; 24 % of plays rated, 65 % of these liked; a report before 83 % of sessions and after 64 %;
    state before a session sd .14; mean pull of a track .077; production's entropy 6.8 nats a track.

    Nested shares of the variance of post-session reports (`benchmarks/calibrate_platform.py`):
               person   state before   mode   choice of tracks   remainder
    valence      .164           .161   .004               .119        .552
    arousal      .105           .172   .156               .068        .499
    (choice of tracks over seeds 0 to 5 of smaller logs: .107 to .138 and .064 to .079)

    Best possible with the true state at a session's start and its tracks: R2 of post-session reports
    .44 and .49, of engagement .31; AUROC of ratings .86.
"""

from amrs.platform.truth import TruthError, load_truth
from amrs.platform.world import Platform, PlatformEnvironment, draw_platform

__all__ = ["Platform", "PlatformEnvironment", "TruthError", "draw_platform", "load_truth"]
