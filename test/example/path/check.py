"""Whether a program prints what its head comment promises: check.py PROGRAM SOURCE.

The promise is what follows `// Prints:` up to the end of the comment, without its indentation. A program
that names a line of its source has the directory in front as the compiler was given it; that is left out.
"""

import difflib
import pathlib
import re
import subprocess
import sys

GUARD = 300  # seconds; nothing takes as long unless it hangs

program, source = sys.argv[1], pathlib.Path(sys.argv[2])
head = source.read_text().split("\n\n", 1)[0].splitlines()
assert "// Prints:" in head, f"{source.name} promises nothing"
promised = [re.sub(r"^//   ", "", line) for line in head[head.index("// Prints:") + 1:]]

done = subprocess.run([program], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=GUARD)
printed = re.sub(rf"\S*/(?={re.escape(source.name)}:)", "", done.stdout + done.stderr).splitlines()
for line in difflib.unified_diff(promised, printed, "promised", "printed", lineterm=""):
    print(line)
if done.returncode != 0:
    print(f"status {done.returncode}")
sys.exit(promised != printed or done.returncode != 0)
