# SPDX-License-Identifier: GPL-2.0-or-later
"""From the samples of the rounds to figures and verdicts."""

import statistics


def judge(bar, samples):
    """A bar is judged by the median of the rounds' own values."""
    values = [bar.value(one) for one in samples]
    figure = statistics.median(values)
    return {"what": bar.what, "bar": bar.limit, "at_most": bar.at_most, "unit": bar.unit,
            "figure": figure, "rounds": values, "holds": bar.holds(figure)}


def medians(samples):
    """{contestant: {key: median}} of samples with the same keys."""
    return {label: {key: statistics.median(one[label][key] for one in samples)
                    for key in samples[0][label]}
            for label in samples[0]}
