"""What the report measures: pure functions of numpy arrays, all in float64.

`fidelity` scores predictions, `calibration` their probabilities and intervals, `diversity` scores lists of
tracks, `intervals` resamples users, and `gains` compares a policy with Copycat. A figure that does not exist
(one class only, no pair of tracks) is NaN here and is left out of the report there.
"""

from amrs.metrics.calibration import (
    ece,
    ks_uniform,
    levels,
    mapped,
    pit,
    quantile_map,
    reliability,
    reliability_bins,
)
from amrs.metrics.diversity import DIVERSITY, Lists, equal_lengths, unit
from amrs.metrics.fidelity import auroc, coverage, crps, interval_from_cdf, mae, r2, within_person_sd
from amrs.metrics.gains import gain_rows, logged_share
from amrs.metrics.intervals import (
    Estimate,
    Statistic,
    auroc_interval,
    effective_users,
    mae_interval,
    mean_interval,
    mean_of,
    pseudo_values,
    r2_interval,
    r2_of,
    resampled_users,
    studentised,
    user_bootstrap,
    user_sums,
)

__all__ = [
    "DIVERSITY", "Estimate", "Lists", "Statistic", "auroc", "auroc_interval", "coverage", "crps", "ece",
    "effective_users", "equal_lengths", "gain_rows", "interval_from_cdf", "ks_uniform", "levels",
    "logged_share", "mae", "mae_interval", "mapped", "mean_interval", "mean_of", "pit", "pseudo_values",
    "quantile_map", "r2",
    "r2_interval", "r2_of", "reliability", "reliability_bins", "resampled_users", "studentised", "unit",
    "user_bootstrap", "user_sums", "within_person_sd",
]  # fmt: skip
