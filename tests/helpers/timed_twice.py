"""A worker of benchmark_against.py without any work: each part takes the same time in both copies."""

import json
import sys

SECONDS = {"one": [2.0, 4.0], "two": [1.0, 0.5]}

sys.stdout.write(json.dumps(list(SECONDS)) + "\n")
sys.stdout.flush()
for line in sys.stdin:
    sys.stdout.write(json.dumps(SECONDS[line.strip()]) + "\n")
    sys.stdout.flush()
