"""Where the whole collection of known answers lies, and the mark of tests that need it."""

import os
from pathlib import Path

import pytest

FOLDER = Path(os.environ.get("PAPERLAB_GOLDEN", Path(__file__).parents[3] / "shared" / "golden"))


def needs_known_answers(slug: str = "") -> pytest.MarkDecorator:
    """Leaves a test out where the folder of known answers (of this paper) is not there."""
    absent = not (FOLDER / slug).is_dir()
    return pytest.mark.skipif(absent, reason="the folder of known answers is not here (PAPERLAB_GOLDEN)")
