"""One thread, bundled data, and after the run one table of medians and ratios.

Where a machine does other things too, CPU time says more than wall time:
`PYTEST_ADDOPTS=--benchmark-timer=time.process_time make bench`.
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["TQDM_DISABLE"] = "1"

import pytest
import torch

torch.set_num_threads(1)


def pytest_configure(config):
    # pytest-benchmark's own table would show whole rounds, of different numbers of steps
    config.option.benchmark_quiet = True


@pytest.fixture
def timed(benchmark):
    """Time `work`, which does `units` of what the group counts. Others are compared to a reference.

    `setup` returns the arguments of `work` as (args, kwargs), and is not timed.
    """

    def measure(label, work, units=1, rounds=5, setup=None, reference=False):
        benchmark.extra_info.update(label=label, units=units, reference=reference)
        return benchmark.pedantic(work, setup=setup, rounds=rounds, warmup_rounds=1)

    return measure


def pytest_terminal_summary(terminalreporter, config):
    """Median milliseconds per unit, and as a multiple of each reference in the group."""
    groups = {}
    for benchmark in config._benchmarksession.benchmarks:
        about = benchmark.extra_info
        ms = 1000 * benchmark.stats.median / about["units"]
        groups.setdefault(benchmark.group, []).append((about["label"], ms, about["reference"]))
    terminalreporter.section(f"medians on one thread, by {config.option.benchmark_timer}")
    for group, rows in groups.items():
        references = [(label, ms) for label, ms, is_reference in rows if is_reference]
        titles = "".join(f"{'÷ ' + label:>26}" for label, _ in references)
        terminalreporter.write_line(f"\n{group:50}{'ms':>10}{titles}")
        for label, ms, _ in rows:
            ratios = "".join(f"{ms / reference:26.3f}" for _, reference in references)
            terminalreporter.write_line(f"  {label:48}{ms:10.3f}{ratios}")
