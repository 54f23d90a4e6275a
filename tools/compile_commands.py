#!/usr/bin/env python3
"""Writes compile_commands.json from Bazel's own compile actions, in clang's terms.

The compiler is named clang++ and options that only GCC knows are dropped, so that clang-tidy and
clangd read the commands. Generated sources are left out.
"""

import json
import os
import re
import subprocess
import sys

# A package that does not load hides only itself.
_AQUERY = ["bazel", "aquery", "--keep_going", "--ui_event_filters=-info", "--noshow_progress",
           "--output=jsonproto", 'mnemonic("CppCompile", //...)']

# Known to GCC only, or of no meaning without an object file.
_DROPPED = re.compile(r"-fno-canonical-system-headers|-Wno-restrict|-Wunused-but-set-parameter|"
                      r"-Wno-free-nonheap-object|-W(no-error=)?invalid-pch|-M[DMP]+|-frandom-seed=.*|-fdebug-.*|-Werror")
# -include: precompiled headers are GCC's, and sources are to include what they use.
_DROPPED_WITH_VALUE = {"-MF", "-o", "-include"}


def bazel_info(key):
    output = subprocess.run(["bazel", "info", key], check=True, capture_output=True, text=True)
    return output.stdout.strip()


def clang_arguments(arguments, externals):
    """The GCC command line `arguments` as clang reads it, started in the workspace."""
    result = ["clang++"]
    skip = False
    for argument in arguments[1:]:
        if skip:
            skip = False
        elif argument in _DROPPED_WITH_VALUE:
            skip = True
        elif not _DROPPED.fullmatch(argument):
            result.append(re.sub(r"^(-I|-isystem|-iquote)?external/", rf"\1{externals}/", argument))
    return result


def compile_commands():
    aquery = subprocess.run(_AQUERY, check=False, stdout=subprocess.PIPE, text=True)
    if not aquery.stdout:
        sys.exit("compile_commands: bazel aquery failed")
    externals = os.path.join(bazel_info("output_base"), "external")
    commands = {}
    for action in json.loads(aquery.stdout).get("actions", []):
        arguments = action["arguments"]
        source = arguments[arguments.index("-c") + 1]
        if source.endswith(".cc") and os.path.isfile(source) and not source.startswith("bazel-"):
            commands[source] = {
                "directory": os.getcwd(),
                "file": source,
                "arguments": clang_arguments(arguments, externals),
            }
    return [commands[source] for source in sorted(commands)]


def main():
    commands = compile_commands()
    with open("compile_commands.json", "w", encoding="utf-8") as output:
        json.dump(commands, output, indent=1)
    print(f"compile_commands.json: {len(commands)} files")


if __name__ == "__main__":
    main()
