"""Names, numbers and conclusions in words, and the short table for a terminal."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from amrs.report.listeners import TOO_FEW, in_words, too_few
from amrs.report.rows import GROUPS, MODELS, POLICIES, Report, Row

LABELS = {
    "world_model": "World model", "recalibrated": "World model, recalibrated",
    "track_blind": "World model, track-blind",
    "persistence_pre": "Copy the pre-session report", "persistence_last": "Copy the last report",
    "user_mean": "Running mean of the user", "ridge": "Ridge regression", "boosting": "Gradient boosting",
    "best_baseline": "Best baseline on validation users",
    "full_information": "Ceiling: the true state", "history_ceiling": "Ceiling: ten times the users",
    "slope_coverage": "Worlds whose interval holds the true slope",
    "share_of_ceiling": "Share of the ceiling",
    "too_few_users": "Users, too few for a figure",
    "random": "Random", "popularity": "Popularity", "production": "Production", "copycat": "Copycat",
    "greedy": "Greedy", "boltzmann": "Boltzmann", "soft_boltzmann": "Soft-Q Boltzmann",
    "best_of_n": "Best of N", "dpo": "DPO", "realised": "Realised", "predicted": "Predicted by the judge",
    "predicted_labeller": "Predicted by the labeller", "predicted_same_log": "Predicted on the same log",
    "ess": "Effective sessions", "corrected_gain": "Gain corrected by the uplift slope (90 %)",
    "instrumented_gain": "Gain corrected along the labeller's effects (90 %)",
    "instrumented_slope": "Slope along the labeller's effects (90 %)",
    "predicted_over_realised": "Predicted over realised", "kendall_tau": "Kendall's tau",
    "gain_over_production": "Gain over production", "tilt": "Tilt",
    "r2": "R2", "partial_r2": "Partial R2",
    "partial_r2_own": "Partial R2, of own forecast", "mae": "MAE", "auroc": "AUROC",
    "ece": "ECE", "crps": "CRPS", "coverage_50": "Coverage of 50 %", "coverage_80": "Coverage of 80 %",
    "coverage_95": "Coverage of 95 %", "catalogue_coverage": "Catalogue coverage",
    "entropy": "Entropy (normalised)", "effective_tracks": "Effective tracks",
    "intra_list": "Inside a session", "gini": "Gini", "artist_entropy": "Artist entropy",
    "novelty": "Novelty (bits)", "repeat_rate": "Repeat rate", "between_listeners": "Between listeners",
    "harm": "Harm", "uplift_slope": "Uplift slope", "violations": "Hard properties violated",
    "late_slope": "Later reports on earlier sessions", "later_gain": "Gain in sessions 11 to 20",
    "breaking_point": "Breaking point", "pass_rate": "Pass rate",
    "kl": "KL to Copycat (nats a track)", "all": "All", "left": "Leaving", "rated": "A rating is given",
    "reported": "A report is given", "pit_ks": "PIT, distance to uniform",
    "ignorance_sd": "Members' disagreement", "ignorance_auroc": "AUROC of disagreement",
    "effect_slope": "Effect slope", "effect_correlation": "Effect correlation",
    "rollout_excess": "Error that rolling out adds", "rollout_members_sd": "Spread over members",
    "rollout_samples_sd": "Spread over samples", "r2_reported": "R2 of those given",
    "r2_weighted": "R2, weighted", "r2_true": "R2 of all", "report_mean_nearer": "Mean, nearer by",
    "r2_nearer": "R2, nearer by",
    "rollout_error": "Error (root mean square)", "rollout_bias": "Bias",
    "distance_w1": "Wasserstein distance",
    "told_apart": "Told apart (AUROC)", "report_mean_reported": "Mean of those given",
    "report_mean_weighted": "Weighted mean", "report_mean_true": "Mean of all",
    "report_mean_bounds": "Mean, bounds", "r2_bounds": "R2, bounds",
    "ablation:positions_learned": "Learned positions", "ablation:positions_rope": "Rotary positions",
    "ablation:history_8": "History of 8 events", "ablation:history_32": "History of 32 events",
    "ablation:artists": "Artists withheld in training", "ablation:one_member": "One member",
    "ablation:one_head": "A model for each signal",
}  # fmt: skip
GAIN_SECTIONS = ("realised", "predicted", "predicted_labeller")
MAIN_FIT = (("valence", "r2"), ("arousal", "r2"), ("engagement", "r2"), ("rating", "auroc"))
"""The figure by which each signal's predictions are first judged."""
_SIGNED = {"gain", "gain_sd", "gain_over_production", "later_gain"}
_DECIMALS = {
    **dict.fromkeys(("effective_tracks", "trusted_horizon", "too_few_users", "ess"), 0),
    "novelty": 2, "gain": 4, "gain_over_production": 4, "later_gain": 4,
}  # fmt: skip


class Finding(NamedTuple):
    """One conclusion: what about, the word for it, and the figures it rests on."""

    topic: str
    tag: str
    text: str


def label(name: str) -> str:
    """A subject, section, metric or group in words: `dpo:credited` becomes "DPO (credited)"."""
    head, _, rest = name.partition(":")
    if head == "horizon":
        source, _, tracks = rest.partition(":")
        words = {"log": "The log's tracks", "random": "Random tracks"}.get(source, source.capitalize())
        return f"{words}, {tracks} ahead" if tracks else words
    if head in GROUPS:
        return f"{head.capitalize()}: {rest}"
    if head == "ablation":
        if name in LABELS:
            return LABELS[name]
        return f"Without {rest.replace('_', ' ')}"
    words = LABELS.get(head, head.replace("_", " ").capitalize())
    return f"{words} ({rest.replace(':', ', ')})" if rest else words


def number(value: float, metric: str) -> str:
    """A figure with the decimals and sign its metric deserves; `relative_gain` in percent."""
    if metric == "relative_gain":
        return f"{round(100 * value, 1) + 0.0:+.1f} %"
    decimals = _DECIMALS.get(metric, 3)
    value = round(value, decimals) + 0.0  # adding 0 turns -0.0 into 0.0
    return f"{value:{'+' if metric in _SIGNED else ''},.{decimals}f}"


def cell(row: Row | None) -> str:
    """A figure and its interval as one cell; empty where there is no row."""
    if row is None:
        return ""
    if row.low is None or row.high is None:
        return number(row.value, row.metric)
    low, high = number(row.low, row.metric), number(row.high, row.metric)
    return f"{number(row.value, row.metric)} [{low}, {high}]"


def counts(rows: Iterable[Row]) -> str:
    """Numbers of observations of some rows: "n = 812", or their range; its spaces do not break."""
    found = sorted({row.n for row in rows})
    if not found:
        return ""
    text = f"n = {found[0]:,}" if len(found) == 1 else f"n = {found[0]:,} to {found[-1]:,}"
    return text.replace(" ", "\u00a0")


def subjects(report: Report, section: str, kind: Sequence[str]) -> list[str]:
    """Subjects of a section that are of a kind, in the kind's order, variants after their head."""
    found = {row.subject for row in report.rows if row.section == section and row.split == "mean"}
    rank = {name: index for index, name in enumerate(kind)}
    mine = [name for name in found if name.partition(":")[0] in rank]
    return sorted(mine, key=lambda name: (rank[name.partition(":")[0]], name))


def direction(row: Row) -> str:
    """What an interval says about 0, in a word."""
    if row.low is None or row.high is None:
        return "no interval"
    return "better" if row.low > 0 else "worse" if row.high < 0 else "cannot tell"


def gain_findings(report: Report, subject: str = "dpo") -> list[Finding]:
    """For each signal, whether the gain's interval excludes 0, by each way of knowing; the first decides.
    Too few listeners decide nothing."""
    why = {
        "better": "above 0", "worse": "below 0", "cannot tell": "0 inside", "no interval": "too few users",
    }  # fmt: skip
    found = []
    for signal in ("valence", "arousal", "engagement", "rating"):
        rows = [
            report.one(section=section, subject=subject, signal=signal, metric="gain")
            for section in GAIN_SECTIONS
        ]
        known = [row for row in rows if row is not None]
        if known:
            lines = [f"{label(row.section)}: {cell(row)}, {why[direction(row)]}" for row in known]
            lines[-1] += f" ({counts(known)})"
            spread = report.one(section=known[0].section, subject=subject, signal=signal, metric="gain_sd")
            if spread is not None:
                lines.append(f"{label(known[0].section)}, in standard deviations of one person's reports: "
                             f"{number(spread.value, 'gain_sd')}")  # fmt: skip
            tag = TOO_FEW if too_few(report, "policies") else direction(known[0])
            found.append(Finding(label(signal), tag, "\n".join(lines)))
    return found


def gain_sentence(report: Report, subject: str = "dpo") -> str:
    """The same in one sentence: "Realised ...: better in valence; cannot tell in arousal."; empty where there
    is nothing to say."""
    if too_few(report, "policies"):
        return ""
    by_tag: dict[str, list[str]] = {}
    for finding in gain_findings(report, subject):
        by_tag.setdefault(finding.tag, []).append(finding.topic.lower())
    if not by_tag:
        return ""
    section = next(
        name for name in GAIN_SECTIONS if report.find(section=name, subject=subject, metric="gain")
    )
    source = {
        "realised": "On the synthetic platform, where the truth is known",
        "predicted": "By the judge's prediction, with no truth to check it against",
    }.get(section, "By the labeller's own prediction, which flatters")
    parts = [f"{tag} in {_and(by_tag[tag])}" for tag in
             ("better", "worse", "cannot tell", "no interval") if tag in by_tag]  # fmt: skip
    return f"{source}, {label(subject)} against Copycat: {'; '.join(parts)}."


def listeners_sentence(report: Report) -> str:
    """How many listeners the answer rests on, and what that means; empty where the report does not say."""
    gains = any(row.metric == "gain" and row.section in GAIN_SECTIONS for row in report.rows)
    chapter = "policies" if gains else "model"
    users = in_words(report, chapter)
    if not users:
        return ""
    if too_few(report, chapter):
        return f"The figures rest on {users}: so few listeners tell nothing, whatever an interval says."
    return f"The figures rest on {users}: n counts their sessions, reports or plays, intervals draw users."


def log_words(report: Report) -> str:
    """What the log and its embeddings call themselves; empty where the report does not say."""
    log = report.provenance.get("log")
    return f"Log: {log['name']}. Embeddings of its tracks: {log['embedding']}." if log else ""


def _and(words: Sequence[str]) -> str:
    """The words as a sentence lists them."""
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def off_policy_findings(report: Report, subject: str = "dpo") -> list[Finding]:
    """What the log itself says of a policy's gain over what logged it, or that it cannot tell, and why."""
    found = []
    for signal in ("valence", "arousal", "engagement", "rating"):
        keys: dict[str, str | int] = {"section": "off_policy", "subject": subject, "signal": signal}
        size = report.one(**keys, metric="ess")
        if size is None:
            continue
        gain = report.one(**keys, metric="gain_over_production")
        support = f"{number(size.value, 'ess')} effective sessions of {size.n:,}"
        if gain is None:
            text = f"Withheld: {support}. So few, or so few of their users, tell nothing."
            found.append(Finding(label(signal), "cannot tell", text))
        else:
            text = f"Gain over production {cell(gain)}, from {support}."
            tag = TOO_FEW if too_few(report, "model") else direction(gain)
            found.append(Finding(label(signal), tag, text))
    return found


def model_findings(report: Report) -> list[Finding]:
    """For each signal, the world model beside the best baseline and its track-blind self.

    The word is about the best baseline's figure and the world model's interval: above, below, or inside it.
    """
    found = []
    for signal, metric in MAIN_FIT:
        rows = {row.subject: row for row in report.find(section="fidelity", signal=signal, metric=metric)}
        model = rows.get("world_model")
        own = ("world_model", "recalibrated", "track_blind", "full_information", "history_ceiling")
        others = [row for name, row in rows.items() if name in MODELS and name not in own]
        if model is None or not others:
            continue
        best = rows.get("best_baseline") or max(others, key=lambda row: row.value)
        low, high = (
            (model.low, model.high) if model.low is not None and model.high is not None else (-9e9, 9e9)
        )
        tag = (
            TOO_FEW
            if too_few(report, "model")
            else "above baselines"
            if low > best.value
            else "below baselines"
            if high < best.value
            else "no clear gap"
        )
        same = [r for r in others if r.subject != "best_baseline" and (r.value, r.n) == (best.value, best.n)]
        named = same[0] if same else best
        text = f"{label(metric)} {cell(model)}\nBest baseline, {label(named.subject).lower()}: {cell(best)}"
        blind = rows.get("track_blind")
        text += f"\nThe same model without the session's tracks: {cell(blind)}" if blind is not None else ""
        text += _trusted(report, signal)
        found.append(Finding(label(signal), tag, text))
    return found


def _trusted(report: Report, signal: str) -> str:
    """How many tracks ahead study `rollouts` trusts a signal, where it was run."""
    sources = {"log": "against the log", "random": "with random tracks, against the truth"}
    rows = {
        words: report.one(signal=signal, metric="trusted_horizon", group=f"horizon:{source}")
        for source, words in sources.items()
    }
    tried = [row.group for row in report.rows if row.signal == signal and row.metric == "rollout_error"]
    last = max((int(group.rpartition(":")[2]) for group in tried), default=0)
    told = [
        f"{f'all {last}' if row.value == last else f'{row.value:.0f}'} {words}"
        for words, row in rows.items() if row is not None
    ]  # fmt: skip
    config = report.provenance.get("config")
    tolerance = config["evaluate"]["tolerance"] if isinstance(config, Mapping) and "evaluate" in config else 0
    within = f" with an error below {tolerance:g}" if tolerance else ""
    return f"\nTracks ahead that it may be followed{within}: {'; '.join(told)}" if told else ""


def diversity_findings(report: Report) -> list[Finding]:
    """How much of Copycat's effective number of tracks DPO and Greedy keep."""
    base = report.one(section="diversity", subject="copycat", metric="effective_tracks")
    found = []
    for subject in ("dpo", "greedy"):
        row = report.one(section="diversity", subject=subject, metric="effective_tracks")
        if row is not None and base is not None and base.value > 0:
            share = row.value / base.value
            tag = "kept" if share >= 0.9 else "collapsed" if share < 0.5 else "reduced"
            text = f"{cell(row)} effective tracks, {100 * share:.0f} % of Copycat's {cell(base)}."
            found.append(Finding(f"Diversity under {label(subject)}", tag, text))
    return found


def terminal_table(report: Report) -> str:
    """The main figures as plain text of at most 110 columns."""
    blocks = []
    fit = [pair for pair in MAIN_FIT if report.find(section="fidelity", signal=pair[0], metric=pair[1])]
    if fit:
        header = ["held-out fit", *(f"{signal} {label(metric)}" for signal, metric in fit)]
        blocks.append([header, *(
            [label(name), *(_short(report, "fidelity", name, *pair) for pair in fit)]
            for name in subjects(report, "fidelity", (*MODELS, "ablation"))
            if any(report.find(section="fidelity", subject=name, signal=x, metric=y) for x, y in fit)
        )])  # fmt: skip
    for section in GAIN_SECTIONS:
        names = [name for name in subjects(report, section, POLICIES) if name != "copycat"]
        signals = [
            s
            for s in ("valence", "arousal", "rating")
            if report.find(section=section, signal=s, metric="gain")
        ]
        if names and signals:
            header = [f"gain, {label(section).lower()}", *signals]
            blocks.append([header, *(
                [label(name), *(_short(report, section, name, signal, "gain") for signal in signals)]
                for name in names
            )])  # fmt: skip
    names = subjects(report, "diversity", POLICIES)
    if names:
        shown = [
            m
            for m in ("effective_tracks", "catalogue_coverage", "kl")
            if report.find(section="diversity", metric=m)
        ]
        header = ["diversity", *(label(metric) for metric in shown)]
        blocks.append([header, *(
            [label(name), *(_short(report, "diversity", name, "all", metric) for metric in shown)] for name
            in names
        )])  # fmt: skip
    if not blocks and report.rows:  # a study with figures of its own kind
        blocks.append([["figure", "signal", "group", "value"], *(
            [f"{label(row.subject)}: {label(row.metric)}", label(row.signal), label(row.group), cell(row)]
            for row in report.rows if row.split == "mean"
        )])  # fmt: skip
    return "\n\n".join(_align(block) for block in blocks) or "The report holds no figures yet."


def _short(report: Report, section: str, subject: str, signal: str, metric: str) -> str:
    """A figure and half its interval's width."""
    row = report.one(section=section, subject=subject, signal=signal, metric=metric)
    if row is None:
        return "-"
    if row.low is None or row.high is None or not math.isfinite(row.high - row.low):
        return number(row.value, metric)
    half = number((row.high - row.low) / 2, metric).lstrip("+")
    return f"{number(row.value, metric)} +-{half}"


def _align(block: list[list[str]]) -> str:
    widths = [max(len(line[column]) for line in block) for column in range(len(block[0]))]
    lines = [
        "  ".join(text.ljust(width) if index == 0 else text.rjust(width)
                  for index, (text, width) in enumerate(zip(line, widths, strict=True)))
        for line in block
    ]  # fmt: skip
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])
