"""The walk through every page of tests/ui/test_ui_pages.py again, on a run over MovieTweetings: 100,000 events, 10,000 titles."""

from __future__ import annotations

import pytest
import test_ui_pages
from test_ui_pages import *  # noqa: F403 - its tests and its fixtures

pytestmark = [pytest.mark.long, pytest.mark.real_data, *test_ui_pages.pytestmark]
