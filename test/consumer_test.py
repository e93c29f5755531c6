"""Programs that depend on the library, built and run as their authors would: consumer_test.py subproject|shared|static.

Exists for what the library's own build can't show: that a copy without its tests builds, that all that its users
need is installed and named, and that modules which hide their symbols can exchange what it makes. CXX is the
compiler. Exits with 77 where all is well but CMake is missing."""

import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
PROGRAM = ROOT / "test/consumer/program"
MODULES = ROOT / "test/consumer/modules"
PLAIN = ["--buildtype=plain", "-Dwerror=true"]


def run(*words, **environment):
    print("$", *words, flush=True)
    subprocess.run([str(word) for word in words], check=True, stdin=subprocess.DEVNULL,
                   env={**os.environ, **{name: str(value) for name, value in environment.items()}})


def build_and_test(source, build, *options, **environment):
    run("meson", "setup", build, source, *PLAIN, *options, **environment)
    run("meson", "test", "-C", build, "--print-errorlogs", **environment)


def as_subproject(work):
    """Copies what a release holds besides the tests; the rest is for the library's own developers."""
    program = shutil.copytree(PROGRAM, work / "program")
    copy = program / "subprojects/ctx"
    shutil.copytree(ROOT / "ctx", copy / "ctx")
    shutil.copy(ROOT / "meson.build", copy)
    (program / "subprojects/ctx.wrap").write_text(
        "[wrap-file]\ndirectory = ctx\n\n[provide]\ndependency_names = ctx\n")
    for library in ("shared", "static"):
        build_and_test(program, work / library, f"-Ddefault_library={library}")


def installed(work, library):
    prefix = work / "prefix"
    run("meson", "setup", work / "ctx", ROOT, *PLAIN, f"-Ddefault_library={library}", "-Dauto_features=disabled",
        "-Dlibdir=lib", "--prefix", prefix)
    run("meson", "compile", "-C", work / "ctx", "ctx:" + library + "_library")
    run("meson", "install", "-C", work / "ctx", "--no-rebuild")
    found = {"PKG_CONFIG_PATH": prefix / "lib/pkgconfig", "LD_LIBRARY_PATH": prefix / "lib"}
    build_and_test(PROGRAM, work / "program", **found)
    build_and_test(MODULES, work / "modules", **found)
    if shutil.which("cmake") is None:
        print("skipped: CMake is not here")
        return 77
    run("cmake", "-S", PROGRAM, "-B", work / "cmake", **found)
    run("cmake", "--build", work / "cmake", **found)
    run("ctest", "--test-dir", work / "cmake", "--output-on-failure", **found)
    return 0


with tempfile.TemporaryDirectory(prefix="consumer_test.") as name:
    work = pathlib.Path(name)
    way = sys.argv[1]
    sys.exit(as_subproject(work) if way == "subproject" else installed(work, way))
