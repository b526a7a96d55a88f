import subprocess
import sys

FAULTS = """
import resource, torch
from models.memory import keep_freed_memory
if {keep}:
    assert keep_freed_memory()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
torch.ones(16_000_000)
before = faults()
for _ in range(5):
    torch.ones(16_000_000)
print(faults() - before)
"""


def page_faults(keep):
    command = [sys.executable, "-c", FAULTS.format(keep=keep)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def test_freed_tensors_are_used_again():
    pages = 5 * 16_000_000 * 4 // 4096
    assert page_faults(keep=True) < pages / 50 < page_faults(keep=False)
