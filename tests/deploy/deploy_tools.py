"""Where tests/deploy/tools put its programs and Python packages. Import it before what it brings
(yaml, grpc, kubernetes_validate)."""

import glob
import hashlib
import os
import pwd
import sys

HERE = os.path.dirname(os.path.abspath(__file__))


def _folder():
    name = hashlib.sha256()
    for part in ("tools", "requirements.txt"):
        with open(os.path.join(HERE, part), "rb") as file:
            name.update(file.read())
    home = pwd.getpwuid(os.getuid()).pw_dir
    return f"{home}/.cache/conclave/deploy-tools-{name.hexdigest()[:12]}"


# In a user namespace the user has another number, and so another home.
FOLDER = os.environ.setdefault("CONCLAVE_DEPLOY_TOOLS", _folder())
MISSING = "" if os.path.isdir(FOLDER) else "tests/deploy/tools has not run (tools/setup --dev runs it)"
KUBECTL = {"1.20": f"{FOLDER}/kubectl-1.20", "current": f"{FOLDER}/venv/bin/kubectl"}
HADOLINT = f"{FOLDER}/venv/bin/hadolint"

sys.path += glob.glob(f"{FOLDER}/venv/lib/python3*/site-packages")
