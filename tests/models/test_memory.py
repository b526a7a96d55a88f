import subprocess
import sys

# Page faults of taking and freeing the same 8 tensors of 40 MB, as the activations of one step are, 6 times.
FAULTS = """
import resource
import numpy
from models.memory import keep_freed_memory
if {keep}:
    assert keep_freed_memory()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(6):
    tensors = [numpy.ones(10_000_000, numpy.float32) for _ in range(8)]
    del tensors
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(keep):
    command = [sys.executable, "-c", FAULTS.format(keep=keep)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def test_freed_tensors_are_used_again():
    assert page_faults(keep=True) < page_faults(keep=False) / 2
