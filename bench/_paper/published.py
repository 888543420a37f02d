"""What ALTO v1 reports, Figure 3, read off the vector marks of the figure (about 0.05 s)."""

from __future__ import annotations

NOT_STREAMED_MEDIAN = ((1.49, 2.24), (2.98, 2.49), (4.48, 2.75), (5.93, 3.58), (6.13, 7.95))
"""Achieved requests per second, and seconds."""
NOT_STREAMED_P99 = ((1.49, 13.0), (2.98, 14.2), (4.48, 13.2), (5.93, 14.2), (6.13, 21.4))
STREAMED_MEDIAN = (
    (1.49, 1.88), (2.98, 1.97), (4.48, 2.11), (5.93, 2.13), (11.9, 2.80), (17.8, 3.98), (23.6, 8.48),
)  # fmt: skip
STREAMED_P99 = (
    (1.49, 7.3), (2.98, 7.5), (4.48, 7.8), (5.93, 7.7), (11.9, 9.3), (17.8, 12.0), (23.6, 21.6),
)  # fmt: skip

BASELINE_AT_4S = 5.95
"""Requests per second of the paper's baseline at a median of 4 s."""
BASELINE_LOW_P99 = 13.0
"""P99 of the paper's baseline at its lowest load, in seconds."""
STREAMED_AT_4S = 17.8
STREAMED_LOW_P99 = 7.3
UP_TO = 18.0
"""Loads up to which the streamed curve is to be reproduced."""

CURVES = {
    "not_streamed": {"median": NOT_STREAMED_MEDIAN, "p99": NOT_STREAMED_P99},
    "streamed": {"median": STREAMED_MEDIAN, "p99": STREAMED_P99},
}
