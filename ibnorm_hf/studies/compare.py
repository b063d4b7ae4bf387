# SPDX-License-Identifier: Apache-2.0
"""`ibnorm-hf compare STUDY.yaml`: noise floor, tuning, claim, report. Each run is made once, whoever asks for it."""

from __future__ import annotations

import dataclasses
import math
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from ..common.errors import UserError, one_line
from ..common.paths import digest, write_atomic, write_json
from ..common.run import Run as RunFolder
from . import archive, outcome
from . import plan as planning
from .audit import Audit, audit, differs_from_vanilla, has_own_norm, unfair
from .code import code_sha256
from .definition import Definition, read_definition
from .effects import add_effects
from .executors import Executor
from .fairness import chosen_rates
from .plan import Run
from .report import Study, write_report
from .rows import Row
from .runs import Job, measured, run_key, state, tidy, without_places
from .statistics import half_width, seeds_for
from .verdict import judge_rows

Say = Callable[[str], None]


class Comparison:
    """A study at work in a folder: ``runs/`` holds a folder a run, ``report/`` the report.

    Nothing about progress is stored beside the runs themselves, so the same command goes on after any kill.
    """

    def __init__(self, study: Definition, folder: Path, executor: Executor, say: Say = print) -> None:
        self.study, self.folder, self.executor, self.say = study, folder, executor, say
        self.code = code_sha256()
        self._recipes: dict[Run, Any] = {}
        self._samples: dict[str, Any] = {}
        self.audits: list[Audit] = []
        self._ours: set[Path] = set()
        self.foreign = False  # an ablation may start from another norm than the architecture's own

    def take(self, path: Path) -> None:
        """Take the runs of an archive, so that they need not be made; those of other code are left out.

        Raises:
            UserError: the archive is damaged, not one of a study, or all of its runs are of other code; or the
                study's folder cannot be written.
        """
        self._require_writable()
        taken, others = archive.unpack(path, self.folder / "runs", self.code)
        self.say(f"runs of {path}: {taken} taken")
        if others:
            self.say(f"runs of {path}: {others[0]}")

    def run(self) -> dict[str, Any]:
        """Make every run that is missing, phase by phase, and write the report; returns what report.json holds.

        Raises:
            UserError: a run failed for a reason of its own, twice; the sentence names its log. Or the study's folder
                cannot be written.
        """
        self._require_writable()
        refused = self.check()
        self.noise_floor()
        rates = self.tune()
        chosen = chosen_rates(self.rows(planning.tuning(self.study, rates)))
        claims = planning.claims(self.study, self.on_all_budgets(chosen))
        self.make("claim", claims)
        runs = [*planning.noise_floor(self.study), *planning.tuning(self.study, rates), *claims]
        return self.report(runs, refused)

    def _require_writable(self) -> None:
        runs = self.folder / "runs"
        try:
            runs.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=runs).close()
        except OSError as error:
            why = error.strerror or one_line(error)
            raise UserError(f"study folder {self.folder} cannot be written: {why}; give another --out") from None

    def plan(self) -> list[str]:
        """What the study will run, as lines: runs, samples, hours from the runs that are done, disk."""
        study = self.study
        runs = {*planning.noise_floor(study), *planning.tuning(study, study.learning_rates)}
        runs |= set(planning.claims(study, {}))
        steps = sum(self.steps()[run.budget] for run in runs)
        lines = [
            f"study {study.name}: {len(study.arms)} arms against {study.baseline}, margin {study.margin:g} "
            f"{study.unit.unit}, {'tuned on one grid' if study.tuned else 'an ablation at one rate'}",
            *(f"  budget {budget:g}x: {count:,} steps" for budget, count in sorted(self.steps().items())),
            f"runs: at most {len(runs)}, {steps:,} steps in all",
        ]
        made = [run for run in planning.noise_floor(study) if state(self.folder_of(run)) == "done"]
        times = [(row.seconds or 0.0) / self.steps()[row.budget] for row in self.rows(made)]
        if not made:
            return [*lines, "time and disk: not measured; the noise floor, which runs first, measures both"]
        step = statistics.median(times)
        sizes = [sum(p.stat().st_size for p in self.folder_of(run).rglob("*") if p.is_file()) for run in made]
        return [
            *lines,
            f"time: {steps * step / 3600:.2f} hours of one process, at {step:.3f} s a measured step",
            f"disk: {statistics.fmean(sizes) * len(runs) / 1e6:,.0f} MB",
        ]

    def check(self) -> list[str]:
        """The audit at step 0; returns the sentences against a ranking."""
        from ..training.job import task_of
        from ..training.keys.recipe import load_recipe

        study, found = self.study, []
        for arm in study.arms:
            # A trainer makes its folder; this one's is read by nobody.
            with tempfile.TemporaryDirectory(prefix="ibnorm_hf_audit_") as aside:
                words = [*self.words(self.probe(arm)), f"--output_dir={aside}"]
                recipe = load_recipe(str(study.base), words)
                task = task_of(recipe)
                task.data = self.samples(recipe).data
                trainer = task.trainer(None, lambda text: None)
            inputs = self._inputs(task, trainer)
            if arm == study.baseline and (why := differs_from_vanilla(trainer.model, inputs)):
                if study.tuned or has_own_norm(trainer.model):
                    found.append(why)
                else:
                    self.foreign = True
            self.audits.append(audit(arm, trainer.model, inputs))
        return [*found, *unfair(self.audits)]

    def probe(self, arm: str) -> Run:
        """The run whose model stands for an arm at step 0."""
        return Run(arm, min(self.study.budgets), (None, None), self.study.claim_seeds[0], "claim")

    @staticmethod
    def _inputs(task: Any, trainer: Any) -> dict[str, Any]:
        batch = trainer.data_collator([trainer.train_dataset[i] for i in range(min(4, len(trainer.train_dataset)))])
        names = ("input_ids", "labels", "pixel_values")
        batch = {name: value for name, value in batch.items() if name in names}
        if "pixel_values" in batch:
            batch["pixel_values"] = trainer.objective.views.evaluate(batch["pixel_values"])
        return batch

    def noise_floor(self) -> float | None:
        """The spread of the baseline over seeds, before anything else runs; says what this study can detect."""
        study = self.study
        runs = planning.noise_floor(study)
        self.make("noise floor", runs)
        values = [row.value * 1.0 for row in self.rows(runs) if math.isfinite(row.value)]
        if len(values) < 2:
            self.say("noise floor: the baseline diverged; lower the base's learning rate")
            return None
        sigma, seeds, arms = statistics.stdev(values), len(study.claim_seeds), len(study.arms)
        unit = study.unit.unit
        needed = seeds_for(study.margin, sigma, arms)
        self.say(f"noise floor: sigma {sigma:.4g} {unit} over {len(values)} seeds of {study.baseline}")
        self.say(
            f"noise floor: {seeds} claim seeds of {arms} arms detect {half_width(sigma, arms, seeds):.4g} {unit}, if "
            f"arms share nothing of it; the margin of {study.margin:g} needs {needed or 'more than 10,000'} seeds"
        )
        return sigma

    def tune(self) -> tuple[float, ...]:
        """Make the tuning runs; returns the learning rates of the grid, widened where the study asks for it."""
        rates = self.study.learning_rates
        while rates:
            runs = planning.tuning(self.study, rates)
            self.make("tuning", runs)
            wider = planning.extended(self.study, self.rows(runs))
            if wider == rates:
                break
            self.say(f"tuning: a best rate is an edge; the grid is now {', '.join(f'{rate:g}' for rate in wider)}")
            rates = wider
        return rates

    def on_all_budgets(self, chosen: dict[tuple[str, float], Any]) -> dict[tuple[str, float], Any]:
        """The chosen points, a budget without tuning taking that of the next smaller one."""
        out = dict(chosen)
        for arm in self.study.arms:
            for budget in self.study.budgets:
                near = [b for a, b in chosen if a == arm and b <= budget]
                if near:
                    out[arm, budget] = chosen[arm, max(near)]
        return out

    def recipe(self, run: Run) -> Any:
        """The checked recipe of a run."""
        from ..training.keys.recipe import load_recipe

        key = planning.without_phase(run)
        if key not in self._recipes:
            self._recipes[key] = load_recipe(str(self.study.base), self.words(run))
        return self._recipes[key]

    @cached_property
    def base(self) -> dict[str, Any]:
        """The base recipe's values, read once."""
        from ..training.keys.files import read_recipe

        return read_recipe(self.study.base)[0]

    def words(self, run: Run) -> list[str]:
        """The command line that makes the base recipe this run."""
        return planning.as_words(planning.overrides(self.study, run, self.base))

    def folder_of(self, run: Run) -> Path:
        """Where a run is, by what decides its result: recipe, data, code."""
        from ..training.keys.recipe import resolved

        recipe = self.recipe(run)
        key = run_key(resolved(recipe), self.fingerprints(recipe), self.code)
        decay = recipe.run.weight_decay if self.study.weight_decays else None
        # By the rate that it has, whoever gave it: a run of the noise floor may be a claim as well.
        label = replace(run, rate=(recipe.run.learning_rate, decay)).label
        return self.folder / "runs" / f"{label}-{key}"

    def samples(self, recipe: Any) -> Any:
        """A task whose data are the recipe's: read once, however many runs have the same."""
        from ..training.job import task_of

        key = [dataclasses.asdict(recipe.data), recipe.sizes.get("vocab_size"), recipe.model.pretrained]
        task = self._samples.setdefault(digest(key), task_of(recipe))
        budget = task.description.get("key", {}).get("token_budget")
        if budget == getattr(recipe.data, "token_budget", None):
            return task
        # Of a source without end, as much is read as a run trains on.
        key += [recipe.run.max_steps, recipe.run.global_batch_size]
        return self._samples.setdefault(digest(key), task_of(recipe))

    def fingerprints(self, recipe: Any) -> Any:
        """What the recipe's data are known by."""
        return self.samples(recipe).description["fingerprints"]

    def make(self, phase: str, runs: list[Run]) -> None:
        """Make those of the runs that are neither done nor diverged; waits for those that others make."""
        failed: dict[str, int] = {}
        while True:
            jobs = {}
            for run in runs:
                folder = self.folder_of(run)
                if str(folder) in jobs:
                    continue
                if state(folder) in ("done", "diverged"):
                    self._require_ours(run, folder)
                    tidy(folder, self.study.keep_models)
                else:
                    jobs[str(folder)] = Job(
                        str(self.study.base), self.words(run), str(folder), keep_model=self.study.keep_models
                    )
            if not jobs:
                return
            if all(state(Path(folder)) == "running" for folder in jobs):
                time.sleep(1)
                continue
            self._round(phase, list(jobs.values()), failed)

    def _require_ours(self, run: Run, folder: Path) -> None:
        """A folder of that name may hold what somebody put there."""
        from ..training.keys.identity import differences, identity
        from ..training.keys.recipe import resolved

        if folder in self._ours:
            return
        there, recipe = RunFolder(folder), self.recipe(run)
        theirs, mine = (identity(without_places(keys)) for keys in (there.config, resolved(recipe)))
        changed = differences(theirs, mine)
        if there.data.get("fingerprints") != self.fingerprints(recipe):
            changed.append("its samples are others")
        if changed:
            raise UserError(f"{folder} holds another run ({'; '.join(changed[:3])}); move it out of the study's folder")
        self._ours.add(folder)

    def _round(self, phase: str, jobs: list[Job], failed: dict[str, int]) -> None:
        from tqdm.auto import tqdm

        bar = tqdm(total=len(jobs), desc=phase, disable=None)
        for job, why in self.executor.run(jobs):
            bar.update(1)
            name = Path(job.folder).name
            if why is None:
                value = measured(Path(job.folder), self.study.unit.key)
                if value is not None:
                    told = "diverged" if math.isinf(value) else f"{self.study.unit.name} {value:.4f}"
                    self.say(f"{phase}: {name}  {told}")
                continue
            failed[name] = failed.get(name, 0) + 1
            self.say(f"{phase}: {name}  failed: {why}")
            if failed[name] > 1:
                raise UserError(f"run {name} failed twice: {why}; its log is {job.folder}.log.txt", exit_code=1)
        bar.close()

    def rows(self, runs: list[Run]) -> list[Row]:
        """What has come out of runs that are finished."""
        by_arm = {found.arm: found for found in self.audits}
        rows = []
        for run in runs:
            folder = self.folder_of(run)
            value = measured(folder, self.study.unit.key)
            if value is None:
                continue
            recipe = self.recipe(run)
            done, found = RunFolder(folder), by_arm.get(run.arm)
            scores: Any = done.validation
            lines: list[Any] = list(done.metrics)
            order = [line["samples_sha256"] for line in lines if "samples_sha256" in line]
            finite = math.isfinite(value)
            rows.append(
                Row(
                    arm=run.arm,
                    budget=run.budget,
                    learning_rate=recipe.run.learning_rate,
                    weight_decay=recipe.run.weight_decay if self.study.weight_decays else None,
                    seed=run.seed,
                    value=self.study.unit.value(value) if finite else math.inf,
                    phase=run.phase,
                    tokens=scores.get("tokens_seen", scores.get("images_seen")) if finite else None,
                    parameters=found.outside if found else None,
                    whole=False,
                    data_sha256=digest(order) if finite else None,
                    evaluation_sha256=scores.get("sha256") if finite else None,
                    decay_sha256=found.decay_sha256 if found else None,
                    code_sha256=self.code,
                    seconds=outcome.seconds(folder),
                )
            )
        return rows

    def report(self, runs: list[Run], refused: list[str]) -> dict[str, Any]:
        """Judge what there is and write the report."""
        study = self.study
        rows = self.rows(runs)
        judged = judge_rows(rows, study.baseline, study.margin, tuned=study.tuned, refused=refused)
        judged["study"], judged["metric"], judged["unit"] = study.name, study.unit.name, study.unit.unit
        judged["key"], judged["tuned"], judged["code_sha256"] = study.unit.key, study.tuned, self.code
        every = sorted(set(runs), key=lambda run: (run.label, run.phase))
        judged["runs"], judged["made_by"] = outcome.entries(self, every), outcome.made_by(self, every)
        add_effects(judged, rows, self.steps(), outcome.bytes_per_token(self, runs))
        content = Study(
            title=f"{study.name}: {len(study.arms)} arms against {study.baseline}",
            judged=judged,
            rows=rows,
            unit=study.unit,
            about=self.about(),
            citations={arm.name: arm.source for arm in study.arms.values() if arm.source},
            runs=[*(outcome.line(self, run) for run in every), *outcome.earlier(self, every)],
            curves=outcome.curves(self, runs),
            tables={"At step 0": [found.line() for found in self.audits]},
            lambdas=outcome.lambdas(study),
        )
        write_report(content, self.folder / "report")
        write_atomic(self.folder / "report" / "study.yaml", study.text)
        write_json(self.folder / "report" / "timing.json", outcome.timing(rows))
        archive.pack(self.folder / "runs", self.folder / "report" / archive.ARCHIVE)
        return judged

    def about(self) -> list[str]:
        """What to know beside the verdict."""
        study = self.study
        lines = []
        if not study.tuned:
            lines.append(
                "A declared ablation: all arms train at the base recipe's rate, so this is no ranking of tuned arms."
            )
        if self.foreign:
            lines.append(f"The baseline {study.baseline} has another norm than the architecture's own.")
        if study.tuned and set(study.tuning_budgets) != set(study.budgets):
            at = ", ".join(f"{budget:g}x" for budget in study.tuning_budgets)
            lines.append(f"Rates were chosen at budget {at}; the other budgets take the point of the next smaller one.")
        return lines

    def steps(self) -> dict[float, int]:
        """Optimizer steps by budget."""
        budgets = (*self.study.budgets, *self.study.curve_budgets)
        return {budget: planning.scaled({**self.base, **self.study.keys}, budget)["max_steps"] for budget in budgets}


def open_study(path: str | Path, out: str | Path | None, executor: Executor, say: Say = print) -> Comparison:
    """A study ready to run. Its folder is ``runs/studies/NAME`` by default."""
    study = read_definition(path)
    return Comparison(study, Path(out) if out else Path("runs/studies") / study.name, executor, say)
