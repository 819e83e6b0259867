#!/usr/bin/env python3
"""Brings a folder to what this clone holds, and writes only the files that differ.

Cargo takes a file for changed when its date is newer than the build, and in a new clone all dates are new. Built from a
folder that stays, only those of our own crates are built anew that changed since the last run.

Arguments: the folder, and the folder of build results. Where anything of ours was built there after the last run, by
whomever, dates tell nothing: then every file is written.
"""
import os
import pathlib
import shutil
import subprocess
import sys

CLONE = pathlib.Path(__file__).resolve().parent.parent
place, results = map(pathlib.Path, sys.argv[1:])
last_run = place.with_name(place.name + ".built")


def built_by_others():
    if not last_run.exists():
        return True
    last = last_run.stat().st_mtime
    return any(begun.stat().st_mtime > last for begun in results.glob("*/.fingerprint/*/invoked.timestamp"))


def listed():
    names = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=CLONE, check=True, stdout=subprocess.PIPE
    ).stdout.decode()
    return {name for name in names.split("\0") if name and (CLONE / name).is_file()}


def same(one, other):
    return other.is_file() and one.stat().st_mode == other.stat().st_mode and one.read_bytes() == other.read_bytes()


if built_by_others():
    shutil.rmtree(place, ignore_errors=True)
wanted = listed()
for folder, _, files in os.walk(place):
    for file in files:
        path = pathlib.Path(folder, file)
        if str(path.relative_to(place)) not in wanted:
            path.unlink()
written = 0
for name in sorted(wanted):
    if not same(CLONE / name, place / name):
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(CLONE / name, place / name)
        written += 1
print(f"{written} of {len(wanted)} files differ from those built last in {place}")
