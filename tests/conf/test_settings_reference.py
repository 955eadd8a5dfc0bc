"""docs/settings.md is what the schema and the presets say now."""

import runpy
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "scripts" / "settings_reference.py"


def test_the_committed_reference_is_up_to_date():
    script = runpy.run_path(str(SCRIPT))
    assert script["FILE"].read_text() == script["reference"](), "run: python scripts/settings_reference.py"
