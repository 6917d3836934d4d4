"""Which latent sites have a density that is no prior, but tells what a population is like."""

from typing import TYPE_CHECKING

from elbowroom.guides.space import dependent_sites
from elbowroom.problem.isolation import isolated

if TYPE_CHECKING:
    from elbowroom.problem.bound import Problem


def population_sites(problem: "Problem") -> tuple[str, ...]:
    """The sites whose density is a part of the likelihood, and no prior.

    Of a user's own model these are all whose density depends on other sites or on point parameters.
    A named model declares them; what it has in a plate, such as the effects of groups, is one too
    if it depends on others, and so is a vector whose covariance does, such as a smooth term's.
    """
    with isolated(0, dtype=problem.dtype, device=problem.device):
        dependent = dependent_sites(problem.function, problem.arguments, problem.space)
    declared = problem.model.population
    if declared is None:
        return dependent
    many = {site.name for site in problem.space.sites if site.plates} | {*problem.space.vectors}
    return (*declared, *(name for name in dependent if name in many - {*declared}))
