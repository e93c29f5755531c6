"""Whether the README's C++ runs as it says: readme_test.py README COMPILER [FLAG...] LIBRARY.

Exists for a README that rots. Every ```cpp block is compiled without a warning, linked and run. If it has
no main(), it is the body of one, in which `parent` is a context. It must print what the ```text block says
that follows, before any other block; nothing, if none does. (A line of its source is named `main.cpp:N`,
without the directory.) Also, what a link of the README leads to must be there.
"""

import pathlib
import re
import subprocess
import sys
import tempfile

README = pathlib.Path(sys.argv[1])
COMPILER = sys.argv[2:]
GUARD = 300  # seconds; nothing takes as long unless it hangs

FRAME = """#include <ctx/context.hpp>
#include <ctx/manual_clock.hpp>

#include <chrono>
#include <exception>
#include <iostream>
#include <stdexcept>
#include <stop_token>
#include <string>
#include <thread>

using namespace std::chrono_literals;

int main() {{
  [[maybe_unused]] const ctx::context parent;
#line 1
{}
}}
"""


def programs(text):
    """The C++ blocks, each as its line in the README, the block, and what it has to print."""
    blocks = [(text.count("\n", 0, block.start()) + 1, block[1], block[2])
              for block in re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.M | re.S)]
    for (line, language, block), (_, following, promise) in zip(blocks, blocks[1:] + [(0, "", "")]):
        if language == "cpp":
            yield line, block, promise if following == "text" else ""


def fault(block, promise, directory):
    """What is not as it says with a block; None where all is."""
    source, program = directory / "main.cpp", directory / "main"
    source.write_text(block if "int main(" in block else FRAME.format(block))
    # The library comes last: what follows the source is linked to it.
    command, library = COMPILER[:-1], COMPILER[-1]
    built = subprocess.run([*command, str(source), "-o", str(program), library], capture_output=True, text=True)
    if built.returncode != 0 or built.stderr:
        return f"the compiler says:\n{built.stderr[:4000]}"
    done = subprocess.run([str(program)], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=GUARD)
    printed = re.sub(r"\S*/(?=main\.cpp:)", "", done.stdout + done.stderr)
    if done.returncode != 0 or printed != promise:
        return f"status {done.returncode}, prints\n{printed}instead of\n{promise}"
    return None


def main():
    text = README.read_text()
    faults = []
    for line, block, promise in programs(text):
        with tempfile.TemporaryDirectory(prefix="readme_test.") as directory:
            faults.append((f"the block at line {line}", fault(block, promise, pathlib.Path(directory))))
    assert faults, "no C++ in the README"
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S)
    for link in re.findall(r"\]\((?!https?://|#)([^)#]+)", prose):
        faults.append((f"the link to {link}", None if (README.parent / link).exists() else "leads nowhere"))
    for what, found in faults:
        if found:
            print(f"FAILED: {what}: {found}")
    failed = sum(found is not None for _, found in faults)
    print(f"{len(faults) - failed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
