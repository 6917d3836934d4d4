"""The engines by name."""

from elbowroom.engines.coordinate_ascent.engine import CoordinateAscent
from elbowroom.engines.em.engine import ExpectationMaximisation
from elbowroom.engines.fixed_draws.engine import FixedDraws
from elbowroom.engines.protocol import Engine
from elbowroom.engines.svi.engine import Stochastic

ENGINES: dict[str, Engine] = {
    engine.name: engine
    for engine in (FixedDraws(), Stochastic(), ExpectationMaximisation(), CoordinateAscent())
}
