"""Rows of the report: one figure each, with its interval, named from fixed lists, and the file that holds
them.

Names are added here, never changed: other tools read them. `split` is a split's number, "mean" over
splits (with one split only "mean") or "pooled" (their predictions together), always of test users; `group`
is "all" or one of `GROUPS` with a name, as "cohort:<name>"; `signal` is "all" where none applies.
"""

import json
import math
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

SECTIONS = (
    "fidelity", "predicted", "predicted_labeller", "predicted_same_log", "realised", "diversity",
    "off_policy", "stress", "gate",
)  # fmt: skip
MODELS = (
    "world_model", "recalibrated", "track_blind", "persistence_pre", "persistence_last", "user_mean", "ridge",
    "boosting", "best_baseline", "full_information", "history_ceiling",
)  # fmt: skip
POLICIES = (
    "random", "popularity", "production", "copycat", "greedy", "boltzmann", "soft_boltzmann", "best_of_n",
    "dpo", "own",
)  # fmt: skip
SIGNALS = (
    "engagement", "rating", "valence", "arousal", "left", "rated", "reported", "utility", "all",
)  # fmt: skip
METRICS = (
    "r2", "mae", "auroc", "ece", "crps", "coverage_50", "coverage_80", "coverage_95", "partial_r2",
    "partial_r2_own",
    "uplift_slope", "late_slope", "effect_slope", "effect_correlation", "mean", "gain", "gain_sd",
    "relative_gain", "gain_over_production", "later_gain", "kl", "harm", "breaking_point",
    "catalogue_coverage", "entropy", "effective_tracks", "intra_list", "gini", "artist_entropy",
    "novelty", "repeat_rate", "between_listeners", "pit_ks", "pit_share", "reliability_predicted",
    "reliability_observed",
    "violations", "worst_violation", "verdict", "ess", "withheld", "gain_coverage_95", "kendall_tau",
    "regret", "corrected_gain", "instrumented_gain", "instrumented_slope", "predicted_over_realised",
    "noise_sd", "ignorance_sd", "ignorance_auroc", "rollout_error", "rollout_bias", "rollout_excess",
    "rollout_members_sd", "rollout_samples_sd", "trusted_horizon", "distance_w1", "distance_ks", "told_apart",
    "report_mean_reported", "report_mean_weighted", "report_mean_true", "report_mean_nearer",
    "report_mean_bounds", "r2_reported", "r2_weighted", "r2_true", "r2_nearer", "r2_bounds",
    "effective_share",
    "slope_coverage", "share_of_ceiling", "too_few_users",
    "pass_rate",
)  # fmt: skip
# ablation:<name>, dpo:<sampler>, dpo:<sampler>:<loss>, own:<a policy of the user's>,
# tilt:<of a policy, by its property and strength>, front:<share of valence's weight>
_VARIANT = re.compile(r"ablation:\w+|dpo:\w+(:\w+)?|own:\w+|tilt:[\w.]+|front:[\w.]+")
GROUPS = ("cohort", "mode", "known", "bin", "users", "horizon", "gamma", "distance", "genres", "compared",
          "perturbed", "history", "worst", "world", "missing", "estimator", "propensities", "sessions",
          "reports", "pre_report", "artists")  # fmt: skip
"""Kinds of groups: a group is "all" or <kind>:<name>."""
_GROUP = re.compile(rf"all|({'|'.join(GROUPS)}):\S.*")


class ReportError(ValueError):
    """Rows or a file that are no report, in words."""


@dataclass(frozen=True)
class Row:
    """One figure: `value` with its 95 % interval, from `n` observations, in `unit`."""

    section: str
    subject: str
    signal: str
    metric: str
    split: int | str
    group: str
    value: float
    low: float | None
    high: float | None
    n: int
    unit: str

    @property
    def key(self) -> tuple[str, str, str, str, int | str, str]:
        """What no two rows of a report share."""
        return self.section, self.subject, self.signal, self.metric, self.split, self.group


def finite_rows(rows: Iterable[Row]) -> list[Row]:
    """The rows whose value exists (a figure that does not is left out); an interval that does not is None."""
    kept = []
    for row in rows:
        if math.isfinite(row.value):
            low, high = row.low, row.high
            if low is None or high is None or not (math.isfinite(low) and math.isfinite(high)):
                low = high = None
            kept.append(replace(row, value=float(row.value), low=low, high=high, n=int(row.n)))
    return kept


class Report:
    """All figures of an evaluation and where they come from, in `report.json` and `report.html`.

    `provenance` is plain data (it must survive JSON). The page knows these keys, all optional, and lists
    any other as it is: `title`, `data` (list of dicts, one table row each; keys that begin with "share" or
    "missing" are fractions), `log` (what the log and its embeddings call themselves: `name`, `embedding`),
    `config` and `versions` (dicts or text), `seeds`, `fingerprints`, `parents`
    (dicts), `commands` (list), `notes` (list of sentences).
    """

    def __init__(self, rows: Iterable[Row], provenance: Mapping[str, Any]) -> None:
        self.rows = list(rows)
        self.provenance = dict(provenance)
        for row in self.rows:
            fault = _fault(row)
            if fault:
                raise ReportError(f"{'/'.join(map(str, row.key))}: {fault}")
        seen = set()
        for row in self.rows:
            if row.key in seen:
                raise ReportError(f"two rows share all keys: {'/'.join(map(str, row.key))}")
            seen.add(row.key)

    def find(self, **keys: str | int) -> list[Row]:
        """Rows that match every given key, in order; over all users and splits unless told otherwise."""
        wanted = {"group": "all", "split": "mean", **keys}
        return [row for row in self.rows if all(getattr(row, key) == value for key, value in wanted.items())]

    def one(self, **keys: str | int) -> Row | None:
        """The row that matches, or None."""
        found = self.find(**keys)
        return found[0] if found else None

    def save(self, folder: Path) -> None:
        """Write `report.json` and `report.html` into `folder`; each appears whole or not at all."""
        from amrs.report.page import render  # draws with matplotlib, which `load` does not need

        content = {"provenance": self.provenance, "rows": [asdict(row) for row in self.rows]}
        text = json.dumps(content, indent=1, allow_nan=False)
        page = render(self)
        folder.mkdir(parents=True, exist_ok=True)
        _write(folder / "report.html", page)
        _write(folder / "report.json", text)


def load(folder: Path) -> Report:
    """The report that `folder` holds."""
    path = folder / "report.json"
    if not path.is_file():
        raise ReportError(f"{folder} holds no report.json: give the run folder of stage evaluate or stress")
    try:
        content = json.loads(path.read_text())
        names = {field.name for field in fields(Row)}
        rows = [Row(**{key: value for key, value in row.items() if key in names}) for row in content["rows"]]
        return Report(rows, content["provenance"])
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise ReportError(f"{path} is not a report: {error}") from error


def _fault(row: Row) -> str | None:
    """What is wrong with a row, or None."""
    for name, allowed in (("section", SECTIONS), ("signal", SIGNALS), ("metric", METRICS)):
        if getattr(row, name) not in allowed:
            return f"{name} {getattr(row, name)!r} is not one of {', '.join(allowed)}"
    if row.subject not in MODELS + POLICIES and not _VARIANT.fullmatch(row.subject):
        names = (*MODELS, *POLICIES, "ablation:<name>", "dpo:<sampler>")
        return f"subject {row.subject!r} is not one of {', '.join(names)}"
    if not _GROUP.fullmatch(row.group):
        return f"group {row.group!r} is not all, {', '.join(f'{kind}:<name>' for kind in GROUPS)}"
    if row.split not in ("mean", "pooled") and (
        not isinstance(row.split, int) or isinstance(row.split, bool)
    ):
        return f"split {row.split!r} is neither a split's number nor 'mean' nor 'pooled'"
    if not _number(row.value):
        return f"value is {row.value}: leave out a figure that does not exist (`finite_rows`)"
    if (row.low is None) != (row.high is None):
        return f"interval [{row.low}, {row.high}] has one end: give both or None"
    if row.low is not None and row.high is not None:
        if not (_number(row.low) and _number(row.high) and row.low <= row.high):
            return f"interval [{row.low}, {row.high}] must be two finite numbers, low first"
    if not isinstance(row.n, int) or row.n < 0:
        return f"n={row.n!r} must be a whole number, 0 or more"
    return None


def _number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _write(path: Path, text: str) -> None:
    """Write beside, then rename: a reader never sees half a file."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
