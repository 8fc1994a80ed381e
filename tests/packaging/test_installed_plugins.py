"""Third parties' plug-ins: built as wheels, installed, and found by another process."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import subprocess
import sys
import tomllib
import zipfile

import pytest

BACKEND = """
class Backend:
    name, framework, install, suffixes = {name!r}, "json", "pip install nothing", (".{name}",)

    def accepts(self, model):
        return 2 if str(model).endswith(self.suffixes) else 0

    def open(self, model, example_inputs=None):
        raise KeyError("layer 7")

    def restore(self, state):
        raise KeyError("layer 7")
"""

HOOK = """
from isobit.plugins import hookimpl
{contract}

@hookimpl
def {hook}():
    return [Backend()]
"""

#: Prints what each of the arguments, a name or a path, comes to, and the records.
PROBE = """
import json, sys
from isobit.errors import IsobitError
from isobit.plugins import registry

found = {}
for asked in sys.argv[1:]:
    try:
        found[asked] = registry().open(asked) if "." in asked else type(registry().backend(asked)).__name__
    except IsobitError as error:
        found[asked] = f"{type(error).__name__}: {error}"
print(json.dumps({"found": found, "names": sorted(registry().backends())}))
"""


def plugin_source(name, *, hook="isobit_backends", contract=""):
    return BACKEND.format(name=name) + HOOK.format(hook=hook, contract=contract)


def build(folder, distribution, version, files, points):
    """A wheel of `files`, texts by path; `points` are its entry points."""
    stem = f"{distribution.replace('-', '_')}-{version}"
    info = f"{stem}.dist-info"
    table = "".join(f"{name} = {module}\n" for name, module in points.items())
    contents = {
        **files,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": f"[isobit]\n{table}",
    }
    lines = []
    for path, text in contents.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
        lines.append(f"{path},sha256={digest},{len(text.encode())}\n")
    wheel = folder / f"{stem}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for path, text in contents.items():
            archive.writestr(path, text)
        archive.writestr(f"{info}/RECORD", "".join(lines) + f"{info}/RECORD,,\n")
    return wheel


def install(site, *wheels):
    """Install wheels into a folder."""
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-compile"]
    pip += ["--disable-pip-version-check", "--target", str(site)]
    subprocess.run([*pip, *map(str, wheels)], check=True)


def run(site, *command, **environment):
    """A process that sees what is installed in `site`."""
    path = os.pathsep.join(filter(None, [str(site), os.environ.get("PYTHONPATH", "")]))
    return subprocess.run(
        [sys.executable, *command],
        env={**os.environ, "PYTHONPATH": path, **environment},
        capture_output=True,
        text=True,
    )


def probe(site, *backends, **environment):
    done = run(site, "-c", PROBE, *backends, **environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """One good plug-in and all kinds of bad ones, installed side by side."""
    folder = tmp_path_factory.mktemp("plugins")
    sources = {
        "good.py": plugin_source("good"),
        "raises.py": "raise RuntimeError('no licence')\n",
        "leaves.py": "import sys\nsys.exit('no licence')\n",
        "hook_fails.py": plugin_source("hook-fails").replace("return [Backend()]", "return 1 / 0"),
        "old.py": plugin_source("old", contract="ISOBIT_CONTRACT = 0"),
        "misspelt.py": plugin_source("misspelt", hook="isobit_backend"),
        "twin.py": plugin_source("twins"),
    }
    wheels = []
    for file, source in sources.items():
        module = file.removesuffix(".py")
        name, files = module.replace("_", "-"), {f"acme_{module}/__init__.py": "", f"acme_{module}/plugin.py": source}
        wheels.append(build(folder, f"acme-{name}", "2.5", files, {name: f"acme_{module}.plugin"}))
    files = {"acme_other/__init__.py": "", "acme_other/plugin.py": plugin_source("twins")}
    wheels.append(build(folder, "acme-other", "3.1", files, {"other": "acme_other.plugin"}))
    install(folder / "site", *wheels)
    return folder / "site"


def test_each_bad_plug_in_says_so_and_stops_no_other_one(site):
    backends = ("good", "raises", "leaves", "hook-fails", "old", "misspelt", "twins", "model.good")
    result = probe(site, *backends)
    assert "good" in result["names"]
    assert not {"raises", "old", "misspelt", "twins"} & set(result["names"])
    answers = result["found"]
    assert answers["good"] == "Backend"
    expected = {
        "raises": "plug-in 'raises' of acme-raises 2.5 did not load: RuntimeError: no licence",
        "leaves": "plug-in 'leaves' of acme-leaves 2.5 did not load: SystemExit: no licence",
        "hook-fails": "plug-in 'hook-fails' of acme-hook-fails 2.5 did not load: isobit_backends: ZeroDivisionError",
        "old": "plug-in 'old' of acme-old 2.5 did not load: it was written for contract 0 of isobit, and this isobit "
        "has contract 1: install a newer version of acme-old",
        "misspelt": "plug-in 'misspelt' of acme-misspelt 2.5 did not load: unknown hook 'isobit_backend' "
        "(did you mean 'isobit_backends'?)",
        "twins": "two plug-ins register a backend named 'twins': plug-in ",
        "model.good": "plug-in 'good' of acme-good 2.5 failed to open a str: KeyError: 'layer 7'",
    }
    for name, text in expected.items():
        assert answers[name].startswith(f"PluginError: {text}"), answers[name]
    assert "plug-in 'twin' of acme-twin 2.5" in answers["twins"]
    assert "plug-in 'other' of acme-other 3.1" in answers["twins"]


def test_plug_ins_can_be_left_out(site):
    result = probe(site, "twins", "raises", ISOBIT_DISABLE_PLUGINS="other, raises")
    assert result["found"]["twins"] == "Backend"
    assert result["found"]["raises"].startswith("PluginError: no backend 'raises'")


def test_the_commands_name_what_is_broken_and_how_to_repair_it(site):
    done = run(site, "-m", "isobit.cli", "backends", "--json")
    assert done.returncode == 0, done.stderr
    data = json.loads(done.stdout)
    rows = {row["name"]: row for row in data["backends"]}
    assert (rows["good"]["state"], rows["good"]["device"], rows["good"]["version"]) == ("ready", "unknown", "2.5")
    for name in ("raises", "leaves", "hook-fails", "old", "misspelt"):
        assert (rows[name]["state"], rows[name]["distribution"]) == ("broken", f"acme-{name}")
        assert rows[name]["repair"].startswith(
            f"pip install --upgrade acme-{name}, or leave it out: ISOBIT_DISABLE_PLUGINS="
        )
    assert any("two plug-ins register a backend named 'twins'" in warning for warning in data["warnings"])
    done = run(site, "-m", "isobit.cli", "doctor", COLUMNS="250")
    assert done.returncode == 1
    assert "raises of acme-raises 2.5: RuntimeError: no licence" in done.stdout
    assert "this installation needs repair" in done.stdout


def test_two_distributions_of_one_plug_in_name(tmp_path):
    wheels = []
    for distribution in ("acme-one", "acme-two"):
        package = distribution.replace("-", "_")
        files = {f"{package}/__init__.py": "", f"{package}/plugin.py": plugin_source("same")}
        wheels.append(build(tmp_path, distribution, "1.0", files, {"same": f"{package}.plugin"}))
    install(tmp_path / "site", *wheels)
    text = probe(tmp_path / "site", "same")["found"]["same"]
    assert "two plug-ins are named 'same'" in text
    assert "acme-one 1.0" in text
    assert "acme-two 1.0" in text


def test_a_bug_in_a_plug_in_is_reported_as_its_own(tmp_path):
    """Not as isobit's, whichever of its methods raised it."""
    source = """
from pathlib import Path

from isobit.plugins import hookimpl

class Odd(type(Path())):
    def read_text(self, *arguments, **settings):
        raise LookupError("table 3")

    read_bytes = open = read_text

@hookimpl
def isobit_targets():
    return [Odd("odd.toml")]
"""
    files = {"acme_buggy/__init__.py": "", "acme_buggy/plugin.py": source}
    site = tmp_path / "site"
    install(site, build(tmp_path, "acme-buggy", "0.3", files, {"buggy": "acme_buggy.plugin"}))
    done = run(site, "-m", "isobit.cli", "targets", "odd")
    assert done.returncode == 70, done.stdout + done.stderr
    assert "this is a bug in plug-in 'buggy' of acme-buggy 0.3" in done.stderr


def test_a_new_plug_in_is_ready(tmp_path):
    """Generated, installed, found; its tests run, and the conformance suite waits for its backend."""
    done = run(tmp_path, "-m", "isobit.cli", "new-plugin", "acme-npu", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "isobit-acme-npu"
    project = tomllib.loads((folder / "pyproject.toml").read_text("utf-8"))["project"]
    package = folder / "isobit_acme_npu"
    files = {f"isobit_acme_npu/{path.name}": path.read_text("utf-8") for path in package.iterdir()}
    points = project["entry-points"]["isobit"]
    install(tmp_path / "site", build(tmp_path, project["name"], project["version"], files, points))
    tests = run(tmp_path / "site", "-m", "pytest", "-q", "-W", "error", "-k", "test_plugin or test_names", str(folder))
    assert tests.returncode == 0, tests.stdout + tests.stderr
    summary = tests.stdout.splitlines()[-1]
    assert re.match(r"4 passed, \d+ skipped, \d{3} deselected", summary), summary  # the suite is there, and waits
    second = run(tmp_path, "-m", "isobit.cli", "new-plugin", "acme-npu", "--out", str(tmp_path))
    assert second.returncode == 1
    assert "exists already" in second.stderr
    wrong = run(tmp_path, "-m", "isobit.cli", "new-plugin", "Acme_NPU", "--out", str(tmp_path))
    assert wrong.returncode == 1
    assert "lower case letters" in wrong.stderr
