r"""Measure how well scores without labels rank twenty students of one pair.

    python experiments/studies/score_quality.py --pair streets
    python experiments/studies/score_quality.py --pair camvid_day2dusk --data DIR [--source-model FILE]
    python experiments/studies/score_quality.py --pair cityscapes2camvid_dusk --data DIR \
        --source-model espnet_p_2_q_8.pth

The trials differ in learning rate, ema_momentum, contrast_weight, temperature, BatchNorm mode and
statistics, steps and loss, so that some gain, some lose and some collapse. The scores use target images
that no trial learns from. mIoU is that of the student at its last step, and only this table uses it.
Finished trials are not repeated. The script writes results/score_quality_PAIR.json, .md and .png beside
this file.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import candidate_scores as candidates
from ablation import add_pair_options, make_pair
from domain_pairs import DomainPair
from score_trials import NAMES, TrialPlan, held_out, networks, plans, train
from study_record import write_record
from trial_predictions import Predictions, record_predictions

from sfss_ray.cli import run_guarded
from sfss_ray.config import flatten
from sfss_ray.runtime.run_folder import write_json

REGIONS = "felzenszwalb"
MEASURES = (
    "miou",
    "mask_information",
    "balanced_mask_information",
    "anchored_information",
    "agreement",
    "entropy",
    "neighbourhood_density",
    "predicted_classes",
    "class_entropy",
)
JUDGES = ("mask_information", "balanced_mask_information", "anchored_information")
"""Scores that could give the verdict on a run."""
CLEAR_CHANGE = 1.0
"""Points of mIoU from which a verdict is right or wrong."""
CANDIDATES = (
    "view_consistency",
    "consistency_over_source_classes",
    "steadiness",
    "source_agreement",
    "views_of_both",
    "kept_anchors",
    "information_maximum",
    "committee",
)
"""Scores of candidate_scores.py."""
SCORES: dict[str, Callable[[dict[str, Any]], float]] = {
    "mask_information": lambda t: t["mask_information"],
    "balanced_mask_information": lambda t: t["balanced_mask_information"],
    "anchored_information": lambda t: t["anchored_information"],
    "agreement (with the teacher)": lambda t: t["agreement"],
    "low entropy": lambda t: -t["entropy"],
    "neighbourhood_density": lambda t: t["neighbourhood_density"],
    **{name: lambda t, name=name: t[name] for name in CANDIDATES},
    "information x consistency": lambda t: (
        t["mask_information"] * t["consistency_over_source_classes"]
    ),
    **{
        f"information x consistency x {factor}^({name})": (
            lambda t, factor=factor, power=power: _product(t, factor, power)
        )
        for factor in ("views_of_both", "kept_anchors")
        for name, power in (("1/4", 0.25), ("1/2", 0.5), ("1", 1.0))
    },
    "committee x balanced_mask_information": lambda t: (
        t["committee"] * t["balanced_mask_information"]
    ),
    "mask_information / class entropy": lambda t: (
        t["mask_information"] / max(t["class_entropy"], 1e-9)
    ),
    "class entropy alone": lambda t: t["class_entropy"],
    "mask_information - entropy": lambda t: t["mask_information"] - t["entropy"],
}
"""Higher is better. The first six are scores of the package."""


def _product(trial: dict[str, Any], factor: str, power: float) -> float:
    """Return the information times the consistency, times another factor with a power."""
    return SCORES["information x consistency"](trial) * trial[factor] ** power


@dataclasses.dataclass(frozen=True)
class Judge:
    """Scores the networks of a pair with and without labels."""

    pair: DomainPair

    @cached_property
    def unlabelled(self) -> Any:
        """The scorer of held-out images without labels, with the source model as the reference."""
        from sfss_ray.evaluation.examination import Examination
        from sfss_ray.masks.bank.store import MaskStore
        from sfss_ray.models.model_file import load_model

        store = MaskStore(self.pair.masks(REGIONS))
        config = self.pair.config.evaluation
        files = held_out(self.pair)
        examination = Examination(self.pair.classes, (), files, store.id_map, config)
        return examination.with_source(load_model(self.pair.source_model).network.eval())

    @property
    def _folder(self) -> Path:
        return self.pair.folder / "score_trials"

    def source(self) -> dict[str, Any]:
        """Return the scores of the source model, from the cache where possible."""
        from sfss_ray.models.model_file import load_model

        def score() -> dict[str, Any]:
            network = load_model(self.pair.source_model).network.eval()
            self._predictions_of(network).save(self._folder / "predictions.npz")
            return self._score(network, None)

        return self._cached(self._folder / "source.json", self._source_identity, score)

    def trial(self, plan: TrialPlan) -> dict[str, Any]:
        """Return the scores of a trained trial, from the cache where possible."""

        def score() -> dict[str, Any]:
            student, teacher = networks(plan)
            predictions = plan.folder / "predictions.npz"
            if not predictions.exists():  # a new training removes the folder
                self._predictions_of(student).save(predictions)
            return self._score(student, teacher)

        identity = {"trial": plan.identity} | self._source_identity
        return self._cached(plan.folder / "scores.json", identity, score)

    def _predictions_of(self, network: Any) -> Predictions:
        return record_predictions(network, held_out(self.pair), self.pair.config.evaluation)

    def candidates(self, folders: list[Path], sound: list[bool]) -> list[dict[str, float]]:
        """Return the candidate scores of the source model, followed by those of each trial.

        Args:
            folders: Of the trials.
            sound: Whether a trial is a member of the committee.
        """
        source = Predictions.load(self._folder / "predictions.npz")
        students = [Predictions.load(folder / "predictions.npz") for folder in folders]
        members = [student for student, is_sound in zip(students, sound, strict=True) if is_sound]
        committee = candidates.Committee.of([source, *members])
        return [
            {
                "view_consistency": candidates.view_consistency(student),
                "consistency_over_source_classes": candidates.consistency_over_source_classes(
                    student, source
                ),
                "steadiness": candidates.steadiness(student),
                "source_agreement": candidates.source_agreement(student, source),
                "views_of_both": candidates.views_of_both(student, source),
                "kept_anchors": candidates.kept_anchors(student, source),
                "information_maximum": candidates.information_maximum(student),
                "committee": committee.agreement(student),
            }
            for student in (source, *students)
        ]

    @property
    def _source_identity(self) -> dict[str, Any]:
        return {
            "held_out": len(held_out(self.pair)),
            "scored": len(self.pair.val),
            "measures": list(MEASURES),
            "predictions": True,
            "reference": "views",
        }

    def _cached(
        self, path: Path, identity: dict[str, Any], make: Callable[[], dict[str, Any]]
    ) -> dict[str, Any]:
        if path.exists():
            record = json.loads(path.read_text())
            if record["identity"] == identity:
                return record["scores"]
        scores = make()
        write_json(path, {"identity": identity, "scores": scores})
        return scores

    def _score(self, student: Any, teacher: Any) -> dict[str, Any]:
        from sfss_ray.evaluation.examination import Examination

        config = self.pair.config.evaluation
        with_labels = Examination(self.pair.classes, self.pair.val, config=config).score(student)
        score = self.unlabelled.score(student, teacher)
        values = score.as_dict() | {"miou": with_labels.miou}
        without = {name: list(score.leave_one_out[name]) for name in JUDGES}
        return {name: values[name] for name in MEASURES} | {"leave_one_out": without}


def verdicts(source: dict[str, Any], trials: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return for each score how often the verdict by it is right, silent and wrong.

    Trials that collapsed, or whose mIoU hardly differs from the source model's, are not counted.
    """
    from sfss_ray.evaluation.verdict import chance

    judged = [
        trial
        for trial in trials
        if not trial["collapsed"] and abs(trial["miou"] - source["miou"]) >= CLEAR_CHANGE
    ]
    rows = []
    for name in JUDGES:
        outcomes = []
        for trial in judged:
            change = trial[name] - source[name]
            limit = chance(source["leave_one_out"][name], trial["leave_one_out"][name])
            is_right = (change > 0) == (trial["miou"] > source["miou"])
            outcomes.append("silent" if abs(change) <= limit else "right" if is_right else "wrong")
        counts = {word: outcomes.count(word) for word in ("right", "silent", "wrong")}
        rows.append({"score": name} | counts)
    return rows


def spearman(xs: list[float], ys: list[float]) -> float:
    """Return the rank correlation, or NaN where one of the lists is constant."""
    import numpy as np
    from scipy.stats import rankdata

    if len(set(xs)) < 2 or len(set(ys)) < 2:
        return float("nan")
    return float(np.corrcoef(rankdata(xs), rankdata(ys))[0, 1])


def judge_scores(source: dict[str, Any], trials: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a row per score: rank correlation with mIoU, and its pick with and without the guard.

    The guarded pick is made once among the trials, and once among trials and source model.
    """
    sound = [trial for trial in trials if not trial["collapsed"]]
    rows = []
    for name, score in SCORES.items():
        unguarded, guarded = max(trials, key=score), max(sound, key=score)
        # The source model has no teacher to agree with.
        all_models = sound if "teacher" in name else [source, *sound]
        rows.append(
            {
                "score": name,
                "spearman": spearman(list(map(score, trials)), [t["miou"] for t in trials]),
                "spearman_sound": spearman(list(map(score, sound)), [t["miou"] for t in sound]),
                "pick": guarded["trial"],
                "pick_miou": guarded["miou"],
                "pick_with_source_miou": max(all_models, key=score)["miou"],
                "pick_unguarded": unguarded["trial"],
                "pick_unguarded_miou": unguarded["miou"],
                "pick_unguarded_collapsed": unguarded["collapsed"],
            }
        )
    return rows


def write_results(pair: DomainPair, source: dict, trials: list[dict], folder: Path) -> str:
    """Write the record, the table and the figure. Return the table."""
    rows, stem = judge_scores(source, trials), folder / f"score_quality_{pair.name}"
    folder.mkdir(parents=True, exist_ok=True)
    facts = {"pair": pair.name, "held_out": len(held_out(pair)), "source": source, "scores": rows}
    command = f"python experiments/studies/score_quality.py {pair.options}"
    facts["verdicts"] = verdicts(source, trials)
    write_record(stem.with_suffix(".json"), command, "cpu", trials, facts)
    text = as_markdown(pair, source, trials, rows)
    stem.with_suffix(".md").write_text(text)
    draw(pair, source, trials, stem.with_suffix(".png"))
    return text


def as_markdown(pair: DomainPair, source: dict, trials: list[dict], rows: list[dict]) -> str:
    """Return the table of the scores, followed by the trials."""
    collapsed = sum(t["collapsed"] for t in trials)
    best = max(t["miou"] for t in trials)
    lines = [
        f"# {pair.name}: {len(trials)} trials, {collapsed} of them flagged as collapsed",
        "",
        f"Source model {source['miou']:.1f} mIoU, best trial {best:.1f}, worst"
        f" {min(t['miou'] for t in trials):.1f}. Scores use {len(held_out(pair))} target images that no"
        f" trial learns from, with {REGIONS} regions. mIoU is of the student at its last step, one seed,"
        f" over {len(pair.val)} labelled images.",
        "",
        "| score | Spearman, all | Spearman, not collapsed | picks | its mIoU | source model or trial"
        " | without the guard |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [_score_line(row) for row in rows]
    lines += [
        "",
        "Verdicts without labels on trials that did not collapse and differ from the source model by"
        f" {CLEAR_CHANGE:.0f} mIoU or more:",
        "",
        "| score | right | no evidence | wrong |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| {row['score']} | {row['right']} | {row['silent']} | {row['wrong']} |"
        for row in verdicts(source, trials)
    ]
    names = [name.rsplit(".", 1)[-1] for name in NAMES]
    measures = (*MEASURES, *CANDIDATES)
    lines += ["", "| trial | " + " | ".join([*names, *measures, "collapsed"]) + " |"]
    lines.append("|---" * (len(names) + len(measures) + 2) + "|")
    for trial in sorted(trials, key=lambda t: -t["miou"]):
        knobs = [str(trial["knobs"][name]) for name in NAMES]
        values = [f"{trial[name]:.3g}" for name in measures]
        label = f"{trial['trial']}{' (entropy loss)' if trial['entropy_loss'] else ''}"
        flag = "yes" if trial["collapsed"] else ""
        lines.append("| " + " | ".join([label, *knobs, *values, flag]) + " |")
    return "\n".join(lines) + "\n"


def _score_line(row: dict[str, Any]) -> str:
    unguarded = f"trial {row['pick_unguarded']}, {row['pick_unguarded_miou']:.1f}"
    unguarded += ", collapsed" if row["pick_unguarded_collapsed"] else ""
    return (
        f"| {row['score']} | {row['spearman']:+.2f} | {row['spearman_sound']:+.2f} | trial {row['pick']}"
        f" | {row['pick_miou']:.1f} | {row['pick_with_source_miou']:.1f} | {unguarded} |"
    )


def draw(pair: DomainPair, source: dict, trials: list[dict], path: Path) -> None:
    """Plot mIoU over each score of the package. Crosses are collapsed trials."""
    from matplotlib.figure import Figure

    package_scores = list(SCORES.items())[:6]
    figure = Figure(figsize=(15, 3.2), layout="constrained")
    for axes, (name, score) in zip(
        figure.subplots(1, len(package_scores)), package_scores, strict=True
    ):
        for flag, marker, colour in ((False, "o", "#1f3d5c"), (True, "x", "#b3423a")):
            chosen = [t for t in trials if t["collapsed"] is flag]
            axes.plot([score(t) for t in chosen], [t["miou"] for t in chosen], marker, color=colour)
        axes.axhline(source["miou"], color="#777777", linestyle=":", linewidth=1)
        axes.set_xlabel(name)
    figure.axes[0].set_ylabel("mIoU %, student, last step")
    figure.suptitle(
        f"{pair.name}: crosses are collapsed trials, the line is source-only", fontsize=10
    )
    figure.savefig(path, dpi=100)


def run(arguments: argparse.Namespace) -> None:
    """Train and score the missing trials, then judge the scores."""
    import torch

    from sfss_ray.evaluation.label_free import Variety, lost_variety

    torch.set_num_threads(1)
    pair = make_pair(arguments)
    judge, trials = Judge(pair), []
    masks, source, all_plans = pair.masks(REGIONS), judge.source(), plans(pair)
    all_plans = all_plans[: arguments.trials]
    for plan in all_plans:
        train(plan, masks)
        scores = judge.trial(plan)
        variety = [Variety(s["predicted_classes"], s["class_entropy"]) for s in (scores, source)]
        entropy_loss = plan.config.train.loss.label_space == "entropy"
        config = flatten(plan.config)
        knobs = {name: config[name] for name in NAMES}
        facts = {"trial": plan.number, "entropy_loss": entropy_loss, "knobs": knobs}
        trials.append(facts | scores | {"collapsed": lost_variety(*variety)})
        print(f"trial {plan.number}: mIoU {scores['miou']:.1f}", flush=True)
    sound = [not trial["collapsed"] for trial in trials]
    of_source, *of_trials = judge.candidates([plan.folder for plan in all_plans], sound)
    trials = [trial | scores for trial, scores in zip(trials, of_trials, strict=True)]
    print(write_results(pair, source | of_source, trials, arguments.results))


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_pair_options(parser)
    parser.add_argument("--trials", type=int, help="only the first trials, for a quick try")
    arguments = parser.parse_args()
    sys.exit(run_guarded(lambda: run(arguments)))
