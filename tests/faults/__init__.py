"""What people, disks and clocks do to the program, done thousands of times: `python -m tests.faults`.

Not part of the tests: it takes an hour. Every case is drawn from a seed that is printed, so that a case can be
repeated by its number.
"""
