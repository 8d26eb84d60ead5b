"""How the models' histories are drawn: in parts, the same ones in every run."""

import os
from unittest import mock

from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.internal.constants_ast import Constants
from hypothesis.stateful import RuleBasedStateMachine, run_state_machine_as_test

# In parts, which can run at the same time; each has its own fixed seed.
PARTS, SEED = 4, 20
PHASES = [Phase.generate] if os.environ.get("MODEL_QUICK") else [Phase.generate, Phase.shrink]


def run_histories(
    machine: type[RuleBasedStateMachine], part: int, histories: int, *, steps: int
) -> None:
    """Run so many histories of a part, of so many steps each."""
    # Otherwise hypothesis draws other values, too, by the modules that other tests have loaded.
    constants = "hypothesis.internal.conjecture.providers._get_local_constants"
    with mock.patch(constants, return_value=Constants()):
        run_state_machine_as_test(
            seed(SEED + part)(type("History", (machine,), {})),
            settings=settings(
                max_examples=histories,
                stateful_step_count=steps,
                deadline=None,
                database=None,
                derandomize=False,
                suppress_health_check=list(HealthCheck),
                phases=PHASES,
            ),
        )
