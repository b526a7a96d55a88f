"""The table of objectives: every one says what it is and can be made without an argument."""

import pytest

from pipeline.objectives import OBJECTIVES


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_says_what_it_is(name):
    kind = OBJECTIVES[name]
    assert kind.equation
    assert kind.paper
    assert kind.__doc__
    kind()
