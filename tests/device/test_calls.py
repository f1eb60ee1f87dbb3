"""Calls of the kernel: status, results, activations and profile."""

import numpy as np
import pytest
from support.kernel_rows import sampled

from llama_pynq.errors import KernelError
from llama_pynq.kernel.abi import RequestFlag, RowFlag, Stage

pytestmark = pytest.mark.usefixtures("own_locks")


def test_run_kernel_refuses_and_the_next_call_works(overlay):
    driver = overlay.llama
    good = driver.run(sampled()).rows
    for rows, text in [
        (sampled(token=10**6), "row 0: token id outside the vocabulary"),
        (sampled(position=10**6), "row 0: position outside the context"),
        (sampled(position=-1), "row 0: position outside the context"),
        (np.concatenate([sampled(), sampled()]), "row 1: another row has the same slot"),
    ]:
        with pytest.raises(KernelError) as error:
            driver.run(rows)
        assert text in str(error.value)
        assert "emulated-host: the kernel refused the call" in str(error.value)
        assert driver.run(sampled()).rows == good


def test_run_layers_one_by_one_equal_all_at_once(overlay):
    driver, config = overlay.llama, overlay.llama.config
    rows = sampled()
    rows["flags"] |= RowFlag.FULL_LOGITS
    driver.run(rows)
    whole = driver.read_logits(0)
    driver.run(rows, layers=(0, 0), flags=RequestFlag.ACTIVATIONS_OUT)
    x = driver.read_activations(1)
    assert x.shape == (1, config.dim)
    for layer in range(config.n_layers):
        driver.run(
            rows, layers=(layer, layer + 1), activations=x, flags=RequestFlag.ACTIVATIONS_OUT
        )
        x = driver.read_activations(1)
    np.testing.assert_array_equal(driver.read_logits(0), whole)


def test_run_profile_names_every_stage_of_every_layer(overlay):
    driver, config = overlay.llama, overlay.llama.config
    steps = driver.run(sampled(), n_steps=3, flags=RequestFlag.PROFILE).profile
    assert len(steps) == 3
    for events in steps:
        layers = events[events["stage"] == Stage.QKV]["layer"]
        assert list(layers) == list(range(config.n_layers))
        assert {Stage(s) for s in events["stage"]} == set(Stage) - {Stage.END}
        assert (events["begin"][1:] == events["end"][:-1]).all()
        assert (events["end"] >= events["begin"]).all()
        assert events["end"][-1] > 0
