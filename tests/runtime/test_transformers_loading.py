"""Quiet loading with transformers: silent inside, the former settings afterwards."""

from __future__ import annotations

import contextlib

import pytest

from sfss_ray.runtime.transformers_loading import quiet_loading

pytest.importorskip("transformers")


@pytest.mark.parametrize("has_bar", [True, False])
def test_the_former_settings_come_back_even_after_an_error(has_bar):
    from transformers.utils import logging

    level, had_bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    try:
        logging.set_verbosity_info()
        (logging.enable_progress_bar if has_bar else logging.disable_progress_bar)()
        with contextlib.suppress(OSError), quiet_loading():
            assert logging.get_verbosity() == logging.ERROR
            assert not logging.is_progress_bar_enabled()
            raise OSError("torn")
        assert logging.get_verbosity() == logging.INFO
        assert logging.is_progress_bar_enabled() is has_bar
    finally:
        logging.set_verbosity(level)
        (logging.enable_progress_bar if had_bar else logging.disable_progress_bar)()
