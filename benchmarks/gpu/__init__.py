"""What runs on a GPU only: the table of issue-sized networks, each step's time, small cases for compute-sanitizer.

`run_all.sh` here runs all of it, tests included. `fastconv bench --device cuda` is in `device_cuda`, beside the CPU's.
"""
