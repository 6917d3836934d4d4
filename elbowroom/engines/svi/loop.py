"""The shared SVI runner: any model, guide and objective; it never loses what it has fitted."""

import contextlib
import math
import time
from array import array
from collections.abc import Callable
from dataclasses import dataclass
from inspect import signature
from typing import TYPE_CHECKING, Any

import numpy as np
import pyro
import torch
from pyro import poutine
from torch import Tensor
from torch.optim.adam import adam

from elbowroom import budget
from elbowroom.engines.protocol import Trained
from elbowroom.engines.settings import Settings, length, optimizer_class
from elbowroom.engines.svi.checkpoint import (
    Checkpoints,
    placed_tensors,
    random_states,
    set_random_states,
)
from elbowroom.engines.svi.failure import culprit
from elbowroom.engines.svi.movement import Movement
from elbowroom.engines.svi.stepping import ELEMENTWISE, FlatParameters, Step
from elbowroom.engines.svi.stopping import HeldOut, Rule, Scheduled, Stationary
from elbowroom.errors import GuideError, ModelError, OptionError, RunFolderError, users_code
from elbowroom.guides.space import Plate
from elbowroom.objectives import baselines
from elbowroom.objectives.estimators import Objective
from elbowroom.objectives.minibatches import Minibatches, held_out_rows
from elbowroom.problem.leaves import check_leaves, unreached, without_gradient
from elbowroom.recording.record import Handed

if TYPE_CHECKING:
    from elbowroom.engines.svi.compiled import Compiled


@dataclass(frozen=True)
class RunLimits:
    """How a run of stochastic steps is watched."""

    recorded_from: int = 100
    """Steps of a run from which recording one saves time."""
    window: int = 200
    """Steps between two evaluations of the stopping rule, or an epoch if that is longer."""
    unusable_steps: int = 5
    """Steps in a row with a non-finite ELBO or gradient, after which a run goes back."""
    returns: int = 4
    """How often it goes back to good parameters, at half the rate, before it ends."""
    unmade: int = 5
    """Compiled calls in a row that ended before their last step, after which there are no more."""
    grown: float = 1.2
    """How many times as long a run must be before its recorded step is compared again."""


RUN_LIMITS = RunLimits()

COUNTS = ("step", "held_at", "looked_at", "skipped", "in_a_row", "returns", "unmade")
HELD_OUT_SEED = 0x4E1D_0007
"""Of the noise at which held-out rows are looked at."""


def unconstrained_parameters() -> dict[str, Tensor]:
    """The optimised tensors of the parameter store; Pyro keeps its baselines there too."""
    named = pyro.get_param_store().named_parameters()
    return {name: value for name, value in named if not name.startswith(baselines.PREFIX)}


def make_optimizer(settings: Settings, parameters: FlatParameters) -> torch.optim.Optimizer:
    """The optimiser of a run, over whole vectors where that is the same, in one kernel if it can.

    Raises:
        OptionError: If it does not take a learning rate alone.
    """
    kind = optimizer_class(settings.optimizer)
    whole = settings.optimizer in ELEMENTWISE
    over: list[Any] = list(parameters.vectors if whole else parameters.named.values())
    try:
        if "fused" in signature(kind).parameters:
            try:
                return kind(over, lr=settings.learning_rate, fused=True)
            except RuntimeError:  # not on this device
                pass
        return kind(over, lr=settings.learning_rate)
    except (ValueError, TypeError) as error:
        raise OptionError(f"--optimizer {settings.optimizer} cannot be used: {error}") from error


def _clipped(gradients: list[Tensor], largest: float | None) -> float:
    """The norm of the gradient, which is cut to the largest."""
    norms = [float(gradient.norm()) for gradient in gradients]
    norm = norms[0] if len(norms) == 1 else math.hypot(*norms)
    if largest is not None and norm > largest:
        for gradient in gradients:
            gradient.mul_(largest / norm)
    return norm


def _move(optimizer: torch.optim.Optimizer) -> None:
    """A step of the optimiser; of fused Adam without what `step` does beside."""
    (group, *others), state = optimizer.param_groups, optimizer.state
    if others or not state or type(optimizer) is not torch.optim.Adam or not group["fused"]:
        optimizer.step()
        return
    parameters = [each for each in group["params"] if each.grad is not None]
    states = [state[each] for each in parameters]
    with torch.no_grad():
        adam(
            parameters, [each.grad for each in parameters],
            [each["exp_avg"] for each in states], [each["exp_avg_sq"] for each in states],
            [], [each["step"] for each in states],
            fused=True, amsgrad=False, beta1=group["betas"][0], beta2=group["betas"][1],
            lr=group["lr"], weight_decay=0.0, eps=group["eps"], maximize=False,
        )  # fmt: skip


class Optimisation:
    """A run that maximises the ELBO by stochastic gradients, in the active parameter store.

    Args:
        model: The Pyro model.
        guide: The guide.
        arguments: Keyword arguments of both.
        objective: Of `elbowroom.objectives.estimators`.
        settings: Of the run.
        plate: The plate that minibatches subsample.
        amortised: Whether rows have latents that the guide tells from the rows alone: some rows
            are then left out of the steps, to see when to stop.

    Raises:
        OptionError: If `batch_size` is larger than the rows, or the model takes no minibatches.
        ModelError: If the first evaluation of the ELBO raises.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        guide: Callable[..., Any],
        arguments: dict[str, Any],
        objective: Objective,
        settings: Settings,
        plate: Plate | None = None,
        amortised: bool = False,
    ) -> None:
        self.began = time.perf_counter()
        self.model, self.guide, self.arguments = model, guide, arguments
        self.objective, self.settings = objective, settings
        size = settings.batch_size
        if size is not None and plate is None:
            raise OptionError(
                "--batch-size: the model takes no minibatches; leave it out. (In a model of "
                "your own, give the function an argument batch_size, and pass it to the plate "
                "of the rows as subsample_size.)"
            )
        if size is not None and plate is not None and size > plate.size:
            raise OptionError(
                f"--batch-size {size}: there are only {plate.size:,} rows; give at most "
                f"{plate.size}."
            )
        self.without, cut = self._evaluate_first(size)
        named = unconstrained_parameters()
        self.parameters = FlatParameters({n: each for n, each in named.items() if n not in cut})
        self.budget, self.fixed = length(settings, plate.size if plate else None)
        self.batches: Minibatches | None = None
        held: Tensor | None = None
        if plate is not None and amortised and settings.schedule == "plateau":
            held = held_out_rows(plate.size, settings.held_out)
        if plate is not None and (size is not None or held is not None):
            self.batches = Minibatches(plate.size, size, held)
            size = self.batches.size
        self.window = max(RUN_LIMITS.window, len(self.batches) if self.batches else 0)
        self.evaluate = Step(
            objective, model, guide, arguments, self.parameters, plate, size, settings.autocast,
            settings.kl_warm_up,
        )  # fmt: skip
        self.rule = self._rule(held)
        self.elbo, self.rates = array("d"), array("d")
        self.step = self.held_at = self.looked_at = 0
        self.skipped = self.in_a_row = self.returns = self.unmade = 0
        self.compiled: Compiled | None = None
        self.uncompiled: str | None = None
        self.smoothed = math.nan
        self.good = self.held = self.parameters.copy()
        self.held_rule = self._rule_state()

    def _evaluate_first(self, size: int | None) -> tuple[dict[str, Tensor], list[str]]:
        """Evaluates the ELBO with every check on, which also makes the parameters.

        Returns:
            The values of the parameters without a gradient, and the names of those among them that
            the ELBO depends on all the same.
        """
        extra = {} if size is None else {"batch_size": size}
        # Of its own: weights that it draws are not to be made of the noise of the first steps.
        seed = int(torch.randint(2**62, ()))
        with (
            users_code("the ELBO cannot be evaluated at the start", ModelError),
            pyro.validation_enabled(True),
            torch.random.fork_rng(devices=[]),
        ):
            torch.manual_seed(seed)
            found: list[Tensor] = []

            def surrogate() -> Tensor:
                # With gradients, of which baselines make parameters.
                given = {**self.arguments, **extra}
                found[:] = [self.objective.loss_and_surrogate(self.model, self.guide, given)[1]]
                return found[0]

            for left in reversed(range(RUN_LIMITS.unusable_steps)):
                state = torch.get_rng_state()
                try:
                    check_leaves(surrogate, {"the model": self.model, "the guide": self.guide})
                    break
                except torch.linalg.LinAlgError:  # at this noise
                    if not left:
                        raise

            def again() -> Tensor:
                torch.set_rng_state(state)
                return surrogate()

            if not unreached(found[0]):
                return {}, []
            with contextlib.suppress(torch.linalg.LinAlgError):
                without, cut = without_gradient(again)
                return self._kept(without, extra), cut
            return {}, []

    def _kept(self, without: list[str], extra: dict[str, int]) -> dict[str, Tensor]:
        """The values of parameters without a gradient.

        Raises:
            GuideError: If none of the guide's has one.
        """
        named = unconstrained_parameters()
        found = {name: named[name].detach().clone() for name in without if name in named}
        if found:
            nodes = poutine.trace(self.guide).get_trace(**self.arguments, **extra).nodes
            own = [n for n, node in nodes.items() if node["type"] == "param" and n in named]
            if own and found.keys() >= {*own}:
                raise GuideError(
                    f"no gradient reaches a parameter of the guide ('{own[0]}'), so it would stay "
                    "as it is. Use its parameters outside of torch.no_grad() and without detach()."
                )
        return found

    def _rule(self, held: Tensor | None) -> Rule:
        settings, parameters = self.settings, self.parameters
        if settings.schedule != "plateau":
            return Scheduled(parameters, self.budget, settings.schedule == "cosine")
        if held is not None:
            plate = self.evaluate.plate
            assert plate is not None
            rows = plate.size
            return HeldOut(
                parameters,
                lambda: -self.evaluate.loss(held, HELD_OUT_SEED) / rows,
                settings.patience,
                "ELBO" if self.objective.of_its_loss else "objective",
            )
        return Stationary(
            parameters, Movement(self.evaluate, self._draw_rows), settings.tolerance,
            self.objective.of_its_loss,
        )  # fmt: skip

    def _draw_rows(self) -> Tensor | None:
        """The rows of a minibatch that is none of the run's."""
        return None if self.batches is None else self.batches.draw()

    def _next_rows(self) -> Tensor | None:
        return None if self.batches is None else next(self.batches)

    def run(
        self,
        progress: Callable[[int, int, float, float], None] | None = None,
        checkpoints: Checkpoints | None = None,
    ) -> Trained:
        """Runs to the end.

        Args:
            progress: Called with the step, the budget, the smoothed ELBO and the learning rate.
            checkpoints: Where the run's state is kept; it goes on from the last one there.

        Returns:
            How it went. A run that is interrupted (Ctrl-C) or diverges keeps its parameters.
        """
        saved = None if checkpoints is None else checkpoints.begin()
        if self.parameters.count == 0:
            if checkpoints is not None:
                checkpoints.end()
            return self._trained("exact", "the guide has nothing to optimise.")
        status = cause = ""
        try:
            self.optimizer = make_optimizer(self.settings, self.parameters)
            if self.budget >= RUN_LIMITS.recorded_from:
                draw = None if self.batches is None else self.batches.draw
                self.evaluate.record(draw, RUN_LIMITS.recorded_from)
                if self.settings.compile:
                    self._compile()
            elif self.settings.compile:
                self.uncompiled = (
                    f"compiling does not pay for fewer than {RUN_LIMITS.recorded_from:,} steps"
                )
            if saved is not None:
                self._restore(saved)
                status = self.rule.end(self.elbo) if self.step >= self.budget else ""
            while not status:
                several = self.compiled is not None
                status = self._call(progress) if several else self._advance(progress)
                # One more at the end of the budget, from which more steps can go on.
                wanted = status == "budget" or (not status and checkpoints and checkpoints.due)
                if checkpoints is not None and wanted:
                    checkpoints.write(self.step, self.state())
            if checkpoints is not None:
                checkpoints.end()
        except KeyboardInterrupt:
            status = "interrupted"
        finally:
            if status == "diverged":
                with contextlib.suppress(Exception):  # a cause that cannot be found is no failure
                    cause = culprit(self.model, self.guide, self.arguments, self.objective)
                self.parameters.assign(self.good)
            else:
                kept = self.rule.kept()
                if kept is not None:
                    self.parameters.assign(kept)
            self.parameters.release()
        return self._trained(status, f"{self._reason(status)} {cause}".strip())

    def _compile(self) -> None:
        # Here, since it loads as much as all the rest.
        from elbowroom.engines.svi.compiled import compile_steps

        if self.evaluate.memory:
            self.uncompiled = "the baselines keep numbers from step to step"
            return
        rows = self._draw_rows()
        with torch.random.fork_rng(devices=self.parameters.cuda):
            self.compiled, self.uncompiled = compile_steps(
                self.evaluate.replay, self.parameters, [] if rows is None else [rows],
                self.optimizer, self.settings.clip_norm,
            )  # fmt: skip

    def _rate(self, step: int) -> float:
        return self.settings.learning_rate * self.rule.factor(step) * 0.5**self.returns

    def _call(self, progress: Callable[[int, int, float, float], None] | None) -> str:
        """One call of compiled steps, up to the next look or a step that it cannot make."""
        assert self.compiled is not None
        iterates = self.rule.iterates
        count = min(
            self.compiled.longest, self.budget - self.step,
            self.looked_at + self.window - self.step,
            self.compiled.longest if iterates is None else iterates.room,
        )  # fmt: skip
        if count < 1:  # a look is overdue
            return self._advance(progress)
        rows = [self._next_rows() for _ in range(count)]
        rates = [self._rate(self.step + i) for i in range(count)]
        taken = [[] if each is None else [each] for each in rows]
        add = (lambda: None) if iterates is None else iterates.add
        with users_code(f"step {self.step + 1} of the optimiser failed", ModelError):
            try:
                made = self.compiled(taken, rates, self.optimizer, add)
            except torch.linalg.LinAlgError:
                self._uncompile("a matrix could not be factorised")
                self._put_back(self.good)
                return ""
        done, status = len(made.losses), ""
        if done:
            if iterates is not None and made.seen:
                iterates.add_steps(done, *made.seen)
            status = self._made(made.losses, rates[:done], progress)
        if made.stopped is None:
            self.unmade = 0
            return status
        if self.batches is not None:
            self.batches.give_back([each for each in rows[done + 1 :] if each is not None])
        self.unmade += 1
        if self.unmade >= RUN_LIMITS.unmade:
            self._uncompile("too many steps took another branch, or were not finite")
        return self._advance(progress, rows[done], made.stopped)

    def _uncompile(self, reason: str) -> None:
        self.compiled, self.uncompiled = None, reason

    def _advance(
        self,
        progress: Callable[[int, int, float, float], None] | None,
        rows: Tensor | None = None,
        noise: list[Tensor] | None = None,
    ) -> str:
        """One step, and a look at the run where it is due; the status if it ends.

        With random numbers that were drawn before, it is made as it stands.
        """
        rate = self._rate(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        with users_code(f"step {self.step + 1} of the optimiser failed", ModelError):
            rows = self._next_rows() if rows is None else rows
            if noise is None:
                loss = self.evaluate(rows)
            else:
                with Handed(noise):
                    loss = self.evaluate.as_it_stands(rows)
        norm = _clipped(self.parameters.gradients, self.settings.clip_norm)
        if not (math.isfinite(loss) and math.isfinite(norm)):
            return self._leave_out(loss, rate)
        _move(self.optimizer)
        if self.rule.iterates is not None:
            self.rule.iterates.add()
        return self._made([loss], [rate], progress)

    def _made(
        self,
        losses: list[float],
        rates: list[float],
        progress: Callable[[int, int, float, float], None] | None,
    ) -> str:
        """Keeps account of steps that were made, and looks at the run where it is due."""
        self.in_a_row = 0
        self.step += len(losses)
        self.rates.extend(rates)
        for loss in losses:
            self.elbo.append(-loss)
            self.smoothed += 0.02 * (-loss - self.smoothed)
            if math.isnan(self.smoothed):
                self.smoothed = -loss
        if progress is not None:
            progress(self.step, self.budget, self.smoothed, rates[-1])
        if self.step - self.looked_at >= self.window or self.step >= self.budget:
            return self._look()
        return "budget" if budget.over() else ""

    def _leave_out(self, loss: float, rate: float) -> str:
        """A step that is not finite is left out; after some, the run goes back, or ends."""
        self.step += 1
        self.elbo.append(-loss)
        self.rates.append(rate)
        self.skipped, self.in_a_row = self.skipped + 1, self.in_a_row + 1
        if self.in_a_row >= RUN_LIMITS.unusable_steps:
            if self.returns >= RUN_LIMITS.returns:
                return "diverged"
            self._put_back(self.good)
            self.returns, self.in_a_row = self.returns + 1, 0
        return self.rule.end(self.elbo) if self.step >= self.budget else ""

    def _put_back(self, values: list[Tensor]) -> None:
        self.parameters.assign(values)
        self.optimizer = make_optimizer(self.settings, self.parameters)
        self.rule.restart()

    def _look(self) -> str:
        """Sees whether the recorded step still holds, and what the rule makes of the run."""
        before, self.looked_at = self.looked_at, self.step
        due = self.step >= min(RUN_LIMITS.grown * self.held_at, self.budget)
        if due and not self._holds():
            return ""
        self.good = self.parameters.copy()
        if before < (self.settings.kl_warm_up or 0):  # what it saw was not the ELBO yet
            self.rule.begin(self.elbo)
            return self.rule.end(self.elbo) if self.step >= self.budget else ""
        with users_code(f"step {self.step} of the optimiser failed", ModelError):
            status = self.rule.look(self.elbo)
        if status and not (due or self._holds()):
            return ""
        kept = self.rule.kept() if self.rule.moves and not status else None
        if kept is not None:
            self.parameters.assign(kept)
            self.optimizer = make_optimizer(self.settings, self.parameters)
            self.rule.restart()
        return status or (self.rule.end(self.elbo) if self.step >= self.budget else "")

    def _holds(self) -> bool:
        """Compares the recorded step with the step; what was done since is done again if it must.

        Without the recording, that is, from the parameters and what the rule had seen.
        """
        with users_code(f"step {self.step} of the optimiser failed", ModelError):
            holds = self.evaluate.holds(self._draw_rows())
        if holds:
            self.held, self.held_at = self.parameters.copy(), self.step
            self.held_rule = self._rule_state()
            return True
        if self.compiled is not None:
            self._uncompile("the steps could not be recorded")
        self.rule.restore(self.held_rule)
        self._put_back(self.held)
        self.good = self.held
        self.step = self.looked_at = self.held_at
        del self.elbo[self.step :], self.rates[self.step :]
        return False

    def _rule_state(self) -> dict[str, Any]:
        """What the rule holds beside its iterates, which begin anew where a run goes back."""
        return {name: value for name, value in self.rule.state().items() if name != "iterates"}

    def state(self) -> dict[str, Any]:
        """All that the rest of the run depends on, as nested dicts and lists."""
        optimizer = self.optimizer.state_dict()
        return {
            "parameters": self.parameters.copy(),
            "baselines": baselines.kept(),
            "optimizer": {**optimizer, "state": dict(optimizer["state"])},
            "rule": self.rule.state(),
            "batches": None if self.batches is None else self.batches.state(),
            "random": random_states(self.parameters.cuda),
            "recorded": self.evaluate.recorded, "eager": self.evaluate.reason,
            "uncompiled": self.uncompiled,
            "elbo": torch.tensor(self.elbo, dtype=torch.float64),
            "rates": torch.tensor(self.rates, dtype=torch.float64),
            "good": self.good, "held": self.held,
            "held_rule": self.held_rule, "smoothed": self.smoothed,
            "counts": {name: getattr(self, name) for name in COUNTS},
            "seconds": time.perf_counter() - self.began,
        }  # fmt: skip

    def _restore(self, saved: Any) -> None:
        try:
            self.restore(saved)
        except Exception as error:  # a checkpoint may come from anyone, with any content
            raise RunFolderError(
                f"the run cannot go on from its last checkpoint ({type(error).__name__}: {error}); "
                "remove the checkpoints in its folder, and it begins again."
            ) from error

    def restore(self, state: dict[str, Any]) -> None:
        """Takes in what `state` gave: the run goes on as it would have."""
        self.parameters.assign(state["parameters"])
        baselines.keep(state["baselines"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.rule.restore(placed_tensors(state["rule"], self.parameters.vectors[0].device))
        if self.batches is not None:
            self.batches.restore(state["batches"])
        if state["eager"] is not None:
            self.evaluate.give_up(state["eager"])
        if state["uncompiled"] is not None:
            self._uncompile(state["uncompiled"])
        self.elbo = array("d", state["elbo"].tolist())
        self.rates = array("d", state["rates"].tolist())
        self.good, self.held = state["good"], state["held"]
        self.held_rule = placed_tensors(state["held_rule"], self.parameters.vectors[0].device)
        self.smoothed = state["smoothed"]
        for name in COUNTS:
            setattr(self, name, state["counts"][name])
        self.began = time.perf_counter() - state["seconds"]
        set_random_states(state["random"], self.parameters.cuda)

    def _trained(self, status: str, reason: str) -> Trained:
        return Trained(
            status,
            reason,
            np.asarray(self.elbo),
            np.asarray(self.rates),
            self.skipped,
            time.perf_counter() - self.began,
            self.parameters.count,
            self.evaluate.reason,
            self.uncompiled,
            self._unfitted(),
        )

    def _unfitted(self) -> tuple[str, ...]:
        """The parameters that have had no gradient, of those that had none at first."""
        named = unconstrained_parameters()
        return tuple(n for n, before in self.without.items() if torch.equal(named[n], before))

    def _ended(self, steps: int) -> str:
        """Where a run ends that has not converged."""
        count = f"{steps:,} step{'s' * (steps != 1)}"
        if steps < self.budget:
            return f"stopped after {count}, when the time was over"
        return f"stopped at the budget of {count}"

    def _reason(self, status: str) -> str:
        steps = len(self.elbo)
        text = {
            "converged": f"converged after {steps:,} steps: {self.rule.found}.",
            "budget": f"{self._ended(steps)}: {self.rule.unmet}."
            if self.settings.schedule != "cosine" or steps < self.budget
            else f"ran all {steps:,} steps of the cosine schedule. At its end the learning rate "
            "is zero, so a level ELBO does not show convergence: compare the ELBO with that of a "
            "longer run.",
            "interrupted": f"interrupted after {steps:,} steps; what was fitted so far is kept.",
            "diverged": f"the ELBO or its gradient was not finite in {RUN_LIMITS.unusable_steps} "
            f"steps in a row up to step {steps:,}, even with the learning rate halved "
            f"{RUN_LIMITS.returns} times. The last good parameters are kept. Give a smaller "
            "--learning-rate.",
        }[status]
        if self.skipped and status != "diverged":
            text += f" {self.skipped:,} steps with a non-finite ELBO or gradient were left out."
        return text


def run_svi(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    arguments: dict[str, Any],
    objective: Objective,
    settings: Settings,
    plate: Plate | None = None,
    amortised: bool = False,
    progress: Callable[[int, int, float, float], None] | None = None,
    checkpoints: Checkpoints | None = None,
) -> Trained:
    """Maximises the ELBO by stochastic gradients; see `Optimisation`."""
    run = Optimisation(model, guide, arguments, objective, settings, plate, amortised)
    return run.run(progress, checkpoints)
