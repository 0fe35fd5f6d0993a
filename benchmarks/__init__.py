"""What pinq costs: each module measures itself and its baseline in turn, in one run.

``python -m benchmarks [NAME…] [--json] [--list] [--quick]``; docs/benchmarks.md tells what
each baseline is.
"""
