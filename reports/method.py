"""Method and glossary: the part of a report that is the same in every report."""

from __future__ import annotations

METHOD = (
    (
        "Unit and order",
        "The unit is one instance in one block; repeats inside an instance collapse to their "
        "median. A block holds one trial of every arm for every workload. Positions and "
        "predecessors are balanced by a Williams design and drawn from the seed, so slow drift "
        "of the host meets all arms alike.",
    ),
    (
        "Effect",
        "Per block, the paired difference of two arms: of logarithms for times and rates (printed "
        "as a ratio), of values for memory and teardown. The estimate is the pseudomedian of "
        "these differences, by Hodges and Lehmann: the median of the means of all pairs of them. "
        "The figures of single arms are medians with order-statistic intervals, so the ratio of "
        "two of them need not equal the estimated ratio. In tables the first line of an effect is "
        "on the scale that is judged, the second, small, on the other scale.",
    ),
    (
        "Interval and test",
        "Exact Wilcoxon signed-rank test, midranks, zeros kept (Pratt); the interval is the "
        "inversion of the same statistic. Printed intervals hold 95 % each for itself. A value "
        "below the resolution is written < q and treated as anywhere between 0 and q.",
    ),
    (
        "Verdict",
        "With the plan's margin d: different, the interval lies beyond ±d; equivalent, it lies "
        "within ±d; detectable inside margin, there is an effect and it lies within ±d; undecided "
        "otherwise, with the number of blocks that the observed spread would need. Verdicts are "
        "Holm-corrected over the primary family, which the plan fixes before the run; all other "
        "figures are described only. The margin is never moved by data.",
    ),
    (
        "Failures",
        "A trial that fails takes its pair out and is counted. A trial that times out ranks as "
        "longer than any other. Above 10 % of trials without a value in an arm there is no "
        "verdict. Nothing is retried silently, nothing is deleted as an outlier.",
    ),
    (
        "Emulation",
        "Where KVM does not run, virtual machines run under TCG, an emulator. Their figures are "
        "printed with intervals and with the verdict emulated; they belong to no family of tests "
        "and say nothing about virtualisation.",
    ),
    (
        "Clock and accounting",
        "All events are stamped on the host's CLOCK_MONOTONIC; stamps from inside a virtual "
        "machine are mapped to it by ping-pong on the agent's channel, and the mapping error is "
        "part of the resolution. Memory and CPU are read from outside, from one fresh cgroup per "
        "instance that is entered before the first program of the instance, the VMM included.",
    ),
)

GLOSSARY = (
    ("image", "An OCI image, turned into one read-only root file system file that every arm "
              "mounts, byte for byte the same."),
    ("workload", "Image, command, environment, when it counts as ready, and how its output becomes "
                 "numbers."),
    ("arm", "A backend with its options, as compared: vm, container, process. The label of a "
            "virtual machine carries its accelerator."),
    ("instance", "One running launch."),
    ("trial", "One instance of one arm, measured. Its outcome is ok, failed, timeout or refused, "
              "and is data whichever it is."),
    ("block", "One trial of every arm in random order: the unit of repetition."),
    ("timeline", "requested → accepted → spawned → kernel (VM only) → init → started → ready → "
                 "stop requested → exited → released → network released."),
    ("ready", "The first useful reply, as the workload defines it."),
    ("margin", "The smallest difference worth acting on, fixed in the plan: relative for ratios, "
               "absolute for differences."),
    ("primary family", "The few comparisons judged together, listed in the plan and marked ★."),
    ("receipt", "What the agent reports from inside about what really ran."),
    ("declared difference", "A field of the receipt that differs by the nature of the arms."),
    ("resolution", "The smallest difference the measurement can show."),
    ("charged memory", "Everything the kernel charges to the instance's cgroup: anonymous pages, "
                       "shared memory and tmpfs, page cache first touched by it, kernel memory."),
    ("PSS, RSS", "Memory of the instance's host processes; shared pages divided among their users, "
                 "or counted in full for each."),
    ("KVM, TCG", "Hardware virtualisation, and QEMU's emulator, which needs none and is many "
                 "times slower."),
)  # fmt: skip
