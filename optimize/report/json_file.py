"""A report as a JSON file: sorted keys, no NaN, the same bytes for the same data."""

import json

from optimize.ir.report import Report


def render_json(report: Report) -> str:
    """The text of `report.json`."""
    return json.dumps(report.to_dict(), indent=2, sort_keys=True, allow_nan=False) + "\n"
