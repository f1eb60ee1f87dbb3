"""utils/validate.py: what counts as a whole number, a number, a bool."""

from fractions import Fraction

import numpy as np
import pytest

from llama_pynq.errors import RequestError
from llama_pynq.utils.validate import flag, number, positive_number, whole_number


@pytest.mark.parametrize("value", [7, np.int8(7), np.uint64(7)])
def test_whole_number_of_any_integer_type_is_an_int(value):
    found = whole_number("n", value)
    assert (found, type(found)) == (7, int)


@pytest.mark.parametrize("value", [True, np.True_, 7.0, "7", None, Fraction(7)])
def test_whole_number_refuses_the_rest(value):
    with pytest.raises(RequestError, match="n is .*: it must be a whole number"):
        whole_number("n", value)


@pytest.mark.parametrize("value", [2, 2.0, np.float32(2), np.int64(2), Fraction(2)])
def test_number_of_any_real_type_is_a_float(value):
    found = number("x", value)
    assert (found, type(found)) == (2.0, float)


@pytest.mark.parametrize("value", [False, np.False_, "2", None, 2j, 10**400])
def test_number_refuses_the_rest(value):
    with pytest.raises(RequestError, match="x is .*: it must be a number"):
        number("x", value)


def test_positive_number_takes_infinity_and_refuses_zero_and_nan():
    assert positive_number("s", float("inf")) == float("inf")
    for value in (0, -1, float("nan"), True, "1", None, 10**400):
        with pytest.raises(RequestError, match="s is .*: it must be a positive number"):
            positive_number("s", value)


def test_flag_is_pythons_or_numpys_bool():
    assert flag("f", np.True_) is True and flag("f", False) is False
    for value in (1, 0, None, "True"):
        with pytest.raises(RequestError, match="f is .*: it must be True or False"):
            flag("f", value)
