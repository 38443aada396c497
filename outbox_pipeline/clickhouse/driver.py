"""The driver's client, whose every request carries settings of ours.

The driver asks three questions of its own before it takes any setting, and a profile would spoil those as well. It
reads from the answers which settings the server has, so with a wrong one it would leave others out.
"""

from collections.abc import Mapping
from typing import Any

from clickhouse_connect.driver.httpclient import HttpClient


class Driver(HttpClient):
    """A client of clickhouse-connect that sends *ours* from its first request on."""

    def __init__(self, ours: Mapping[str, str], **options: Any) -> None:
        """Ask the driver's questions; raises what it raises."""
        self._ours = dict(ours)
        super().__init__(**options)
        # Whatever a version of the driver does with the step below.
        self.params.update(self._ours)

    def _init_common_settings(self, tz_source: Any) -> None:
        self.params.update(self._ours)
        super()._init_common_settings(tz_source)
