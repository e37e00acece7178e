"""Speed that can be seen: what is measured is always measured beside what it is compared with, in one run.

    python -m paperlab.bench [NAME ...] [--json=FILE] [--quick] [--list]

Every file of this folder that has a function `rows(options) -> Iterable[Row]` is a benchmark, found by its name; `AIMS` in it
says what its numbers should reach. `timing` takes turns between the things compared, `record` writes results/bench/, `show`
prints. A number that misses its aim is recorded as such.
"""
