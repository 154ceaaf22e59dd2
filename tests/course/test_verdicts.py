"""A check's verdict is a word with a sign."""

from course.verdicts import CAUGHT, PASSES, caught, verdicts

import pandas as pd


def test_a_check_that_passes_a_port_has_caught_nothing():
    assert caught(True) == PASSES
    assert caught(False) == CAUGHT
    assert {CAUGHT.split()[1], PASSES.split()[1]} == {"caught", "passes"}
    assert CAUGHT[0] != PASSES[0]


def test_a_table_of_truth_values_becomes_one_of_words():
    table = verdicts(pd.DataFrame({"a": [True, False], "b": [False, False]}, index=["right", "wrong"]))
    assert table.loc["right"].tolist() == [PASSES, CAUGHT]
    assert table.loc["wrong"].tolist() == [CAUGHT, CAUGHT]
