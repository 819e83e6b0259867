#!/usr/bin/env python3
"""Gives each container's settings to the real config loader, so that names in docker-compose.yml cannot drift.

Arguments: the tailwater program. For every service built from our image: `tailwater check --print-config` must accept
the TAILWATER__ variables of docker-compose.yml and of the Dockerfile, and find the pipelines in order.
"""
import os
import pathlib
import re
import subprocess
import sys

import ruamel.yaml

TOP = pathlib.Path(__file__).resolve().parent.parent
DEFAULT = re.compile(r"\$\{\w+:-([^}]*)\}")

program = str(pathlib.Path(sys.argv[1]).resolve())
compose = ruamel.yaml.YAML(typ="safe").load((TOP / "docker-compose.yml").read_text())
image = dict(re.findall(r"(TAILWATER__\w+)=(\S+)", (TOP / "Dockerfile").read_text()))
clean = {name: value for name, value in os.environ.items() if not name.startswith("TAILWATER__")}

checked = 0
for name, service in compose["services"].items():
    if "build" not in service:
        continue
    settings = {key: DEFAULT.sub(r"\1", value) for key, value in service["environment"].items()}
    done = subprocess.run(
        [program, "check", "--print-config"], cwd=TOP, env=clean | image | settings,
        stdin=subprocess.DEVNULL, capture_output=True, text=True,
    )
    if done.returncode != 0:
        sys.exit(f"{name}: exit {done.returncode}\n{done.stdout}{done.stderr}")
    checked += 1
if checked < 5:
    sys.exit(f"only {checked} services are built from our image; four services and the shop were expected")
print(f"{checked} services: every setting is known")
